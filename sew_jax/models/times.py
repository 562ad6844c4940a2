"""Positions by time alone, without a convolution: rotary and ALiBi, between frames of any rates.

A frame's time is the mean time of the front end's frames that it is made of, whether by squeeze, pooling, a rate or
merging, in frames of the front end: it goes wherever the frame goes, by the same means. B utterances, T frames, W
squeezed ones, Q queries, K keys, F of either, H heads, E channels of a head.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sew_jax.models.lengths import mean_pool

_BASE = 10_000  # of the wavelengths in rotary positions (RoFormer, arXiv 2104.09864)


def times_of_windows(length_B, frames: int, squeeze: int):
    """(B, W, 1) float32: the middle of each window of `squeeze` frames, or of what there is of the last one."""
    time_T = jnp.arange(frames, dtype=jnp.float32)
    return mean_pool(jnp.broadcast_to(time_T[:, None], (length_B.shape[0], frames, 1)), length_B, squeeze)


def rotate(x_BxFxHxE, time_BxF):
    """Queries or keys turned by their time, so that a score depends on how far both are from each other.

    Channel e of the first half makes a pair with channel e of the second one, which turns by 10000^(-2e/E) a frame.
    """
    half = x_BxFxHxE.shape[-1] // 2
    speed_E = jnp.asarray(_BASE ** (-np.arange(half) / half), jnp.float32)
    angle_BxFx1xE = time_BxF[:, :, None, None] * speed_E
    cosine, sine = jnp.cos(angle_BxFx1xE), jnp.sin(angle_BxFx1xE)
    first, second = jnp.split(x_BxFxHxE.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x_BxFxHxE.dtype)


def alibi_slopes(heads: int) -> np.ndarray:
    """(H,) what a frame of distance costs: powers of 2^(-8/H); where H is no power of 2, those of the next less one,
    then every second one of the next greater (arXiv 2108.12409, its authors' code).
    """
    less = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / less) for i in range(less)]
    between = [2 ** (-4 * (i + 1) / less) for i in range(0, 2 * (heads - less), 2)]
    return np.array(slopes + between, np.float32)


def alibi(slope, query_time_BxQ, key_time_BxK):
    """A head's (B, Q, K) to be added to its scores: less the further a key is, to either side."""
    distance_BxQxK = jnp.abs(query_time_BxQ[:, :, None] - key_time_BxK[:, None, :])
    return jax.lax.stop_gradient(-slope * distance_BxQxK)
