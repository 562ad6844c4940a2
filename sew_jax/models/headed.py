"""What models of any head share: their first variables, and one setting as several of which there is one."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.compression import Compression
from sew_jax.models.config import BackboneConfig
from sew_jax.rates import SAMPLE_RATE


class HeadedModel(nn.Module):
    """wave (B, N), length (B,) samples -> logits and their frames (B,); `at_settings` is the subclass's."""

    backbone: BackboneConfig
    head: Any

    def initialize(self, key) -> dict[str, Any]:
        """Variables for a key."""
        wave, length = jnp.zeros((1, SAMPLE_RATE)), jnp.array([SAMPLE_RATE])
        return dict(self.init(key, wave, length, Compression(), deterministic=True))

    def __call__(
        self,
        wave_BxN,
        length_B,
        compression: Compression,
        *,
        deterministic: bool,
        time_mask_BxT=None,
        channel_mask_BxD=None,
    ) -> tuple[jax.Array, jax.Array]:
        (logits,), frames_B = self.at_settings(
            wave_BxN,
            length_B,
            (compression,),
            deterministic=deterministic,
            time_mask_BxT=time_mask_BxT,
            channel_mask_BxD=channel_mask_BxD,
        )
        return logits, frames_B
