"""Relative positions between frames of any two rates, and attention with them in each of its forms."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.models import attention
from sew_jax.models.attention import Attention
from sew_jax.models.cost import count_macs
from sew_jax.models.encoder import Encoder
from sew_jax.models.lengths import mask_from_lengths
from sew_jax.models.relative import RelativeBias, bucket, distances, gated, spread
from tests.models import oracle
from tests.models.build import noise, small


@pytest.mark.parametrize(
    "queries, keys, query_step, key_step",
    [(5, 5, 1, 1), (5, 7, 1, 2), (7, 4, 2, 1), (4, 3, 2, 3), (4, 5, 2, 2), (3, 9, 6, 4), (1, 1, 1, 1)],
)
def test_distances_are_those_of_the_windows_centres(queries, keys, query_step, key_step):
    def centres(count, step):
        return np.array([np.mean(range(i * step, (i + 1) * step)) for i in range(count)])

    by_distance = distances(queries, keys, query_step, key_step)
    rows = jnp.broadcast_to(jnp.asarray(by_distance, jnp.float32), (2, queries, len(by_distance)))
    expected = centres(keys, key_step)[None, :] - centres(queries, query_step)[:, None]
    np.testing.assert_array_equal(spread(rows, keys, query_step, key_step), [expected, expected])


def test_buckets_are_frames_first_and_then_ever_wider():
    """Of 20: 10 a side, of which 5 are a frame wide; from 40 frames on, all is one."""
    d = np.arange(-60, 61)
    b = bucket(d, 20, 40)
    np.testing.assert_array_equal(b[np.abs(d) < 5], [4, 3, 2, 1, 0, 11, 12, 13, 14])
    after = b[d > 0] - 10
    np.testing.assert_array_equal(b[d < 0][::-1], after)
    assert (np.diff(after) >= 0).all() and (np.diff(after) <= 1).all() and set(after) == {*range(1, 10)}
    widths = np.bincount(after[:39])[5:]
    assert (np.diff(widths) >= 0).all() and (after[39:] == 9).all()


def numpy_attention(p, query, key, heads, bias_HxQxK):
    """Of one utterance, with each query's gate as WavLM's paper has it."""
    size = query.shape[1] // heads
    q, k, v = (
        oracle.affine(x, p[n]).reshape(len(x), heads, size) for n, x in (("query", query), ("key", key), ("value", key))
    )
    out = np.zeros_like(q)
    for h in range(heads):
        gates = oracle.affine(query.reshape(-1, heads, size)[:, h], p["gate"]["linear"])
        reset, update = (1 / (1 + np.exp(-gates[:, part].sum(1))) for part in (slice(0, 4), slice(4, 8)))
        gate = 1 + reset * update * p["gate"]["scale"][h] + (1 - reset)
        scores = q[:, h] @ k[:, h].T / np.sqrt(size) + gate[:, None] * bias_HxQxK[h]
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, h] = weights / weights.sum(1, keepdims=True) @ v[:, h]
    return oracle.affine(out.reshape(query.shape), p["out"])


@pytest.mark.parametrize("query_step, key_step", [(1, 1), (2, 3), (4, 2)])
def test_gated_attention_between_two_rates(query_step, key_step):
    """Between windows of odd and even length the bias is the mean of both nearest distances'."""
    heads, width, queries, keys = 3, 24, 6, 5
    query, key = noise((1, queries, width)), noise((1, keys, width), 1)
    bias, module = RelativeBias(heads, 16, 12), Attention(heads, 0.0, "float32")
    table = noise((16, heads), 2)

    def attend(module, query, key):
        bias_HxL = bias.apply({"params": {"embedding": table}}, queries, keys, query_step, key_step)
        return module(query, key, jnp.array([keys]), True, None, bias_HxL, (query_step, key_step))

    shapes = jax.eval_shape(lambda: nn.init(attend, module)(jax.random.key(0), query, key))
    params = jax.tree.map(lambda x: noise(x.shape, len(x)) / 4, shapes)
    ours = nn.apply(attend, module)(params, query, key)[0]

    centre = [(np.arange(n) + 0.5) * step for n, step in ((queries, query_step), (keys, key_step))]
    distance = centre[1][None, :] - centre[0][:, None]
    near, far = (table[bucket(round_(distance), 16, 12)] for round_ in (np.floor, np.ceil))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    expected = numpy_attention(p, query[0], key[0], heads, np.moveaxis((near + far) / 2, -1, 0))
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def outputs_and_gradients(function, rate, keys=23, queries=40):
    """One utterance is shorter, one is a filler row, whose frames are nobody's."""
    random = np.random.default_rng(1)
    q, k, v = (jnp.asarray(random.normal(size=(3, 2, n, 16)), jnp.float32) for n in (queries, keys, keys))
    words = jnp.asarray(random.integers(2**32, size=(3, 2, 2), dtype=np.uint32)) if rate else None
    gate = jnp.asarray(random.normal(size=(2, 3, queries)), jnp.float32)
    bias = jnp.asarray(random.normal(size=(2, len(distances(queries, keys, 1, 2)))), jnp.float32)
    valid_BxK = mask_from_lengths(jnp.array([keys, keys - 5, 0]), keys)
    of_head = functools.partial(gated, keys=keys, query_step=1, key_step=2)

    def loss(q, k, v, parts):
        out = function(q / 4, k, v, valid_BxK, words, parts, of_head, rate)
        return jnp.where(jnp.arange(3)[:, None, None, None] < 2, jnp.square(out - 0.3), 0.0).sum(), out

    results = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, (gate, bias))
    return [np.asarray(x) for x in jax.tree.leaves(results)]


def all_at_once(q, k, v, valid_BxK, words, parts, of_head, rate):
    gate_HxBxQ, bias_HxL = parts
    whole = jnp.stack([of_head(gate, bias) for gate, bias in zip(gate_HxBxQ, bias_HxL, strict=True)], axis=1)
    valid_BxHxK = jnp.broadcast_to(valid_BxK[:, None], k.shape[:3])
    return attention.attend(q, k, v, valid_BxHxK, words, whole, rate=rate)


def head_by_head(q, k, v, valid_BxK, words, parts, of_head, rate):
    return attention.attend_head_by_head(q, k, v, valid_BxK, words, rate, parts, of_head)


def on_cpu(q, k, v, valid_BxK, words, parts, of_head, rate):
    return attention.attend_with_bias(q, k, v, valid_BxK, words, parts, of_head, rate=rate)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_all_forms_give_the_same_and_its_gradients(rate, monkeypatch):
    """Also those of the bias and of its gates, with the same dropout."""
    expected = outputs_and_gradients(all_at_once, rate)
    forms = [outputs_and_gradients(head_by_head, rate), outputs_and_gradients(on_cpu, rate)]
    monkeypatch.setattr(attention, "_CACHED_SCORES", 0)
    forms.append(outputs_and_gradients(on_cpu, rate))
    for form in forms:
        for ours, theirs in zip(form, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5 * np.abs(theirs).max())


def test_a_checkpoint_of_one_rate_hears_the_same_distances_at_another():
    """A bias by distance is one in time: pooled by two on both sides, keys two frames away are the next ones."""
    table = {"params": {"embedding": noise((32, 3))}}
    fine, coarse = (RelativeBias(3, 32, 100).apply(table, n, n, step, step) for n, step in ((9, 1), (5, 2)))
    np.testing.assert_array_equal(fine[:, ::2], coarse)


def test_layers_of_the_same_pools_share_one_bias(monkeypatch):
    config = small("logmel", layers=3, rel_buckets=16, rel_furthest=12)
    made = []
    original = RelativeBias.__call__
    monkeypatch.setattr(RelativeBias, "__call__", lambda self, *a: made.append(a) or original(self, *a))
    x, length = jnp.zeros((1, 12, config.width)), jnp.array([12])
    setting = Compression(2, (1, 2, 1), (2, 2, 2))
    jax.eval_shape(lambda: Encoder(config).init(jax.random.key(0), x, length, setting, True))
    assert made == [(6, 3, 2, 4), (3, 3, 4, 4)]


@pytest.mark.parametrize("form", ["gated", "disentangled"])
@pytest.mark.parametrize("name", ["s1q1k1m0.2", "s2q1k1m0-0.2", "r0.4q1k1"])
def test_frames_at_uneven_distances_are_refused_by_name(form, name):
    config = small("logmel", rel_buckets=16, rel_furthest=12, rel_form=form)
    config.check_setting(Compression(2, 1, (1, 2)))
    with pytest.raises(UserError, match=f"^setting: {name} leaves frames at uneven distances, .*model.rel_buckets=16"):
        count_macs(config, Compression.parse(name), 16_000)
    x, length = jnp.zeros((1, 12, config.width)), jnp.array([12])
    with pytest.raises(UserError, match="uneven distances"):
        jax.eval_shape(lambda: Encoder(config).init(jax.random.key(0), x, length, Compression.parse(name), True))
