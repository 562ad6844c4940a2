"""Front ends: frame counts, log-mel, gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig
from sew_jax.models.frontend import Frontend, feature_width, frame_count
from sew_jax.models.sizes import published
from sew_jax.models.spectrum import kaldi_fbank
from tests.models import kaldi
from tests.models.build import FRONTENDS, init, noise, small


def test_published_frame_counts():
    """facts: 250,000 samples are 781 frames for both convolutional extractors."""
    assert frame_count(BackboneConfig(), 250_000) == 781
    assert frame_count(published("sew_tiny")[0], 250_000) == 781
    assert frame_count(BackboneConfig(), 399) == 0 and frame_count(BackboneConfig(), 400) == 1


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_frame_count_is_the_shape(frontend):
    config = small(frontend)
    run, params = Frontend(config).apply, {"params": init(config)[1].get("frontend", {})}
    for samples in (1500, 1501, 3999, 5000):
        wave, length = noise(samples)[None], jnp.array([samples])
        shape = jax.eval_shape(run, params, wave, length)[0].shape
        traced = jax.jit(lambda length: frame_count(config, length))(length)
        assert shape == (1, frame_count(config, samples), feature_width(config)) and shape[1] == traced[0]


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


def test_kaldi_features_against_kaldis_steps():
    """By hand, 30 recordings were within 0.0003 of float64, where kaldi-native-fbank 1.23 was within 0.002."""
    time, random = np.arange(12_000) / 16_000, np.random.default_rng(0)
    wave = 0.2 * np.sin(2 * np.pi * 300 * time) * np.sin(2 * np.pi * 3 * time) + 1e-3 * random.normal(size=12_000)
    wave = np.round(2**15 * (wave + 0.002)).astype(np.int16)  # beside zero, as some recorders are
    ours = jax.jit(kaldi_fbank, static_argnums=1)(wave[None] / np.float32(2**15), 8000)[0]
    assert len(ours) == 1 + (12_000 - 400) // 160
    np.testing.assert_allclose(ours, kaldi.fbank(wave), atol=1e-3)


@pytest.mark.parametrize(("frontend", "frames"), [("fbank50", 780), ("fbank25", 390), ("scf", 779)])
def test_frames_of_the_cheaper_front_ends(frontend, frames):
    config = small(frontend)
    assert frame_count(config, 250_000) == frames
    assert config.frame_samples == 250_000 // frames // 320 * 320


@pytest.mark.parametrize("frontend", ["fbank50", "fbank25"])
def test_fbank_convolutions_frame_by_frame(frontend):
    """Against sums over a patch of 3 x 3, one output after the other."""
    config = small(frontend)
    params, samples = init(config)[1]["frontend"], 2000
    ours, length = jax.jit(Frontend(config).apply)({"params": params}, noise(samples)[None], jnp.array([samples]))
    x = kaldi.fbank(noise(samples) * 2**15)
    x = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5))[:, :, None]
    for i, stride in enumerate((2, 2 if frontend == "fbank25" else 1)):
        conv, norm = (jax.tree.map(np.float64, params["extractor"][f"{kind}_{i}"]) for kind in ("conv", "norm"))
        padded, frames = np.pad(x, ((1, 1), (1, 1), (0, 0))), len(x) // stride
        y = np.zeros((frames, x.shape[1] // 2, conv["bias"].size))
        for t in range(frames):
            for f in range(y.shape[1]):
                patch = padded[stride * t : stride * t + 3, 2 * f : 2 * f + 3]
                y[t, f] = np.tensordot(patch, conv["kernel"], 3) + conv["bias"]
        y = (y - y.mean((1, 2), keepdims=True)) / np.sqrt(y.var((1, 2), keepdims=True) + 1e-5)
        y = y * norm["scale"] + norm["bias"]
        x = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    assert length[0] == len(x)
    np.testing.assert_allclose(ours[0], x.reshape(len(x), -1), atol=1e-4)


def test_learned_filters_step_by_step():
    """One filter after the other, in float64: absolute values, envelopes of each, absolute values under a root."""
    config = small("scf", normalize_wave=False)
    params, samples = init(config)[1]["frontend"], 1700
    wave = noise(samples)
    ours, length = jax.jit(Frontend(config).apply)({"params": params}, wave[None], jnp.array([samples]))
    filters, envelopes = (np.float64(params["extractor"][name]) for name in ("filters", "envelopes"))
    bands = np.stack([np.correlate(wave, kernel, "valid")[::10] for kernel in filters.T], 1)
    averages = [[np.correlate(band, kernel, "valid")[::16] for kernel in envelopes.T] for band in np.abs(bands).T]
    root = (np.abs(np.transpose(averages, (2, 0, 1))) + 1e-3) ** 0.4
    expected = root.reshape(len(root), 750)[: len(root) // 2 * 2].reshape(-1, 1500)
    assert length[0] == len(expected) == 3
    np.testing.assert_allclose(ours[0], expected, rtol=1e-4)


def test_what_is_learnt_is_drawn_as_in_the_waveform_extractors():
    """Kaiming's normal distribution by the inputs of an output."""
    wave, length = jnp.zeros((1, 2000)), jnp.array([2000])
    for frontend, inputs in (("fbank50", {"conv_0": 9, "conv_1": 9 * 128}), ("scf", {"filters": 256, "envelopes": 40})):
        params = Frontend(small(frontend)).init(jax.random.key(1), wave, length)["params"]["extractor"]
        for name, fan_in in inputs.items():
            kernel = np.asarray(params[name]["kernel"] if frontend == "fbank50" else params[name])
            error = 4 / math.sqrt(2 * kernel.size)
            assert kernel.std() == pytest.approx(math.sqrt(2 / fan_in), rel=error), name
            assert abs(kernel.mean()) < 4 * math.sqrt(2 / fan_in / kernel.size), name


def test_silence_has_a_gradient():
    """Of a root, whose slope at zero is infinite."""
    model, params = init(small("scf"))
    wave, length = jnp.zeros((1, 3000)), jnp.array([3000])

    def total(p):
        return Frontend(model.config).apply({"params": p}, wave, length)[0].sum()

    gradients = jax.jit(jax.grad(total))(params["frontend"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


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
