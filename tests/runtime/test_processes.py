"""A job of two processes with two devices each: what one with four computes, and nothing lost where one ends."""

import signal
import time
from pathlib import Path

import pytest

from sew_jax.errors import Unavailable, UserError
from sew_jax.metrics.metrics_file import read_metrics, read_rows
from sew_jax.runtime.distributed import _join, in_cluster, initialize
from tests.jobs import APART, TINY, Job
from tests.runs import begin, make_corpus, pretraining

# The second process's clock stands still, so that by its own it would never be time to save
CLOCK = """
import sys, types
if "--process_id=1" in sys.argv:
    from sew_jax.training import train
    train.time = types.SimpleNamespace(monotonic=lambda: 0.0)
"""
# One process hangs for good after update 3, and its watch alone ends it: others wait in a collective operation
HANGS = """
import sys, time
from sew_jax.training import train
from sew_jax.training.reporter import Reporter
read, watch, watches = Reporter.read, train.StallWatch, []
def read_and_hang(self, step, *arguments):
    read(self, step, *arguments)
    if step == 3 and "--process_id=0" in sys.argv:
        watches[0]._limit = 1.0
        time.sleep(1000)
def watching(speak, limit, end):
    watches.append(watch(speak, patience=5.0, limit=1e9, end=end))  # it looks each half second
    return watches[0]
Reporter.read, train.StallWatch = read_and_hang, watching
"""


def losses(workdir):
    return [
        (row["step"], row["setting"], row["batch_ids"], row["loss"], row["grad_norm"]) for row in read_metrics(workdir)
    ]


def stop_after(step, job, number):
    """Sends a signal to one process once an update is done; all must end well, after the same update."""
    job.wait_for(f"step {step}/")
    job.processes[number].send_signal(signal.SIGTERM)
    ended = job.end()
    assert all(status == 0 for status, *_ in ended), ended
    return ended


def test_two_processes_compute_what_one_does_and_survive_faults(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    # a signal to any one of them: all stop after the same update and save it, as they save by time after the same ones
    by_time = [*TINY, "--config.checkpoint_minutes=1e-6"]
    ended = stop_after(5, Job(corpus, tmp_path / "two", processes=2, options=by_time, first=APART + CLOCK), number=1)
    assert "stopped by a signal to one of the processes" in ended[0][1], ended
    newest, before = sorted((int(path.name) for path in (tmp_path / "two/checkpoints").iterdir()), reverse=True)
    assert newest == len(read_metrics(tmp_path / "two")) and newest >= 5 and before == newest - 1

    # what they have saved is damaged where one of them alone reads, and both go on from the checkpoint before;
    # then one is lost: the other one ends too, and says what to do
    shards = list((tmp_path / f"two/checkpoints/{newest}/params/ocdbt.process_1/d").iterdir())
    max(shards, key=lambda path: path.stat().st_size).unlink()
    job = Job(corpus, tmp_path / "two", processes=2, first=APART)
    job.wait_for(f"  start     resumes at update {before}: the newest that is whole")
    assert (tmp_path / f"two/damaged/{newest}").is_dir()
    job.wait_for(f"step {before + 1}/")
    job.processes[1].kill()
    ended = job.end()
    assert all(status for status, *_ in ended), ended
    for number, (_, _, stderr) in enumerate(ended):
        assert f"error: process {number} of 2 ended before its work was done" in stderr, ended
        assert "Start all of them again" in stderr

    job = Job(corpus, tmp_path / "two", processes=2, first=APART)
    job.wait_for("  start     resumes at update")
    ended = stop_after(max(newest, 8) + 1, job, number=0)
    two = losses(tmp_path / "two")
    stop_after(len(two), Job(corpus, tmp_path / "one", processes=1), number=0)
    one = losses(tmp_path / "one")[: len(two)]
    assert [row[:3] for row in one] == [row[:3] for row in two] and len(two) > newest
    assert [row[3] for row in two] == pytest.approx([row[3] for row in one], rel=1e-4)
    assert len({row[1] for row in two}) == 2 and "step" not in ended[1][1]  # the first process speaks for all


def test_two_processes_measure_the_words_that_one_does(tmp_path):
    """Held-out evaluation: the same rows, the same best checkpoint, and both stop early after the same update.

    Started again they have nothing to do; with more patience they go on to the last update.
    """
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / "test").rename(corpus / "dev")
    begin(pretraining(corpus), tmp_path / "pretrain")
    options = [f"--config.init_from={tmp_path / 'pretrain'}", "--config.compression.squeeze=(1,)"]
    options += ["--config.compression.query_pool=(1,)", "--config.input.batch_seconds=3", "--config.input.buckets=1"]
    options += ["--config.eval.every=2", "--config.eval.patience=1", "--config.optim.lr=1e-12", "--config.num_steps=9"]
    options += ["--config.log_every=1"]
    for processes, name in ((1, "one"), (2, "two"), (2, "two")):
        job = Job(corpus, tmp_path / name, processes=processes, config="finetune", options=options)
        ended = job.end()
        assert [status for status, *_ in ended] == [0] * processes, ended
    assert "stopped after update 4: 1 evaluations were no better" in ended[0][1] and "step" not in ended[1][1], ended
    one, two = (read_rows(tmp_path / name / "held_out.jsonl") for name in ("one", "two"))
    assert [(row["step"], row["errors"], row["words"]) for row in two] == [
        (row["step"], row["errors"], row["words"]) for row in one
    ]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    assert len(one) == 2 and one[0]["words"] == 5
    assert [path.name for path in (tmp_path / "two/best/checkpoints").iterdir()] == ["2"]

    patient = [option for option in options if "patience" not in option]
    ended = Job(corpus, tmp_path / "two", processes=2, config="finetune", options=patient).end()
    assert [status for status, *_ in ended] == [0, 0] and "done: 9 updates" in ended[0][1], ended
    assert [row["step"] for row in read_metrics(tmp_path / "two")] == list(range(1, 10))
    assert [row["step"] for row in read_rows(tmp_path / "two/held_out.jsonl")] == [2, 4, 6, 8, 9]


def test_a_stall_of_one_ends_all_to_be_started_again(tmp_path):
    """That of the first process, with which the service ends that all of them listen to."""
    corpus = make_corpus(tmp_path / "corpus")
    options = [*TINY, "--config.compression.squeeze=(1,)", "--config.input.buckets=1"]
    job = Job(corpus, tmp_path / "run", processes=2, options=options, first=HANGS)
    job.wait_for("step 2/")
    begin = time.monotonic()
    ended = job.end()
    assert [status for status, *_ in ended] == [75, 75] and time.monotonic() - begin < 60, ended
    assert "all threads of process 0 were at" in ended[0][2], ended
    assert "error: process 0 has ended with status 75, and so does this one" in ended[1][2], ended


def test_an_error_of_their_own_is_all_they_say(tmp_path):
    job = Job("nowhere", tmp_path / "run", processes=2)
    for status, _, stderr in job.end():
        assert status == 2 and stderr.count("error: ") == 1 and "nowhere does not exist" in stderr, stderr


def test_a_signal_before_there_are_updates_ends_what_has_nothing_to_save(tmp_path):
    job = Job(make_corpus(tmp_path / "corpus"), tmp_path / "run", processes=2)
    job.wait_for("  settings")
    for process in job.processes:
        process.send_signal(signal.SIGTERM)
    assert [status for status, *_ in job.end()] == [-signal.SIGTERM] * 2


def test_processes_of_a_cluster_that_are_late_are_waited_for_by_who_starts_them(monkeypatch):
    """On other slices there may be no machine yet; who names the address may have named a wrong one."""

    def initialize(**_):
        raise RuntimeError("Failed to recognize coordinator address x")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    given = {"coordinator_address": "x:1", "num_processes": 2, "process_id": 1}
    for arguments, error in ((given, UserError), ({}, Unavailable)):
        with pytest.raises(error, match=r"could not join the others .*start all of them within five minutes"):
            _join(arguments)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host:1", 2, None), "--process_id not given"),
        ((None, 2, 0), "--coordinator_address not given"),
        (("host", 2, 0), "has no port"),
        (("host:1", 2, 2), "must lie from 0 to 1"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(UserError, match=message):
        initialize(*flags)


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # the shell of salloc is no task of the job
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "node[1-4]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, True),
    ],
)
def test_where_processes_find_each_other_without_flags(environment, several):
    assert in_cluster(environment) == several


def test_libtpu_without_a_tpu_is_no_slice(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert not in_cluster({})
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/vfio/0")
    assert in_cluster({})
