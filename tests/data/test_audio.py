"""Audio of any rate and channel count, and audio that is none."""

import numpy as np
import pytest
import soundfile

from sew_jax.data.audio import AudioError, blocks, encode, is_canonical_flac, probe, read


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path, make_tone, rate, channels):
    soundfile.write(tmp_path / "a.flac", make_tone(0.5, rate, channels), rate)
    wave = read(tmp_path / "a.flac")
    assert wave.dtype == np.int16 and wave.shape == (probe(tmp_path / "a.flac"),) == (8_000,)
    middle = slice(1000, -1000)  # resampling filters ring at the ends
    np.testing.assert_allclose(wave[middle] / 2**15, make_tone(0.5)[middle], atol=0.01)


def test_channels_are_averaged(tmp_path, make_tone):
    wave = make_tone(0.1)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave / 2], axis=1), 16_000)
    np.testing.assert_allclose(read(tmp_path / "a.wav") / 2**15, wave / 4, atol=1e-4)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_channels_that_cancel_each_other_are_not_silence(tmp_path, make_tone, rate):
    """A cable that turns one channel's phase; silence in both is silence."""
    wave = make_tone(0.5, rate)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], axis=1), rate)
    for reader in (read, lambda path: list(blocks(path))):
        with pytest.raises(AudioError, match="2 channels of opposite phase, whose mean is silence; keep one of them"):
            reader(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.wav", np.zeros((8000, 2)), 16_000)
    assert not read(tmp_path / "b.wav").any()


def test_sixteen_bits_stay_as_they_are(tmp_path):
    wave = np.random.default_rng(0).integers(-(2**15), 2**15, 5000).astype(np.int16)
    for name in ("a.flac", "a.wav"):
        soundfile.write(tmp_path / name, wave, 16_000, subtype="PCM_16")
        np.testing.assert_array_equal(read(tmp_path / name), wave)
        np.testing.assert_array_equal(read((tmp_path / name).read_bytes()), wave)
    np.testing.assert_array_equal(read(encode(wave)), wave)
    assert is_canonical_flac(encode(wave)) and not is_canonical_flac((tmp_path / "a.wav").read_bytes())


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_other_widths_are_rounded_to_sixteen_bits(tmp_path, subtype):
    wave = np.random.default_rng(0).uniform(-1, 1, 5000)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype=subtype)
    stored, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), np.clip(np.round(stored * 2**15), -(2**15), 2**15 - 1))


@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_audio_that_ends_early_is_named_where_the_decoder_says_nothing(tmp_path, make_tone, rate):
    """libsndfile reads a cut MP3 without an error, and gives fewer samples than its header promises."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, make_tone(3, rate), rate)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with soundfile.SoundFile(path) as file:
        promised = file.frames
        assert 0 < len(file.read()) < promised
    for reader in (read, lambda path: list(blocks(path, seconds=0.5))):
        with pytest.raises(AudioError, match=r"is truncated: \d+ of \d+ frames are there"):
            reader(path)


def test_loud_audio_is_clipped_and_does_not_wrap(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([2.0, -2.0]), 16_000, subtype="FLOAT")
    assert read(tmp_path / "a.wav").tolist() == [2**15 - 1, -(2**15)]


@pytest.mark.parametrize(
    ("name", "rate"), [("a.flac", 16_000), ("a.wav", 16_000), ("a.flac", 22_050), ("a.ogg", 16_000)]
)
def test_a_part_is_what_the_whole_has_there(tmp_path, make_tone, name, rate):
    soundfile.write(tmp_path / name, make_tone(1.5, rate), rate)
    whole = read(tmp_path / name)
    for begin, samples in ((0, 100), (7777, 12_000), (20_000, None), (len(whole) - 5, 100)):
        part = whole[begin:] if samples is None else whole[begin : begin + samples]
        np.testing.assert_array_equal(read(tmp_path / name, begin, samples), part)


@pytest.mark.parametrize("rate", [8_000, 16_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize(("suffix", "channels"), [("flac", 1), ("wav", 2), ("ogg", 2), ("mp3", 1)])
def test_blocks_are_the_whole(tmp_path, suffix, channels, rate):
    noise = np.random.default_rng(0).normal(size=(3 * rate + 1, channels)) * 0.1  # at 32 kHz half a sample is left
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise, rate)
    whole = read(path)
    assert len(whole) == probe(path)
    for data in (path, path.read_bytes()):
        joined = np.concatenate(list(blocks(data, seconds=0.7))).astype(int)
        np.testing.assert_allclose(joined, whole, rtol=0, atol=suffix == "mp3")  # whose decoder rounds otherwise


def test_a_stream_whose_header_knows_no_length(tmp_path):
    """What writes to a pipe leaves the length of a WAV at its largest."""
    wave = np.random.default_rng(0).integers(-1000, 1000, 5000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 16_000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff" * 4
    assert probe(bytes(data)) == 5000
    np.testing.assert_array_equal(np.concatenate(list(blocks(bytes(data)))), wave)


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
        ("empty file", "is empty"),
        ("no samples", "holds no audio"),
        ("truncated", "truncated|decoded"),
        ("nan", "holds NaN"),
        ("missing", "does not exist"),
    ],
)
def test_damage_is_named(tmp_path, make_tone, kind, reason):
    path = tmp_path / "a.wav"
    spoil(path, kind, make_tone(2))
    for reader in (read, lambda path: list(blocks(path, seconds=0.5))):
        with pytest.raises(AudioError, match=reason) as caught:
            reader(path)
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
