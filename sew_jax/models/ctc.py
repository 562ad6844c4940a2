"""The fine-tuned model: backbone, dropout, one linear layer to the symbols."""

import flax.linen as nn
import jax

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from sew_jax.models.config import BackboneConfig, CTCHeadConfig
from sew_jax.models.headed import HeadedModel
from sew_jax.models.layers import Dropout, exact_dense


class CTCModel(HeadedModel):
    """wave (B, N), length (B,) samples -> float32 logits (B, T, symbols), length (B,) frames."""

    backbone: BackboneConfig
    head: CTCHeadConfig

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
