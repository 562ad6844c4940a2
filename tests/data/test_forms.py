"""The same corpus in every form that people have: read sample for sample and text for text as the plain folder."""

import shutil

import numpy as np
import pytest
import soundfile

from configs.prepare import get_config
from sew_jax.data import entries
from sew_jax.data.prepare import prepare
from sew_jax.errors import UserError
from tests.data.forms import (
    LENGTHS,
    MAKERS,
    SPEAKERS,
    TEXTS,
    files,
    json_lines,
    make_audio_folder,
    make_common_voice,
    make_parquet,
    opened,
    random_waves,
    seconds,
    write_lines,
)

WITH_SPEAKERS = ("make_cuts", "make_kaldi", "make_common_voice")


@pytest.fixture(scope="module")
def waves():
    return random_waves()


@pytest.fixture(scope="module")
def plain(tmp_path_factory, waves):
    root = tmp_path_factory.mktemp("plain")
    for name, text in zip(files(root, waves, "train"), TEXTS, strict=True):
        (root / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    source, problems = opened(root)
    assert len(source) == len(TEXTS) and not problems
    return source


def assert_same(source, plain):
    assert source.samples.tolist() == plain.samples.tolist()
    assert len({source.id(i) for i in range(len(source))}) == len(plain)
    for i in range(len(plain)):
        assert source.text(i) == plain.text(i)
        np.testing.assert_array_equal(source.audio(i), plain.audio(i))
        np.testing.assert_array_equal(source.audio(i, 500, 700), plain.audio(i, 500, 700))
        np.testing.assert_array_equal(source.audio(i, 11_000, 10**6), plain.audio(i, 11_000, 10**6))


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_every_form_is_read_as_the_plain_folder(make, tmp_path, waves, plain):
    data = make(tmp_path, waves)
    source, problems = opened(data)
    assert not problems
    assert_same(source, plain)
    if make.__name__ in WITH_SPEAKERS:
        assert source._corpora[0].column("speaker").to_pylist() == list(SPEAKERS)
    config = get_config()
    config.update({"data": str(data), "workers": 0})
    prepare(config, tmp_path / "prepared")
    prepared, _ = opened(tmp_path / "prepared")
    assert prepared.fingerprint() == source.fingerprint()
    assert_same(prepared, plain)


def test_other_splits(tmp_path, waves):
    assert len(opened(make_parquet(tmp_path / "p", waves), "test")[0]) == 1
    (tmp_path / "v").mkdir()
    assert len(opened(make_common_voice(tmp_path / "v", waves), "test")[0]) == 1
    assert len(opened(tmp_path / "v", "", max_bad=1)[0]) == 5  # train and test, of which one is in both
    for place in ("p/hub", "v"):
        with pytest.raises(UserError, match=r"has no split dev; it has: test, train"):
            opened(tmp_path / place, "dev")


@pytest.mark.parametrize("make", [make_audio_folder, make_parquet], ids=["metadata", "parquet"])
def test_ids_of_several_splits_stay_apart(make, tmp_path, waves):
    data = make(tmp_path, waves)
    if make is make_audio_folder:
        shutil.copytree(tmp_path / "train", tmp_path / "test")
    source, problems = opened(data, "")
    assert len(source) == len({source.id(i) for i in range(len(source))}) > len(waves) and not problems
    assert {source.id(i).split("/")[0] for i in range(len(source))} == {"train", "test"}


def test_texts_beside_audio_are_found_by_either_form_of_their_names(tmp_path, waves):
    """A Mac writes letters and their marks apart; a suffix of audio may stand before that of a text."""
    (tmp_path / "list").mkdir()
    for name, wave in zip(("ä.flac", "b.flac", "list/ö.flac"), waves, strict=False):
        soundfile.write(tmp_path / name, wave, 16_000)
    (tmp_path / "a\u0308.txt").write_text("A")
    (tmp_path / "b.flac.txt").write_text("B")
    (tmp_path / "list/x.trans.txt").write_text("o\u0308.flac C\n")
    source, problems = opened(tmp_path, "")
    assert sorted(source.text(i) for i in range(len(source))) == ["A", "B", "C"] and not problems


def test_timits_texts_begin_with_samples_that_are_not_said(tmp_path, waves):
    for i, wave in enumerate(waves[:2]):
        soundfile.write(tmp_path / f"SX{i}.WAV", wave, 16_000)
        (tmp_path / f"SX{i}.TXT").write_text(f"0 {len(wave)} She had 2 suits.\n")
    (tmp_path / "SX0.PHN").write_text("0 3050 h#\n")
    source, _ = opened(tmp_path, "")
    assert [source.text(i) for i in range(2)] == ["She had 2 suits.", f"0 {len(waves[1])} She had 2 suits."]


def test_a_list_above_the_audio(tmp_path, waves, capsys):
    """Multilingual LibriSpeech: a file for each split, and others of the same ids that hold no words."""
    folder = tmp_path / "train"
    names = files(folder, waves, "audio/10065/10039", ".flac")
    write_lines(folder / "transcripts.txt", [f"u{i}\t{t}" for i, t in enumerate(TEXTS[:-1])])
    write_lines(folder / "segments.txt", [f"u{i}\thttps://example.org/a.mp3\t1.0\t2.0" for i in range(5)])
    (folder / names[1]).with_suffix(".txt").write_text("ITS OWN")
    source, problems = opened(tmp_path, max_bad=1)
    assert [source.text(i) for i in range(4)] == [TEXTS[0], "ITS OWN", *TEXTS[2:4]]
    assert [problem.reason for problem in problems] == ["has no transcript"]
    assert "texts without audio beside them: 1, such as train/segments.txt" in capsys.readouterr().out
    write_lines(folder / "transcripts.txt", ["Notes on what these are", "and on whom to ask", "u0 A"])
    assert [problem.reason for problem in opened(tmp_path, max_bad=9)[1]] == ["has no transcript"] * 4


def test_tables_without_audio_are_no_splits(tmp_path, waves):
    """Newer releases of Common Voice hold lists of sentences and of lengths, too."""
    make_common_voice(tmp_path, waves)
    write_lines(tmp_path / "clip_durations.tsv", ["clip\tduration[ms]", "u0.flac\t1000"])
    header = "sentence_id\tsentence\tsentence_domain\tsource\tis_used\tclips_count"
    write_lines(tmp_path / "validated_sentences.tsv", [header, "a\tONE\t\tself\t1\t2"])
    with pytest.raises(UserError, match=r"it has: test, train;"):
        opened(tmp_path, "dev")
    assert len(opened(tmp_path, "", max_bad=1)[0]) == len(waves)


def test_segments_are_parts_in_prepared_data_of_other_rates_too(tmp_path):
    """A slice of what the whole file is read as: no sample more or less at either end."""
    time = np.arange(5 * 44_100) / 44_100
    soundfile.write(tmp_path / "a.wav", 0.4 * np.sin(2 * np.pi * 333 * time), 44_100)
    rows = [{"audio": "a.wav", "offset": o, "duration": d, "text": "A"} for o, d in ((0.5, 1.25), (0, 0.7), (4.1, 0.9))]
    write_lines(tmp_path / "list.jsonl", json_lines(rows))
    source, _ = opened(tmp_path / "list.jsonl")
    write_lines(tmp_path / "whole.jsonl", ['{"audio": "a.wav", "text": "A"}'])
    whole = opened(tmp_path / "whole.jsonl")[0].audio(0)
    assert [source.id(i) for i in range(3)] == ["a-0.500-1.750", "a-0.000-0.700", "a-4.100-5.000"]
    for i, (begin, end) in enumerate(((8_000, 28_000), (0, 11_200), (65_600, 80_000))):
        np.testing.assert_array_equal(source.audio(i), whole[begin:end])
        np.testing.assert_array_equal(source.audio(i, 100, 50), whole[begin + 100 : begin + 150])


def test_durations_that_are_believed_are_checked_when_audio_is_read(tmp_path, waves, monkeypatch):
    """Of very many files headers are not read when they are listed."""
    monkeypatch.setattr(entries, "_MANY", 1)
    names = files(tmp_path, waves)
    rows = [{"audio": n, "text": "A", "duration": seconds(k)} for n, k in zip(names, LENGTHS, strict=True)]
    rows[2]["duration"] += 0.3
    rows[3] |= {"offset": 0.0, "duration": seconds(LENGTHS[3]) + 0.3}
    write_lines(tmp_path / "list.jsonl", json_lines(rows))
    source, problems = opened(tmp_path / "list.jsonl")
    assert not problems
    for i, wave in enumerate(waves):
        if i in (2, 3):
            with pytest.raises(entries.AudioError, match=r"manifest says|too early"):
                source.audio(i)
        else:
            np.testing.assert_array_equal(source.audio(i), wave)
