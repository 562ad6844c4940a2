"""The fine-tuned model: backbone, dropout, one linear layer to the symbols."""

import flax.linen as nn

from sew_jax.models.config import BackboneConfig, CTCHeadConfig
from sew_jax.models.headed import HeadedModel
from sew_jax.models.layers import Dropout, exact_dense


class CTCModel(HeadedModel):
    """wave (B, N), length (B,) samples -> float32 logits (B, T, symbols), length (B,) frames."""

    backbone: BackboneConfig
    head: CTCHeadConfig

    def read(self, contexts, length_B, deterministic: bool, row_B):
        symbols = exact_dense(self.head.symbols, nn.initializers.xavier_uniform(), name="symbols")
        return tuple(symbols(Dropout(self.head.dropout)(x, deterministic, row_B)) for x in contexts), length_B
