"""Pooling, up-samplers, layer-drop and precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.models import encoder as module
from sew_jax.models.encoder import Encoder, Layer
from sew_jax.models.platforms import compiled_for
from sew_jax.models.positions import PositionalConv, convolve, convolve_group_by_group
from sew_jax.models.spectral_conv import convolve_by_spectrum
from tests.models import oracle
from tests.models.build import apply, init, noise, shapes, small


def draw(module, *arguments):
    """Parameters of a module, in one program."""
    return jax.jit(lambda: module.init(jax.random.key(0), *arguments)["params"])()


def run(module, params, x, length, *setting, **rngs):
    return _run(module, setting)(params, x, length, rngs)


@functools.cache
def _run(module, setting):
    return jax.jit(lambda params, x, length, rngs: module.apply({"params": params}, x, length, *setting, rngs=rngs))


def pool(x, factor):
    """Means over windows; the last one may be short."""
    return np.stack([x[i : i + factor].mean(0) for i in range(0, len(x), factor)])


def pooled_attention(p, x, heads, query_pool, kv_pool):
    queries, keys = pool(x, query_pool), pool(x, kv_pool)
    size = x.shape[1] // heads
    q, k, v = (
        oracle.affine(s, p[n]).reshape(len(s), heads, size)
        for n, s in (("query", queries), ("key", keys), ("value", keys))
    )
    scores = np.einsum("qhe,khe->hqk", q, k) / np.sqrt(size)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = np.einsum("hqk,khe->qhe", weights / weights.sum(-1, keepdims=True), v)
    return oracle.affine(out.reshape(queries.shape), p["out"])


@pytest.mark.parametrize("query_pool", [1, 2, 3])
@pytest.mark.parametrize("kv_pool", [1, 2])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("pool_ffn", [False, True])
def test_a_layer_pools_as_the_definition_says(query_pool, kv_pool, pre_norm, pool_ffn):
    config = small("logmel", pre_norm=pre_norm, pool_ffn=pool_ffn)
    layer, frames = Layer(config), 11
    x = noise((1, frames, config.width))
    params = layer.init(jax.random.key(0), jnp.asarray(x), jnp.array([frames]), 1, 1, True)["params"]
    params = jax.tree.map(lambda w: w + 0.1 * np.random.default_rng(1).normal(size=w.shape).astype(np.float32), params)
    ours = layer.apply({"params": params}, jnp.asarray(x), jnp.array([frames]), query_pool, kv_pool, True)[0]

    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    x = x[0].astype(np.float64)
    source = oracle.normalize(x, p["attention_norm"], 1) if pre_norm else x
    update = pooled_attention(p["attention"], source, config.heads, query_pool, kv_pool)

    def repeat(y):
        return np.repeat(y, query_pool, axis=0)[:frames]

    base = pool(x, query_pool) if pool_ffn else x
    y = base + (update if pool_ffn else repeat(update))
    if pre_norm:
        y = y + oracle.feed_forward(p, oracle.normalize(y, p["ffn_norm"], 1))
    else:
        y = oracle.normalize(y, p["attention_norm"], 1)
        y = oracle.normalize(y + oracle.feed_forward(p, y), p["ffn_norm"], 1)
    expected = x + repeat(y - base) if pool_ffn and query_pool > 1 else y
    np.testing.assert_allclose(ours, expected, atol=1e-5 * max(np.abs(expected).max(), 1))


def test_a_per_layer_setting_of_equal_factors_is_the_uniform_one():
    model, params = init(small("logmel"))
    outputs = [
        apply(model, params, noise(5000)[None], [5000], s).context_BxTxD
        for s in (Compression(2, 2, 1), Compression(2, (2, 2), (1, 1)))
    ]
    np.testing.assert_array_equal(*outputs)


def test_a_per_layer_setting_of_another_depth_is_named():
    model, params = init(small("logmel"))
    with pytest.raises(UserError, match="query_pool has 3 factors, but the model has 2 layers"):
        apply(model, params, noise(5000)[None], [5000], Compression(1, (1, 2, 1)))


def test_repeat_owns_no_parameters_and_repeats():
    model, params = init(small("logmel", upsampler="repeat"))
    assert not [name for name in params["encoder"] if name.startswith("upsample")]
    context = apply(model, params, noise(5200)[None], [5200], Compression(4)).context_BxTxD[0]
    for start in range(0, len(context), 4):
        np.testing.assert_array_equal(
            context[start : start + 4], np.broadcast_to(context[start], context[start : start + 4].shape)
        )


def test_a_factor_that_was_not_trained_borrows_the_nearest_up_sampler():
    """Window for window, the borrowed frames are the lender's: i of S comes from i * lender // S."""
    config = small("logmel", upsample_factors=(2, 4))
    encoder = Encoder(config)
    x, length = jnp.asarray(noise((1, 12, config.width))), jnp.array([12])
    params = draw(encoder, x, length, Compression(), True)
    assert {name for name in params if name.startswith("upsample")} == {"upsample_2", "upsample_4"}
    eight = run(encoder, params, x, length, Compression(8), True)[0]
    np.testing.assert_array_equal(eight[0:8:2], eight[1:8:2])  # the four frames of upsample_4, twice each
    three = run(encoder, params, x, length, Compression(3), True)[0]
    assert np.isfinite(three).all() and three.shape == (12, config.width)


def test_layerdrop_skips_whole_layers():
    """With one layer and a rate of 0.5, training gives either the layer's output or its input."""
    config = small("logmel", layers=1, layerdrop=0.5)
    encoder = Encoder(config)
    x, length = jnp.asarray(noise((1, 9, config.width))), jnp.array([9])
    params = draw(encoder, x, length, Compression(), True)
    kept = run(encoder, params, x, length, Compression(), True)
    drawn = [run(encoder, params, x, length, Compression(), False, layerdrop=jax.random.key(i)) for i in range(40)]
    same = [bool(jnp.allclose(kept, y, atol=1e-6)) for y in drawn]
    others = [y for y, is_kept in zip(drawn, same, strict=True) if not is_kept]
    assert 8 < sum(same) < 32
    assert all(bool((y == others[0]).all()) for y in others)


def test_layers_left_out_by_choice_are_those_left_out_by_a_branch(monkeypatch):
    """As accelerators do it and as CPUs do: the same output, and the same gradients of all that is not left out."""
    config = small("logmel", layerdrop=0.5)
    model = Encoder(config)
    x, length = jnp.asarray(noise((1, 9, config.width))), jnp.array([9])
    params = draw(model, x, length, Compression(), True)

    def trained():
        def loss(params, key):
            out = model.apply({"params": params}, x, length, Compression(), False, rngs={"layerdrop": key})
            return jnp.sin(3 * out).sum()

        of_key = jax.jit(jax.value_and_grad(loss))
        return jax.tree.map(lambda *x: np.stack(x), *[of_key(params, jax.random.key(i)) for i in range(8)])

    by_branch = trained()
    monkeypatch.setattr(module, "_branch_or_choice", lambda keep: (True, keep))
    by_choice = trained()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), by_branch, by_choice)
    gradient = by_choice[1]["layer_0"]["ffn_in"]["kernel"]
    assert 0 < np.any(gradient, (1, 2)).sum() < len(gradient)


@pytest.mark.parametrize("frontend", ["group", "layer", "compact", "logmel"])
def test_bfloat16_is_close_and_its_parameters_stay_float32(frontend):
    exact, rounded = (
        np.asarray(apply(*init(config), noise(6000)[None], [6000], Compression(2, 2, 2)).context_BxTxD, np.float32)
        for config in (small(frontend), small(frontend, dtype="bfloat16"))
    )
    assert {x.dtype for x in jax.tree.leaves(shapes(small(frontend, dtype="bfloat16")))} == {np.dtype("float32")}
    assert np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()
    assert np.sqrt(np.mean((exact - rounded) ** 2)) < 0.03 * exact.std()


@pytest.mark.parametrize("name", ["s1q1k1", "s2q2k3", "r0.4q1k1"])
def test_frames_of_bfloat16_come_in_eights_and_change_nothing(name, monkeypatch):
    config, setting = small("logmel", dtype="bfloat16", compressor=True), Compression.parse(name)
    encoder, run_layers, seen = Encoder(config), module.run_layers, []
    x, length = noise((2, 37, config.width)), np.array([37, 22])
    params = draw(encoder, x, length, setting, True)
    weights = np.full(config.layers + 1, 1 / (config.layers + 1), np.float32)

    def outputs():  # a new function, which nothing traced is kept of
        return jax.jit(lambda p: encoder.apply({"params": p}, x, length, setting, True, layer_weights=weights))(params)

    def spy(function, params, state, *rest):
        seen.append(state[0].shape[1])
        return run_layers(function, params, state, *rest)

    monkeypatch.setattr(module, "run_layers", spy)
    padded = outputs()
    monkeypatch.setattr(module, "_in_eights", lambda x: x)
    np.testing.assert_allclose(padded, outputs(), rtol=0, atol=0.02 * np.abs(padded).max())
    frames = {"s1q1k1": 37, "s2q2k3": 19, "r0.4q1k1": 15}[name]
    assert seen == [-(-frames // 8) * 8, frames]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("taps", [6, 7])
@pytest.mark.parametrize("form", [convolve_group_by_group, convolve_by_spectrum])
def test_all_forms_of_the_grouped_convolution_are_one(form, stride, taps):
    x, kernel = noise((2, 31, 12)), noise((taps, 3, 8), 1)

    def both(form):
        out, backward = jax.vjp(lambda x, k: form(x, k, stride, groups=4), jnp.asarray(x), jnp.asarray(kernel))
        return out, *backward(jnp.asarray(noise(out.shape, 2)))

    for ours, theirs in zip(both(form), both(convolve), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 4), ("tpu", 1), ("cuda", 0)])
def test_tpus_alone_keep_the_grouped_convolution(platform, convolutions):
    model, x = PositionalConv(small("logmel")), jnp.zeros((1, 9, 24))
    params = model.init(jax.random.key(0), x, 1)
    with compiled_for(None):
        lowered = jax.jit(lambda p, x: model.apply(p, x, 2)).trace(params, x).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.convolution(") == convolutions


def encoder_and_input(config):
    x, length = jnp.asarray(noise((2, 13, config.width))), jnp.array([13, 8])
    encoder = Encoder(config)
    return encoder, x, length, draw(encoder, x, length, Compression(), True)


@pytest.mark.parametrize("squeeze", [1, 2, 3, 4, 5])
def test_a_residual_up_sampler_begins_as_repetition(squeeze):
    """So a checkpoint becomes stochastic without random parts in its way, also at a factor that borrows one."""
    encoder, x, length, params = encoder_and_input(small("logmel", upsampler="residual"))
    repeating = Encoder(small("logmel", upsampler="repeat"))
    shared = {name: value for name, value in params.items() if not name.startswith("upsample")}
    # op by op: where they are fused with others, the same sums may be rounded otherwise
    ours = encoder.apply({"params": params}, x, length, Compression(squeeze), True)
    np.testing.assert_array_equal(ours, repeating.apply({"params": shared}, x, length, Compression(squeeze), True))


@pytest.mark.parametrize("squeeze", [2, 3, 4])
def test_a_residual_up_sampler_adds_a_difference_of_each_frame(squeeze):
    encoder, x, length, params = encoder_and_input(small("logmel", upsampler="residual"))
    before = np.asarray(run(encoder, params, x, length, Compression(squeeze), True), np.float64)
    dense = params[f"upsample_{squeeze}"]["difference"]
    width = encoder.config.width
    random = np.random.default_rng(0)
    kernel, bias = random.normal(size=(width, squeeze * width)), random.normal(size=squeeze * width)
    assert dense["kernel"].shape == kernel.shape
    changed = params | {f"upsample_{squeeze}": {"difference": {"kernel": kernel, "bias": bias}}}
    after = run(encoder, changed, x, length, Compression(squeeze), True)
    for row, frames in enumerate(length):
        for frame in range(int(frames)):
            window = before[row, frame // squeeze * squeeze]  # what was repeated
            part = slice(frame % squeeze * width, (frame % squeeze + 1) * width)
            expected = window + window @ kernel[:, part] + bias[part]
            np.testing.assert_allclose(after[row, frame], expected, atol=2e-4)
        assert not after[row, int(frames) :].any()
