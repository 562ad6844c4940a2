"""The whole pre-training model: backbone, quantizer, and the two projections that meet in the contrastive task.

B utterances, M masked frames (static, some may be of zero weight), F final width, G codebooks.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from sew_jax.models.config import BackboneConfig, PretrainHeadConfig
from sew_jax.models.layers import EPSILON, EXACT, Dropout, exact_dense, torch_dense, xavier_normal
from sew_jax.models.masking import MaskedFrames, gather_frames
from sew_jax.models.quantizer import Quantized, Quantizer
from sew_jax.rates import SAMPLE_RATE


class PretrainOutput(NamedTuple):
    prediction_BxMxF: jax.Array  # from the context network, float32
    target_BxMxF: jax.Array  # from the quantizer, float32
    quantized: Quantized
    penalty: jax.Array  # mean square of the front end's output
    others_BxMxF: tuple[jax.Array, ...] = ()  # predictions at each of the other settings, for the same targets


class PretrainModel(nn.Module):
    """wave (B, N) and masked frames -> predictions and targets at those frames."""

    backbone: BackboneConfig
    head: PretrainHeadConfig

    def initialize(self, key) -> dict[str, Any]:
        """Variables for a key."""
        params, gumbel = jax.random.split(key, 2)
        masked = MaskedFrames(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool), None)
        wave, length = jnp.zeros((1, SAMPLE_RATE)), jnp.array([SAMPLE_RATE])
        rngs = {"params": params, "gumbel": gumbel}
        return dict(self.init(rngs, wave, length, masked, Compression(), 1.0, deterministic=True))

    @nn.compact
    def __call__(
        self,
        wave_BxN,
        length_B,
        masked: MaskedFrames,
        compression: Compression,
        temperature,
        *,
        deterministic: bool,
        others: tuple[Compression, ...] = (),
        row_B=None,
    ) -> PretrainOutput:
        head = self.head
        hidden = Backbone(self.backbone, name="backbone")(
            wave_BxN,
            length_B,
            compression,
            deterministic=deterministic,
            time_mask_BxT=masked.mask_BxT,
            others=others,
            row_B=row_B,
        )
        features_BxMxC = gather_frames(hidden.features_BxTxC, masked.index_BxM)
        features_BxMxC = Dropout(head.feature_dropout)(features_BxMxC, deterministic, row_B)
        quantized = Quantizer(head, name="quantizer")(features_BxMxC, temperature, deterministic, row_B)

        def head_for(name: str, features: int):
            if head.projection == "linear":
                return torch_dense(head.final_width, features, jnp.float32, name=name, precision=EXACT)
            return functools.partial(
                MLP(head.mlp_width, head.final_width, name=name),
                valid_BxM=masked.valid_BxM,
                deterministic=deterministic,
            )

        predict = head_for("project_prediction", self.backbone.width)
        contexts = (hidden.context_BxTxD, *hidden.others_BxTxD)
        predictions = [predict(gather_frames(x, masked.index_BxM).astype(jnp.float32)) for x in contexts]
        target = head_for("project_target", head.code_width)(quantized.vectors_BxMxQ)
        return PretrainOutput(predictions[0], target, quantized, hidden.penalty, tuple(predictions[1:]))


class MLP(nn.Module):
    """SEW's head (`modules/mlp.py`, MLPv3): linear without bias, BatchNorm, ReLU, linear."""

    width: int
    out: int

    @nn.compact
    def __call__(self, x_BxMxC, valid_BxM, deterministic: bool):
        x = exact_dense(self.width, xavier_normal, name="hidden", use_bias=False)(x_BxMxC)
        x = nn.relu(MaskedBatchNorm(name="norm")(x, valid_BxM, deterministic))
        return exact_dense(self.out, xavier_normal, name="out")(x)


class MaskedBatchNorm(nn.Module):
    """BatchNorm over valid frames of the global micro-batch (torch's momentum 0.1 and unbiased running variance)."""

    momentum: float = 0.1

    @nn.compact
    def __call__(self, x_BxMxC, valid_BxM, deterministic: bool):
        width = x_BxMxC.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        variance = self.variable("batch_stats", "variance", jnp.ones, (width,))
        if deterministic:
            mean_C, variance_C = mean.value, variance.value
        else:
            weight = valid_BxM[:, :, None].astype(jnp.float32)
            count = jnp.maximum(weight.sum(), 1.0)
            mean_C = (x_BxMxC * weight).sum((0, 1)) / count
            variance_C = (jnp.square(x_BxMxC - mean_C) * weight).sum((0, 1)) / count
            if not self.is_initializing():
                unbiased = variance_C * count / jnp.maximum(count - 1, 1)
                mean.value += self.momentum * (mean_C - mean.value)
                variance.value += self.momentum * (unbiased - variance.value)
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        return (x_BxMxC - mean_C) * jax.lax.rsqrt(variance_C + EPSILON) * scale + bias
