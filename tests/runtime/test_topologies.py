"""Meshes on the topologies of TPU slices, which libtpu knows without a TPU; skipped where it is not installed."""

import os
from unittest import mock

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from sew_jax.data.pipeline import Share
from sew_jax.errors import UserError
from sew_jax.runtime.sharding import batch_sharding, make_mesh, share_of

pytest.importorskip("libtpu")

# slices that docs/scaling.md names, with their chips
SLICES = {"v5e:2x2": 4, "v5e:4x4": 16, "v5e:8x8": 64, "v5p:2x2x2": 8, "v6e:2x4": 8, "v6e:4x4": 16, "v6e:8x8": 64}
MESHES = [(name, 1, fsdp) for name, chips in SLICES.items() for fsdp in (1, 2, 4, 8) if chips % fsdp == 0]
SEVERAL_OF = ("v5e:4x4", "v6e:8x8", "v5p:2x2x2")
SEVERAL = [(name, count, fsdp) for name in SEVERAL_OF for count in (2, 4) for fsdp in (1, 4, 8)]


@pytest.fixture(scope="module")
def devices_of():
    """The devices of a slice, or of several. libtpu looks for no TPU and asks no metadata server."""
    alone = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    alone |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # another test may have loaded it
    with mock.patch.dict(os.environ, alone):
        yield (
            lambda name, count=1: (
                topologies.get_topology_desc(
                    name, platform="tpu", **({"num_slices": count} if count > 1 else {})
                ).devices
            )
        )


def rows_by_place(mesh, process, rows):
    """What a process holds, read off the mesh: device number i along (data, fsdp) has the i-th part of the rows."""
    part = rows // mesh.size
    return [
        row
        for place, device in enumerate(mesh.devices.flat)
        if device.process_index == process
        for row in range(place * part, (place + 1) * part)
    ]


@pytest.mark.parametrize(("name", "count", "fsdp"), MESHES + SEVERAL)
def test_rows_of_each_host(devices_of, name, count, fsdp):
    """A mesh of all chips, and each host's rows on it: all of them once, where its devices are."""
    devices = devices_of(name, count)
    assert len(devices) == SLICES[name] * count
    mesh = make_mesh(-1, fsdp, devices)
    assert dict(mesh.shape) == {"data": len(devices) // fsdp, "fsdp": fsdp}
    assert {d.id for d in mesh.devices.flat} == {d.id for d in devices}
    rows = np.arange(2 * len(devices))
    processes = sorted({device.process_index for device in devices})
    shares = [share_of(batch_sharding(mesh), process).rows(rows) for process in processes]
    assert np.sort(np.concatenate(shares)).tolist() == rows.tolist()
    for process, share in zip(processes, shares, strict=True):
        assert share.tolist() == rows_by_place(mesh, process, len(rows))


@pytest.mark.parametrize(("name", "count", "fsdp"), SEVERAL)
def test_parameters_are_gathered_within_a_slice(devices_of, name, count, fsdp):
    """Its network is faster than that between slices."""
    mesh = make_mesh(-1, fsdp, devices_of(name, count))
    if fsdp <= SLICES[name]:
        assert all(len({device.slice_index for device in row}) == 1 for row in mesh.devices)


def test_fsdp_over_all_slices(devices_of):
    mesh = make_mesh(1, -1, devices_of("v5e:4x4", 2))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 32}


def test_hosts_do_not_hold_neighbouring_rows(devices_of):
    """Why rows are asked of the sharding: of 16 chips the first host has four, and they are not the first four."""
    sharding = batch_sharding(make_mesh(-1, 1, devices_of("v5e:4x4")))
    assert share_of(sharding, 0) != Share((0, 1, 2, 3), 16) and len(share_of(sharding, 0).blocks) == 4


def test_chips_that_form_no_mesh_are_one_line(devices_of):
    """As where a chip of a slice is lost."""
    with pytest.raises(UserError, match=r"cannot be laid on these 15 devices"):
        make_mesh(-1, 1, devices_of("v5e:4x4")[:15])


def test_the_suite_still_runs_on_the_cpu(devices_of):
    devices_of("v5e:2x2")
    assert jax.default_backend() == "cpu"
