"""A checkpoint is what was saved, or it is not there."""

import asyncio
import errno
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sew_jax import storage
from sew_jax.checkpoints import checkpointer as checkpoint
from sew_jax.checkpoints.checkpointer import Checkpoints
from sew_jax.checkpoints.checksums import checksums
from sew_jax.checkpoints.quiet import quiet_orbax
from sew_jax.errors import Unavailable, UserError
from sew_jax.runtime.sharding import make_mesh, tree_shardings
from sew_jax.training.step import new_state


def state_on(mesh, seed):
    params = {
        "dense": {"kernel": jax.random.normal(jax.random.key(seed), (128, 512)), "bias": jnp.full(8, seed, jnp.float32)}
    }
    state = new_state({"params": params, "batch_stats": {"mean": jnp.arange(4.0)}}, optax.adam(1e-3))
    return jax.device_put(state, tree_shardings(mesh, state))


def shapes(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Updates 1 and 2 of a state that is split over two devices."""
    workdir, states = tmp_path_factory.mktemp("run"), {}
    checkpoints = Checkpoints(workdir)
    for step in (1, 2):
        states[step] = state_on(make_mesh(4, 2), step)
        checkpoints.save(states[step], step, {"step": step})
    checkpoints.wait()
    checkpoints.close()
    return workdir, states


def restore(workdir, like):
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


@pytest.mark.parametrize("sizes", [(4, 2), (1, 8), (8, 1)])
def test_any_mesh_reads_the_same_bits(saved, sizes):
    workdir, states = saved
    like = shapes(state_on(make_mesh(*sizes), 0))
    step, state, damaged = restore(workdir, like)
    assert step == 2 and not damaged and equal(state, states[2])
    assert state.params["dense"]["kernel"].sharding == like.params["dense"]["kernel"].sharding


def test_whatever_bit_is_changed_what_is_read_is_what_was_saved(saved, tmp_path):
    workdir, states = saved
    like, reasons = shapes(states[2]), []
    files = sorted(path.relative_to(workdir) for path in (workdir / "checkpoints/2").rglob("*") if path.is_file())
    for number, name in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(workdir, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        step, state, damaged = restore(copy, like)
        assert equal(state, states[step]), name
        assert step == (1 if damaged else 2)
        assert (copy / "damaged/2").is_dir() == bool(damaged)
        reasons += [reason for _, reason in damaged]
    assert any("differs from what was saved" in reason for reason in reasons)  # which Orbax did not notice
    assert any("differs" not in reason for reason in reasons)


def test_damaged_ones_never_hide_each_other(saved, tmp_path):
    workdir, states = saved
    shutil.copytree(workdir, tmp_path / "run")
    for _ in range(2):
        shutil.copytree(workdir / "checkpoints/2", tmp_path / "run/checkpoints/2", dirs_exist_ok=True)
        (tmp_path / "run/checkpoints/2/params/manifest.ocdbt").unlink()
        assert restore(tmp_path / "run", shapes(states[1])).step == 1
    assert sorted(path.name for path in (tmp_path / "run/damaged").iterdir()) == ["2", "2.1"]


def test_none_that_can_be_read(saved, tmp_path):
    workdir, states = saved
    shutil.copytree(workdir, tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").glob("*/params/manifest.ocdbt"):
        path.unlink()
    with pytest.raises(UserError, match=r"no checkpoint that can be read \(update 2: .*; update 1: "):
        restore(tmp_path / "run", shapes(states[1]))
    assert not (tmp_path / "run/damaged").exists()
    assert restore(tmp_path / "empty", shapes(states[1])) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        ValueError("UNAVAILABLE: Error reading from GCS: 503"),  # TensorStore's are of this kind, whatever they say
        ValueError("DEADLINE_EXCEEDED: Timeout was reached"),
        ValueError("RESOURCE_EXHAUSTED: 429 Too many requests"),
        ValueError("ABORTED: the transaction was aborted"),
        ValueError("CANCELLED: the read was cancelled"),
    ],
    ids=lambda error: str(error).split(":")[0],
)
def test_storage_that_does_not_answer_is_no_damage(saved, tmp_path, monkeypatch, error):
    workdir, states = saved
    shutil.copytree(workdir, tmp_path / "run")

    def fail(*_):
        raise error

    def refuse(*_):
        raise ValueError("PERMISSION_DENIED: Error opening local file")

    monkeypatch.setattr(checkpoint, "_read", fail)
    monkeypatch.setattr(storage, "PATIENCE_S", 0.1)
    words = re.escape(str(error))
    with pytest.raises(Unavailable, match=rf"update 2 cannot be read at the moment \(.*{words}\); nothing was changed"):
        restore(tmp_path / "run", shapes(states[1]))
    monkeypatch.setattr(checkpoint, "_read", refuse)
    with pytest.raises(UserError, match=r"update 2 cannot be read \(PERMISSION_DENIED: .*\); nothing was changed"):
        restore(tmp_path / "run", shapes(states[1]))
    assert (tmp_path / "run/checkpoints/2").is_dir() and not (tmp_path / "run/damaged").exists()


def test_a_run_that_goes_on_meanwhile_is_read_again(saved, tmp_path, monkeypatch):
    """The newest checkpoint is replaced while it is read, as beside a run that keeps the last ones alone."""
    workdir, states = saved
    shutil.copytree(workdir / "checkpoints/1", tmp_path / "run/checkpoints/1")
    read = checkpoint._read

    def replaced(folder, step, like):
        if step == 1:
            shutil.rmtree(tmp_path / "run/checkpoints/1", ignore_errors=True)
            shutil.copytree(workdir / "checkpoints/2", tmp_path / "run/checkpoints/2", dirs_exist_ok=True)
        return read(folder, step, like)

    monkeypatch.setattr(checkpoint, "_read", replaced)
    step, state, damaged = restore(tmp_path / "run", shapes(states[1]))
    assert step == 2 and equal(state, states[2]) and not damaged


def test_checksums_know_places():
    values = jax.random.normal(jax.random.key(0), (6, 5, 4))
    sums = checksums({"a": values})
    for other in (values[::-1], values[:, ::-1], values[:, :, ::-1], values.at[2, 3, 1].set(0.0)):
        assert checksums({"a": other}) != sums


def test_reads_that_orbax_abandons_are_silent_and_others_are_not(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    quiet_orbax()
    code = "async def read(other):\n    try:\n        await other\n    finally:\n        raise OSError('torn')"
    for file in ("/x/orbax/checkpoint/serialization.py", "/x/other.py"):
        space = {}
        exec(compile(code, file, "exec"), space)
        coroutine = space["read"](asyncio.Future(loop=asyncio.new_event_loop()))
        coroutine.send(None)
        del coroutine
    assert [each.object.cr_code.co_filename for each in said] == ["/x/other.py"]
