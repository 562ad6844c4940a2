"""data2vec 2.0's model: a student that sees unmasked frames alone, a convolutional decoder, and the teacher's targets.

Source: fairseq's examples/data2vec (arXiv:2212.07525). What differs: positions are the backbone's own, masks are made
after the crop, and targets are normalised over an utterance's own frames.
B utterances, M copies of each, R = B * M rows, T frames, F frames that are seen, D width.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from sew_jax.models.config import BackboneConfig, Data2VecConfig
from sew_jax.models.encoder import Encoder
from sew_jax.models.frontend import frame_count
from sew_jax.models.kept_frames import KeptFrames, kept_frames, unit_of
from sew_jax.models.layers import EPSILON, Dropout, gelu, layer_norm, torch_uniform, transformer_dense
from sew_jax.models.lengths import normalize_over_time, pooled_length, repeat_frames, zero_padding
from sew_jax.models.noise import draw_rows, row_keys, rows_or_places
from sew_jax.models.positions import grouped_convolution
from sew_jax.rates import SAMPLE_RATE

_NOISE = 0.01  # deviation of what stands for masked frames in the decoder's input


class Data2VecOutput(NamedTuple):
    prediction_RxTxD: jax.Array  # float32
    inputs_BxTxD: jax.Array  # of the encoder, unmasked: what the teacher is given
    length_B: jax.Array  # frames
    others_RxTxD: tuple[jax.Array, ...] = ()  # predictions at each of the other settings


class Data2VecModel(nn.Module):
    """wave (B, N) and the frames that are seen of each copy -> predictions of all frames of each.

    `teacher` is the setting at which targets are computed, whatever the student's.
    """

    backbone: BackboneConfig
    head: Data2VecConfig
    teacher: Compression = Compression()

    def initialize(self, key) -> dict[str, Any]:
        """Variables for a key; the mask embedding begins at zero.

        Where it is fine-tuned, data2vec 2.0 replaces masked frames by noise of deviation 0.01: nothing, almost.
        """
        wave, length = jnp.zeros((1, SAMPLE_RATE)), jnp.array([SAMPLE_RATE])
        kept = self.keep(row_keys(key, jnp.zeros(1, jnp.int32)), length, SAMPLE_RATE, (Compression(),))
        params = self.init(key, wave, length, kept, Compression(), deterministic=True)["params"]
        embedding_D = jnp.zeros_like(params["backbone"]["mask_embedding"])
        params = {**params, "backbone": {**params["backbone"], "mask_embedding": embedding_D}}
        return {"params": params}

    def keep(self, key_B, length_B, samples: int, settings: tuple[Compression, ...]) -> KeptFrames:
        """The frames that are seen at settings that share their masks, of rows of `samples` samples.

        Args:
          length_B: samples of each row.
        """
        head, backbone = self.head, self.backbone
        return kept_frames(
            key_B,
            frame_count(backbone, length_B),
            frame_count(backbone, samples),
            unit=unit_of(settings, backbone.layers),
            clones=head.clones,
            ratio=head.mask_ratio,
            adjust=head.mask_adjust,
            block=head.mask_block,
        )

    @nn.compact
    def __call__(
        self,
        wave_BxN,
        length_B,
        kept: KeptFrames,
        compression: Compression,
        *,
        deterministic: bool,
        others: tuple[Compression, ...] = (),
        row_B=None,
    ) -> Data2VecOutput:
        hidden = Backbone(self.backbone, name="backbone")(
            wave_BxN, length_B, compression, deterministic=deterministic, others=others, row_B=row_B, kept=kept
        )
        frames_R, row_R = kept.copies(hidden.length_B), kept.numbers(row_B)
        frames = hidden.inputs_BxTxD.shape[1]
        shape = (frames_R.shape[0], frames, self.backbone.width)
        noise_RxTxD = jnp.zeros(shape, self.backbone.dtype)
        if not deterministic:
            keys = row_keys(self.make_rng("noise"), rows_or_places(row_R, shape[0]))
            noise_RxTxD = (_NOISE * draw_rows(jax.random.normal, keys, shape[1:])).astype(self.backbone.dtype)
        decoder = Decoder(self.head, self.backbone.width, self.backbone.dtype, name="decoder")

        def predict(seen_RxFxD) -> jax.Array:
            seen_RxFxD = Dropout(self.head.decoder_dropout)(seen_RxFxD, deterministic, row_R)
            return decoder(kept.scatter(seen_RxFxD, noise_RxTxD), frames_R)

        predictions = [predict(x) for x in (hidden.context_BxTxD, *hidden.others_BxTxD)]
        return Data2VecOutput(predictions[0], hidden.inputs_BxTxD, hidden.length_B, tuple(predictions[1:]))


class Decoder(nn.Module):
    """Grouped convolutions, each with a norm without gains and GELU, a residual from the second on; a linear layer."""

    config: Data2VecConfig
    out: int
    dtype: str

    @nn.compact
    def __call__(self, x_RxTxD, length_R):
        config = self.config
        for i in range(config.decoder_layers):
            x_RxTxD = zero_padding(x_RxTxD, length_R)
            groups, width = config.decoder_groups, x_RxTxD.shape[2]
            inputs = width // groups
            init = torch_uniform(config.decoder_kernel * inputs)
            shape = (config.decoder_kernel, inputs, config.decoder_width)
            kernel_KxIxO = self.param(f"conv_{i}_kernel", init, shape)
            bias_O = self.param(f"conv_{i}_bias", init, shape[2:])
            y = grouped_convolution(x_RxTxD, kernel_KxIxO.astype(x_RxTxD.dtype), 1, groups)
            y = y + bias_O.astype(y.dtype)
            y = gelu(layer_norm(self.dtype, learns=False)(y))
            x_RxTxD = y + x_RxTxD if i else y
        return transformer_dense(self.out, "float32", name="out")(x_RxTxD.astype(jnp.float32))


def teacher_part(params) -> Any:
    """The part of a student's parameters that its teacher has a slow copy of: all behind the front end."""
    return params["backbone"]["encoder"]


def targets(model: Data2VecModel, teacher, inputs_BxTxD, length_B) -> jax.Array:
    """(B, T, D) float32 targets without gradient: the means of the top layers' feed-forward parts, each normalised.

    These are outputs before the residual and the norm; each channel has zero mean and unit variance over an utterance's
    frames. Frames of padding hold numbers of no meaning.

    Args:
      teacher: parameters of an encoder.
      length_B: frames.
    """
    config, setting = model.backbone, model.teacher
    _, kept = Encoder(config).apply(
        {"params": teacher},
        jax.lax.stop_gradient(inputs_BxTxD),
        length_B,
        setting,
        deterministic=True,
        mutable=["intermediates"],
    )
    first, frames = config.layers - model.head.top_layers, inputs_BxTxD.shape[1]
    normalize = functools.partial(normalize_over_time, epsilon=EPSILON)
    total: Any = 0.0
    for i, (query_pool, _) in list(enumerate(setting.layer_pools(config.layers)))[first:]:
        (x,) = kept["intermediates"][f"layer_{i}"]["feed_forward"]
        rate = setting.squeeze * (query_pool if config.pool_ffn else 1)
        total += repeat_frames(normalize(x.astype(jnp.float32), pooled_length(length_B, rate)), rate, frames)
    return jax.lax.stop_gradient(total / model.head.top_layers)
