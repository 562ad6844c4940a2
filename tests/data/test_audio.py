"""Audio of any rate and channel count, and audio that is none."""

import numpy as np
import pytest
import soundfile

from sew_jax.data.audio import AudioError, probe, read


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path, make_tone, rate, channels):
    soundfile.write(tmp_path / "a.flac", make_tone(0.5, rate, channels), rate)
    wave = read(tmp_path / "a.flac")
    assert wave.dtype == np.float32 and wave.shape == (probe(tmp_path / "a.flac"),) == (8_000,)
    middle = slice(1000, -1000)  # resampling filters ring at the ends
    np.testing.assert_allclose(wave[middle], make_tone(0.5)[middle], atol=0.01)


def test_channels_are_averaged(tmp_path, make_tone):
    wave = make_tone(0.1)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], axis=1), 16_000)
    assert np.abs(read(tmp_path / "a.wav")).max() < 1e-4


def spoil(path, kind, wave):
    if kind == "text":
        path.write_text("not audio")
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0), 16_000, format="WAV")
    elif kind == "truncated":
        soundfile.write(path, wave, 16_000, format="FLAC")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "nan":
        soundfile.write(path, np.full(100, np.nan), 16_000, subtype="FLOAT", format="WAV")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "cannot be decoded"),
        ("empty file", "cannot be decoded"),
        ("no samples", "holds no audio"),
        ("truncated", "truncated|decoded"),
        ("nan", "holds NaN"),
        ("missing", "cannot be decoded"),
    ],
)
def test_damage_is_named(tmp_path, make_tone, kind, reason):
    path = tmp_path / "a.wav"
    spoil(path, kind, make_tone(2))
    with pytest.raises(AudioError, match=reason) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
