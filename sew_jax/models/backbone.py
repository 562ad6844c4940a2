"""The part that pre-training and fine-tuning share: front end, feature projection, mask embedding, encoder.

B utterances, N samples, T frames at the front end's rate, C feature channels, D width.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.compression import Compression
from sew_jax.models.config import BackboneConfig
from sew_jax.models.encoder import Encoder
from sew_jax.models.frontend import Frontend, feature_width
from sew_jax.models.kept_frames import KeptFrames
from sew_jax.models.layers import Dropout, layer_norm, torch_dense
from sew_jax.models.lengths import mask_from_lengths


class Hidden(NamedTuple):
    """What the backbone computes for a batch."""

    context_BxTxD: jax.Array  # the encoder's output at the front end's rate
    features_BxTxC: jax.Array  # normalised features before any mask: what targets are made of
    penalty: jax.Array  # mean square of the front end's raw output over valid frames
    length_B: jax.Array  # valid frames
    others_BxTxD: tuple[jax.Array, ...] = ()  # the context at each of the other settings
    inputs_BxTxD: Any = None  # of the encoder, before dropout and masks


class Backbone(nn.Module):
    """Waveform to hidden states at the front end's rate, at a compression setting.

    Order as in fairseq's `wav2vec2.py`: extractor, gradient scale, feature penalty, LayerNorm, projection, dropout,
    masks, encoder.
    """

    config: BackboneConfig

    @nn.compact
    def __call__(
        self,
        wave_BxN,
        length_B,
        compression: Compression,
        *,
        deterministic: bool,
        time_mask_BxT=None,
        channel_mask_BxD=None,
        others: tuple[Compression, ...] = (),
        row_B=None,
        kept: KeptFrames | None = None,
        layer_weights=None,
    ) -> Hidden:
        """Masked frames are replaced by the mask embedding, then masked channels by zero; None masks nothing.

        With `kept` the encoder computes these frames alone, of each of their copies of each row, and contexts are of so
        many rows and frames.

        `others` are computed on the same input, which gets no gradient from them: the front end follows `compression`
        alone. `row_B` numbers what the rows hold, which all noise is drawn by (see `noise`). With `layer_weights`, one
        more than layers, the context is not the last layer's but their mean by these (see `Encoder`).
        """
        config = self.config
        raw_BxTxC, frames_B = Frontend(config, name="frontend")(wave_BxN, length_B)
        if config.frontend_learns:
            raw_BxTxC = _scale_gradient(raw_BxTxC, config.feature_grad_scale)
        valid_BxT = mask_from_lengths(frames_B, raw_BxTxC.shape[1])
        count = jnp.maximum(valid_BxT.sum(), 1) * raw_BxTxC.shape[-1]
        penalty = jnp.square(raw_BxTxC.astype(jnp.float32)).sum() / count  # the tail is zero already

        features_BxTxC = layer_norm(config.dtype, name="feature_norm")(raw_BxTxC)
        x_BxTxD = features_BxTxC
        if feature_width(config) != config.width:
            x_BxTxD = torch_dense(config.width, feature_width(config), config.dtype, name="feature_projection")(
                features_BxTxC
            )
        inputs_BxTxD = x_BxTxD
        x_BxTxD = Dropout(config.input_dropout)(x_BxTxD, deterministic, row_B)

        embedding_D = self.param("mask_embedding", nn.initializers.uniform(1.0), (config.width,))
        if time_mask_BxT is not None:
            x_BxTxD = jnp.where(time_mask_BxT[:, :, None], embedding_D.astype(x_BxTxD.dtype), x_BxTxD)
        if channel_mask_BxD is not None:
            x_BxTxD = jnp.where(channel_mask_BxD[:, None, :], jnp.zeros((), x_BxTxD.dtype), x_BxTxD)
        rows = frames_B, row_B
        if kept is not None:
            x_BxTxD, rows = kept.without_masked(x_BxTxD), (kept.copies(frames_B), kept.numbers(row_B))
        encoder = Encoder(config, name="encoder")

        def encode(x, setting: Compression):
            return encoder(x, rows[0], setting, deterministic, rows[1], kept, layer_weights)

        context = encode(x_BxTxD, compression)
        detached = jax.lax.stop_gradient(x_BxTxD)
        beside = tuple(encode(detached, other) for other in others)
        return Hidden(context, features_BxTxC, penalty, frames_B, beside, inputs_BxTxD)


def _scale_gradient(x, scale: float):
    """Identity whose gradient is multiplied by `scale` (fairseq `GradMultiply`); 0 cuts the backward pass off."""
    stopped = jax.lax.stop_gradient(x)
    return stopped if scale == 0 else stopped + scale * (x - stopped)
