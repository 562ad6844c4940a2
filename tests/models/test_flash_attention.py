"""The kernels of NVIDIA GPUs, step by step on this machine, against scores that lie whole in memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.models import flash_attention as kernels
from sew_jax.models.attention import attend
from sew_jax.models.flash_attention import Blocks, flash_attention
from sew_jax.models.lengths import mask_from_lengths
from sew_jax.runtime.sharding import batch_sharding, make_mesh

QUERIES, KEYS, HEADS = 21, 35, 2


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for name, blocks in {"FORWARD": (16, 8), "TO_KEYS": (8, 16), "TO_QUERIES": (16, 8)}.items():
        monkeypatch.setattr(kernels, name, Blocks(*blocks, warps=4, stages=2))


def arguments(batch, channels=12, value_channels=12, dtype="float32"):
    random = np.random.default_rng(0)
    shapes = [(batch, QUERIES, HEADS, channels), (batch, KEYS, HEADS, channels), (batch, KEYS, HEADS, value_channels)]
    q, k, v = (jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)
    length = jnp.asarray(random.integers(1, KEYS + 1, batch), jnp.int32).at[0].set(KEYS)
    seed = jnp.asarray(random.integers(2**32, size=(batch, HEADS, 2), dtype=np.uint32))
    return q / 2, k, v, length, seed


def whole(q, k, v, length, seed, rate):
    heads_first = (x.swapaxes(1, 2) for x in (q, k, v))
    valid = jnp.broadcast_to(mask_from_lengths(length, KEYS)[:, None], (len(q), HEADS, KEYS))
    return attend(*heads_first, valid, seed, rate=rate).swapaxes(1, 2)


def by_blocks(q, k, v, length, seed, rate):
    return flash_attention(q, k, v, length, seed, rate, True)


def with_gradients(function, arguments, rate):
    """Output, and gradients of q, k and v for noise as the output's."""

    def run(q, k, v):
        out, backward = jax.vjp(lambda *x: function(*x, *arguments[3:], rate), q, k, v)
        noise = np.random.default_rng(1).normal(size=out.shape)
        return out, *backward(jnp.asarray(noise, out.dtype))

    return [np.asarray(x, np.float32) for x in jax.jit(run)(*arguments[:3])]


@pytest.mark.parametrize(
    ("rate", "value_channels"), [(0.0, 12), (0.25, 12), (0.25, 8)], ids=["plain", "dropout", "narrower values"]
)
def test_blocks_give_what_whole_scores_give_and_its_gradients(rate, value_channels):
    """With the same dropout; frames and channels fill no block, and one utterance is shorter than the other."""
    given = arguments(2, value_channels=value_channels)
    for mine, theirs in zip(with_gradients(by_blocks, given, rate), with_gradients(whole, given, rate), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_blocks_round_no_more_than_whole_scores_in_bfloat16():
    exact = with_gradients(whole, arguments(2), 0.0)
    rounded = (with_gradients(function, arguments(2, dtype="bfloat16"), 0.0) for function in (by_blocks, whole))
    for right, mine, theirs in zip(exact, *rounded, strict=True):
        assert np.linalg.norm(mine - right) < 1.2 * np.linalg.norm(theirs - right)


def test_a_row_without_valid_keys_is_no_nan():
    q, k, v, length, seed = arguments(2)
    for x in with_gradients(by_blocks, (q, k, v, length.at[1].set(0), seed), 0.25):
        assert np.isfinite(x).all()


def test_utterances_stay_on_their_devices():
    """What it would cost: a kernel that the partitioner does not know gets the whole batch, on each device."""
    rows = batch_sharding(make_mesh(8, 1))
    given = arguments(16)
    placed = [jax.device_put(x, rows) for x in given]

    def run(q, k, v, length, seed):
        out, backward = jax.vjp(lambda *x: flash_attention(*x, length, seed, 0.25, True), q, k, v)
        return out, *backward(jnp.cos(out))

    alone = jax.jit(run)(*given)
    program = jax.jit(run, out_shardings=rows).lower(*placed).compile()
    assert not re.search(r"all-(gather|reduce|to-all)|collective-permute", program.as_text())
    for mine, theirs in zip(program(*placed), alone, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
