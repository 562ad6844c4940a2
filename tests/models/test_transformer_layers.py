"""Layers that the whole model shares: GELU against its definition, and the random numbers of dropout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.models.layers import dropout, gelu, hash_words
from sew_jax.models.platforms import compiled_for


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_gelu_and_its_slope(dtype, tolerance):
    x = jnp.linspace(-6, 6, 2001).astype(dtype)
    exact = np.asarray(x, np.float64)
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in exact])
    slope = cdf + exact * np.exp(-(exact**2) / 2) / math.sqrt(2 * math.pi)
    # one rounding each, whatever the size of the value
    np.testing.assert_allclose(np.asarray(gelu(x), np.float64), exact * cdf, rtol=tolerance, atol=1e-6)
    np.testing.assert_allclose(np.asarray(jax.vmap(jax.grad(gelu))(x), np.float64), slope, rtol=tolerance, atol=1e-6)


def test_random_bytes_are_uniform_and_differ_between_seeds():
    seeds = jnp.array([[0, 0], [0, 1], [1, 0], [2**31, 7]], jnp.uint32)
    words = np.asarray(hash_words(seeds, (64, 1024)))
    bytes_ = words.view(np.uint8).reshape(4, -1)
    for row in bytes_:
        counts = np.bincount(row, minlength=256)
        statistic = np.square(counts - counts.mean()).sum() / counts.mean()
        assert 150 < statistic < 380  # chi-square, 255 degrees of freedom: 5 standard deviations
    signs = np.where(bytes_ >= 128, 1.0, -1.0)
    limit = 5 / np.sqrt(signs.shape[1])
    correlations = np.corrcoef(signs) - np.eye(4)
    assert np.abs(correlations).max() < limit
    for lag in (1, 2, 4, 1024, 4096):  # neighbours in a row, and in a column
        assert np.abs((signs[:, lag:] * signs[:, :-lag]).mean(1)).max() < 1.1 * limit


def test_every_position_of_any_shape_has_its_own_word():
    words = np.asarray(hash_words(jnp.array([3, 4], jnp.uint32), (5, 7, 11)))
    assert len(np.unique(words)) == words.size


def test_dropout_is_the_same_on_accelerators():
    """Which take no words apart."""
    seeds, x = jnp.array([[1, 2], [3, 4]], jnp.uint32), jnp.ones((2, 5, 13))
    cpu = dropout(x, 0.3, seeds)
    with compiled_for("tpu"):
        np.testing.assert_array_equal(dropout(x, 0.3, seeds), cpu)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean(rate):
    x = dropout(jnp.ones((400, 401)), rate, jnp.array([1, 2], jnp.uint32))
    dropped = round(rate * 256) / 256
    assert abs(float((x == 0).mean()) - dropped) < 5 * np.sqrt(dropped / x.size)
    np.testing.assert_allclose(np.unique(x), [0, 1 / (1 - dropped)], rtol=1e-6)
