"""Error rates and times of a whole run, checked against what it leaves."""

import errno
import json
import os

import jax
import numpy as np
import pytest

from configs import evaluate as evaluate_config
from configs import lm as configs_lm
from sew_jax.compression import Compression
from sew_jax.decoding.build_lm import build_lm
from sew_jax.errors import UserError
from sew_jax.evaluation.evaluate import evaluate
from sew_jax.metrics.wer import ErrorCounts, count_errors
from tests.jobs import Job
from tests.metrics.test_tensorboard import files, read
from tests.runs import begin_finetuned


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    begin_finetuned(root)
    return root


def evaluation(runs, **changes):
    config = evaluate_config.get_config()
    config.data, config.init_from = str(runs / "corpus"), str(runs / "finetune")
    config.repeats, config.input.buckets = 2, 2
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def evaluated(runs):
    workdir = runs / "evaluation"
    return workdir, evaluate(evaluation(runs, settings="s1q1k1,s2q1k1,s4q2k2"), workdir)


def transcripts(workdir, setting):
    lines = (workdir / "transcripts" / f"{setting}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_write_what_one_does(runs, evaluated, tmp_path):
    """Each computes its rows of each batch; texts and errors are those of one process, and the first one writes."""
    options = [f"--config.init_from={runs / 'finetune'}", "--config.repeats=1", "--config.input.buckets=2"]
    options += ["--config.split=test", "--config.settings=s1q1k1"]
    ended = Job(runs / "corpus", tmp_path / "two", processes=2, config="evaluate", options=options).end()
    assert [status for status, *_ in ended] == [0, 0] and "WER" not in ended[1][1], ended
    assert transcripts(tmp_path / "two", "s1q1k1") == transcripts(evaluated[0], "s1q1k1")
    two, one = (json.loads((place / "tradeoff.json").read_text())[0] for place in (tmp_path / "two", evaluated[0]))
    assert all(two[key] == one[key] for key in ("wer", "wer_low", "cer", "sub", "del", "ins", "words", "utterances"))


def test_rows_are_the_sums_of_the_transcripts(evaluated):
    workdir, rows = evaluated
    saved = json.loads((workdir / "tradeoff.json").read_text())
    assert [row["setting"] for row in saved] == ["s1q1k1", "s2q1k1", "s4q2k2"] == [row.setting for row in rows]
    for row in saved:
        pairs = transcripts(workdir, row["setting"])
        assert [p["id"] for p in pairs] == [f"2-1-{i:04d}" for i in range(5)]
        total = sum((count_errors(p["reference"], p["hypothesis"]) for p in pairs), ErrorCounts())
        assert row["wer"] == total.wer and row["cer"] == total.cer and row["words"] == 5 == row["utterances"]
        assert row["sub"] + row["del"] + row["ins"] == round(row["wer"] * row["words"])
        assert row["seconds_min"] <= row["seconds"] <= row["seconds_max"] and row["repeats"] == 2
        assert row["wer_low"] <= row["wer"] <= row["wer_high"] and row["split"] == "test"
        assert row["rtf"] == pytest.approx(row["seconds"] / row["audio_seconds"])
    assert saved[0]["relative_time"] == saved[0]["relative_macs"] == 1
    assert [row["trained"] for row in saved] == [True, True, False]
    macs = [row["macs_per_s"] for row in saved]
    assert macs == sorted(macs, reverse=True)


def test_files(evaluated):
    workdir, rows = evaluated
    assert (workdir / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert len((workdir / "tradeoff.csv").read_text().splitlines()) == 1 + len(rows)
    assert not list(workdir.rglob("*.partial"))
    assert '"command":"sew_jax.evaluate from Python"' in (workdir / "tradeoff.html").read_text()


def test_tensorboard_has_the_table_and_transcripts(evaluated):
    workdir, points = evaluated
    (path,) = [path for path in files(workdir) if path.name.endswith(".evaluation")]
    values = {value.tag: value for event in read(path) for value in event.summary.value}
    table, *texts = (
        values[f"{tag}/text_summary"].tensor.string_val[0].decode()
        for tag in ("tradeoff/table", *(f"transcripts/{line['id']}" for line in transcripts(workdir, "s2q1k1")))
    )
    assert all(f"| {point.setting} | test | greedy | {point.wer:.2%} |" in table for point in points)
    for line, text in zip(transcripts(workdir, "s2q1k1"), texts, strict=True):
        assert f"| reference | {line['reference']} |" in text and f"| s2q1k1 greedy | {line['hypothesis']} |" in text


def test_one_device_and_eight_write_the_same(runs, evaluated, tmp_path):
    """On one device the batch has another number of rows, too."""
    _, rows = evaluated
    with jax.default_device(jax.devices()[0]):
        config = evaluation(runs, settings="s1q1k1,s2q1k1", repeats=1)
        config.input.batch_seconds = 100.0
        again = evaluate(config, tmp_path / "other")
    assert [row.wer for row in again] == [row.wer for row in rows[:2]]
    assert transcripts(tmp_path / "other", "s2q1k1") == transcripts(evaluated[0], "s2q1k1")


def test_without_names_it_is_the_table_of_training(runs, tmp_path, capfd):
    rows = evaluate(evaluation(runs, repeats=1), tmp_path)
    assert [row.setting for row in rows] == ["s1q1k1", "s2q1k1"]
    assert "compiled 4 programs" in capfd.readouterr().out  # settings x buckets


def test_several_splits_have_rows_and_transcripts_of_their_own(runs, evaluated, tmp_path):
    rows = evaluate(evaluation(runs, split="test,train", settings="s2q1k1", repeats=1), tmp_path)
    assert [(row.split, row.setting) for row in rows] == [
        (split, setting) for split in ("test", "train") for setting in ("s1q1k1", "s2q1k1")
    ]
    assert [row.utterances for row in rows] == [5, 5, 12, 12]
    assert [row.relative_time for row in rows if row.setting == "s1q1k1"] == [1, 1]
    lines = transcripts(tmp_path, "s2q1k1")
    assert [line["split"] for line in lines] == ["test"] * 5 + ["train"] * 12
    assert lines[:5] == transcripts(evaluated[0], "s2q1k1")


def test_beam_search_stands_beside_greedy_decoding(runs, tmp_path, capfd):
    """The model's output is noise; a lexicon of one word leaves nothing else to say."""
    lm_config = configs_lm.get_config()
    (tmp_path / "text").write_text("TWO\nTWO TWO\n")
    lm_config.data, lm_config.text, lm_config.order = "", str(tmp_path / "text"), 2
    build_lm(lm_config, tmp_path)
    changes = {
        "lm": str(tmp_path / "lm.arpa"),
        "beam.workers": 1,
        "split": "train",
        "tune_split": "train",
        "tune_trials": 2,
        "beam.nbest": 3,
    }
    rows = evaluate(evaluation(runs, settings="s1q1k1,s2q1k1", repeats=1, **changes), tmp_path)
    assert "! tune_split=train is reported, too" in capfd.readouterr().out
    assert [(row.decoder, row.setting) for row in rows] == [
        (decoder, setting) for decoder in ("greedy", "lm") for setting in ("s1q1k1", "s2q1k1")
    ]
    for row in rows:
        name = row.setting + (".lm" if row.decoder == "lm" else "")
        pairs = transcripts(tmp_path, name)
        assert row.wer == sum((count_errors(p["reference"], p["hypothesis"]) for p in pairs), ErrorCounts()).wer
        assert (row.decode_seconds > 0) == (row.decoder == "lm") and row.seconds > row.decode_seconds
    for pair in transcripts(tmp_path, "s2q1k1.lm"):
        scores = [best["score"] for best in pair["nbest"]]
        assert pair["nbest"][0]["text"] == pair["hypothesis"] and scores == sorted(scores, reverse=True)
        assert 1 <= len(scores) == len({best["text"] for best in pair["nbest"]}) <= 3
    assert {word for p in transcripts(tmp_path, "s2q1k1.lm") for word in p["hypothesis"].split()} <= {"TWO"}


def test_bfloat16(runs, tmp_path):
    rows = evaluate(evaluation(runs, dtype="bfloat16", settings="s1q1k1", repeats=1), tmp_path)
    assert rows[0].dtype == "bfloat16" and np.isfinite(rows[0].wer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "init_from is empty"),
        ({"init_from": "PRETRAIN"}, "has no CTC head yet; fine-tune it first"),
        ({"settings": "s1q1.2.2k1"}, "3 factors, but the model has 1 layers"),
        ({"settings": "s0q1k1"}, "0 is not a factor"),
        ({"settings": "fast"}, "setting 'fast' is unknown"),
        ({"split": "nothing"}, "nothing"),
        ({"lm": "nothing.arpa"}, "nothing.arpa"),
        ({"beam.lexicon": "words"}, "beam.lexicon: it is for beam search"),
        ({"tune_split": "train"}, "tune_split: weights are those of an n-gram"),
    ],
    ids=str,
)
def test_bad_input(runs, tmp_path, changes, message):
    changes = {k: str(runs / "pretrain") if v == "PRETRAIN" else v for k, v in changes.items()}
    with pytest.raises(UserError, match=message):
        evaluate(evaluation(runs, **changes), tmp_path)


def test_a_workdir_that_cannot_be_written(runs, tmp_path, monkeypatch, capfd):
    """It is said before anything is computed; and what was computed on a disk that is full then is shown."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run cannot be written \(not a directory"):
        evaluate(evaluation(runs, init_from="nothing"), tmp_path / "file/run")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sew_jax.evaluation.evaluate.write_outputs", full)
    with pytest.raises(UserError, match=r"cannot be written \(no space left on device\); mend that or name another"):
        evaluate(evaluation(runs, settings="s1q1k1", repeats=1), tmp_path)
    assert "x real time" in capfd.readouterr().out


def test_damaged_audio_is_named_and_left_out(runs, tmp_path, capfd):
    path = runs / "corpus/test/2/1/2-1-0003.flac"
    sound = path.read_bytes()
    try:
        path.write_bytes(sound[:40])
        rows = evaluate(evaluation(runs, settings="s1q1k1", repeats=1), tmp_path / "a")
        assert rows[0].utterances == 4 and "2-1-0003" in capfd.readouterr().out
        with pytest.raises(UserError, match="2-1-0003"):
            evaluate(evaluation(runs, **{"input.max_bad": 0}), tmp_path / "b")
    finally:
        path.write_bytes(sound)


def test_the_reference_setting_is_always_measured(runs, tmp_path):
    rows = evaluate(evaluation(runs, settings="s2q1k1", repeats=1), tmp_path)
    assert [row.setting for row in rows] == [Compression().name, "s2q1k1"]


@pytest.mark.parametrize(("runtime", "others"), [("onnxruntime", ["int8"]), ("openvino", []), ("openvino", ["int8"])])
def test_other_run_times_say_the_same(runtime, others, runs, evaluated, tmp_path):
    """In float32; each in its own rows and files."""
    for needed in ("onnx", runtime, *(["nncf"] if others and runtime == "openvino" else [])):
        pytest.importorskip(needed)
    dtypes = ["float32", *others]
    changes = {"runtimes": runtime, "dtypes": ",".join(dtypes), "settings": "s1q1k1,s4q2k2", "repeats": 1}
    rows = evaluate(evaluation(runs, **changes), tmp_path)
    settings = ["s1q1k1", "s4q2k2"]
    assert [(row.setting, *row.engine) for row in rows] == [(s, runtime, d) for d in dtypes for s in settings]
    assert rows[0].relative_time == 1 and all(row.seconds > 0 for row in rows)
    suffix = f".{runtime}.float32" if others else ""
    for setting in settings:
        assert transcripts(tmp_path, setting + suffix) == transcripts(evaluated[0], setting)
        assert all((tmp_path / "transcripts" / f"{setting}.{runtime}.{dtype}.jsonl").is_file() for dtype in others)


def test_a_precision_that_no_run_time_has(runs, tmp_path):
    none = "onnxruntime computes in float32, int8, and none of them is named"
    for key in ("dtypes", "dtype"):
        with pytest.raises(UserError, match=f"^{key}: {none}"):
            evaluate(evaluation(runs, runtimes="jax,onnxruntime", **{key: "bfloat16"}), tmp_path)
