"""The fine-tuned model: backbone, dropout, one linear layer to the symbols."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from sew_jax.models.config import BackboneConfig, CTCHeadConfig
from sew_jax.models.layers import Dropout, exact_dense
from sew_jax.rates import SAMPLE_RATE


class CTCModel(nn.Module):
    """wave (B, N), length (B,) samples -> float32 logits (B, T, symbols), length (B,) frames."""

    backbone: BackboneConfig
    head: CTCHeadConfig

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

    @nn.compact
    def at_settings(
        self,
        wave_BxN,
        length_B,
        settings: tuple[Compression, ...],
        *,
        deterministic: bool,
        time_mask_BxT=None,
        channel_mask_BxD=None,
        row_B=None,
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """The logits at each setting, of one pass of the front end, which learns from the first alone."""
        hidden = Backbone(self.backbone, name="backbone")(
            wave_BxN,
            length_B,
            settings[0],
            deterministic=deterministic,
            time_mask_BxT=time_mask_BxT,
            channel_mask_BxD=channel_mask_BxD,
            others=settings[1:],
            row_B=row_B,
        )
        symbols = exact_dense(self.head.symbols, nn.initializers.xavier_uniform(), name="symbols")
        contexts = (hidden.context_BxTxD, *hidden.others_BxTxD)
        logits = tuple(symbols(Dropout(self.head.dropout)(x, deterministic, row_B)) for x in contexts)
        return logits, hidden.length_B
