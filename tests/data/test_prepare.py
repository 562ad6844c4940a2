"""`prepare`: the same audio and texts as their files, whole whatever happens, and readable by TFDS alone."""

import concurrent.futures
import hashlib
import itertools
import json
import pickle
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from configs.prepare import get_config
from sew_jax import storage
from sew_jax.data import records
from sew_jax.data.convert import convert
from sew_jax.data.prepare import prepare
from sew_jax.data.sources import open_source
from sew_jax.errors import UserError
from tests.data.damage import GOOD, make_damaged_corpus
from tests.data.processes import assert_all_end

ROOT = Path(__file__).parents[2]


def prepared(data, workdir, **options):
    config = get_config()
    config.update({"data": str(data), "workers": 0} | options)
    prepare(config, workdir)
    return workdir


def opened(data, split="train", **options):
    return open_source(str(data), split, **(dict(min_samples=1, need_text=False, max_bad=0) | options))[0]


def tree(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_it_holds_what_the_files_hold(corpus, tmp_path):
    target = prepared(corpus, tmp_path / "out")
    for split in ("train", "test", "train,test"):
        files, records = opened(corpus, split), opened(target, split)
        assert records.fingerprint() == files.fingerprint()
        for i in range(len(files)):
            assert records.text(i) == files.text(i)
            np.testing.assert_array_equal(records.audio(i), files.audio(i))
            np.testing.assert_array_equal(records.audio(i, 500, 700), files.audio(i)[500:1200])
    summary = json.loads((target / "summary.json").read_text())["splits"]["train"]
    assert (summary["listed"], summary["utterances"], summary["rejected"]) == (4, 4, 0)
    assert (
        summary["hours"] == pytest.approx(5.5 / 3600, abs=1e-4) and summary["speakers"] == 1 and summary["words"] == 8
    )
    assert summary["characters"] == {" ": 4, "A": 1, "B": 1, "C": 1, "D": 5, "O": 4, "R": 4, "W": 4}
    assert (target / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_tfds_reads_it_without_tensorflow(corpus, tmp_path):
    target = prepared(corpus, tmp_path / "out", name="tones")
    program = f"""
import io, sys, soundfile
import tensorflow_datasets as tfds
data = tfds.data_source("tones", split="train", data_dir={str(target)!r})
row = data[2]
wave, rate = soundfile.read(io.BytesIO(row["audio"]))
print(len(data), row["id"].decode(), row["text"].decode(), row["speaker"].decode(), row["samples"], len(wave), rate)
print("tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines() == ["4 1-1-0002 WORD C 1 24000 24000 16000", "False"], done.stderr


def test_flac_of_the_right_form_is_copied_bit_for_bit(corpus, tmp_path):
    import tensorflow_datasets as tfds

    target = prepared(corpus, tmp_path / "out")
    record = tfds.data_source("speech", split="test", data_dir=target)[0]
    assert record["audio"] == (corpus / "test/2/1/2-1-0000.flac").read_bytes()


def test_an_unpacked_archive_of_librispeech(corpus, tmp_path):
    """Its archives hold LibriSpeech/SPLIT/... beside files of their own."""
    (tmp_path / "LibriSpeech").mkdir()
    (corpus / "train").rename(tmp_path / "LibriSpeech" / "train-clean-100")
    (tmp_path / "LibriSpeech" / "SPEAKERS.TXT").write_text("; speakers\n")
    with tarfile.open(tmp_path / "train-clean-100.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "LibriSpeech", "LibriSpeech")
    with pytest.raises(UserError, match=r"is an archive; unpack it first \(tar xf"):
        prepared(tmp_path / "train-clean-100.tar.gz", tmp_path / "out")
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "train-clean-100.tar.gz", "-C", tmp_path / "unpacked"], check=True)
    target = prepared(tmp_path / "unpacked" / "LibriSpeech", tmp_path / "out")
    source = opened(target, "train-clean-100")
    assert [source.text(i) for i in range(len(source))] == ["WORD A", "WORD B", "WORD C", "WORD D"]


@pytest.fixture
def long_corpus(tmp_path):
    """A file of 20 minutes of tones and pauses, without transcript, beside short ones; where in it each tone lies."""
    random = np.random.default_rng(0)
    pieces, spans, at = [], [], 0
    while at < 20 * 60 * 16_000:
        pause, tone = (round(16_000 * random.uniform(*limits)) for limits in ((0.2, 0.6), (0.5, 4)))
        pieces += [np.zeros(pause), 0.3 * np.sin(2 * np.pi * 300 * np.arange(tone) / 16_000)]
        spans.append((at + pause, at + pause + tone))
        at += pause + tone
    (tmp_path / "books").mkdir()
    wave = np.concatenate(pieces) + 0.001 * random.normal(size=at)
    soundfile.write(tmp_path / "books/long.flac", wave, 16_000)
    for i in range(3):
        soundfile.write(tmp_path / f"books/short{i}.flac", wave[: 16_000 * (i + 5)], 16_000)
    return tmp_path / "books", spans


def test_a_long_recording_is_cut_at_pauses(long_corpus, tmp_path, capfd):
    folder, spans = long_corpus
    target = prepared(folder, tmp_path / "out")
    index = pa.ipc.open_file(str(target / "speech/1.0.0/index-train.arrow")).read_all().to_pylist()
    pieces = [row for row in index if row["source"]]
    assert [row["id"] for row in index if not row["source"]] == ["short0", "short1", "short2"]
    assert [row["id"] for row in pieces] == [f"long#{i:04d}" for i in range(len(pieces))] and len(pieces) >= 40
    ends = np.cumsum([row["samples"] for row in pieces])
    assert [row["begin"] for row in pieces] == [0, *ends[:-1]] and {row["source"] for row in pieces} == {"long"}
    assert ends[-1] == soundfile.info(folder / "long.flac").frames
    for begin in ends[:-1]:
        assert not any(first < begin < last for first, last in spans)
    assert all(5 * 16_000 <= row["samples"] <= 30 * 16_000 for row in pieces)
    source, whole = opened(target), soundfile.read(folder / "long.flac", dtype="int16")[0]
    for i in range(len(source)):
        if source.id(i).startswith("long"):
            row = pieces[int(source.id(i)[5:])]
            np.testing.assert_array_equal(source.audio(i), whole[row["begin"] : row["begin"] + row["samples"]])
    facts = json.loads((target / "summary.json").read_text())["splits"]["train"]
    assert (facts["listed"], facts["rejected"], facts["cut"], facts["pieces"]) == (4, 0, 1, len(pieces))
    assert f"4 of 4 utterances, 0.34 h, 0 speakers, 0 rejected; 1 of them cut at pauses into {len(pieces)} pieces" in (
        capfd.readouterr().out
    )


def test_what_has_a_transcript_is_not_cut(long_corpus, tmp_path):
    """Nothing says which words belong to which piece."""
    folder, _ = long_corpus
    for name in ("long", "short0", "short1", "short2"):
        (folder / f"{name}.txt").write_text("WORDS")
    target = prepared(folder, tmp_path / "out", max_seconds=600.0, cut_seconds=6.0)
    lines = [json.loads(line) for line in (target / "rejected.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["long"] and "longer than max_seconds=600; cut it" in lines[0]["reason"]
    assert len(opened(target)) == 3


def test_of_a_long_recording_that_was_cut_off_the_first_part_is_kept(long_corpus, tmp_path):
    folder, _ = long_corpus
    data = (folder / "long.flac").read_bytes()
    (folder / "long.flac").write_bytes(data[: len(data) // 2])
    target = prepared(folder, tmp_path / "out")
    (line,) = [json.loads(line) for line in (target / "rejected.jsonl").read_text().splitlines()]
    kept = float(re.search(r"cannot be decoded beyond .*; its first ([\d.]+) s are kept", line["reason"])[1])
    source = opened(target)
    pieces = [int(source.samples[i]) for i in range(len(source)) if source.id(i).startswith("long")]
    assert sum(pieces) / 16_000 == pytest.approx(kept, abs=0.01) and kept > 500


def test_a_manifest_with_splits(corpus, tmp_path):
    rows = [
        {"audio": f"corpus/train/1/1/1-1-000{i}.flac", "text": "ONE", "speaker": i} | ({"split": "dev"} if i else {})
        for i in range(3)
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = prepared(tmp_path / "list.jsonl", tmp_path / "out")
    assert len(opened(target, "train")) == 1 and len(opened(target, "dev")) == 2
    summary = json.loads((target / "summary.json").read_text())
    assert summary["splits"]["dev"]["speakers"] == 2


def test_damage_is_rejected_by_name_and_counts_add_up(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    damaged = make_damaged_corpus(tmp_path / "corpus", tmp_path / "elsewhere")
    target = prepared(tmp_path / "corpus", tmp_path / "out")
    lines = [json.loads(line) for line in (target / "rejected.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == set(damaged) and len(lines) == len(damaged) >= 12
    for line in lines:
        assert re.search(damaged[line["id"]], line["reason"]), line
    summary = json.loads((target / "summary.json").read_text())["splits"]["train"]
    assert summary["utterances"] == len(GOOD) + 2 and summary["rejected"] == len(damaged)
    assert summary["listed"] == summary["utterances"] + summary["rejected"]
    records = opened(target)
    # any rate, width and channel count is the same from its file and from its record
    files = opened(tmp_path / "corpus", max_bad=99, max_samples=16_000 * 600, min_samples=1600)
    file_of = {files.id(i): i for i in range(len(files))}
    for i in range(len(records)):
        np.testing.assert_array_equal(records.audio(i), files.audio(file_of[records.id(i)]))


def many(folder, count=150):
    """Enough utterances for several shards."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for i in range(count):
        soundfile.write(folder / f"{i:04d}.wav", noise.normal(size=8000 + 10 * i) * 0.1, 22_050)
        (folder / f"{i:04d}.txt").write_text(f"NUMBER {i % 7}")
    (folder / "0003.wav").write_bytes(b"damaged")
    return folder.parent


def test_killed_five_times_it_ends_with_the_same_bytes(tmp_path):
    corpus = many(tmp_path / "corpus" / "train", 320)
    whole = prepared(corpus, tmp_path / "whole", workers=0)
    command = [sys.executable, "-m", "sew_jax.main", "--config=configs/prepare.py", f"--config.data={corpus}"]
    command += [f"--workdir={tmp_path / 'killed'}", "--config.workers=2"]
    notes, draw = tmp_path / "killed" / "unfinished", random.Random(0)
    for kill in range(5):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        # the first dies before any shard is whole, the others after one or two more
        until = len(list(notes.glob("*.json"))) + draw.choice((1, 2)) if kill else 0
        while not notes.exists() or len(list(notes.glob("*.json"))) < until:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(draw.choice((signal.SIGKILL, signal.SIGTERM)))
        assert process.wait() != 0
    assert 0 < len(list(notes.glob("*.json"))) < 20
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    assert tree(tmp_path / "killed") == tree(whole)


def test_a_mount_that_goes_away_and_comes_back_leaves_nobody_out(tmp_path, monkeypatch):
    corpus = many(tmp_path / "corpus" / "train", 40)
    whole = prepared(corpus, tmp_path / "whole")
    away, calls = tmp_path / "away", itertools.count()

    def waited(error):
        away.rename(corpus)

    def flaky(entry, limits):
        if next(calls) == 20:
            corpus.rename(away)
        yield from convert(entry, limits)

    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(storage, "_say_waiting", waited)
    monkeypatch.setattr("sew_jax.data.prepare.convert", flaky)
    assert tree(prepared(corpus, tmp_path / "out")) == tree(whole)
    assert next(calls) > 40  # the shard was written again


def test_a_finished_one_is_left_alone_and_other_data_are_refused(corpus, tmp_path, capsys):
    target = prepared(corpus, tmp_path / "out")
    before = tree(target)
    prepared(corpus, target)
    assert "nothing to do" in capsys.readouterr().out and tree(target) == before
    with pytest.raises(UserError, match=r"was prepared from other data or with other options; use another --workdir"):
        prepared(corpus, target, max_seconds=1.2)
    soundfile.write(corpus / "train/1/1/1-1-0001.flac", [0.1] * 16_000, 16_000)
    with pytest.raises(UserError, match="was prepared from other data"):
        prepared(corpus, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"data": ""}, "data is empty; name a folder"),
        ({"split": "valid"}, "has no split valid; it has: test, train"),
        ({"transcripts": "maybe"}, "transcripts: 'maybe' is unknown; choose one of auto, required, optional"),
        ({"max_seconds": 0.5}, "nothing of split .* can be used: all .* were rejected, the first: "),
        ({"name": "a b"}, "name: 'a b'"),
    ],
)
def test_bad_input_is_named(corpus, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepared(corpus, tmp_path / "out", **options) if "data" not in options else prepared(
            options["data"], tmp_path / "out"
        )


def test_a_workdir_that_cannot_be_written(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"workdir: .* cannot be written"):
        prepared(corpus, tmp_path / "file")


def test_tables_and_shards_that_do_not_fit_are_named(corpus, tmp_path):
    target = prepared(corpus, tmp_path / "out")
    (shard,) = target.glob("*/*/speech-train.array_record*")
    source = opened(target)
    shard.write_bytes(shard.read_bytes()[: 65_536 // 2])
    from sew_jax.data.audio import AudioError

    with pytest.raises(AudioError, match="record that cannot be read"):
        source.audio(0)
    (target / "speech" / "1.0.0" / "index-train.arrow").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"index-train\.arrow cannot be read"):
        opened(target)
    with pytest.raises(UserError, match=r"has no split dev; it has: test, train"):
        opened(target, "dev")


def test_threads_open_its_records_once(corpus, tmp_path, monkeypatch):
    """TFDS imports its parts lazily: threads that open a dataset at the same time can wait for each other for ever."""
    source = opened(prepared(corpus, tmp_path / "out"))
    inside, most, build = [], [], records.open_records

    def slowly(files, index):
        inside.append(files)
        most.append(len(inside))
        time.sleep(0.2)
        inside.pop()
        return build(files, index)

    monkeypatch.setattr(records, "open_records", slowly)
    other = pickle.loads(pickle.dumps(source))  # as a worker process gets it, or a mixture with two datasets
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waves = list(pool.map(lambda i: (source, other)[i % 2].audio(i // 2), range(8)))
    assert most == [1, 1] and all(np.array_equal(a, b) for a, b in zip(waves[::2], waves[1::2], strict=True))


def test_a_dataset_without_whole_metadata_is_named(corpus, tmp_path):
    source = opened(prepared(corpus, tmp_path / "out"))
    next((tmp_path / "out").rglob("dataset_info.json")).write_text("{")
    with pytest.raises(UserError, match=r"dataset_info\.json cannot be read .*run prepare again"):
        source.audio(0)


def test_workers_end_when_the_run_is_killed(tmp_path):
    """Not even SIGKILL leaves processes behind."""
    corpus = many(tmp_path / "corpus" / "train", 320)
    command = [sys.executable, "-m", "sew_jax.main", "--config=configs/prepare.py", f"--config.data={corpus}"]
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path / 'out'}", "--config.workers=2"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list((tmp_path / "out").glob("unfinished/*.json")):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL  # and not of itself
    assert_all_end(process.pid)
