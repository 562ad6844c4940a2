"""Whether arrays are to the bit what they were when they were saved, which Orbax does not tell."""

from typing import Any

import jax
import jax.numpy as jnp

from sew_jax.models.parameters import path_name


def checksums(items: dict[str, Any]) -> dict[str, int]:
    """For each array the sum of its bits, weighted by place; the mesh and the order of adding change nothing."""
    leaves = jax.tree_util.tree_leaves_with_path(items)
    sums = jax.device_get(_bit_sums([x for _, x in leaves]))
    return {path_name(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


def differences(items: dict[str, Any], meta: dict[str, Any]) -> list[str]:
    """Names of the arrays that are not as they were saved."""
    return [name for name, value in checksums(items).items() if meta["checksums"].get(name) != value]


@jax.jit
def _bit_sums(arrays: list[jax.Array]) -> list[jax.Array]:
    def total(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
        weight, stride = jnp.uint32(1), 2  # 1 + 2 * place: odd, so that no change of a bit is multiplied away
        for axis in reversed(range(x.ndim)):
            weight += jnp.uint32(stride % 2**32) * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            stride *= x.shape[axis]
        return (bits * weight).sum(dtype=jnp.uint32)

    return [total(x) for x in arrays]
