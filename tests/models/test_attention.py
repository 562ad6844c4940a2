"""Attention against numpy; a pair of heads, and a head, after the other as all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.models import attention
from sew_jax.models.lengths import mask_from_lengths
from sew_jax.models.platforms import compiled_for

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


def long_arguments(dtype="float32", queries=40, keys=23):
    """One utterance is shorter, one is a filler row without a valid key."""
    random = np.random.default_rng(1)
    q, k, v = (jnp.asarray(random.normal(size=(3, 2, n, 16)), dtype) for n in (queries, keys, keys))
    words = jnp.asarray(random.integers(2**32, size=(3, 2, 2), dtype=np.uint32))
    return q / 4, k, v, jnp.array([keys, keys - 5, 0]), words


def plain(q, k, v, key_length_B, words, rate):
    """The scores whole."""
    valid_BxK = mask_from_lengths(key_length_B, k.shape[2])
    return attention.attend(q, k, v, jnp.broadcast_to(valid_BxK[:, None], k.shape[:3]), words, rate=rate)


def head_by_head(q, k, v, key_length_B, words, rate):
    return attention.attend_head_by_head(q, k, v, mask_from_lengths(key_length_B, k.shape[2]), words, rate)


def gradients(function, arguments, rate):
    """Output and gradients; a filler row's frames are nobody's, so no gradient comes from them."""

    def loss(q, k, v):
        out = function(q, k, v, *arguments[3:], rate)
        return jnp.where(jnp.arange(3)[:, None, None, None] < 2, jnp.square(out - 0.3), 0.0).sum(), out

    results = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arguments[:3])
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(results)]


@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize(("queries", "keys"), [(40, 23), (16, 48)], ids=str)
def test_head_by_head_gives_what_all_at_once_gives_and_its_gradients(rate, queries, keys):
    """With the same dropout, at rates of queries and of keys that differ."""
    arguments = long_arguments("float32", queries, keys)
    ours, whole = (gradients(function, arguments, rate) for function in (head_by_head, plain))
    for mine, theirs in zip(ours, whole, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_head_by_head_rounds_no_more_than_all_at_once_in_bfloat16():
    arguments = long_arguments("bfloat16")
    exact = gradients(plain, (*(x.astype("float32") for x in arguments[:3]), *arguments[3:]), 0.25)
    ours, whole = (gradients(function, arguments, 0.25) for function in (head_by_head, plain))
    for mine, theirs, truth in zip(ours, whole, exact, strict=True):
        error, usual = (np.linalg.norm(x - truth) / np.linalg.norm(truth) for x in (mine, theirs))
        assert error < max(1.5 * usual, 2**-8), (error, usual)


def test_head_by_head_all_products_take_operands_of_the_dtype_on_gpus():
    """Also those of the backward pass, whose gradients of float32 sums XLA would keep in float32."""
    arguments = jax.eval_shape(lambda: long_arguments("bfloat16", 200, 150))
    pull = lambda *a: jax.vjp(lambda q, k, v: head_by_head(q, k, v, *a[3:], 0.1), *a[:3])[1](a[0])  # noqa: E731
    with compiled_for("cuda"):
        program = jax.export.export(jax.jit(pull), platforms=["cuda"])(*arguments).mlir_module()
    operands = [
        line.rsplit(" : (", 1)[1].split(") ->")[0] for line in program.splitlines() if "stablehlo.dot_general " in line
    ]
    assert len(operands) == 7 and all("f32" not in types for types in operands)
