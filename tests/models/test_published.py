"""s1q1k1 is wav2vec 2.0 and s2q1k1 is SEW, against versions written independently."""

import jax
import numpy as np
import pytest

from sew_jax.compression import Compression
from tests.models import oracle
from tests.models.build import apply, init, noise, small

WAV2VEC2_STRIDES = (5, 2, 2, 2, 2, 2, 2)
SEW_STRIDES = (5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1)


def as_float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("samples", [4000, 6401])
@pytest.mark.parametrize("frontend", ["group", "layer"])
@pytest.mark.parametrize("taps", [6, 7])
def test_s1q1k1_is_wav2vec2(frontend, samples, taps):
    config = small(frontend, pos_kernel=taps)
    model, params = init(config)
    wave = noise(samples)
    hidden = apply(model, params, wave[None], [samples], Compression())
    if config.normalize_wave:
        wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    expected = oracle.wav2vec2(
        as_float64(params),
        np.asarray(wave, np.float64),
        strides=WAV2VEC2_STRIDES,
        norm=config.conv_norm,
        layers=config.layers,
        heads=config.heads,
        groups=config.pos_groups,
        pre_norm=config.pre_norm,
    )
    assert_close(hidden.context_BxTxD[0], expected)


@pytest.mark.parametrize("samples", [4000, 4400, 6401])  # 12, 13 and 19 frames: odd and even
@pytest.mark.parametrize("squeeze", [2, 3])
def test_the_squeeze_is_sews(samples, squeeze):
    config = small("compact", tail="drop", pos_kernel=7, upsampler="linear")
    model, params = init(config)
    wave = noise(samples)
    hidden = apply(model, params, wave[None], [samples], Compression(squeeze))
    expected = oracle.sew(
        as_float64(params),
        np.asarray(wave, np.float64),
        squeeze,
        strides=SEW_STRIDES,
        layers=config.layers,
        heads=config.heads,
        groups=config.pos_groups,
    )
    assert_close(hidden.context_BxTxD[0], expected)


def test_a_kept_tail_changes_only_what_sew_drops():
    """Where S divides the frames, both tails are one model."""
    frames_12 = 4000
    outputs = []
    for tail in ("keep", "drop"):
        model, params = init(small("compact", tail=tail))
        outputs.append(apply(model, params, noise(frames_12)[None], [frames_12], Compression(2)).context_BxTxD)
    np.testing.assert_array_equal(*outputs)
