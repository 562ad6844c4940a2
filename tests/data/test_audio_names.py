"""What counts as audio: all that libsndfile reads, whatever its name's case; what others read; what systems leave."""

import io
import shutil
import sys

import numpy as np
import pytest
import soundfile

from sew_jax.data import audio, audio_names
from sew_jax.data.audio import AudioError
from sew_jax.data.sources import open_source
from sew_jax.transcription.recordings import find_recordings

WAVE = (np.sin(np.arange(16_000) / 20) * 8000).astype(np.int16)
# The suffixes that each of libsndfile's formats goes by
SUFFIXES = {
    "AIFF": ".aiff .aif .aifc",
    "AU": ".au .snd",
    "AVR": ".avr",
    "CAF": ".caf",
    "FLAC": ".flac",
    "HTK": ".htk",
    "SVX": ".svx .8svx .iff",
    "MAT4": ".mat",
    "MAT5": ".mat",
    "MPC2K": ".mpc",
    "MP3": ".mp3 .mpga",
    "OGG": ".ogg .oga .opus",
    "PAF": ".paf .fap",
    "PVF": ".pvf",
    "RF64": ".rf64 .wav",
    "SDS": ".sds",
    "IRCAM": ".sf .ircam",
    "VOC": ".voc",
    "W64": ".w64",
    "WAV": ".wav .wave .bwf",
    "NIST": ".sph .nist .wav .wv1",
    "WAVEX": ".wavex .wav",
    "WVE": ".wve",
    "XI": ".xi",
}
# Without a header, or with one in a file beside it
APART = {"RAW", "SD2"}


def opened(data, **options):
    return open_source(str(data), "", **(dict(min_samples=1, need_text=False, max_bad=0) | options))


def test_every_format_of_libsndfile_has_its_suffixes():
    assert {*SUFFIXES, *APART} == soundfile.available_formats().keys()


@pytest.mark.parametrize("kind", SUFFIXES)
def test_every_suffix_that_libsndfile_reads(kind, tmp_path):
    """In any case, in every mode that takes folders."""
    subtype = "PCM_16" if soundfile.check_format(kind, "PCM_16") else None
    content = io.BytesIO()
    rate = 8000 if kind == "WVE" else 16_000
    soundfile.write(content, WAVE, rate, format=kind, subtype=subtype or soundfile.default_subtype(kind) or "DPCM_16")
    names = [f"{i}{name}" for i, suffix in enumerate(SUFFIXES[kind].split()) for name in (suffix, suffix.upper())]
    for name in names:
        (tmp_path / name).write_bytes(content.getvalue())
    source, problems = opened(tmp_path, max_bad=len(names))
    assert len(source) == len(names) / 2 and all("id of another" in problem.reason for problem in problems)
    expected = audio.read(content.getvalue())
    np.testing.assert_array_equal(source.audio(0), expected)
    recordings, problems, _ = find_recordings(str(tmp_path))
    assert sorted(recording.stem for recording in recordings) == sorted(name.split(".")[0] for name in names)
    assert not problems and {recording.samples for recording in recordings} == {len(expected)}


def test_what_systems_leave_is_passed_over_in_silence(tmp_path, capsys):
    (tmp_path / "__MACOSX" / "deep").mkdir(parents=True)
    soundfile.write(tmp_path / "a.wav", WAVE, 16_000)
    (tmp_path / "a.txt").write_text("A")
    for name in ("._a.wav", "._a.txt", ".DS_Store", "__MACOSX/._a.wav", "__MACOSX/deep/b.wav", "._x.trans.txt"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7 of a Mac")
    source, problems = opened(tmp_path, need_text=True)
    assert [source.id(i) for i in range(len(source))] == ["a"] and not problems and not capsys.readouterr().out
    recordings, problems, _ = find_recordings(str(tmp_path))
    assert [recording.stem for recording in recordings] == ["a"] and not problems


def test_files_of_doubtful_names_count_where_they_open(tmp_path):
    soundfile.write(tmp_path / "speech.mat", WAVE, 16_000, format="MAT5")
    (tmp_path / "features.mat").write_bytes(b"MATLAB 5.0 MAT-file of something else" + bytes(200))
    source, problems = opened(tmp_path)
    assert [source.id(i) for i in range(len(source))] == ["speech"] and not problems
    assert [recording.stem for recording in find_recordings(str(tmp_path)).recordings] == ["speech"]


def test_a_text_without_audio_is_told(tmp_path, capsys):
    soundfile.write(tmp_path / "SA1.WAV", WAVE, 16_000, format="WAV")
    for name, text in (("SA1.TXT", "ONE"), ("SA2.TXT", "TWO"), ("README.TXT", "words"), ("LICENSE.txt", "words")):
        (tmp_path / name).write_text(text)
    source, problems = opened(tmp_path, need_text=True)
    assert source.text(0) == "ONE" and not problems
    assert "texts without audio beside them: 1, such as SA2.TXT" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", sorted(audio_names.HEADERLESS_SUFFIXES))
def test_samples_without_a_header_are_named(tmp_path, suffix):
    (tmp_path / f"a{suffix.upper()}").write_bytes(WAVE.tobytes())
    soundfile.write(tmp_path / "b.wav", WAVE, 16_000)
    source, problems = opened(tmp_path, max_bad=1)
    assert len(source) == 1 and "no header that says its rate" in problems[0].reason


def test_a_header_tells_whatever_the_name_says(tmp_path):
    soundfile.write(tmp_path / "b.wav", WAVE, 16_000)
    shutil.move(tmp_path / "b.wav", tmp_path / "b.raw")
    np.testing.assert_array_equal(opened(tmp_path)[0].audio(0), WAVE)


HEADS = {
    "a.m4a": (b"\0\0\0\x20ftypM4A ", "MP4"),
    "b.webm": (b"\x1aE\xdf\xa3", "Matroska or WebM"),
    "c.wma": (b"0&\xb2u\x8ef\xcf\x11", "ASF"),
    "d.amr": (b"#!AMR\n", "AMR"),
    "e.AAC": (b"\xff\xf1P", "AAC"),
    "named.wav": (b"\0\0\0\x1cftypisom", "MP4"),
}


def test_what_needs_pyav_is_named_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    for name, (head, _) in HEADS.items():
        (tmp_path / name).write_bytes(head + bytes(300))
    soundfile.write(tmp_path / "z.wav", WAVE, 16_000)
    source, problems = opened(tmp_path, max_bad=len(HEADS))
    assert len(source) == 1
    said = {problem.id: problem.reason for problem in problems}
    for name, (_, kind) in HEADS.items():
        assert kind in said[name.split(".")[0]] and "pip install 'sew_jax[av]'" in said[name.split(".")[0]]
    assert len(find_recordings(str(tmp_path)).problems) == len(HEADS)


def test_damaged_audio_stays_damaged(tmp_path):
    """Text in a file with a name of audio, and a WAV whose header is spoiled, are nobody's."""
    for name, content in (("a.wav", b"this is text"), ("b.wav", b"RIFF\x24\0\0\0WAVEnone" + bytes(40))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError, match="cannot be decoded"):
            audio.read(str(tmp_path / name))
