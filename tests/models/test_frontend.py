"""Front ends: frame counts, log-mel, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig
from sew_jax.models.frontend import Frontend, frame_count
from sew_jax.models.sizes import published
from tests.models.build import FRONTENDS, init, noise, small


def test_published_frame_counts():
    """facts: 250,000 samples are 781 frames for both convolutional extractors."""
    assert frame_count(BackboneConfig(), 250_000) == 781
    assert frame_count(published("sew_tiny")[0], 250_000) == 781
    assert frame_count(BackboneConfig(), 399) == 0 and frame_count(BackboneConfig(), 400) == 1


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_frame_count_is_the_shape(frontend):
    config = small(frontend)
    model, params = init(config)
    run = functools.partial(model.apply, {"params": params}, compression=Compression(), deterministic=True)
    for samples in (800, 801, 3999, 5000):
        wave, length = noise(samples)[None], jnp.array([samples])
        shape = jax.eval_shape(run, wave, length).context_BxTxD.shape
        computed = jax.jit(lambda wave, length: run(wave, length).length_B)(wave, length)
        assert shape[1] == computed[0] == frame_count(config, samples)


def test_log_mel_against_an_fft():
    samples = 4000
    wave = noise(samples).astype(np.float64)
    config = small("logmel")
    ours, length = Frontend(config).apply({}, jnp.asarray(wave[None], jnp.float32), jnp.array([samples]))
    frames = np.stack([wave[t : t + 400] for t in range(0, samples - 399, 160)]) * np.hanning(401)[:400]
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    corners = 700 * (10 ** (np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + 8000 / 700), 82) / 2595) - 1)
    bins = np.arange(257) * 16_000 / 512
    filters = np.stack([np.interp(bins, corners[i : i + 3], [0, 1, 0]) for i in range(80)], axis=1)
    mel = np.log(np.maximum(power @ filters, 1e-5))
    mel = (mel - mel.mean(0)) / np.sqrt(mel.var(0) + 1e-5)
    expected = mel[: len(mel) // 2 * 2].reshape(-1, 160)
    assert length[0] == len(expected)
    np.testing.assert_allclose(ours[0], expected, atol=2e-3)


def test_mel_options():
    """Filters that end lower do not see what is above; one scale for all bins leaves a quiet bin quiet."""
    time = np.arange(8000) / 16_000
    low = np.sin(2 * np.pi * 500 * time) * (1 + np.sin(2 * np.pi * 4 * time))
    random = np.random.default_rng(0)
    high = np.fft.irfft(np.fft.rfft(random.normal(size=8000)) * (np.fft.rfftfreq(8000, 1 / 16_000) > 5000))

    def features(wave, **options):
        ours, _ = Frontend(small("logmel", **options)).apply(
            {}, jnp.asarray(wave[None], jnp.float32), jnp.array([8000])
        )
        return np.asarray(ours[0]).reshape(-1, 80)

    noisy = low + 0.05 * random.normal(size=8000)
    different = np.abs(features(noisy) - features(noisy + high)).max()
    same = np.abs(features(noisy, mel_top_hz=4000) - features(noisy + high, mel_top_hz=4000)).max()
    assert same < 0.3 < different
    one = features(noisy, mel_scale="utterance")
    assert np.mean(one.var(0)) == pytest.approx(1, rel=1e-2) and np.abs(one.mean(0)).max() < 1e-2
    assert one.var(0).max() > 3 * one.var(0).min()
    np.testing.assert_allclose(features(noisy).var(0), 1, rtol=2e-2)


@pytest.mark.parametrize("options, key", [(dict(mel_top_hz=500), "mel_top_hz"), (dict(mel_scale="all"), "mel_scale")])
def test_mel_options_that_are_none(options, key):
    with pytest.raises(UserError, match=f"model.{key}"):
        small("logmel", **options)


@functools.cache
def gradient(factor):
    model, params = init(small("group", feature_grad_scale=factor))
    wave, length = jnp.asarray(noise(4000)[None]), jnp.array([4000])

    def loss(p):
        hidden = model.apply({"params": p}, wave, length, Compression(), deterministic=True)
        return (hidden.context_BxTxD * noise(hidden.context_BxTxD.shape, 3)).sum()

    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_the_extractor_gets_a_scaled_gradient(scale):
    full, scaled = gradient(1.0), gradient(scale)
    kernels = [g["frontend"]["extractor"]["conv_0"]["kernel"] for g in (full, scaled)]
    assert np.abs(kernels[0]).max() > 0
    np.testing.assert_allclose(kernels[1], scale * kernels[0], rtol=1e-3, atol=1e-4 * np.abs(kernels[0]).max())
    np.testing.assert_allclose(
        scaled["feature_projection"]["kernel"], full["feature_projection"]["kernel"], rtol=1e-4, atol=1e-5
    )
