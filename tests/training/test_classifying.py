"""Labels from a manifest to a table: trained, measured, read from Python, written out again; and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import sew_jax
from configs import evaluate as evaluate_config
from configs import export as export_config
from configs import transcribe as transcribe_config
from sew_jax.compression import Compression
from sew_jax.data.labels import Labels
from sew_jax.errors import UserError
from sew_jax.evaluation.budget import chosen_setting
from sew_jax.evaluation.evaluate import evaluate
from sew_jax.export.export import export
from sew_jax.metrics.classes import macro_f1
from sew_jax.metrics.metrics_file import read_rows
from sew_jax.training.setup import open_task
from sew_jax.training.train import train
from sew_jax.transcription.transcribe import transcribe
from tests.runs import begin, finetuning, pretraining

LABELS = ("very fast", "slow")
COUNTS = {"train": 32, "dev": 8, "test": 11}


def write_manifest(folder):
    """Noise that comes and goes ten times a second, or twice."""
    random, lines = np.random.default_rng(0), []
    for split, count in COUNTS.items():
        for i in range(count):
            time = np.arange(12_000 + 200 * (i % 3)) / 16_000
            loud = np.sin(2 * np.pi * ((10.0, 2.0)[i % 2] * time + random.uniform())) > 0
            soundfile.write(folder / f"{split}{i}.wav", random.normal(size=len(time)) * 0.2 * (0.01 + loud), 16_000)
            lines.append({"audio": f"{split}{i}.wav", "label": LABELS[i % 2], "split": split})
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def classifying(manifest, init_from, **changes):
    config = finetuning(manifest, init_from)
    config.task, config.num_steps, config.checkpoint_every = "classify", 40, 100
    config.compression.names = "s2q1k1"
    config.optim.lr, config.eval.every, config.log_every = 3e-3, 40, 20
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("classifying")
    manifest = write_manifest(root)
    origin = pretraining(manifest)
    origin.model.frontend = "logmel"
    begin(origin, root / "pretrain")
    train(classifying(manifest, root / "pretrain"), root / "run")
    return root


def evaluation(runs, **changes):
    config = evaluate_config.get_config()
    config.data, config.init_from = str(runs / "labels.jsonl"), str(runs / "run")
    config.repeats, config.input.buckets, config.split = 1, 1, "test,dev"
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def evaluated(runs):
    return evaluate(evaluation(runs), runs / "table")


def rows_of(runs, setting, split):
    lines = (runs / "table" / "transcripts" / f"{setting}.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def test_it_learns_what_it_is_told(runs, evaluated):
    (point,) = [point for point in evaluated if (point.split, point.setting) == ("test", "s2q1k1")]
    assert point.accuracy >= 0.9 and point.macro_f1 >= 0.9 and point.utterances == COUNTS["test"]
    assert Labels.load(runs / "run").names == tuple(sorted(LABELS))


def test_rows_are_those_of_the_labels_written(runs, evaluated):
    """Counts and direction; each label, two words in one of them, counts once."""
    saved = json.loads((runs / "table" / "tradeoff.json").read_text())
    assert [(row["split"], row["setting"]) for row in saved] == [(p.split, p.setting) for p in evaluated]
    for row in saved:
        pairs = [(one["reference"], one["hypothesis"]) for one in rows_of(runs, row["setting"], row["split"])]
        right = sum(a == b for a, b in pairs)
        assert len(pairs) == COUNTS[row["split"]] == row["words"] and row["sub"] == len(pairs) - right
        assert row["accuracy"] == pytest.approx(right / len(pairs)) == 1 - row["wer"]
        each = [[[label] for label in labels] for labels in zip(*pairs, strict=True)]
        assert row["macro_f1"] == pytest.approx(macro_f1(*each))
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] and row["macro_f1_low"] <= row["macro_f1"]
    page = (runs / "table" / "tradeoff.html").read_text()
    assert '"very_fast"' in page and (runs / "table" / "tradeoff.png").stat().st_size > 1000


def test_held_out_rows_are_the_tables(runs, evaluated):
    (row,) = read_rows(runs / "run" / "held_out.jsonl")
    (point,) = [point for point in evaluated if (point.split, point.setting) == ("dev", "s2q1k1")]
    assert row["accuracy"] == pytest.approx(point.accuracy) and row["macro_f1"] == pytest.approx(
        point.macro_f1, abs=1e-6
    )


def test_a_budget_picks_by_accuracy(runs, evaluated):
    options = {"budget": "accuracy=90%", "tradeoff": runs / "table", "setting": ""}
    fitting = [p for p in evaluated if p.split == "test" and p.accuracy >= 0.9]
    fastest = min(fitting, key=lambda point: point.relative_time)
    assert chosen_setting(**options) == Compression.parse(fastest.setting)


def test_from_python(runs, evaluated, capsys):
    """What `classify` finds likeliest is what the evaluation wrote; text is refused with what to ask instead."""
    model = sew_jax.load(runs / "run")
    for row in rows_of(runs, "s2q1k1", "test")[:2]:
        found = model.classify(str(runs / f"{row['id']}.wav"))
        assert next(iter(found)) == row["hypothesis"] and found.keys() == set(LABELS)
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    for ask in (model.transcribe, model.log_probs):
        with pytest.raises(UserError, match=r"gives labels \(slow, very fast\), not text: sew_jax.load"):
            ask(str(runs / "test0.wav"))
    config = transcribe_config.get_config()
    config.init_from, config.audio = str(runs / "run"), str(runs / "test0.wav")
    with pytest.raises(UserError, match="gives labels"):
        transcribe(config, runs)
    with pytest.raises(UserError, match=r"gives no labels; fine-tune it with --config\.task=classify"):
        sew_jax.load(runs / "pretrain").classify(str(runs / "test0.wav"))


def test_a_folder_of_ours_gives_the_same(runs):
    config = export_config.get_config()
    config.init_from, config.format, config.weights = str(runs / "run"), "sew_jax", "float32"
    export(config, runs / "folder")
    ours, theirs = (sew_jax.load(runs / name).classify(str(runs / "test0.wav")) for name in ("run", "folder"))
    assert ours == theirs
    assert "audio-classification" in (runs / "folder" / "README.md").read_text()
    config.format = "onnx"
    with pytest.raises(UserError, match="onnx is for text"):
        export(config, runs / "graphs")


def changed(runs, name, change):
    """The manifest with each row as `change` makes it; None leaves it out."""
    rows = [change(json.loads(line)) for line in (runs / "labels.jsonl").read_text().splitlines()]
    path = Path(runs / f"{name}.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row))
    return path


def test_the_head_stays_where_labels_do(runs, capsys):
    """Labels that `init_from` knows keep its order, and others begin anew."""
    known = open_task(classifying(runs / "labels.jsonl", runs / "run"))
    assert known.vocabulary.names == ("slow", "very fast")
    other = open_task(
        classifying(changed(runs, "other", lambda row: row | {"label": row["label"][0].upper()}), runs / "run")
    )
    assert other.vocabulary.names == ("S", "V")
    for task, left in ((known, ""), (other, "left behind: classifier")):
        import jax

        fresh = jax.jit(task.init)(jax.random.key(1))["params"]
        capsys.readouterr()
        task.warm_start(fresh, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        assert left in capsys.readouterr().out


REFUSED = {
    "no labels": (lambda row: {k: v for k, v in row.items() if k != "label"}, r"has no labels in split train; give a"),
    "one class": (lambda row: row | {"label": "slow"}, r"all utterances of .* have the label 'slow'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_manifests_that_nothing_can_be_learnt_from(case, runs):
    change, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        open_task(classifying(changed(runs, "refused", change), runs / "pretrain"))


def test_a_label_that_training_did_not_have(runs):
    """In `dev` while training, and in what is evaluated."""
    path = changed(
        runs, "unknown", lambda row: row | ({"label": "still"} if row["audio"] in ("dev2.wav", "test3.wav") else {})
    )
    with pytest.raises(UserError, match=r"dev2 of .*:dev have labels that training did not \('still'; it had slow"):
        train(classifying(path, runs / "pretrain", num_steps=1), runs / "unknown")
    with pytest.raises(UserError, match=r"test3 of .*:test have labels that training did not"):
        evaluate(evaluation(runs, data=str(path)), runs / "unknown_table")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lm": "none"}, "lm: none is for text, and .* gives each utterance a label"),
        ({"text_normalizer": "upper"}, "text_normalizer: upper is for text"),
        ({"beam.nbest": 5}, "beam.nbest: 5 is for text"),
    ],
)
def test_an_evaluation_of_text_is_none_of_labels(changes, message, runs):
    with pytest.raises(UserError, match=message):
        evaluate(evaluation(runs, **changes), runs / "refused_table")


def test_labels_are_not_spelt(runs):
    with pytest.raises(UserError, match="vocabulary: 'auto' is for transcripts"):
        train(classifying(runs / "labels.jsonl", runs / "pretrain", vocabulary="auto"), runs / "spelt")
