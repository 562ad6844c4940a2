"""Rotary and ALiBi positions against numpy, which turns complex numbers, at the times of frames of any rates."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.checkpoints.hf_config import Architecture, family_of, write_architecture
from sew_jax.compression import Compression
from sew_jax.engines.graph import Weights
from sew_jax.engines.network import build
from sew_jax.errors import UserError
from sew_jax.models.attention import Attention
from sew_jax.models.cost import count_macs
from sew_jax.models.encoder import Encoder
from sew_jax.models.kept_frames import kept_frames
from sew_jax.models.merging import merge_neighbours, start_track
from sew_jax.models.noise import row_keys
from sew_jax.models.times import alibi_slopes
from tests.models import oracle
from tests.models.build import draw, noise, small
from tests.models.test_encoder import pool

FORMS = ("rotary", "alibi")


@functools.cache
def encoder_of(form, **options):
    config = small("logmel", positions=form, upsampler="repeat", **options)
    encoder, x = Encoder(config), jnp.zeros((1, 12, config.width))
    make = functools.partial(encoder.init, jax.random.key(0), x, jnp.array([12]), Compression(), True)
    return encoder, draw(jax.eval_shape(make)["params"])


def attention(p, form, query, key, query_time, key_time, heads):
    size = query.shape[1] // heads
    half = size // 2

    def project(name, x):
        return oracle.affine(x, p[name]).reshape(len(x), heads, size)

    q, k, v = project("query", query), project("key", key), project("value", key)
    if form == "rotary":
        speed = 10_000.0 ** (-np.arange(half) / half)
        turn = (np.exp(1j * time[:, None, None] * speed) for time in (query_time, key_time))
        q, k = ((x[..., :half] + 1j * x[..., half:]) * by for x, by in zip((q, k), turn, strict=True))
    scores = np.einsum("qhe,khe->hqk", q, k.conj()).real / np.sqrt(size)
    if form == "alibi":
        slopes = 2.0 ** np.array([-4, -8, -2])  # of three heads: two by two, then the first of four
        scores -= slopes[:, None, None] * np.abs(query_time[:, None] - key_time)
    weights = np.exp(scores)
    mixed = np.einsum("hqk,khe->qhe", weights / weights.sum(-1, keepdims=True), v)
    return oracle.affine(mixed.reshape(query.shape), p["out"])


def encode(p, form, x, setting, heads):
    """Post-LN layers of one utterance, in which a window's time is the mean of its frames'."""
    frames = len(x)
    x, time = pool(x, setting.squeeze), pool(np.arange(frames)[:, None], setting.squeeze)
    x = oracle.normalize(x, p["norm"], 1)
    for i, (query_pool, kv_pool) in enumerate(setting.layer_pools(2)):
        layer = p[f"layer_{i}"]
        sides = [pool(y, by) for by in (query_pool, kv_pool) for y in (x, time)]
        update = attention(layer["attention"], form, sides[0], sides[2], sides[1][:, 0], sides[3][:, 0], heads)
        x = oracle.normalize(x + np.repeat(update, query_pool, axis=0)[: len(x)], layer["attention_norm"], 1)
        x = oracle.normalize(x + oracle.feed_forward(layer, x), layer["ffn_norm"], 1)
    return np.repeat(x, setting.squeeze, axis=0)[:frames]


@functools.cache
def run(form, *names):
    """Of one utterance of 13 frames alone, and in a padded batch, at each setting: numpy."""
    encoder, params = encoder_of(form)
    x, batch = noise((1, 13, 24)), 9 * noise((3, 21, 24), 1)  # whatever lies in the padding must not be seen
    batch[1, :13] = x[0]

    def both(params, x, batch):
        return [
            (
                encoder.apply({"params": params}, x, jnp.array([13]), Compression.parse(name), True)[0],
                encoder.apply({"params": params}, batch, jnp.array([21, 13, 4]), Compression.parse(name), True)[1],
            )
            for name in names
        ]

    exact = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    return x[0], exact, jax.device_get(jax.jit(both)(params, x, batch))


NAMES = ("s1q1k1", "s2q1.2k3.1", "s1q1k2m0-0.3", "r0.4q1k2")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES[:2])
def test_layers_know_of_times_alone(form, name):
    x, params, outputs = run(form, *NAMES)
    expected = encode(params, form, x.astype(np.float64), Compression.parse(name), 3)
    ours = outputs[NAMES.index(name)][0]
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
    assert "pos_conv" not in params


@pytest.mark.parametrize("form", FORMS)
def test_alone_padded_and_in_a_batch(form):
    _, _, outputs = run(form, *NAMES)
    for alone, together in outputs:
        np.testing.assert_allclose(together[:13], alone, atol=1e-5 * np.abs(alone).max())


def test_slopes_are_those_of_the_paper():
    np.testing.assert_allclose(alibi_slopes(8), [0.5**i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(12)[8:], [0.5 ** (i + 0.5) for i in range(4)], rtol=1e-6)


def test_a_merged_frame_has_the_mean_time_of_what_it_stands_for():
    time = np.broadcast_to(np.arange(17.0, dtype=np.float32)[:, None] ** 1.5, (2, 17, 1))

    @jax.jit
    def merge_twice(x, length_B):
        once, track = merge_neighbours(x, x, start_track(length_B, 17, time), 0.4)
        return merge_neighbours(once, once, track, 0.5)[1]

    lengths = np.array([17, 9])
    track = jax.device_get(merge_twice(noise((2, 17, 3)), lengths))
    for row, frames in enumerate(lengths):
        place = track.place_BxW[row, :frames]
        means = [np.mean(time[row, :frames, 0][place == i]) for i in range(track.length_B[row])]
        np.testing.assert_allclose(track.time_BxVx1[row, : len(means), 0], means, rtol=1e-6)


def test_frames_that_are_seen_keep_their_times():
    """data2vec 2.0's student: what is masked leaves gaps in time, here between windows of two."""
    encoder, params = encoder_of("rotary", loop_layers=False)  # whose layers can be looked into

    @jax.jit
    def times(x, length_B):
        given = []

        def keep(call, arguments, options, context):
            if isinstance(context.module, Attention) and context.method_name == "__call__":
                given.append(arguments[5])
            return call(*arguments, **options)

        keys = row_keys(jax.random.key(0), jnp.array([3]))
        kept = kept_frames(keys, length_B[:1], 23, unit=4, clones=2, ratio=0.5, adjust=0.05, block=4)
        with nn.intercept_methods(keep):
            encoder.apply({"params": params}, x, length_B, Compression(2, 2, 1), True, None, kept)
        return kept.kept_RxU, given[0]

    kept_RxU, (query_time, key_time) = jax.device_get(times(noise((2, 23, 24)), np.array([23, 23])))
    windows = pool(np.arange(23)[:, None], 2)[:, 0]
    for row in range(2):
        seen = windows[np.repeat(kept_RxU[row], 2)[:12]]
        np.testing.assert_array_equal(key_time[row, : len(seen)], seen)
        np.testing.assert_array_equal(query_time[row, : -(-len(seen) // 2)], pool(seen[:, None], 2)[:, 0])


def test_what_is_saved_is_the_convolution():
    costs = {form: count_macs(small("logmel", positions=form), Compression(2), 16_000) for form in ("conv", *FORMS)}
    assert costs["rotary"] == costs["alibi"] and costs["conv"].pos_conv > costs["rotary"].pos_conv == 0
    assert costs["conv"].total - costs["conv"].pos_conv == costs["rotary"].total


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_is_refused_by_name(form):
    for options in (dict(rel_buckets=16, rel_furthest=12), dict(pos_layers=2)):
        (field, _), *_ = options.items()
        with pytest.raises(UserError, match=f"^model.positions: {form} .*model.{field} is"):
            small("logmel", positions=form, **options)
    config = small("group", positions=form)
    with pytest.raises(UserError, match=f"cannot express this model, since model.positions is {form}"):
        write_architecture(family_of(config, 1), Architecture(config, None, 1))
    with pytest.raises(UserError, match=f"^model.positions: {form} has no ONNX graph"):
        build(config, {}, Compression(), Weights("float32"), "", {})


def test_rotary_wants_pairs():
    with pytest.raises(UserError, match=r"^model\.positions: rotary turns pairs of channels, and a head has 3"):
        small("logmel", positions="rotary", heads=8)
