"""Attention against numpy, and a pair of heads after the other as all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.models import attention

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 5, 7, 4


def arguments(seed=0):
    random = np.random.default_rng(seed)
    q, k, v = (random.normal(size=(BATCH, HEADS, n, WIDTH)).astype(np.float32) for n in (QUERIES, KEYS, KEYS))
    valid = np.broadcast_to((np.arange(KEYS) < np.array([[4], [KEYS]]))[:, None], (BATCH, HEADS, KEYS))
    words = random.integers(2**32, size=(BATCH, HEADS, 2), dtype=np.uint32)
    return jax.tree.map(jnp.asarray, (q, k, v, valid, words))


def test_attention_is_the_softmax_over_valid_keys():
    q, k, v, valid, _ = arguments()
    out = np.asarray(attention.attend(q, k, v, valid, None, rate=0.0))
    for b in range(BATCH):
        keys = int(valid[b, 0].sum())
        for h in range(HEADS):
            weights = np.exp(np.asarray(q[b, h], np.float64) @ np.asarray(k[b, h, :keys], np.float64).T)
            weights /= weights.sum(1, keepdims=True)
            np.testing.assert_allclose(out[b, h], weights @ np.asarray(v[b, h, :keys]), rtol=1e-5, atol=1e-6)


def test_scores_far_apart_neither_overflow_nor_vanish():
    q, k, v, valid, _ = arguments()
    out = attention.attend(1e4 * q, k, v, valid, None, rate=0.0)
    best = jnp.where(valid[:, :, None], jnp.einsum("bhqe,bhke->bhqk", q, k), -jnp.inf).argmax(-1)
    np.testing.assert_allclose(out, jnp.take_along_axis(v, best[..., None], axis=2), atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_pair_by_pair_gives_what_all_at_once_gives_and_its_gradients(rate, monkeypatch):
    monkeypatch.setattr(attention, "_CACHED_SCORES", 0)
    q, k, v, valid, words = arguments()
    words = words if rate else None

    def outputs(function):
        def loss(q, k, v):
            out = function(q, k, v, valid, words, rate=rate)
            return jnp.square(out - 0.3).sum(), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    for ours, whole in zip(
        jax.tree.leaves(outputs(attention.attend_pair_by_pair)), jax.tree.leaves(outputs(attention.attend)), strict=True
    ):
        np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=1e-6)
