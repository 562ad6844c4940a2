"""Matrix products and convolutions in bfloat16, as the platform computes them best.

On CPUs bfloat16 pays in matrix products alone, of bfloat16 operands with float32 results, and there only where the CPU
has instructions for them; elsewhere operands are widened first, which gives the same numbers at float32's speed.
Chosen when a program is lowered; programs in float32, and those for other platforms, are what they would be without.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sew_jax.models.platforms import by_platform

# By what `remat=dots` knows the results of layers' matrix products, in whichever form they are computed
PRODUCT = "product"
_CPU_INFO = Path("/proc/cpuinfo")
_NATIVE = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 twice, and ARM


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16; no where the system does not say."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return False
    words = (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features")))
    return not _NATIVE.isdisjoint(next(words, ()))


def widen(*arrays):
    """Operands of a product on this CPU: float32 where it has no instructions for fewer bits."""
    return arrays if cpu_multiplies_bfloat16() else tuple(x.astype(jnp.float32) for x in arrays)


def cpu_product(a, b, contracted: tuple[tuple[int, ...], tuple[int, ...]] | None = None):
    """Product of arrays of one dtype on this CPU, summed in float32; by default a @ b where b is a matrix."""
    dimensions = (contracted or ((a.ndim - 1,), (0,)), ((), ()))
    a, b = widen(a, b)
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def dense_product(x, kernel_IxO, dimensions, precision=None):
    """x @ kernel in the dtype of both, (..., O): the `dot_general` of flax's `Dense`.

    Args:
      x: (..., I).
      dimensions: as `jax.lax.dot_general` has them, of the last axis of x and the first of the kernel.
    """
    if x.dtype == jnp.bfloat16 and precision is None:
        y = _product(x, kernel_IxO)
    else:
        y = jax.lax.dot_general(x, kernel_IxO, dimensions, precision=precision)
    return checkpoint_name(y, PRODUCT)


def _plain(x, kernel_IxO):
    return jax.lax.dot_general(x, kernel_IxO, (((x.ndim - 1,), (0,)), ((), ())))


def _on_cpu(x, kernel_IxO):
    return cpu_product(x, kernel_IxO).astype(x.dtype)


@jax.custom_vjp
def _product(x, kernel_IxO):
    return by_platform(x, kernel_IxO, cpu=_on_cpu, default=_plain)


def _forward(x, kernel_IxO):
    return _product(x, kernel_IxO), (x, kernel_IxO)


def _backward(kept, dy):
    def plain(x, kernel_IxO, dy):
        return jax.vjp(_plain, x, kernel_IxO)[1](dy)

    def on_cpu(x, kernel_IxO, dy):
        rows = tuple(range(x.ndim - 1))
        dx = cpu_product(dy, kernel_IxO, ((dy.ndim - 1,), (1,)))
        return dx.astype(x.dtype), cpu_product(x, dy, (rows, rows)).astype(x.dtype)

    return by_platform(*kept, dy, cpu=on_cpu, default=plain)


_product.defvjp(_forward, _backward)


def wide_on_cpu(function, *arrays):
    """function(*arrays), on CPUs in float32: they convolve bfloat16 slower. The result is of the first one's dtype."""
    if arrays[0].dtype == jnp.float32:
        return function(*arrays)

    def wide(*arrays):
        return function(*(x.astype(jnp.float32) for x in arrays)).astype(arrays[0].dtype)

    return by_platform(*arrays, cpu=wide, default=function)
