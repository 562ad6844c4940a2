"""The fine-tuned model that gives an utterance one label: backbone, mean over frames, projection, linear layer.

B utterances, N samples, T frames, D width, P width of the projection, C labels, L layers.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
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
        weights_L = None
        if self.head.layer_sum:
            zeros = nn.initializers.zeros  # all layers alike
            weights_L = jax.nn.softmax(self.param("layer_weights", zeros, (self.backbone.layers + 1,)))
        hidden = Backbone(self.backbone, name="backbone")(
            wave_BxN,
            length_B,
            settings[0],
            deterministic=deterministic,
            time_mask_BxT=time_mask_BxT,
            channel_mask_BxD=channel_mask_BxD,
            others=settings[1:],
            row_B=row_B,
            layer_weights=weights_L,
        )
        init = nn.initializers.xavier_uniform()
        projector = exact_dense(self.head.width, init, name="projector")
        classifier = exact_dense(self.head.labels, init, name="classifier")

        def logits_of(x_BxTxD):
            mean_BxD = _mean_over_frames(Dropout(self.head.dropout)(x_BxTxD, deterministic, row_B), hidden.length_B)
            return classifier(projector(mean_BxD))[:, None]

        contexts = (hidden.context_BxTxD, *hidden.others_BxTxD)
        return tuple(logits_of(x) for x in contexts), jnp.ones_like(hidden.length_B)


def _mean_over_frames(x_BxTxD, length_B):
    valid_BxTx1 = mask_from_lengths(length_B, x_BxTxD.shape[1])[:, :, None]
    total_BxD = jnp.where(valid_BxTx1, x_BxTxD.astype(jnp.float32), 0.0).sum(1)
    return total_BxD / jnp.maximum(length_B, 1)[:, None]
