"""The fine-tuned model that gives an utterance one label: backbone, mean over frames, projection, linear layer.

B utterances, N samples, T frames, D width, P width of the projection, C labels.
"""

import flax.linen as nn
import jax.numpy as jnp

from sew_jax.models.config import BackboneConfig, ClassifierHeadConfig
from sew_jax.models.headed import HeadedModel
from sew_jax.models.layers import Dropout, exact_dense
from sew_jax.models.lengths import mask_from_lengths


class ClassifierModel(HeadedModel):
    """wave (B, N), length (B,) samples -> float32 logits (B, 1, C) and length (B,), which is 1.

    An utterance is one frame of a CTC model's output, so that what reads those reads these. The head is transformers'
    (`Wav2Vec2ForSequenceClassification`); it projects the mean, which is the mean of projections, for less work.
    """

    backbone: BackboneConfig
    head: ClassifierHeadConfig

    def read(self, contexts, length_B, deterministic: bool, row_B):
        init = nn.initializers.xavier_uniform()
        projector = exact_dense(self.head.width, init, name="projector")
        classifier = exact_dense(self.head.labels, init, name="classifier")

        def logits_of(x_BxTxD):
            mean_BxD = _mean_over_frames(Dropout(self.head.dropout)(x_BxTxD, deterministic, row_B), length_B)
            return classifier(projector(mean_BxD))[:, None]

        return tuple(logits_of(x) for x in contexts), jnp.ones_like(length_B)


def _mean_over_frames(x_BxTxD, length_B):
    valid_BxTx1 = mask_from_lengths(length_B, x_BxTxD.shape[1])[:, :, None]
    total_BxD = jnp.where(valid_BxTx1, x_BxTxD.astype(jnp.float32), 0.0).sum(1)
    return total_BxD / jnp.maximum(length_B, 1)[:, None]
