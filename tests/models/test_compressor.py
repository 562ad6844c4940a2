"""Continuous integrate-and-fire against a loop in numpy, and what must hold of it whatever the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.models.compressor import average_parts, parts_of_frames, read_back
from sew_jax.models.lengths import mean_pool, scaled_length
from tests.models.build import apply, init, noise, small

FRAMES, LENGTHS = 40, np.array([40, 37, 13, 2, 1, 0])


def weights(seed=0):
    return np.random.default_rng(seed).uniform(1 / 64, 1, (len(LENGTHS), FRAMES)).astype(np.float32)


def fire_one_by_one(weight, x):
    """Integrate and fire, frame after frame: the frames of the output, means each; what is left at the end is one."""
    outputs, parts, held = [], np.zeros((0, len(x))), np.zeros(len(x))
    for t, left in enumerate(weight):
        while held.sum() + left >= 1 - 1e-9:
            taken = 1 - held.sum()
            held[t] += taken
            left = max(left - taken, 0)
            parts, held = np.vstack([parts, held]), np.zeros(len(x))
        held[t] += left
    if held.sum() > 1e-5:
        parts = np.vstack([parts, held])
    outputs = parts / parts.sum(1, keepdims=True) @ x
    return parts, outputs


@functools.partial(jax.jit, static_argnums=2)
def compress(weight, length, rate, x):
    parts = parts_of_frames(weight, length, rate)
    y = average_parts(parts, x)
    return parts, y, read_back(parts, y)


@pytest.mark.parametrize("rate", [0.4, 0.125, 0.777, 0.95])
def test_it_fires_as_a_loop_does(rate):
    """Also where weights are scaled to more than 1, and one frame ends several."""
    weight, x = weights(), noise((len(LENGTHS), FRAMES, 3))
    weight[1] = np.where(np.arange(FRAMES) % 9 == 4, 1, 1 / 64)  # scaled to up to 7
    found = [np.asarray(y) for y in compress(weight, LENGTHS, rate, x)]
    assert found[0].shape[1] == np.ceil(round(rate * FRAMES, 6))
    for parts, y, back, row, length in zip(*found, range(len(LENGTHS)), LENGTHS, strict=True):
        if not length:
            assert not parts.any() and not y.any()
            continue
        rounded = np.round(2**14 * weight[row, :length].astype(float))
        expected, outputs = fire_one_by_one(rounded / rounded.sum() * rate * length, x[row, :length].astype(float))
        count = len(outputs)
        assert count == int(np.ceil(round(rate * length, 6))) == scaled_length(int(length), rate)
        np.testing.assert_allclose(parts[:count, :length], expected, atol=2e-5)
        np.testing.assert_allclose(parts[: count - 1].sum(1), 1, atol=2e-5)
        np.testing.assert_allclose(y[:count], outputs, atol=1e-4)
        assert not parts[count:].any() and not parts[:, length:].any() and not y[count:].any()
        shares = expected / expected.sum(0)
        np.testing.assert_allclose(back[:length], shares.T @ outputs, atol=2e-4)


@pytest.mark.parametrize("squeeze", [2, 5])
def test_equal_weights_are_mean_pooling(squeeze):
    x = noise((len(LENGTHS), FRAMES, 3))
    _, y, _ = compress(np.ones((len(LENGTHS), FRAMES)), LENGTHS, 1 / squeeze, x)
    expected = mean_pool(jnp.asarray(x), LENGTHS, squeeze)
    for row, length in enumerate(-(-LENGTHS // squeeze)):
        np.testing.assert_allclose(y[row, :length], expected[row, :length], atol=1e-5)


def test_a_rate_of_one_is_the_uncompressed_model_bit_for_bit():
    assert Compression.parse("r1q2k1") == Compression(1, 2, 1)  # the same program
    x = noise((1, FRAMES, 3))
    for y in compress(np.ones((1, FRAMES)), LENGTHS[:1], 1.0, x)[1:]:
        np.testing.assert_array_equal(y, x)


def test_parts_are_the_same_bits_however_long_the_padding():
    weight, length = weights(1), LENGTHS
    long = np.concatenate([weight, weights(2), weights(3)], axis=1)
    usual, padded = compress(weight, length, 0.4, weight[..., None])[0], compress(long, length, 0.4, long[..., None])[0]
    np.testing.assert_array_equal(padded[:, : usual.shape[1], :FRAMES], usual)
    assert not padded[:, usual.shape[1] :].any() and not padded[:, :, FRAMES:].any()


def test_gradients_reach_the_weights():
    """As differences say, which jump neither where a frame is split."""
    weight, x, length, rate = weights(4)[:1, :15], noise((1, 15, 3)), np.array([13]), 0.4
    target = noise((1, 6, 3), 5)

    def loss(weight):
        return (average_parts(parts_of_frames(weight, length, rate), x) * target).sum()

    slope, step = jax.jit(jax.grad(loss))(jnp.asarray(weight))[0], 2.0**-6
    assert not slope[13:].any()
    jitted = jax.jit(loss)
    for t in range(13):
        by_differences = [float(jitted(weight + step * sign * (np.arange(15) == t))) for sign in (1, -1)]
        assert slope[t] == pytest.approx((by_differences[0] - by_differences[1]) / (2 * step), abs=0.05)


def test_a_learned_compressor_sees_the_utterance_alone():
    """Whatever lies beside and behind it; and its weights matter."""
    model, params = init(small("logmel", layers=1, compressor=True))
    setting, wave = Compression(1, 2, 2, 0.2, 0.6), noise(5200)
    alone = apply(model, params, wave[None], [5200], setting)
    batch = np.stack([noise(8003, seed) for seed in (1, 2, 3)])
    batch[1, :5200] = wave
    together = apply(model, params, batch, [8003, 5200, 700], setting)
    frames = alone.length_B[0]
    np.testing.assert_allclose(together.context_BxTxD[1, :frames], alone.context_BxTxD[0], atol=2e-5)
    assert not together.context_BxTxD[1, frames:].any() and np.isfinite(together.context_BxTxD).all()

    changed = jax.tree.map(np.copy, params)
    changed["encoder"]["compressor"]["weight"]["kernel"] *= -1
    other = apply(model, changed, wave[None], [5200], setting)
    assert np.abs(other.context_BxTxD - alone.context_BxTxD).max() > 0.1
