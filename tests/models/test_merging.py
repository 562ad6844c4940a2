"""Merging of neighbours against loops in numpy, and what must hold of it whatever the frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.models.encoder import Encoder, Layer
from sew_jax.models.merging import merge_neighbours, start_track, unmerge
from tests.models import oracle
from tests.models.build import draw, noise, small
from tests.models.test_encoder import pool


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def brute_force(x, key, size, share):
    """Of one utterance: (frames, sizes, the place of each frame before)."""
    length = len(x)
    choices = []  # (similarity, even frame, the neighbour that it goes into)
    for t in range(0, length, 2):
        near = [(cosine(key[t], key[n]), n) for n in (t - 1, t + 1) if 0 <= n < length]
        choices += [(*max(near), t)] if near else []
    into = {t: n for _, n, t in sorted(choices, reverse=True)[: int(np.floor(round(share * length, 6)))]}
    kept = [t for t in range(length) if t not in into]
    groups = [[t for t in range(length) if into.get(t, t) == k] for k in kept]
    frames = [sum(size[t] * x[t] for t in group) / sum(size[t] for t in group) for group in groups]
    place = [next(i for i, group in enumerate(groups) if t in group) for t in range(length)]
    return np.array(frames), np.array([sum(size[t] for t in group) for group in groups]), np.array(place)


@functools.partial(jax.jit, static_argnums=(3, 4))
def merge_twice(x, key, length, first, second):
    once = merge_neighbours(x, key, start_track(length, x.shape[1]), first)
    return once, merge_neighbours(once[0], once[0], once[1], second)


@pytest.mark.parametrize(("frames", "first", "second"), [(23, 0.2, 0.5), (24, 0.5, 0.3), (9, 0.333, 0.05)])
def test_merging_is_what_loops_find(frames, first, second):
    lengths = np.array([frames, frames - 1, frames - 4, 3, 2, 1, 0])
    x, key = noise((len(lengths), frames, 5)), noise((len(lengths), frames, 4), 1)
    found = jax.device_get(merge_twice(x, key, lengths, first, second))
    for row, length in enumerate(lengths):
        if not length:
            continue
        expected = brute_force(x[row, :length].astype(float), key[row, :length].astype(float), np.ones(length), first)
        places = expected[2]
        for (ours, track), share in zip(found, (first, second), strict=True):
            if share is second:
                expected = brute_force(expected[0], expected[0], expected[1], second)
                places = expected[2][places]
            left = len(expected[0])
            assert track.length_B[row] == left
            np.testing.assert_allclose(ours[row, :left], expected[0], atol=1e-5)
            np.testing.assert_array_equal(track.size_BxV[row, :left], expected[1])
            np.testing.assert_array_equal(track.place_BxW[row, :length], places)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_exactly_a_share_goes_and_order_stays(share):
    """Whatever the frames: also where all are equal, and where half of them are."""
    frames, lengths = 40, np.array([40, 40, 31, 17])
    x = noise((4, frames, 3))
    x[0], x[1, 10:30] = 1, 0
    out, track = jax.device_get(merge_twice(x, x, lengths, share, 0.0)[0])
    assert out.shape[1] == frames - int(share * frames)
    np.testing.assert_array_equal(track.length_B, lengths - np.floor(share * lengths).astype(int))
    np.testing.assert_array_equal(track.size_BxV.sum(1), lengths)
    for row, length in enumerate(lengths):
        steps = np.diff(track.place_BxW[row, :length])
        assert track.place_BxW[row, 0] == 0 and set(steps) <= {0, 1}
        assert track.place_BxW[row, length - 1] == track.length_B[row] - 1
        assert (track.size_BxV[row, : track.length_B[row]] >= 1).all()
        total = (out[row] * track.size_BxV[row][:, None]).sum(0)  # means of what they stand for
        np.testing.assert_allclose(total, x[row, :length].sum(0), atol=1e-4)


def test_no_share_changes_nothing():
    x, length = jnp.asarray(noise((2, 9, 3))), jnp.array([9, 4])
    track = start_track(length, 9)
    for share in (0.0, 0.1):  # a tenth of 9 frames is none
        out, after = merge_neighbours(x, x, track, share)
        assert out is x and after is track
    np.testing.assert_array_equal(unmerge(x, track), x)


def layer_of(config, frames):
    layer = Layer(config)
    x = jnp.zeros((1, frames, config.width))
    return layer, draw(
        jax.eval_shape(lambda: layer.init(jax.random.key(0), x, jnp.array([frames]), 1, 1, True))["params"]
    )


@pytest.mark.parametrize("pre_norm", [False, True])
def test_equal_neighbours_merge_without_changing_any_output(pre_norm):
    """Through a layer that merges some of them and one that attends to what it merged; sizes see to it."""
    frames, length = 12, jnp.array([12, 8])
    twice = jnp.asarray(np.repeat(noise((2, frames // 2, 24)), 2, axis=1))

    def difference(bias):
        layer, params = layer_of(small("logmel", pre_norm=pre_norm, merge_bias=bias), frames)

        @jax.jit
        def both(params, x):
            once, track = layer.apply(
                {"params": params}, x, length, 1, 1, True, merge=0.25, track=start_track(length, frames)
            )
            merged, track = layer.apply({"params": params}, once, length, 1, 1, True, track=track)
            plain = layer.apply({"params": params}, x, length, 1, 1, True)
            return unmerge(merged, track), layer.apply({"params": params}, plain, length, 1, 1, True)

        merged, plain = both(params, twice)
        return max(float(jnp.abs(m[:n] - p[:n]).max()) for m, p, n in zip(merged, plain, length, strict=True))

    assert difference(True) < 1e-5
    assert difference(False) > 1e-3


@pytest.mark.parametrize(
    ("query_pool", "kv_pool", "options"),
    [
        (1, 1, dict(merge_bias=False)),
        (2, 1, dict(pre_norm=True)),
        (1, 3, {}),
        (2, 2, dict(pool_ffn=True, pre_norm=True)),
    ],
    ids=str,
)
def test_a_layer_merges_as_the_definition_says(query_pool, kv_pool, options):
    config, frames, share = small("logmel", **options), 11, 0.3
    layer, params = layer_of(config, frames)
    x = noise((1, frames, config.width))
    sizes = np.array([1, 3, 2, 1, 1, 2, 1, 1, 4, 1, 1.0])
    track = start_track(jnp.array([frames]), 18)._replace(size_BxV=jnp.asarray(sizes[None], jnp.float32))
    pools = query_pool, kv_pool
    out, after = layer.apply({"params": params}, x, track.length_B, *pools, True, merge=share, track=track)

    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    x = x[0].astype(np.float64)
    source = oracle.normalize(x, p["attention_norm"], 1) if config.pre_norm else x
    heads, wide = config.heads, config.width // config.heads
    queries, keys, counts = pool(source, query_pool), pool(source, kv_pool), pool(sizes[:, None], kv_pool)[:, 0]

    def heads_of(name, frames):
        return oracle.affine(frames, p["attention"][name]).reshape(len(frames), heads, wide)

    scores = np.einsum("qhe,khe->hqk", heads_of("query", queries), heads_of("key", keys)) / np.sqrt(wide)
    weights = np.exp(scores) * (counts if config.merge_bias else 1)
    mixed = np.einsum("hqk,khe->qhe", weights / weights.sum(-1, keepdims=True), heads_of("value", keys))
    update = oracle.affine(mixed.reshape(queries.shape), p["attention"]["out"])
    similar = heads_of("key", source).mean(1)

    def feed_forward(y):
        if config.pre_norm:
            return y + oracle.feed_forward(p, oracle.normalize(y, p["ffn_norm"], 1))
        return oracle.normalize(y + oracle.feed_forward(p, y), p["ffn_norm"], 1)

    def repeat(y):
        return np.repeat(y, query_pool, axis=0)[:frames]

    if config.pool_ffn:
        base = pool(x, query_pool)
        expected, size, _ = brute_force(x + repeat(feed_forward(base + update) - base), similar, sizes, share)
    else:
        y = x + repeat(update)
        y, size, _ = brute_force(
            y if config.pre_norm else oracle.normalize(y, p["attention_norm"], 1), similar, sizes, share
        )
        expected = feed_forward(y)
    assert len(expected) == out.shape[1] == frames - 3
    np.testing.assert_array_equal(after.size_BxV[0], size)
    np.testing.assert_allclose(out[0], expected, atol=1e-5 * max(np.abs(expected).max(), 1))


def test_layers_that_are_left_out_leave_as_many_frames():
    """So training's shapes are static, and each merge has a gradient."""
    config = small("logmel", layerdrop=0.5, remat="layers")
    encoder, setting = Encoder(config), Compression(1, 1, 2, (0.2, 0.4))
    x, length = jnp.asarray(noise((2, 15, config.width))), jnp.array([15, 9])
    params = draw(jax.eval_shape(lambda: encoder.init(jax.random.key(0), x, length, Compression(), True))["params"])

    @jax.jit
    def trained(params, x, key):
        def loss(params, x):
            out = encoder.apply({"params": params}, x, length, setting, False, rngs={"layerdrop": key})
            return jnp.sin(3 * out).sum(), out

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    drawn = [jax.device_get(trained(params, x, jax.random.key(i))) for i in range(8)]
    for (_, out), (_, slope) in drawn:
        assert len(np.unique(out[0], axis=0)) == 15 - 3 - int(0.4 * 12)
        assert len(np.unique(out[1, :9], axis=0)) == 9 - 1 - int(0.4 * 8)
        assert np.isfinite(slope).all() and slope[1, :9].any(1).all() and not slope[1, 9:].any()
    gradients = np.array([gradient["layer_0"]["ffn_in"]["kernel"] for _, (gradient, _) in drawn])
    assert 0 < gradients.any((1, 2)).sum() < len(drawn)
