"""The mesh, and the rules that place batches and parameters on it."""

import functools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from sew_jax.data.pipeline import Share
from sew_jax.errors import UserError
from sew_jax.models.parameters import path_name

BATCH = PartitionSpec(("data", "fsdp"))
# Parameters and their moments by path; all the rest (norms, gains, counts, statistics) is small
RULES = ((r"(kernel|weight_v|codebook|bias)$", "split"), (r"", "copy"))
_SMALLEST_SHARDED = 4096  # elements; below, gathering costs more than the memory it saves


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
    """A (data, fsdp) mesh; one of the sizes may be -1 for all the rest.

    Neighbours on the mesh are neighbours on a TPU's network; of several slices, `fsdp` stays within one where it can.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or these cannot be arranged so.
    """
    devices = jax.devices() if devices is None else devices
    shape, count = [data, fsdp], len(devices)
    if shape.count(-1) == 1:
        given = fsdp if data == -1 else data
        shape[shape.index(-1)] = count // max(given, 1)
    if min(shape) < 1 or shape[0] * shape[1] != count:
        raise UserError(
            f"mesh.data={data} x mesh.fsdp={fsdp} does not fit {count} device(s); "
            f"their product must be {count} (-1: all the rest)"
        )
    try:
        arranged = _arranged(shape[0], shape[1], devices)
    except (AssertionError, NotImplementedError, ValueError) as error:  # as mesh_utils says that it cannot
        raise UserError(
            f"mesh.data={shape[0]} x mesh.fsdp={shape[1]} cannot be laid on these {count} devices "
            f"({' '.join(str(error).split())[:160]}); try another mesh.fsdp"
        ) from error
    # Auto: the compiler propagates shardings (Explicit would have the model name them)
    return Mesh(arranged, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def _arranged(data: int, fsdp: int, devices) -> np.ndarray:
    """(data, fsdp) devices."""
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    if slices == 1:
        return mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
    apart = math.gcd(data, slices)  # slices along `data`; those that it cannot take lie along `fsdp`
    across = (apart, slices // apart)
    within = (data // across[0], fsdp // across[1])
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def abstract_mesh(data: int, fsdp: int) -> AbstractMesh:
    """A mesh of devices that need not be there, to plan with."""
    return AbstractMesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all devices."""
    return NamedSharding(mesh, BATCH)


def tree_shardings(mesh: Mesh | AbstractMesh, tree, rules: Sequence[tuple[str, str]] = RULES):
    """Placement of a state (arrays or shapes): the first rule whose pattern is found in an array's path decides.

    Raises:
      ValueError: a rule decides nothing, or an array has none.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    used, shardings = set(), []
    for path, x in paths:
        name = path_name(path)
        number = next((i for i, (pattern, _) in enumerate(rules) if re.search(pattern, name)), None)
        if number is None:
            raise ValueError(f"no sharding rule for {name}")
        used.add(number)
        shardings.append(NamedSharding(mesh, _ACTIONS[rules[number][1]](x.shape, mesh.shape["fsdp"])))
    if unused := [rules[i][0] for i in range(len(rules)) if i not in used]:
        raise ValueError(f"sharding rules that decide nothing: {', '.join(unused)}")
    return jax.tree.unflatten(structure, shardings)


def _split(shape: tuple[int, ...], size: int) -> PartitionSpec:
    axes = [axis for axis in range(len(shape)) if shape[axis] % size == 0]
    if size == 1 or not axes or math.prod(shape) < _SMALLEST_SHARDED:
        return PartitionSpec()
    largest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(("fsdp" if axis == largest else None) for axis in range(len(shape))))


# split: over `fsdp` along the largest axis that divides, if it is worth it; copy: all of it on each device
_ACTIONS = {"split": _split, "copy": lambda shape, size: PartitionSpec()}


def bytes_per_device(tree, shardings) -> int:
    """Bytes that one device holds of a tree of arrays or shapes."""
    sizes = jax.tree.map(lambda x, s: int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize, tree, shardings)
    return sum(jax.tree.leaves(sizes))


@functools.lru_cache
def share_of(sharding: NamedSharding, process: int | None = None) -> Share:
    """The rows of a batch that a process holds, this one by default; the mesh need not keep them together."""
    process = jax.process_index() if process is None else process
    count = len(sharding.device_set)
    blocks = sharding.devices_indices_map((count,))
    local = [index for device, index in blocks.items() if device.process_index == process]  # type: ignore[attr-defined]
    mine = sorted(map(_begin, local))
    return Share(tuple(mine), count)


def _begin(index: tuple[slice, ...]) -> int:
    """The first row of a device's part."""
    return index[0].start or 0


def place_batch(arrays: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows, those of `share_of`, as one global batch."""
    share = share_of(sharding)
    place = {block: i for i, block in enumerate(share.blocks)}

    def on_devices(array: np.ndarray) -> jax.Array:
        parts = array.reshape(len(place), -1, *array.shape[1:])
        rows = parts.shape[1]
        return jax.make_array_from_callback(
            (rows * share.of, *array.shape[1:]), sharding, lambda index: parts[place[_begin(index) // rows]]
        )

    # Where there are several processes, JAX takes this explicit copy for a hidden one
    with jax.transfer_guard_host_to_device("allow"):
        return {name: on_devices(array) for name, array in arrays.items()}


def place_ahead(batches: Iterable[Any], sharding: NamedSharding) -> Iterator[tuple[Any, dict[str, jax.Array]]]:
    """Each batch (it has `arrays`) with its global arrays, placed one batch ahead: copies overlap the update before."""
    ahead = None
    for batch in batches:
        placed = batch, place_batch(batch.arrays, sharding)
        if ahead:
            yield ahead
        ahead = placed
    if ahead:
        yield ahead
