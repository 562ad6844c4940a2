"""The squeezed transformer: positional convolution, squeeze, layers with pooling, up-sampler.

B utterances, T frames at 50 Hz, W = ceil(T / S) squeezed frames, V of them that merging has left, D channels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from sew_jax.compression import Compression
from sew_jax.models.attention import Attention
from sew_jax.models.compressor import Compressor, average_parts, read_back
from sew_jax.models.config import BackboneConfig
from sew_jax.models.int8 import linear
from sew_jax.models.kept_frames import KeptFrames
from sew_jax.models.layer_stack import run_layers
from sew_jax.models.layers import EXACT, SeededDropout, dense, gelu, layer_norm, transformer_dense
from sew_jax.models.lengths import mean_pool, pooled_length, repeat_frames, scaled_length, zero_padding
from sew_jax.models.merging import Track, merge_neighbours, start_track, unmerge
from sew_jax.models.noise import row_seeds, rows_or_places, site_seeds
from sew_jax.models.parameters import cast_kernels
from sew_jax.models.platforms import by_platform
from sew_jax.models.positions import PositionalConv, PositionalStack
from sew_jax.models.products import PRODUCT
from sew_jax.models.relative import RelativeBias, RelativeEmbeddings
from sew_jax.models.times import times_of_windows
from sew_jax.models.upsamplers import LinearUpsampler, ResidualUpsampler, upsampler_of


class Encoder(nn.Module):
    """(B, T, D) at 50 Hz -> (B, T, D) at 50 Hz, computed at the rate of the setting; the tail is zero.

    The squeeze follows SEW (`squeeze_wav2vec2.py`), and so does the `linear` up-sampler; at s1q1k1 this is the encoder
    of wav2vec 2.0. Of `kept` frames the output holds these alone, side by side; the convolution runs over all. With
    weights (L + 1,) that sum to 1, what goes back to 50 Hz is the mean by them of what the first layer is given and of
    what each of the L layers gives, the last one's behind the final norm.
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
        layer_weights=None,
    ):
        config, squeeze, rate, frames = self.config, compression.squeeze, compression.rate, x_BxTxD.shape[1]
        config.check_setting(compression)
        x_BxTxD = zero_padding(x_BxTxD, length_B)
        compressor = Compressor(config, name="compressor")
        if self.is_initializing() and config.compressor:  # whichever setting initialises
            compressor(x_BxTxD, length_B, rate)
        parts_BxWxT = compressor(x_BxTxD, length_B, rate) if rate < 1 else None
        pooled_BxWxD, time_BxWx1 = mean_pool(x_BxTxD, length_B, squeeze), None
        if config.positions != "conv":
            x_BxWxD, time_BxWx1 = pooled_BxWxD, times_of_windows(length_B, frames, squeeze)
        elif config.pos_layers > 1:
            x_BxWxD = pooled_BxWxD + gelu(PositionalStack(config, name="pos_conv")(x_BxTxD, length_B, squeeze))
        else:
            x_BxWxD = pooled_BxWxD + gelu(PositionalConv(config, name="pos_conv")(x_BxTxD, squeeze))

        def taken(y_BxWxC, precision=None):
            """Of windows, or of 50 Hz frames at a rate, what the layers are given."""
            if rate < 1:
                y_BxWxC = average_parts(parts_BxWxT, y_BxWxC, precision)
            elif config.tail == "drop":
                y_BxWxC = y_BxWxC[:, : frames // squeeze]
            return y_BxWxC if kept is None else kept.gather(y_BxWxC, squeeze)

        x_BxWxD = taken(x_BxWxD)
        time_BxWx1 = None if time_BxWx1 is None else jax.lax.stop_gradient(taken(time_BxWx1, EXACT))
        squeezed_B = length_B // squeeze if config.tail == "drop" else pooled_length(length_B, squeeze)
        if rate < 1:
            squeezed_B = scaled_length(length_B, rate)
        if kept is not None:
            frames, length_B, squeezed_B = kept.frames, kept.length_R, pooled_length(kept.length_R, squeeze)

        norm = layer_norm(config.dtype, name="norm", epsilon=config.norm_epsilon) if config.input_norm else None
        if norm and not config.pre_norm:
            x_BxWxD = norm(x_BxWxD)
        seed_Bx2, rates = None, (config.dropout, config.attention_dropout, config.activation_dropout)
        if any(rates) and not deterministic:
            seed_Bx2 = row_seeds(self.make_rng("dropout"), rows_or_places(row_B, x_BxWxD.shape[0]))
        x_BxWxD = SeededDropout(config.dropout)(x_BxWxD, deterministic, seed_Bx2)
        *states, x_BxWxD = self._layers(x_BxWxD, squeezed_B, compression, deterministic, seed_Bx2, time_BxWx1)
        self.sow("intermediates", "states", ((*states[1:], x_BxWxD), parts_BxWxT))  # of each layer
        if norm and config.pre_norm:
            x_BxWxD = norm(x_BxWxD)
        if layer_weights is not None:
            x_BxWxD = sum(
                weight * x.astype(jnp.float32) for weight, x in zip(layer_weights, [*states, x_BxWxD], strict=True)
            ).astype(x_BxWxD.dtype)

        if rate < 1:
            return zero_padding(read_back(parts_BxWxT, x_BxWxD), length_B)
        x_BxTxD = self._upsample(x_BxWxD, squeeze, frames)
        # beyond the squeezed length a dropped tail has nothing to say: zero, as SEW pads it
        return zero_padding(x_BxTxD, jnp.minimum(length_B, squeezed_B * squeeze))

    def _layers(
        self, x_BxWxD, length_B, compression: Compression, deterministic: bool, seed_Bx2, time_BxWx1=None
    ) -> list[jax.Array]:
        """What the first layer is given and what each one gives; of merged frames each is given back: (B, W, D)."""
        config, squeeze, windows = self.config, compression.squeeze, x_BxWxD.shape[1]
        if config.dtype == "bfloat16" and not compression.merges and config.positions == "conv":
            x_BxWxD = _in_eights(x_BxWxD)  # merging would count frames of zeros, and they have no times
        state = (x_BxWxD, start_track(length_B, windows, time_BxWx1) if compression.merges else None)
        pools, shares = compression.layer_pools(config.layers), compression.layer_merges(config.layers)
        relative_by_pools = self._relative(pools, squeeze, x_BxWxD.shape[1], time_BxWx1)
        layer, names = rematerialized(Layer, config.remat), [f"layer_{i}" for i in range(config.layers)]
        # a layer that merges gives fewer frames than it is given, which no body of a loop can
        alone = [i if share else None for i, share in enumerate(shares)]
        settings = list(zip(pools, shares, alone, strict=True))

        def run(module, state, seed_Bx2, setting):
            (x_BxVxD, track), (pool, share, _) = state, setting
            relative = relative_by_pools.get(pool)
            out = module(x_BxVxD, length_B, *pool, deterministic, squeeze, share, seed_Bx2, relative, track)
            return out if track else (out, None)

        if self.is_initializing() or (deterministic and self.is_mutable_collection("intermediates")):
            states = [state]
            for name, setting in zip(names, settings, strict=True):
                states.append(run(layer(config, name=name), states[-1], None, setting))
        else:
            params = [cast_kernels(self.variables["params"][name], config.dtype) for name in names]
            of_layers = list(zip(self._kept(deterministic), _seeds(seed_Bx2, names), strict=True))
            as_function = functools.partial(_apply_layer, layer(config, parent=None), run)
            states = [state, *run_layers(as_function, params, state, of_layers, settings, config.loop_layers)]
        return [unmerge(x_BxVxD, track) if track else x_BxVxD[:, :windows] for x_BxVxD, track in states]

    def _kept(self, deterministic: bool) -> list:
        """Of each layer whether it is computed; None where layers are not drawn."""
        layers, rate = self.config.layers, self.config.layerdrop
        if deterministic or rate == 0:
            return [None] * layers
        # drawn in the program: the same on all devices and hosts
        return list(jax.random.bernoulli(self.make_rng("layerdrop"), 1 - rate, (layers,)))

    def _relative(self, pools, squeeze: int, windows: int, time_BxWx1) -> dict[tuple[int, int], jax.Array]:
        """By pooling factors of layers, what they know of distances (see `Attention`); of times each pools its own."""
        config = self.config
        if config.positions != "conv":
            return dict.fromkeys(pools, time_BxWx1)
        if not config.rel_buckets:
            return {}
        relative: RelativeBias | RelativeEmbeddings
        if config.rel_form == "gated":
            buckets = config.rel_buckets, config.rel_furthest, config.rel_unit
            relative = RelativeBias(config.heads, *buckets, name="relative_bias")
        else:
            relative = RelativeEmbeddings(config, name="relative_embeddings")
        return {
            (q, kv): relative(pooled_length(windows, q), pooled_length(windows, kv), squeeze * q, squeeze * kv)
            for q, kv in dict.fromkeys(pools)
        }

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


def _in_eights(x_BxWxD):
    """With frames of zeros behind the others up to a multiple of 8, which nobody attends to.

    cuBLAS wants products of bfloat16 in eights: XLA would pad and cut the operands of each. Frames that a layer pools
    may be in fours. An exported program does not know how many there are.
    """
    frames = x_BxWxD.shape[1]
    return x_BxWxD if is_symbolic_dim(frames) else jnp.pad(x_BxWxD, ((0, 0), (0, -frames % 8), (0, 0)))


def _seeds(seed_Bx2, names: list[str]) -> list:
    return [None if seed_Bx2 is None else site_seeds(seed_Bx2, (name,)) for name in names]


def _apply_layer(module: nn.Module, run, params, state, of_layer, setting):
    """What `run` makes of the state with a layer of these parameters, or what is left where it is left out."""
    keep, seed_Bx2 = of_layer

    def computed(state):
        return nn.apply(lambda module: run(module, state, seed_Bx2, setting), module)({"params": params})

    def left_out(state):  # as many frames are left, which are compared themselves
        x_BxVxD, track = state
        return merge_neighbours(x_BxVxD, x_BxVxD, track, setting[1]) if setting[1] else state

    if keep is None:
        return computed(state)
    compute, take = _branch_or_choice(keep)
    either = jax.lax.cond(compute, computed, left_out, state)
    return jax.tree.map(functools.partial(jnp.where, take), either, left_out(state))


def _branch_or_choice(keep):
    """(whether a layer is computed, whether what it gives is taken): one of them is a constant, which XLA folds away.

    On CPU a layer that is left out costs nothing. On accelerators branches would cost more than the layers that a
    published layer-drop of 0.05 leaves out: a GPU's host waits for each, and nothing that devices say to each other
    moves over one (docs/scaling.md).
    """
    return by_platform(
        keep, cpu=lambda keep: (keep, jnp.ones_like(keep)), default=lambda keep: (jnp.ones_like(keep), keep)
    )


def rematerialized(layer: type[nn.Module], remat: str) -> type[nn.Module]:
    """`Layer` that keeps for its backward pass what `BackboneConfig.remat` says."""
    if remat == "none":
        return layer
    keep = jax.checkpoint_policies.save_only_these_names(PRODUCT) if remat == "dots" else None
    return nn.remat(layer, policy=keep, static_argnums=(3, 4, 5, 6, 7))  # query_pool to merge, after self


class Layer(nn.Module):
    """A transformer layer, post-LN or pre-LN, with query and key-value pooling.

    Queries and keys and values are pooled before they are projected. The attention's update is brought back to the full
    rate by repetition, so the feed-forward part runs at full rate; with `pool_ffn` the whole layer runs at the query
    rate and its update is repeated. Q and K pooled frames, L those at the rate of the feed-forward part.

    With a `track` of what was merged before, the layer may merge, and returns the track, too. It merges between
    attention and feed-forward part (ToMe); where that part runs at the query rate, behind it.
    """

    config: BackboneConfig

    @nn.compact
    def __call__(
        self,
        x_BxWxD,
        length_B,
        query_pool: int,
        kv_pool: int,
        deterministic: bool,
        squeeze: int = 1,
        merge: float = 0.0,
        seed_Bx2=None,
        relative=None,
        track: Track | None = None,
    ):
        config, frames = self.config, x_BxWxD.shape[1]
        length_B = track.length_B if track else length_B
        attention_norm = layer_norm(config.dtype, name="attention_norm", epsilon=config.norm_epsilon)
        ffn_norm = layer_norm(config.dtype, name="ffn_norm", epsilon=config.norm_epsilon)

        source_BxWxD = attention_norm(x_BxWxD) if config.pre_norm else x_BxWxD
        query_BxQxD = mean_pool(source_BxWxD, length_B, query_pool)
        key_BxKxD = query_BxQxD if kv_pool == query_pool else mean_pool(source_BxWxD, length_B, kv_pool)
        size_BxK = None
        if track and track.merged and config.merge_bias:
            size_BxK = mean_pool(track.size_BxV[:, :, None], length_B, kv_pool)[:, :, 0]
        if config.positions != "conv":
            time_BxWx1 = track.time_BxVx1 if track else relative
            relative = tuple(mean_pool(time_BxWx1, length_B, pool)[:, :, 0] for pool in (query_pool, kv_pool))
        form = config.attention_form
        attention = Attention(config.heads, config.attention_dropout, config.dtype, form, config.int8, name="attention")
        out = attention(
            query_BxQxD,
            key_BxKxD,
            pooled_length(length_B, kv_pool),
            deterministic,
            seed_Bx2,
            relative,
            (squeeze * query_pool, squeeze * kv_pool),
            size_BxK,
            source_BxWxD if merge else None,
        )
        update_BxQxD, compared_BxWxE = out if merge else (out, None)
        update_BxQxD = SeededDropout(config.dropout)(update_BxQxD, deterministic, seed_Bx2)

        layer_rate = query_pool if config.pool_ffn else 1
        base_BxLxD = mean_pool(x_BxWxD, length_B, layer_rate)
        update_BxLxD = update_BxQxD if config.pool_ffn else repeat_frames(update_BxQxD, query_pool, frames)
        y_BxLxD = base_BxLxD + update_BxLxD
        y_BxLxD = y_BxLxD if config.pre_norm else attention_norm(y_BxLxD)
        if merge and layer_rate == 1:
            y_BxLxD, track = merge_neighbours(y_BxLxD, compared_BxWxE, track, merge)
        if config.pre_norm:
            y_BxLxD = y_BxLxD + self._feed_forward(ffn_norm(y_BxLxD), deterministic, seed_Bx2)
            if config.adapter_width:
                y_BxLxD = y_BxLxD + Adapter(config.adapter_width, config.dtype, name="adapter")(y_BxLxD)
        else:
            y_BxLxD = ffn_norm(y_BxLxD + self._feed_forward(y_BxLxD, deterministic, seed_Bx2))
        if layer_rate > 1:
            y_BxLxD = x_BxWxD + repeat_frames(y_BxLxD - base_BxLxD, layer_rate, frames)
            if merge:
                y_BxLxD, track = merge_neighbours(y_BxLxD, compared_BxWxE, track, merge)
        return (y_BxLxD, track) if track else y_BxLxD

    def _feed_forward(self, x, deterministic: bool, seed_Bx2):
        config = self.config
        x = gelu(linear(config.ffn_width, config.dtype, config.int8, "ffn_in")(x))
        x = SeededDropout(config.activation_dropout)(x, deterministic, seed_Bx2)
        x = linear(config.width, config.dtype, config.int8, "ffn_out")(x)
        self.sow("intermediates", "feed_forward", x)  # what data2vec's targets are made of
        return SeededDropout(config.dropout)(x, deterministic, seed_Bx2)


class Adapter(nn.Module):
    """MMS's addition to a layer's output, the part that a language owns: norm, a narrow layer, ReLU, and back.

    A fresh one adds nothing.
    """

    width: int
    dtype: str

    @nn.compact
    def __call__(self, x):
        down = transformer_dense(self.width, self.dtype, name="down")(layer_norm(self.dtype, name="norm")(x))
        return dense(x.shape[-1], self.dtype, nn.initializers.zeros, name="up")(nn.relu(down))
