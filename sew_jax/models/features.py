"""The model without a head: its features at the front end's rate, and what each of its layers gives.

B utterances, N samples, T frames, W squeezed frames, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sew_jax.compression import Compression
from sew_jax.models.compressor import read_back
from sew_jax.models.config import BackboneConfig
from sew_jax.models.headed import HeadedModel
from sew_jax.models.lengths import repeat_frames, zero_padding


class FeatureModel(HeadedModel):
    """wave (B, N), length (B,) samples -> the backbone's output (B, T, D), length (B,) frames."""

    backbone: BackboneConfig
    head: None = None

    def read(self, contexts, length_B, deterministic: bool, row_B):
        return contexts, length_B


def layers_at_frames(config: BackboneConfig, noted: Any, setting: Compression, length_B, frames: int) -> list:
    """What each layer gives, (B, T, D) at the front end's rate: each squeezed frame repeated, the tail zero.

    Args:
      noted: what `Encoder` notes as `states`.
      length_B: frames of each utterance, of `frames` in all.
    """
    states, parts_BxWxT = noted
    squeeze = setting.squeeze
    whole_B = length_B // squeeze * squeeze if config.tail == "drop" else length_B  # a dropped tail has no state

    def at_frames(x_BxWxD) -> jax.Array:
        rated = parts_BxWxT is not None
        x_BxTxD = read_back(parts_BxWxT, x_BxWxD) if rated else repeat_frames(x_BxWxD, squeeze, frames)
        return zero_padding(jnp.pad(x_BxTxD, ((0, 0), (0, frames - x_BxTxD.shape[1]), (0, 0))), whole_B)

    return [at_frames(x) for x in states]
