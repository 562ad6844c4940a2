"""Length arithmetic, in one convention: a length counts valid positions, masks are derived from it where they are used.

All functions take Python ints, numpy arrays or traced arrays alike. B utterances, T frames, D channels.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

Length = TypeVar("Length", int, jax.Array)

# Score of a key beyond the end; finite, so that an utterance without valid keys (a filler row) yields numbers, not NaN
MASKED = -1e30


def conv_length(length: Length, kernel: int, stride: int) -> Length:
    """Output positions of an unpadded convolution that see valid input only; 0 for input shorter than a kernel."""
    out = (length - kernel) // stride + 1
    size: Any = out
    if is_symbolic_dim(size):  # of an exported program, which is given a frame at least
        return out
    return max(out, 0) if isinstance(out, int) else jnp.maximum(out, 0)


def pooled_length(length: Length, factor: int) -> Length:
    """Windows of `factor` positions that hold at least one valid one."""
    return -(-length // factor)


def merged_away(length: Length, share: float) -> Length:
    """Of so many frames, those that a layer merges into others: the share in thousandths, rounded down."""
    return length * round(1000 * share) // 1000


def scaled_length(length: Length, rate: float) -> Length:
    """Frames at a rate in thousandths that are left of so many, rounded up."""
    return -(-length * round(1000 * rate) // 1000)


def mask_from_lengths(length_B: jax.Array, positions: int) -> jax.Array:
    """(B, T) booleans, true at valid positions."""
    return jnp.arange(positions) < length_B[:, None]


def zero_padding(x_BxTxD: jax.Array, length_B: jax.Array) -> jax.Array:
    """Zeros every padded position, whatever it holds (NaN too)."""
    mask = mask_from_lengths(length_B, x_BxTxD.shape[1])
    return jnp.where(mask[:, :, None], x_BxTxD, jnp.zeros((), x_BxTxD.dtype))


def mean_pool(x_BxTxD: jax.Array, length_B: jax.Array, factor: int) -> jax.Array:
    """Means over windows of `factor` frames, counting valid frames only: (B, ceil(T / factor), D)."""
    if factor == 1:
        return x_BxTxD
    batch, frames, width = x_BxTxD.shape
    windows = pooled_length(frames, factor)
    x = zero_padding(x_BxTxD, length_B).astype(jnp.float32)
    x = jnp.pad(x, ((0, 0), (0, windows * factor - frames), (0, 0)))
    total = x.reshape(batch, windows, factor, width).sum(2)
    count_BxW = jnp.clip(length_B[:, None] - jnp.arange(windows) * factor, 1, factor)
    return (total / count_BxW[:, :, None]).astype(x_BxTxD.dtype)


def repeat_frames(x_BxTxD: jax.Array, factor: int, frames: int) -> jax.Array:
    """Each frame `factor` times, cut to `frames`: brings a pooled sequence back to the rate it came from."""
    if factor == 1:
        return x_BxTxD[:, :frames]
    return jnp.repeat(x_BxTxD, factor, axis=1)[:, :frames]


def normalize_over_time(x_BxTxC, length_B, epsilon: float, one_scale: bool = False):
    """Zero mean and unit variance of each channel over valid frames; padded frames hold numbers of no meaning.

    With `one_scale` the variances' mean over channels is 1, not each one.
    """
    centred, variance = centred_over_time(x_BxTxC, length_B)
    if one_scale:
        variance = variance.mean(2, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


def centred_over_time(x_BxTxC, length_B):
    """Each channel less its mean over valid frames, and the mean of its square: (B, T, C), (B, 1, C)."""
    mask = mask_from_lengths(length_B, x_BxTxC.shape[1])[:, :, None]
    count = jnp.maximum(length_B, 1)[:, None, None]
    mean = jnp.where(mask, x_BxTxC, 0.0).sum(1, keepdims=True) / count
    centred = x_BxTxC - mean
    return centred, jnp.where(mask, jnp.square(centred), 0.0).sum(1, keepdims=True) / count
