"""Held-out evaluation inside training: fixed masks, the best checkpoint, early stopping, the watchdog's words."""

import json
import shutil

import jax
import numpy as np
import pytest

from sew_jax.checkpoints.checkpointer import BEST, Checkpoints
from sew_jax.checkpoints.pretrained import open_pretrained
from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.metrics.metrics_file import read_metrics, read_rows
from sew_jax.runtime.sharding import make_mesh
from sew_jax.training.held_out import open_held_out
from sew_jax.training.setup import open_task
from sew_jax.training.train import train
from sew_jax.training.validation import FILE, Validation
from sew_jax.training.watchdog import check_held_out
from tests import runs
from tests.metrics.test_tensorboard import shown


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = runs.make_corpus(tmp_path_factory.mktemp("held_out") / "corpus")
    shutil.copytree(root / "test", root / "dev")
    return root


def pretraining(corpus, every=4):
    config = runs.pretraining(corpus)
    config.model.layers = 2
    config.eval.every = every
    return config


@pytest.fixture(scope="module")
def pretrained(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "pretrain"
    train(pretraining(corpus), workdir)
    return workdir


@pytest.fixture(scope="module")
def begun(corpus, tmp_path_factory):
    """What fine-tuning starts from, as drawn: a model of one layer, so that other files' programs are found."""
    workdir = tmp_path_factory.mktemp("begun") / "pretrain"
    runs.begin(runs.pretraining(corpus), workdir)
    return workdir


def test_rows_of_pretraining_and_a_resume_that_changes_none(corpus, pretrained, tmp_path, capsys):
    rows = read_rows(pretrained / FILE)
    assert [(r["step"], r["setting"]) for r in rows] == [(s, n) for s in (4, 8, 12) for n in ("s1q1k1", "s2q1k1")]
    assert all(r["split"] == "dev" and 0 < r["loss_contrastive"] < 20 and 0 <= r["accuracy"] <= 1 for r in rows)
    assert all(len(r["layer_changes"]) == 2 and min(r["layer_changes"]) > 0 for r in rows)
    assert [r["cosine"] for r in rows[::2]] == [1.0] * 3  # the largest with itself
    workdir = shutil.copytree(pretrained, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "12")  # as after a kill: updates 11 and 12 are lost
    train(pretraining(corpus), workdir)
    assert "resumes at update 10" in capsys.readouterr().out
    assert read_rows(workdir / FILE) == rows
    assert read_metrics(workdir)[-1]["loss"] == read_metrics(pretrained)[-1]["loss"]


def test_masks_are_the_same_each_time_and_noise_is_none(corpus):
    config = pretraining(corpus)
    task, mesh = open_task(config), make_mesh(4, 2)
    held_out = open_held_out(config, task, mesh)
    variables = jax.jit(task.init)(jax.random.key(0))
    programs = runs.held_out_programs(held_out)
    first, second = (held_out.measure(programs, variables, lambda: None) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    # an untrained model guesses among the positive and its five negatives
    assert abs(first[0]["loss_contrastive"] - np.log2(6)) < 1.5
    # a residual up-sampler begins as repetition: the contexts are those of the squeezed stream itself
    assert -1 <= first[1]["cosine"] <= 1 and held_out.settings[0] == Compression()


def test_what_merges_is_scored_as_it_is_without_merging(corpus):
    """A share so small that no frame goes: the same numbers; a larger one changes frames in more than their layer."""
    config = pretraining(corpus)
    config.compression.names = "s1q1k1,s1q1k1m0.001,s1q1k1m0.3"
    task = open_task(config)
    held_out = open_held_out(config, task, make_mesh(4, 2))
    programs = runs.held_out_programs(held_out)
    plain, none, some = held_out.measure(programs, jax.jit(task.init)(jax.random.key(0)), lambda: None)
    jax.tree.map(np.testing.assert_allclose, plain, none)
    assert np.isfinite(some["layer_changes"]).all() and len(some["layer_changes"]) == 2
    assert (some["layer_changes"] > plain["layer_changes"]).all() and some["cosine"] < 1


def test_numbers_that_are_not_finite_are_null_in_the_file_and_end_nothing(corpus, tmp_path, capsys, monkeypatch):
    config = pretraining(corpus, every=12)

    def measure(self, step, state, progress, run=Validation.run):
        row = {"loss_contrastive": np.nan, "accuracy": 0.0, "cosine": np.nan, "layer_changes": np.array([np.nan, 1.0])}
        self._held_out = self._held_out._replace(measure=lambda *_: [row] * len(self._held_out.settings))
        run(self, step, state, progress)

    monkeypatch.setattr(Validation, "run", measure)
    assert train(config, tmp_path).step == 12
    (row, _) = read_rows(tmp_path / FILE)
    assert row["loss_contrastive"] is None and row["layer_changes"] == [None, 1.0]
    assert "s1q1k1 nan bits 0.000" in capsys.readouterr().out


def test_the_best_checkpoint_is_the_one_that_others_start_from(corpus, begun, tmp_path, monkeypatch):
    config = runs.finetuning(corpus, begun)
    config.eval.every = 3
    wers = iter([0.9, 0.4, 0.7, 0.8])

    def measure(self, step, state, progress, run=Validation.run):
        wer = next(wers)
        self._held_out = self._held_out._replace(
            measure=lambda *_: [{"wer": wer, "errors": 1, "words": 10, "loss": 9.0}] * len(self._held_out.settings)
        )
        run(self, step, state, progress)

    monkeypatch.setattr(Validation, "run", measure)
    train(config, tmp_path)
    assert [r["wer"] for r in read_rows(tmp_path / FILE)[::2]] == [0.9, 0.4, 0.7, 0.8]
    best = Checkpoints(tmp_path / BEST)
    assert best.latest() == 6
    best.close()
    state, _ = open_pretrained(str(tmp_path)).load(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert state == "update 6, the best by WER on dev (40.0%)"


def test_real_word_errors_and_patience(corpus, begun, tmp_path, capsys):
    config = runs.finetuning(corpus, begun)
    config.eval.every, config.eval.patience, config.optim.lr = 2, 2, 1e-12
    summary = train(config, tmp_path)
    rows = read_rows(tmp_path / FILE)
    assert summary.step == 6 and not summary.stopped  # the first, and two that are no better
    assert all(r["words"] == 5 and r["wer"] == r["errors"] / 5 for r in rows)
    assert "2 evaluations were no better (eval.patience)" in capsys.readouterr().out
    again = train(config, tmp_path)  # there is nothing to do
    assert again.step == 6 and read_rows(tmp_path / FILE) == rows


def test_what_is_held_out_is_named(corpus, tmp_path, capsys):
    config = pretraining(corpus)
    config.eval.split = "validation"
    with pytest.raises(UserError, match=r"eval\.split: .*no split validation; it has: dev, test, train"):
        train(config, tmp_path / "a")
    config.eval.split, config.data = "auto", str(runs.make_corpus(tmp_path / "without"))
    train(config, tmp_path / "b")
    assert "no usable split `dev`" in capsys.readouterr().out and not (tmp_path / "b" / FILE).exists()
    config.eval.every = 0
    with pytest.raises(UserError, match=r"eval\.every"):
        train(config, tmp_path / "c")


def test_tensorboard_shows_updates_and_evaluations(pretrained):
    """From one file: it reads a folder's files in order, and a later one's start takes away what it repeats."""
    series = shown(pretrained)
    assert [step for step, _ in series["training/loss"]] == list(range(1, 13))
    rows = [r for r in read_rows(pretrained / FILE) if r["setting"] == "s2q1k1"]
    for name in ("loss_contrastive", "accuracy", "cosine"):
        assert series[f"held-out {name}/s2q1k1"] == [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in rows]
    changes = [(r["step"], pytest.approx(r["layer_changes"][1], rel=1e-6)) for r in rows]
    assert series["held-out layer_changes/s2q1k1 2"] == changes


def row(setting="s1q1k1", **values):
    return {"setting": setting, "layer_changes": [0.5, 0.4], "cosine": 1.0} | values


def test_the_watchdog_reads_evaluations():
    assert not check_held_out([row(), row("s2q1k1", cosine=0.93)], {})
    (finding,) = check_held_out([row(layer_changes=[0.5, 0.01])], {})
    assert finding.startswith("layers 2 add less than")
    (finding,) = check_held_out([row(), row("s2q1k1", cosine=0.4)], {})
    assert "contexts of s2q1k1 0.40 have parted from s1q1k1's" in finding
    behind = {"setting": "s1q1k1", "wer": 0.937, "words": 800}
    (finding,) = check_held_out([behind], {"s1q1k1": {"wer": 0.868}})
    assert "behind random weights: WER 93.7% against 86.8%" in finding
    assert not check_held_out([behind | {"wer": 0.87}], {"s1q1k1": {"wer": 0.868}})


def test_a_baseline_is_read_by_step(corpus, begun, tmp_path, capsys):
    config = runs.finetuning(corpus, begun)
    config.eval.every, config.eval.patience, config.optim.lr = 2, 1, 1e-12
    baseline = tmp_path / "random"
    baseline.mkdir()
    rows = [{"step": 2, "setting": name, "wer": -9.0, "words": 5} for name in ("s1q1k1", "s2q1k1")]
    (baseline / FILE).write_text("".join(json.dumps(r) + "\n" for r in rows))
    config.eval.baseline = str(baseline)
    train(config, tmp_path / "run")
    assert "this start is behind random weights" in capsys.readouterr().out
