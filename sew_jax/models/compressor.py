"""Compression at any rate by continuous integrate-and-fire: CIF (arXiv 1905.11235), as OFA has it (2211.02332).

Each frame has a weight; where the running sum of weights passes a whole number, a frame of the output ends. B
utterances, T frames at 50 Hz, W = ceil(rate * T) frames of the output, D channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.models.config import BackboneConfig
from sew_jax.models.layers import exact_dense, layer_norm
from sew_jax.models.lengths import mask_from_lengths, scaled_length

COMPRESSOR_TAPS = 5
_LEAST = 1 / 64  # of a frame's weight, so that each frame has a place in the output to be read back from
_UNITS = 2**14  # of a weight of 1: sums of whole numbers are the same in whatever order, and however long the padding


class Compressor(nn.Module):
    """Which part of each frame goes into which frame of the output: (B, W, T) float32.

    Weights are learned where the model owns them, from what the encoder is given: of what is masked nothing shows.
    Else all frames weigh the same, and the output's frames are equally long.
    """

    config: BackboneConfig

    @nn.compact
    def __call__(self, x_BxTxD, length_B, rate: float):
        if not self.config.compressor:
            return parts_of_frames(jnp.ones(x_BxTxD.shape[:2]), length_B, rate)
        width, dtype = self.config.width, self.config.dtype
        x_BxTxD = nn.Conv(width, (COMPRESSOR_TAPS,), dtype=dtype, name="conv")(x_BxTxD)
        x_BxTxD = nn.relu(layer_norm(dtype, name="norm")(x_BxTxD))
        score_BxT = exact_dense(1, nn.initializers.xavier_uniform(), name="weight")(x_BxTxD)[..., 0]
        return parts_of_frames(_LEAST + (1 - _LEAST) * nn.sigmoid(score_BxT), length_B, rate)


def parts_of_frames(weight_BxT, length_B, rate: float):
    """Of each frame (T) the part that goes into each frame of the output (W), (B, W, T), without a loop.

    Weights of an utterance are scaled to a sum of rate * length, so that ceil(rate * length) frames come out, each of
    parts that sum to 1; those of the last one may sum to less. Padding has no part in anything.

    Args:
      weight_BxT: above 0, at most 1, before they are scaled.
    """
    frames = weight_BxT.shape[1]
    weight_BxT = jnp.where(mask_from_lengths(length_B, frames), weight_BxT, 0)
    sum_B = length_B * round(1000 * rate) / 1000
    units_BxT = jnp.cumsum(jnp.round(_UNITS * weight_BxT).astype(jnp.int32), axis=1)
    scale_Bx1 = (sum_B / jnp.maximum(units_BxT[:, -1], 1))[:, None]
    # the values of whole numbers, and the gradient of what was rounded to them
    exact_BxT = jnp.cumsum(weight_BxT, axis=1)
    exact_BxT *= sum_B[:, None] / _safe(exact_BxT[:, -1:])
    end_BxT = units_BxT * scale_Bx1 + (exact_BxT - jax.lax.stop_gradient(exact_BxT))
    begin_BxT = jnp.pad(end_BxT[:, :-1], ((0, 0), (1, 0)))
    first_W = jnp.arange(scaled_length(frames, rate))[:, None]
    parts_BxWxT = jnp.minimum(end_BxT[:, None], first_W + 1) - jnp.maximum(begin_BxT[:, None], first_W)
    valid_BxW = mask_from_lengths(scaled_length(length_B, rate), first_W.shape[0])
    return jnp.where(valid_BxW[:, :, None], jnp.maximum(parts_BxWxT, 0), 0)


def average_parts(parts_BxWxT, x_BxTxD, precision=None):
    """Each frame of the output as the mean of what goes into it: (B, W, D)."""
    return _apply(parts_BxWxT / _safe(parts_BxWxT.sum(2, keepdims=True)), x_BxTxD, precision)


def read_back(parts_BxWxT, y_BxWxD):
    """Each frame as the mean of those that it went into, by its parts: (B, T, D)."""
    return _apply((parts_BxWxT / _safe(parts_BxWxT.sum(1, keepdims=True))).swapaxes(1, 2), y_BxWxD)


def _safe(sum_BxYxX):
    return jnp.where(sum_BxYxX > 0, sum_BxYxX, 1)


def _apply(parts_BxYxX, x_BxXxD, precision=None):
    options = {"precision": precision, "preferred_element_type": jnp.float32}
    out = jnp.einsum("byx,bxd->byd", parts_BxYxX.astype(x_BxXxD.dtype), x_BxXxD, **options)
    return out.astype(x_BxXxD.dtype)
