"""Corpora that nearly fit: nobody is lost or given another's words without a word about it."""

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from configs.prepare import get_config
from sew_jax.data import corpora, entries
from sew_jax.data.corpora import list_splits
from sew_jax.data.prepare import prepare
from sew_jax.data.problems import AudioError
from sew_jax.data.sources import root_path
from sew_jax.errors import UserError
from tests.data.forms import (
    TEXTS,
    files,
    json_lines,
    make_common_voice,
    make_kaldi,
    opened,
    random_waves,
    write_lines,
)


@pytest.fixture(scope="module")
def waves():
    return random_waves()


def texts(source):
    return {source.id(i): source.text(i) for i in range(len(source))}


def test_a_quotation_mark_between_bars_was_said(tmp_path, waves):
    names = files(tmp_path, waves)
    said = ['"Hello he said', "two", '"Three" she said', "four", "five"]
    write_lines(
        tmp_path / "list.csv",
        ["audio_file|text|speaker_name", *(f"{n}|{t}|s" for n, t in zip(names, said, strict=True))],
    )
    assert list(texts(opened(tmp_path / "list.csv")[0]).values()) == said


def test_rows_of_tables_are_there_however_many(tmp_path, waves, monkeypatch):
    """Of many files with known lengths it is only looked whether they exist."""
    monkeypatch.setattr(entries, "_MANY", 1)
    shards(
        tmp_path / "timed", waves, list("abcde"), [None] * 5, ("a",), duration=[len(wave) / 16_000 for wave in waves]
    )
    assert list(texts(opened(tmp_path / "timed", "a")[0]).values()) == list(TEXTS)


@pytest.mark.parametrize("split", ["train,dve", "dve,dev"])
def test_each_split_that_is_named_must_be_there(tmp_path, waves, split):
    rows = [
        {"audio": n, "text": "A", "split": s}
        for n, s in zip(files(tmp_path, waves), ["train", "dev"] * 2, strict=False)
    ]
    write_lines(tmp_path / "list.jsonl", json_lines(rows))
    with pytest.raises(UserError, match="has no split dve; it has: dev, train;"):
        opened(tmp_path / "list.jsonl", split)
    make_common_voice(tmp_path / "cv", waves)
    with pytest.raises(UserError, match="has no split dve; it has:"):
        opened(tmp_path / "cv", split.replace("dev", "train"))


def test_prepare_says_which_splits_of_a_manifest_it_leaves_aside(tmp_path, waves, capsys):
    rows = [
        {"audio": n, "text": "A", "split": s}
        for n, s in zip(files(tmp_path, waves), ["train", "unlabelled"] * 2, strict=False)
    ]
    write_lines(tmp_path / "list.jsonl", json_lines(rows))
    config = get_config()
    config.data, config.workers = str(tmp_path / "list.jsonl"), 0
    prepare(config, tmp_path / "out")
    assert "not named like splits and left aside: unlabelled (--config.split takes them)" in capsys.readouterr().out
    assert list_splits(root_path(str(tmp_path / "list.jsonl")), lambda names: None) == ["train"]


def test_all_there_is_has_folders_of_audio_beside_corpora(tmp_path, waves, capsys, monkeypatch):
    (make_kaldi(tmp_path / "made", waves) / "train").rename(tmp_path / "kd")
    shutil.rmtree(tmp_path / "made")
    names = files(tmp_path, waves, "plain")
    soundfile.write(tmp_path / "loose.wav", waves[0], 16_000)
    found = opened(tmp_path, "", need_text=False)[0]
    assert len(found) == 2 * len(waves) and sum(found.text(i) is None for i in range(len(found))) == len(names)
    assert "audio beside the corpora" in capsys.readouterr().out
    monkeypatch.setattr(corpora, "_FEW", 1)  # however many folders there are, where one of the first is a corpus
    assert len(opened(tmp_path, "", need_text=False)[0]) == 2 * len(waves)
    # what a corpus names is not listed again
    scp = tmp_path / "kd/wav.scp"
    scp.write_text("".join(f"u{i} {tmp_path / name}\n" for i, name in enumerate(names)))
    shutil.rmtree(tmp_path / "kd/audio")
    assert sorted(texts(opened(tmp_path, "")[0]).values()) == sorted(TEXTS)


def test_where_names_begin_is_told_by_the_first_that_is_a_file(tmp_path, waves):
    make_common_voice(tmp_path / "cv", waves)
    next((tmp_path / "cv/clips").glob("u0.*")).unlink()
    source, problems = opened(tmp_path / "cv", max_bad=1)
    assert len(source) == len(waves) - 1 and "does not exist" in problems[0].reason
    names = files(tmp_path, waves, "wavs", ".wav")
    write_lines(
        tmp_path / "metadata.txt",
        [f"{n[5:-4]}|{t}" for n, t in zip(["wavs/gone.wav", *names], ["", *TEXTS], strict=True)],
    )
    source, problems = opened(tmp_path / "metadata.txt", max_bad=1)
    assert list(texts(source).values()) == list(TEXTS) and len(problems) == 1
    # one that lacks its suffix where the others have theirs is missing alone
    lines = [f"{n[5:]}|{t}" for n, t in zip(names, TEXTS, strict=True)]
    write_lines(tmp_path / "metadata.txt", [lines[0], "u1|B", *lines[2:]])
    assert len(opened(tmp_path / "metadata.txt", max_bad=1)[0]) == len(names) - 1


def test_channels_of_tables_are_numbers_or_none(tmp_path, waves):
    stereo = np.stack([waves[0], waves[0] // 2], 1)
    soundfile.write(tmp_path / "a.wav", stereo, 16_000)
    write_lines(tmp_path / "list.csv", ["path,text,channel", "a.wav,A,1", "a.wav,A,"])
    source, _ = opened(tmp_path / "list.csv")
    np.testing.assert_array_equal(source.audio(0), waves[0] // 2)
    shards(tmp_path / "hf", waves, list("abcde"), [None] * 5, ("a",), channel=["UCx", "7", None, "", "UCy"])
    source, _ = opened(tmp_path / "hf", "a")
    with pytest.raises(AudioError, match="has no channel 7"):
        source.audio(1)
    np.testing.assert_array_equal(source.audio(0), waves[0])


def test_other_keys_of_lhotses_do_not_hide_the_audio(tmp_path, waves):
    rows = [
        {"audio_filepath": n, "text": t, "recording_id": "r"}
        for n, t in zip(files(tmp_path, waves), TEXTS, strict=True)
    ]
    write_lines(tmp_path / "list.json", json_lines(rows))
    assert list(texts(opened(tmp_path / "list.json")[0]).values()) == list(TEXTS)


def shards(root, waves, ids, names, files=("train-00000-of-00002", "train-00001-of-00002"), **more):
    root.mkdir()
    for number, file in enumerate(files):
        rows = slice(number, None, len(files))
        audio = [{"bytes": wave_bytes(wave), "path": name} for wave, name in zip(waves[rows], names[rows], strict=True)]
        columns = {"id": ids, "text": list(TEXTS[: len(waves)]), **more}
        table = pa.table({"audio": audio} | {key: column[rows] for key, column in columns.items()})
        pq.write_table(table, root / f"{file}.parquet")


def wave_bytes(wave):
    file = io.BytesIO()
    soundfile.write(file, wave, 16_000, format="FLAC")
    return file.getvalue()


def test_what_stands_twice_in_a_split_names_no_row(tmp_path, waves):
    """Ids of sentences that several people read, and names that each shard begins anew."""
    names = [f"{i}.flac" for i in range(5)]
    shards(tmp_path / "ids", waves, [1, 1, 2, 3, 3], names)
    assert {*texts(opened(tmp_path / "ids")[0])} == {f"train/{i}" for i in range(5)}
    shards(tmp_path / "names", waves, list("abcde"), ["0.flac"] * 5)
    assert {*texts(opened(tmp_path / "names")[0])} == {*"abcde"}
    shards(tmp_path / "neither", waves, [1] * 5, ["0.flac"] * 5)
    assert {*texts(opened(tmp_path / "neither")[0]).values()} == {*TEXTS}


def test_numbers_of_splits_are_no_shards(tmp_path, waves):
    ids = list("abcde")
    shards(tmp_path / "x", waves, ids, ["x"] * 5, ("train-clean-100", "train-clean-360-00000-of-00001"))
    assert len(opened(tmp_path / "x", "train-clean-100")[0]) == 3
    assert len(opened(tmp_path / "x", "train-clean-360")[0]) == 2
    shards(tmp_path / "y", waves, ids, ["x"] * 5, ("train-0", "train-1", "dev.2020"))
    assert len(opened(tmp_path / "y", "train")[0]) == 4 and len(opened(tmp_path / "y", "dev.2020")[0]) == 1


def test_ids_that_begin_anew_in_each_split_stand_behind_its_name(tmp_path, waves):
    shards(tmp_path / "x", waves[:4], [0, 0, 1, 1], [None] * 4, ("train", "dev"))
    assert {*texts(opened(tmp_path / "x", "train,dev")[0])} == {"train/0", "train/1", "dev/0", "dev/1"}
    assert {*texts(opened(tmp_path / "x", "dev")[0])} == {"0", "1"}


def test_a_kaldi_text_that_is_none_is_a_problem(tmp_path, waves):
    folder = make_kaldi(tmp_path, waves) / "train"
    lines = (folder / "text").read_bytes().splitlines()
    first, second = (line.split()[0] for line in lines[:2])
    lines = [first + b" caf\xe9", *lines[1:], second + b" ANOTHER", lines[2]]  # the last twice the same
    (folder / "text").write_bytes(b"\n".join(lines) + b"\n")
    source, problems = opened(folder, max_bad=2, need_text=False)
    assert len(source) == len(waves) - 2 and None not in texts(source).values()
    assert {p.id: p.reason for p in problems} == {
        first.decode(): "its transcript is not UTF-8",
        second.decode(): "has two transcripts",
    }


def test_what_shorten_compressed_is_named(tmp_path):
    fields = ["sample_count -i 45000", "channel_count -i 1", "sample_n_bytes -i 2", "sample_rate -i 16000"]
    fields.append("sample_coding -s26 pcm,embedded-shorten-v2.00")
    head = "\n".join(["NIST_1A", "   1024", *fields, "end_head", ""]).encode().ljust(1024)
    (tmp_path / "a.wv1").write_bytes(head + bytes(range(256)) * 100)
    (tmp_path / "list.jsonl").write_text(json.dumps({"audio": "a.wv1", "text": "A"}))
    with pytest.raises(UserError, match="is compressed by shorten; unpack it: sph2pipe"):
        opened(tmp_path / "list.jsonl")


@pytest.mark.parametrize("name", ["train-clean-100.tar.gz", "corpus.zip"])
def test_an_archive_is_named_whatever_reads_it(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(1000))
    with pytest.raises(UserError, match=f"{name} is an archive; unpack it first"):
        opened(tmp_path / name)
