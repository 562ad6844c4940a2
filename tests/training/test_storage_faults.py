"""Storage that goes away in the middle of a run, and comes back, or does not."""

import errno
import os
import shutil
import threading

import jax
import numpy as np
import pytest
from orbax.checkpoint._src.path.atomicity import AtomicRenameTemporaryPath

from sew_jax import storage
from sew_jax.checkpoints.quiet import quiet_orbax
from sew_jax.errors import Unavailable, UserError
from sew_jax.metrics.metrics_file import MetricsFile
from sew_jax.training.train import train
from tests.runs import finetuning, make_corpus, pretraining
from tests.training.test_train import load, stopping_after, values


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "mount")


@pytest.fixture
def away(corpus, monkeypatch):
    """Takes the data away for so many seconds once update 4 is noted; None: until the test ends."""
    original, timers = MetricsFile.write, []
    hidden = corpus.with_name("elsewhere")

    def back():
        if hidden.exists():
            os.rename(hidden, corpus)

    def take(seconds):
        def write(self, row):
            original(self, row)
            if row["step"] == 4 and not timers:
                os.rename(corpus, hidden)
                timers.append(threading.Timer(seconds or 1e4, back))
                timers[0].daemon = True
                timers[0].start()

        monkeypatch.setattr(MetricsFile, "write", write)

    yield take
    back()


def test_data_that_are_away_for_three_seconds_cost_no_utterance(corpus, away, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(storage, "_spoke_at", float("-inf"))  # an earlier test may have waited
    config = pretraining(corpus)
    config.num_steps = config.checkpoint_every = 30  # readers are up to 8 batches ahead
    train(config, tmp_path / "unbroken")
    away(3.0)
    assert train(config, tmp_path / "run").step == 30
    assert values(tmp_path / "run") == values(tmp_path / "unbroken")
    assert "it is skipped" not in (out := capfd.readouterr().out) and not (tmp_path / "run/left_out.jsonl").read_text()
    assert out.count("does not answer") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_stay_away_end_the_run_in_one_line(corpus, away, tmp_path, monkeypatch, workers):
    config = pretraining(corpus)
    config.num_steps, config.input.workers = 40, workers
    away(None)
    monkeypatch.setattr(storage, "PATIENCE_S", 2.0)
    monkeypatch.setenv("SEW_JAX_PATIENCE_S", "2")  # of the worker
    with pytest.raises(
        Unavailable, match=r"No such file or directory: .*mount/train/1/1/1-1-00\d\d\.flac.*goes on"
    ) as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and caught.value.status == 75


def test_a_run_that_goes_on_waits_for_its_data(corpus, tmp_path, monkeypatch):
    """They were there when it began, so that they are away now, and nobody's mistake."""
    config = pretraining(corpus)
    config.num_steps = 1
    train(config, tmp_path / "run")
    config.num_steps = 2
    hidden = corpus.with_name("elsewhere")
    os.rename(corpus, hidden)
    monkeypatch.setattr(storage, "PATIENCE_S", 0.1)
    try:
        with pytest.raises(Unavailable, match="as the place of a mount that is away"):
            train(config, tmp_path / "run")
        with pytest.raises(UserError, match="does not exist"):
            train(config, tmp_path / "new")
        corpus.mkdir()  # the place of the mount
        with pytest.raises(Unavailable, match="as the place of a mount that is away"):
            train(config, tmp_path / "run")
        corpus.rmdir()
    finally:
        os.rename(hidden, corpus)
    assert train(config, tmp_path / "run").step == 2


def test_a_finetuning_goes_on_without_its_origin(corpus, tmp_path, capfd):
    config = pretraining(corpus)
    config.num_steps = 1
    train(config, tmp_path / "origin")
    config = finetuning(corpus, tmp_path / "origin")
    config.optim.freeze, config.num_steps, config.checkpoint_every = 0.5, 8, 4
    config.compression.squeeze = (1, 3)  # an up-sampler that is new, and so moves at once
    train(config, tmp_path / "unbroken")
    with stopping_after(3):
        assert train(config, tmp_path / "run").stopped
    shutil.rmtree(tmp_path / "origin")
    assert train(config, tmp_path / "run").step == 8
    assert values(tmp_path / "run") == values(tmp_path / "unbroken")
    assert (tmp_path / "run/vocab.json").read_bytes() == (tmp_path / "unbroken/vocab.json").read_bytes()
    capfd.readouterr()
    for path in (tmp_path / "run/checkpoints").iterdir():
        shutil.rmtree(path)
    with pytest.raises(UserError, match=r"origin/config\.json does not exist"):  # nothing of its own to go on from
        train(config, tmp_path / "run")


ERRORS = {  # as the system has them, and as Orbax says what its own look at the folder has not found
    5: OSError(errno.ESTALE, "Stale file handle"),
    12: NotADirectoryError("Path is not a directory: 12.orbax-checkpoint-tmp"),
}


@pytest.mark.parametrize("update", ERRORS)
def test_a_save_that_storage_did_not_take_is_done_again(corpus, tmp_path, monkeypatch, capfd, update):
    """In the middle of the run, and at its end; the next one is whole, and nothing else has changed."""
    failures, finalize = [2], AtomicRenameTemporaryPath.finalize

    def flaky(self, *arguments, **options):
        name = self.get_final().name
        if failures[0] and name.isdigit() and int(name) >= update:
            failures[0] -= 1
            raise ERRORS[update]
        return finalize(self, *arguments, **options)

    quiet_orbax()
    config = pretraining(corpus)
    train(config, tmp_path / "unbroken")
    monkeypatch.setattr(AtomicRenameTemporaryPath, "finalize", flaky)
    assert train(config, tmp_path / "run").step == 12 and failures == [0]
    assert f"a checkpoint could not be written: {ERRORS[update]}; it is saved again" in capfd.readouterr().out
    assert values(tmp_path / "run") == values(tmp_path / "unbroken")
    steps = sorted(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir() if path.name.isdigit())
    assert steps[-1] == 12 and len(steps) == 2
    assert jax.tree.all(jax.tree.map(np.array_equal, load(tmp_path / "run"), load(tmp_path / "unbroken")))
