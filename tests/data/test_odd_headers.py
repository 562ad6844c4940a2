"""Audio whose header tells too little or too much of it, and what lies in its place."""

import io
import struct

import numpy as np
import pytest
import soundfile

from sew_jax.data import audio
from sew_jax.data.problems import AudioError

RATE = 16_000
WAVE = np.random.default_rng(2).integers(-9000, 9000, RATE).astype("<i2")
SOUND = WAVE.tobytes()


def chunk(name, content, size=None):
    return name + struct.pack("<I", len(content) if size is None else size) + content + b"\0" * (len(content) % 2)


def wav(size=None, behind=b"", riff_size=None, before=b""):
    """A WAV file whose header says `size` bytes of audio."""
    form = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
    content = b"WAVE" + form + before + chunk(b"data", SOUND, size) + behind
    return b"RIFF" + struct.pack("<I", len(content) if riff_size is None else riff_size) + content


def encoded(wave=WAVE, **form):
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, **form)
    return file.getvalue()


def both(tmp_path, data):
    """The file by its bytes and by its name, which must be read alike."""
    (tmp_path / "a.wav").write_bytes(data)
    from_file, from_bytes = audio.read(str(tmp_path / "a.wav")), audio.read(data)
    np.testing.assert_array_equal(from_file, from_bytes)
    assert audio.probe(data) == audio.probe(str(tmp_path / "a.wav")) == len(from_file)
    return from_file


@pytest.mark.parametrize("head", [44, 36])
def test_a_size_that_counts_the_header_too(head, tmp_path):
    """Recorders write the size of the file, or what RIFF's own field has, in place of that of the audio."""
    np.testing.assert_array_equal(both(tmp_path, wav(len(SOUND) + head)), WAVE)
    with pytest.raises(AudioError, match="is truncated"):
        audio.read(wav(len(SOUND) + head + 2))


@pytest.mark.parametrize("written", [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000])
def test_a_header_of_a_stream_alone_holds_no_audio(written):
    data = wav(written, riff_size=written)
    with pytest.raises(AudioError, match=r"^holds no audio$"):
        audio.probe(data[: -len(SOUND)])


@pytest.mark.parametrize("size", [len(SOUND) // 2, 2000])
def test_audio_behind_what_a_header_promises_is_named(size):
    with pytest.raises(AudioError, match=rf"more than the {size} of audio .*sox --ignore-length"):
        audio.probe(wav(size))


@pytest.mark.parametrize(
    "behind",
    [
        b"",
        b"\0" * 9000,
        chunk(b"LIST", b"INFOISFT\5\0\0\0Lavf\0\0" + bytes(8000)),
        chunk(b"id3 ", bytes(range(256)) * 40),
        b"\0" + chunk(b"LIST", b"INFO" * 2000),
        b"<x>text</x>" * 900,
    ],
    ids=["nothing", "zeros", "list", "id3", "shifted", "text"],
)
def test_what_is_no_audio_may_follow(behind, tmp_path):
    np.testing.assert_array_equal(both(tmp_path, wav(behind=behind)), WAVE)


MP3 = encoded(format="MP3", subtype="MPEG_LAYER_III")
ID3 = b"ID3\3\0\0\0\0\0\x20" + bytes(32)
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 37, 1, 0xA0000000) + bytes(8) + b"abcde"
APE += b"APETAGEX" + struct.pack("<IIII", 2000, 37, 1, 0x80000000) + bytes(8)


@pytest.mark.parametrize(
    "before",
    [ID3, ID3 + ID3, b"ID3\4\0\x10\0\0\0\x20" + bytes(32) + b"3DI\4\0\x10\0\0\0\x20", APE, bytes(500), b"\xff\xfbnone"],
    ids=["id3", "two", "footer", "ape", "zeros", "other"],
)
def test_mp3_begins_behind_tags_and_other_bytes(before, tmp_path):
    np.testing.assert_array_equal(both(tmp_path, before + MP3), audio.read(MP3))


def test_mp3_cut_out_of_a_broadcast(tmp_path):
    """It begins within a frame: whole frames are read from the next one on."""
    there, whole = both(tmp_path, MP3[len(MP3) // 3 :]), audio.read(MP3).astype(float)
    assert 0.5 * RATE < len(there) < 0.8 * RATE
    middle = there[3000:7000]
    assert max(np.corrcoef(middle, whole[i : i + 4000])[0, 1] for i in range(3000, 12_000)) > 0.99


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "PCM_24"])
@pytest.mark.parametrize("form", ["WAV", "AIFF", "CAF"])
def test_samples_are_never_taken_for_frames(form, subtype):
    """Bytes of loud noise hold all that a frame's header may."""
    noise = np.random.default_rng(0).uniform(-1, 1, 40_000)
    assert audio.probe(encoded(noise, format=form, subtype=subtype)) == len(noise)


def test_what_16_bits_cannot_hold_is_named():
    quiet = WAVE / 2.0**30
    for data in (encoded(quiet, format="WAV", subtype="FLOAT"), encoded(quiet[::2], format="WAV", subtype="DOUBLE")):
        with pytest.raises(AudioError, match="too faint for 16 bits"):
            audio.read(data)
    quiet[RATE // 2] = 0.01  # one click is heard
    assert np.count_nonzero(audio.read(encoded(quiet, format="WAV", subtype="FLOAT"))) == 1
    assert not audio.read(encoded(0 * quiet, format="WAV", subtype="FLOAT")).any()  # silence was meant


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b\x08\0", "gunzip"),
        (b"PK\3\4", "unpack"),
    ],
)
def test_what_lies_in_place_of_audio_is_named(content, reason, tmp_path):
    data = content + bytes(200)
    (tmp_path / "a.flac").write_bytes(data)
    for one in (data, str(tmp_path / "a.flac")):
        with pytest.raises(AudioError, match=reason):
            audio.probe(one)
