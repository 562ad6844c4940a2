"""The mesh, and the rules that place batches and parameters on it."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sew_jax.errors import UserError

BATCH = PartitionSpec(("data", "fsdp"))
_SMALLEST_SHARDED = 4096  # elements; below, gathering costs more than the memory it saves


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
    """A (data, fsdp) mesh; one of the sizes may be -1 for all the rest.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape, count = [data, fsdp], len(devices)
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = count // max(data * fsdp * -1, 1)
    if min(shape) < 1 or shape[0] * shape[1] != count:
        raise UserError(
            f"mesh.data={data} x mesh.fsdp={fsdp} does not fit {count} device(s); their product must be {count} (-1: all the rest)"
        )
    # Auto: the compiler propagates shardings (make_mesh's default is Explicit)
    return jax.make_mesh(tuple(shape), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all devices."""
    return NamedSharding(mesh, BATCH)


def tree_shardings(mesh: Mesh, tree):
    """Placement of a state: each large array is split over `fsdp` along its largest axis that divides, the rest is copied."""
    size = mesh.shape["fsdp"]

    def place(x):
        spec = [None] * x.ndim
        axes = [axis for axis in range(x.ndim) if x.shape[axis] % size == 0]
        if size > 1 and axes and x.size >= _SMALLEST_SHARDED:
            spec[max(axes, key=lambda axis: x.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, tree)


def bytes_per_device(tree, shardings) -> int:
    """Bytes that one device holds of a tree of arrays or shapes."""
    sizes = jax.tree.map(lambda x, s: int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize, tree, shardings)
    return sum(jax.tree.leaves(sizes))


def place_batch(arrays: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows as one global batch."""
    # Where there are several processes, JAX takes this explicit copy for a hidden one
    with jax.transfer_guard_host_to_device("allow"):
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in arrays.items()}


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
