"""The squeezed transformer: positional convolution, squeeze, layers with pooling, up-sampler.

B utterances, T frames at 50 Hz, W = ceil(T / S) squeezed frames, D channels.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.compression import Compression
from sew_jax.models.attention import Attention
from sew_jax.models.config import BackboneConfig
from sew_jax.models.kept_frames import KeptFrames
from sew_jax.models.layers import Dropout, gelu, layer_norm, transformer_dense
from sew_jax.models.lengths import mean_pool, pooled_length, repeat_frames, zero_padding


class Encoder(nn.Module):
    """(B, T, D) at 50 Hz -> (B, T, D) at 50 Hz, computed at the rate of the setting; the tail is zero.

    The squeeze follows SEW (`squeeze_wav2vec2.py`), and so does the `linear` up-sampler; at s1q1k1 this is the encoder
    of wav2vec 2.0. Of `kept` frames the output holds these alone, side by side; the convolution runs over all.
    """

    config: BackboneConfig

    @nn.compact
    def __call__(
        self,
        x_BxTxD,
        length_B,
        compression: Compression,
        deterministic: bool,
        row_B=None,
        kept: KeptFrames | None = None,
    ):
        config, squeeze, frames = self.config, compression.squeeze, x_BxTxD.shape[1]
        x_BxTxD = zero_padding(x_BxTxD, length_B)
        x_BxWxD = mean_pool(x_BxTxD, length_B, squeeze) + gelu(
            PositionalConv(config, name="pos_conv")(x_BxTxD, squeeze)
        )
        if config.tail == "drop":
            x_BxWxD, squeezed_B = x_BxWxD[:, : frames // squeeze], length_B // squeeze
        else:
            squeezed_B = pooled_length(length_B, squeeze)
        if kept is not None:
            x_BxWxD = kept.gather(x_BxWxD, squeeze)
            frames, length_B, squeezed_B = kept.frames, kept.length_R, pooled_length(kept.length_R, squeeze)

        norm = layer_norm(config.dtype, name="norm")
        if not config.pre_norm:
            x_BxWxD = norm(x_BxWxD)
        x_BxWxD = Dropout(config.dropout)(x_BxWxD, deterministic, row_B)
        layer = rematerialized(Layer, config.remat)
        for i, (query_pool, kv_pool) in enumerate(compression.layer_pools(config.layers)):

            def run(module, x_BxWxD, query_pool=query_pool, kv_pool=kv_pool):
                return module(x_BxWxD, squeezed_B, query_pool, kv_pool, deterministic, row_B)

            module = layer(config, name=f"layer_{i}")
            if deterministic or config.layerdrop == 0 or self.is_initializing():
                x_BxWxD = run(module, x_BxWxD)
            else:  # drawn in the program: the same on all devices and hosts
                keep = jax.random.bernoulli(self.make_rng("layerdrop"), 1 - config.layerdrop)
                compute, take = _branch_or_choice(keep)
                computed = nn.cond(compute, run, lambda module, x_BxWxD: x_BxWxD, module, x_BxWxD)
                x_BxWxD = jnp.where(take, computed, x_BxWxD)
        if config.pre_norm:
            x_BxWxD = norm(x_BxWxD)

        x_BxTxD = self._upsample(x_BxWxD, squeeze, frames)
        # beyond the squeezed length a dropped tail has nothing to say: zero, as SEW pads it
        return zero_padding(x_BxTxD, jnp.minimum(length_B, squeezed_B * squeeze))

    def _upsample(self, x_BxWxD, squeeze: int, frames: int):
        kind, factors = self.config.upsampler, self.config.upsample_factors
        make = {"residual": ResidualUpsampler, "linear": LinearUpsampler, "repeat": None}[kind]
        upsamplers = {s: make(s, self.config.dtype, name=f"upsample_{s}") for s in factors} if make else {}
        if self.is_initializing():  # every factor of the run owns its parameters, whichever setting initialises
            for upsampler in upsamplers.values():
                upsampler(x_BxWxD)
        factor = upsampler_of(self.config, squeeze)
        if factor is None:
            out = repeat_frames(x_BxWxD, squeeze, frames)
        else:  # output i of a factor that was not trained reads frame i * factor // S of the nearest one's
            out = upsamplers[factor](x_BxWxD)
            if factor != squeeze:
                batch, windows, width = x_BxWxD.shape
                source = jnp.arange(squeeze) * factor // squeeze
                out = out.reshape(batch, windows, factor, width)[:, :, source].reshape(batch, windows * squeeze, width)
        missing = max(frames - out.shape[1], 0)
        return jnp.pad(out, ((0, 0), (0, missing), (0, 0)))[:, :frames]


def upsampler_of(config: BackboneConfig, squeeze: int) -> int | None:
    """The factor whose up-sampler serves a squeeze: its own, else the nearest one's; None where frames are repeated."""
    if squeeze == 1 or config.upsampler == "repeat" or not config.upsample_factors:
        return None
    return min(config.upsample_factors, key=lambda s: (abs(math.log(s / squeeze)), s))


def _branch_or_choice(keep):
    """(whether a layer is computed, whether what it gives is taken): one of them is a constant, which XLA folds away.

    On CPU a layer that is left out costs nothing. On accelerators branches would cost more than the layers that a
    published layer-drop of 0.05 leaves out: a GPU's host waits for each, and nothing that devices say to each other
    moves over one (docs/scaling.md).
    """
    return jax.lax.platform_dependent(
        keep, cpu=lambda keep: (keep, jnp.ones_like(keep)), default=lambda keep: (jnp.ones_like(keep), keep)
    )


def rematerialized(layer: type[nn.Module], remat: str) -> type[nn.Module]:
    """`Layer` that keeps for its backward pass what `BackboneConfig.remat` says."""
    if remat == "none":
        return layer
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return nn.remat(layer, policy=keep, static_argnums=(3, 4, 5))  # after self: query_pool, kv_pool, deterministic


def convolve(x_BxTxD, kernel_KxIxO, stride: int, groups: int):
    """Grouped convolution, output frame w centred on input frame w * stride: (B, ceil(T / stride), D)."""
    taps = kernel_KxIxO.shape[0]
    return jax.lax.conv_general_dilated(
        x_BxTxD,
        kernel_KxIxO,
        (stride,),
        [(taps // 2, (taps - 1) // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


def grouped_convolution(x_BxTxD, kernel_KxIxO, stride: int, groups: int):
    """`convolve` in the form that the platform computes best."""
    return jax.lax.platform_dependent(
        x_BxTxD,
        kernel_KxIxO,
        tpu=functools.partial(convolve, stride=stride, groups=groups),
        default=functools.partial(convolve_group_by_group, stride=stride, groups=groups),
    )


def convolve_group_by_group(x_BxTxD, kernel_KxIxO, stride: int, groups: int):
    """The same, for all but TPUs.

    XLA's CPU backend took 10 to 32 times longer (2 cores) for a grouped kernel's gradient, and the partitioner of CPUs
    and GPUs gathers the whole batch on each device for a grouped convolution (openxla/xla issue 47945).
    """
    pairs = zip(jnp.split(x_BxTxD, groups, axis=2), jnp.split(kernel_KxIxO, groups, axis=2), strict=True)
    return jnp.concatenate([convolve(x, kernel, stride, groups=1) for x, kernel in pairs], axis=2)


class PositionalConv(nn.Module):
    """Grouped convolution with one gain a tap (weight norm, dim 2), strided by the squeeze factor, one kernel for all.

    Output frame w sees taps centred on frame w * S. At S = 1 and an even kernel this is fairseq's `SamePad`
    convolution.
    """

    config: BackboneConfig

    @nn.compact
    def __call__(self, x_BxTxD, stride: int):
        taps, groups, width = self.config.pos_kernel, self.config.pos_groups, self.config.width
        init = nn.initializers.normal(math.sqrt(4 / (taps * width)))
        v_KxIxO = self.param("weight_v", init, (taps, width // groups, width))
        gain_K = self.param("weight_g", lambda key: jnp.sqrt(jnp.square(v_KxIxO).sum((1, 2))))
        bias_D = self.param("bias", nn.initializers.zeros, (width,))
        scale_K = gain_K * jax.lax.rsqrt(jnp.square(v_KxIxO).sum((1, 2)))
        kernel_KxIxO = (v_KxIxO * scale_K[:, None, None]).astype(x_BxTxD.dtype)
        y = grouped_convolution(x_BxTxD, kernel_KxIxO, stride, groups)
        return y + bias_D.astype(y.dtype)


class ResidualUpsampler(nn.Module):
    """Each squeezed frame S times, each time with a linear difference of its own that is zero at first.

    What all settings of a table can share: at any S the output is the transformer's own, as at S = 1, so one head reads
    them all; the differences tell the S frames of a window apart, without which characters do not fit at S of 3 and 4.
    """

    factor: int
    dtype: str

    @nn.compact
    def __call__(self, x_BxWxD):
        batch, windows, width = x_BxWxD.shape
        zeros = nn.initializers.zeros
        difference = nn.Dense(width * self.factor, dtype=self.dtype, kernel_init=zeros, name="difference")(x_BxWxD)
        difference_BxWxSxD = difference.reshape(batch, windows, self.factor, width)
        return (x_BxWxD[:, :, None] + difference_BxWxSxD).reshape(batch, windows * self.factor, width)


class LinearUpsampler(nn.Module):
    """SEW's: Linear(D -> D * S), GELU, and each squeezed frame becomes S frames (time-major split).

    For SEW's checkpoints and models of one setting. In a table with S = 1, whose output is a norm's, the head would
    have to read two languages.
    """

    factor: int
    dtype: str

    @nn.compact
    def __call__(self, x_BxWxD):
        batch, windows, width = x_BxWxD.shape
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        y = nn.Dense(width * self.factor, dtype=self.dtype, kernel_init=init, name="linear")(x_BxWxD)
        return gelu(y).reshape(batch, windows * self.factor, width)


class Layer(nn.Module):
    """A transformer layer, post-LN or pre-LN, with query and key-value pooling.

    Queries and keys and values are pooled before they are projected. The attention's update is brought back to the full
    rate by repetition, so the feed-forward part runs at full rate; with `pool_ffn` the whole layer runs at the query
    rate and its update is repeated. Q and K pooled frames, L those at the rate of the feed-forward part.
    """

    config: BackboneConfig

    @nn.compact
    def __call__(self, x_BxWxD, length_B, query_pool: int, kv_pool: int, deterministic: bool, row_B=None):
        config, frames = self.config, x_BxWxD.shape[1]
        attention_norm = layer_norm(config.dtype, name="attention_norm")
        ffn_norm = layer_norm(config.dtype, name="ffn_norm")

        source_BxWxD = attention_norm(x_BxWxD) if config.pre_norm else x_BxWxD
        query_BxQxD = mean_pool(source_BxWxD, length_B, query_pool)
        key_BxKxD = query_BxQxD if kv_pool == query_pool else mean_pool(source_BxWxD, length_B, kv_pool)
        update_BxQxD = Attention(config.heads, config.attention_dropout, config.dtype, name="attention")(
            query_BxQxD, key_BxKxD, pooled_length(length_B, kv_pool), deterministic, row_B
        )
        update_BxQxD = Dropout(config.dropout)(update_BxQxD, deterministic, row_B)

        layer_rate = query_pool if config.pool_ffn else 1
        base_BxLxD = mean_pool(x_BxWxD, length_B, layer_rate)
        update_BxLxD = update_BxQxD if config.pool_ffn else repeat_frames(update_BxQxD, query_pool, frames)
        y_BxLxD = base_BxLxD + update_BxLxD
        if config.pre_norm:
            y_BxLxD = y_BxLxD + self._feed_forward(ffn_norm(y_BxLxD), deterministic, row_B)
        else:
            y_BxLxD = attention_norm(y_BxLxD)
            y_BxLxD = ffn_norm(y_BxLxD + self._feed_forward(y_BxLxD, deterministic, row_B))
        return y_BxLxD if layer_rate == 1 else x_BxWxD + repeat_frames(y_BxLxD - base_BxLxD, layer_rate, frames)

    def _feed_forward(self, x, deterministic: bool, row_B):
        config = self.config
        x = gelu(transformer_dense(config.ffn_width, config.dtype, name="ffn_in")(x))
        x = Dropout(config.activation_dropout)(x, deterministic, row_B)
        x = transformer_dense(config.width, config.dtype, name="ffn_out")(x)
        self.sow("intermediates", "feed_forward", x)  # what data2vec's targets are made of
        return Dropout(config.dropout)(x, deterministic, row_B)
