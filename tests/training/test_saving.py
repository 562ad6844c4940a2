"""When a run saves, what it keeps, what it clears away, and what it notes beside."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sew_jax.buckets import as_path
from sew_jax.checkpoints.checkpointer import Checkpoints
from sew_jax.checkpoints.leftovers import Leftovers
from sew_jax.metrics.metrics_file import MetricsFile, read_metrics, read_rows
from sew_jax.runtime import versions
from sew_jax.runtime.stall_watch import StallWatch
from sew_jax.training import reporter, starts
from sew_jax.training import train as loop
from sew_jax.training.train import train
from tests.buckets import google_bucket
from tests.runs import make_corpus, pretraining
from tests.training.test_train import load, stopping_after, values

__all__ = ["google_bucket"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train(pretraining(corpus), workdir)
    return workdir


@pytest.fixture
def saves(monkeypatch):
    """Updates that were saved."""
    done, original = [], Checkpoints.save

    def save(self, state, step, meta):
        done.append(step)
        original(self, state, step, meta)

    monkeypatch.setattr(Checkpoints, "save", save)
    return done


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_milestones_stay(corpus, unbroken, saves, tmp_path):
    config = pretraining(corpus)
    config.keep_every = 3
    train(config, tmp_path / "run")
    assert saves == [3, 5, 6, 9, 10, 12] and kept(tmp_path / "run") == [3, 6, 9, 10, 12]
    assert values(tmp_path / "run") == values(unbroken)


def test_a_run_is_saved_by_time_too(corpus, saves, tmp_path, monkeypatch):
    config = pretraining(corpus)
    config.checkpoint_every, config.log_every, config.checkpoint_minutes = 1000, 2, 1e-6
    train(config, tmp_path / "often")
    assert saves == [2, 4, 6, 8, 10, 12]
    saves.clear()
    config.checkpoint_minutes = 60.0
    train(config, tmp_path / "once")
    assert saves == [12]


def test_interrupted_saves_are_cleared_unless_they_go_on(corpus, unbroken, tmp_path):
    workdir = tmp_path / "run"
    config = pretraining(corpus)
    with stopping_after(2):
        train(config, workdir)
    half, ours = (workdir / f"checkpoints/{step}.orbax-checkpoint-tmp" for step in (7, 8))
    for folder in (half, ours):
        (folder / "params").mkdir(parents=True)
        (folder / "params/part").write_bytes(b"half")
    (workdir / ".config.json.123.partial").touch()
    left, original = Leftovers(workdir), Leftovers.clear

    def clear(self):
        with (ours / "params/part").open("ab") as file:  # another process still writes there
            file.write(b"more")
        original(self)

    Leftovers.clear = clear
    try:
        assert train(config, workdir).step == 12
    finally:
        Leftovers.clear = original
    assert not half.exists() and ours.exists() and not list(workdir.glob(".*partial"))
    assert values(workdir) == values(unbroken)
    left.clear()
    assert ours.exists()  # it has changed since then, too
    Leftovers(workdir).clear()
    assert not ours.exists()


def test_a_bucket_takes_a_run_as_a_disk_does(corpus, unbroken, google_bucket):
    """Some of what it asks is refused, and it is stopped and goes on: rows and weights are those of an unbroken one."""
    google_bucket.refused = 0.05
    workdir = as_path("gs://bucket/run")
    with stopping_after(7):
        train(pretraining(corpus), workdir)
    half = "checkpoints/11/params/d/part"
    google_bucket.store[f"bucket/run/{half}"] = (1, b"of a save that was interrupted")
    assert train(pretraining(corpus), workdir).step == 12
    assert values(workdir) == values(unbroken)
    jax.tree.map(np.testing.assert_array_equal, load(workdir), load(unbroken))
    names = google_bucket.names("bucket/run/")
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {"10", "12"}
    others = {name.split("/")[0] for name in names if not name.startswith(("checkpoints/", "events.out.tfevents."))}
    assert others == {"config.json", "left_out", "metrics", "starts"} and half not in names
    assert [row["update"] for row in read_rows(workdir / "starts.jsonl")] == [0, 8]


def test_nothing_is_compiled_for_the_first_save(corpus, tmp_path, monkeypatch):
    compiled, at = [], []
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **options: compiled.append(options.get("fun_name")) if "backend_compile" in name else None
    )
    original = Checkpoints.save

    def save(self, state, step, meta):
        at.append(len(compiled))
        original(self, state, step, meta)
        at.append(len(compiled))

    monkeypatch.setattr(Checkpoints, "save", save)
    try:
        train(pretraining(corpus), tmp_path / "run")
    finally:
        jax.monitoring.clear_event_listeners()
    during = compiled[at[0] : at[1]]
    assert not any("_bit_sums" in str(name) for name in during), during


def test_each_start_is_noted_and_another_version_said(corpus, tmp_path, monkeypatch, capfd):
    config = pretraining(corpus)
    config.num_steps = 1
    before = time.time()
    train(config, tmp_path / "run")
    assert "other than at the last start" not in capfd.readouterr().out
    real = versions.versions()
    monkeypatch.setattr(starts, "versions", lambda: real | {"jax": "0.99.0"})
    config.num_steps = 2
    train(config, tmp_path / "run")
    assert f"other than at the last start: jax was {jax.__version__}, is 0.99.0" in capfd.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run/starts.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [0, 1] and before < rows[0]["time"] < rows[1]["time"] < time.time()
    keys = "sew_jax python jax jaxlib flax optax orbax-checkpoint numpy device devices processes"
    assert all(set(keys.split()) <= set(row) for row in rows) and rows[0]["devices"] == 8
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        assert head in rows[0]["sew_jax"]
    times = [row["time"] for row in read_metrics(tmp_path / "run")]
    assert before - 1 < times[0] <= times[1] < time.time() + 1


def test_long_runs_note_every_so_many_updates(corpus, unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(reporter, "_ROWS", 5)
    train(pretraining(corpus), tmp_path / "run")
    spent = {row["step"]: row["tflop"] for row in values(unbroken)}
    assert values(tmp_path / "run") == [
        row | {"tflop": pytest.approx(sum(spent[row["step"] - i] for i in range(3)))}  # since the row before
        for row in values(unbroken)
        if row["step"] % 3 == 0
    ]


def test_rows_and_events_of_the_longest_runs_stay_small(unbroken, tmp_path):
    row, rows = read_metrics(unbroken)[-1], 500
    with_sandwich = row | {"step": 400_000, "loss_others": row["loss"], "loss_distill": row["loss"]}
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for _ in range(rows):
        file.write(with_sandwich)
    file.close()
    size = sum(path.stat().st_size for path in tmp_path.iterdir()) / rows * reporter._ROWS
    assert size < 100e6


def test_a_stall_ends_with_all_stacks_and_a_status_of_its_own(tmp_path):
    script = f"""
import pathlib, threading, time
from sew_jax.runtime.stall_watch import StallWatch, end_stalled

def hangs_here():
    time.sleep(60)

threading.Thread(target=hangs_here, daemon=True).start()
watch = StallWatch(print, limit=0.5, end=lambda sentence: end_stalled(sentence, pathlib.Path({str(tmp_path)!r}), 0))
with watch.watching(), watch.waiting_for("audio"):
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 75
    written = (tmp_path / "stalled.txt").read_text()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ no update was finished for 0\.\d s: waiting for audio\n", written)
    for text in (done.stderr, written):
        assert "in hangs_here" in text and "in check" in text and "in <module>" in text
    assert done.stderr.endswith("the same command goes on from the last checkpoint\n")


def test_a_run_whose_updates_do_not_come_is_ended(corpus, tmp_path, monkeypatch):
    """In place of the exit, which would be that of the tests: the end of the hanging."""
    config, said, hangs = pretraining(corpus), [], [True]
    config.stall_minutes = 0.01
    original = MetricsFile.write

    def write(self, row):
        original(self, row)
        while row["step"] == 3 and hangs[0]:
            time.sleep(0.01)

    def end(sentence, folder, process):
        said.append((sentence, folder, process))
        hangs[0] = False

    monkeypatch.setattr(MetricsFile, "write", write)
    monkeypatch.setattr(loop, "end_stalled", end)
    train(config, tmp_path / "run")
    assert any("waiting for the devices" in sentence for sentence, *_ in said)
    assert all(place == (tmp_path / "run", 0) for _, *place in said for place in [tuple(place)])


def test_a_limit_ends_once_it_is_passed():
    said, ended, now = [], [], [0.0]
    stall = StallWatch(said.append, patience=300.0, limit=1000.0, end=ended.append, clock=lambda: now[0])
    for seconds, spoken, ends in ((301, 1, 0), (999, 2, 0), (1001, 2, 1)):
        now[0] = seconds
        stall.check()
        assert (len(said), len(ended)) == (spoken, ends)
    stall.progress()
    stall.check()
    assert len(ended) == 1
