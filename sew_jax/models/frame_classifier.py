"""The fine-tuned model that gives each frame a label: backbone, linear layer.

B utterances, N samples, T frames, D width, C labels.
"""

import flax.linen as nn

from sew_jax.models.config import BackboneConfig, FrameHeadConfig
from sew_jax.models.headed import HeadedModel
from sew_jax.models.layers import Dropout, exact_dense


class FrameClassifierModel(HeadedModel):
    """wave (B, N), length (B,) samples -> float32 logits (B, T, C) and length (B,) in frames.

    The head is transformers' (`Wav2Vec2ForAudioFrameClassification`).
    """

    backbone: BackboneConfig
    head: FrameHeadConfig

    def read(self, contexts, length_B, deterministic: bool, row_B):
        classifier = exact_dense(self.head.frame_labels, nn.initializers.xavier_uniform(), name="classifier")
        return tuple(classifier(Dropout(self.head.dropout)(x, deterministic, row_B)) for x in contexts), length_B
