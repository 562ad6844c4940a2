"""A job of two processes on storage that fails and hangs, ended at random and started again as launchers do it.

  python -m tests.soak --folder=/tmp/soak --rounds=20

Each round trains anew, with data and workdir on storage (tests/failing_storage.c, which needs a C compiler and Linux)
where 5 % of the calls of each process end with EIO, ESTALE or ETIMEDOUT, and one hangs for longer than the run waits.
One process or both get SIGTERM or SIGKILL, while they start, between updates and in the middle of saves. What ends with
75, or by a signal, is started again with the same command. Every row of metrics must be the same to the bit as of a run
that nothing disturbed: loss, setting, batch and all else but times; the last checkpoint must hold the same arrays, and
nothing may be left in the workdir but what docs/reliability.md names. Exit status 1 where one of these is not so. The
folder keeps the undisturbed run and what went wrong, so that `--first=7` goes on with round 7.
"""

import argparse
import collections
import json
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import numpy as np
from jax import device_get, devices
from jax.sharding import SingleDeviceSharding
from jax.tree_util import tree_leaves_with_path

from sew_jax.checkpoints.checkpointer import load_params, newest_record
from sew_jax.console import format_duration, say
from tests.fault_loop import COMMON, PRETRAIN, rows_of
from tests.jobs import KEYS_AS_ON_TPU, Job
from tests.runs import make_corpus

PROCESSES = 2
SHARE = 0.05  # of calls that fail
STALL_S, HANG_S = 60, 100
_PATIENCE_S = 1800  # for a life of a job, whatever happens to it
_LIVES = 300  # of a round: more, and it makes no progress
OPTIONS = [
    *(option for option in [*PRETRAIN, *COMMON] if not re.match(r"--config(\.mesh|\.log_every|=)", option)),
    f"--config.mesh.fsdp={PROCESSES}",
    "--config.model.layers=1",
    "--config.input.buckets=1",
    "--config.mesh.data=1",
    "--config.accumulate=1",  # half of what the processes say to each other, which is what an update takes
    "--config.log_every=5",
    "--config.checkpoint_every=40",
    "--config.checkpoint_minutes=0.1",
    f"--config.stall_minutes={STALL_S / 60}",
]
# What docs/reliability.md and docs/scaling.md name
KNOWN = r"config\.json|metrics\.jsonl|starts\.jsonl|left_out\.jsonl|stalled(-1)?\.txt|events\.out\.tfevents\..*"
KNOWN += r"|checkpoints"


class Storage:
    """What each process of a job counts of its calls, and what is to fail."""

    def __init__(self, folder: Path, seed: int, hang: int):
        """`hang`: number of the first process's call that hangs."""
        self._library, self._seed, self._hang = folder / "failing_storage.so", seed, hang
        if not self._library.exists():
            source = Path(__file__).with_name("failing_storage.c")
            command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(self._library), str(source), "-ldl"]
            subprocess.run(command, check=True)
        self._counts = [folder / f"calls-{number}" for number in range(PROCESSES)]
        for path in self._counts:
            path.write_bytes(bytes(64))

    def environment(self, *folders: Path) -> dict[str, Any]:
        return {
            "LD_PRELOAD": str(self._library),
            "STORAGE_FOLDERS": ":".join(map(str, folders)),
            "STORAGE_COUNTS": [str(path) for path in self._counts],
            "STORAGE_SEED": [str(self._seed + number) for number in range(PROCESSES)],
            "STORAGE_SHARE": str(SHARE),
            "STORAGE_HANG": [str(self._hang), "0"],
            "STORAGE_HANG_S": str(HANG_S),
        }

    def counted(self) -> dict[str, int]:
        numbers = np.sum([struct.unpack("8Q", path.read_bytes())[:5] for path in self._counts], axis=0).tolist()
        return dict(zip(("calls", "failed", "on checkpoints", "failed there", "hung"), numbers, strict=True))


def start(folder: Path, workdir: Path, updates: int, storage: Storage | None = None, workers: int = 0) -> Job:
    """The job, on storage that fails where one is given."""
    corpus = folder / "corpus"
    variables: dict[str, Any] = {"SEW_JAX_CACHE": str(folder / "cache"), "SEW_JAX_PATIENCE_S": "60"}
    # a start is what takes long: all find the programs of the first one, wherever the workdir is
    variables |= {
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    variables |= storage.environment(corpus, workdir) if storage else {}
    options = [*OPTIONS, f"--config.num_steps={updates}", f"--config.input.workers={workers}"]
    return Job(corpus, workdir, processes=PROCESSES, options=options, first=KEYS_AS_ON_TPU, **variables)


class Life:
    """A job from one start to its end: what it prints, and how each process ended."""

    def __init__(self, job: Job):
        self.job, self.texts = job, [[] for _ in range(2 * PROCESSES)]
        self.updates, self._seen = 0, threading.Condition()
        pipes = [pipe for process in job.processes for pipe in (process.stdout, process.stderr)]
        self._readers = [threading.Thread(target=self._read, args=each) for each in zip(pipes, self.texts, strict=True)]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe, lines: list[str]) -> None:
        for line in pipe:
            with self._seen:
                lines.append(line)
                if found := re.match(r"step (\d+)/", line):
                    self.updates = int(found[1])
                self._seen.notify_all()

    def wait_for(self, lines: int = 0, update: int = 0) -> None:
        """Until the first process has printed so many lines, is at this update, or one of them has ended."""
        until = time.monotonic() + _PATIENCE_S
        with self._seen:
            while len(self.texts[0]) < lines or self.updates < update:
                self._seen.wait(0.5)
                if any(process.poll() is not None for process in self.job.processes):
                    return
                assert time.monotonic() < until, f"hangs:\n{self}"

    def send(self, number: int, to: list[int]) -> None:
        for each in to:
            self.job.processes[each].send_signal(number)

    def end(self) -> list[int]:
        """Exit statuses, once all have ended."""
        until = time.monotonic() + _PATIENCE_S
        try:
            return [process.wait(until - time.monotonic()) for process in self.job.processes]
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"hangs:\n{self}") from error
        finally:
            for process in self.job.processes:
                process.kill()
            for reader in self._readers:
                reader.join()

    def __str__(self) -> str:
        return "".join(
            f"--- process {i // 2}, {('stdout', 'stderr')[i % 2]}\n{''.join(lines)}"
            for i, lines in enumerate(self.texts)
        )


def disturb(life: Life, random_: random.Random, at: int, updates: int) -> str:
    """Ends a job at a random moment; returns how it was asked to end, nothing where it is let alone."""
    if random_.random() < 0.25:
        return ""
    if random_.random() < 0.2:
        life.wait_for(lines=random_.randint(1, 14))
    else:
        life.wait_for(update=at + random_.randint(1, max(updates // 4, 20)))
    time.sleep(random_.uniform(0, 0.5))
    to = random_.choice([[0], [1], [0, 1]])
    numbers = random_.choice([[SIGTERM], [SIGKILL], [SIGTERM, SIGKILL]])
    for number in numbers:
        life.send(number, to)
        time.sleep(random_.uniform(0, 0.5))
    return f"{', '.join(number.name for number in numbers)} to {' and '.join(map(str, to))}"


def judge(statuses: list[int], asked: str, life: Life) -> str:
    """How a life ended in words. Raises AssertionError where launchers would not start it again, or should not."""
    assert 2 not in statuses, f"a mistake of the user's, says a process:\n{life}"
    ours = 75 in statuses or "SIGKILL" in asked or (asked and any(status < 0 for status in statuses))
    assert ours or set(statuses) == {0}, f"ended with {statuses} for no reason ({asked or 'let alone'}):\n{life}"
    assert "Traceback" not in str(life) or ours, f"a traceback:\n{life}"
    return f"{asked or 'let alone'}: {statuses}"


def arrays_of(workdir: Path) -> dict[str, np.ndarray]:
    """Parameters of the last checkpoint, which are compared with their checksums as they are read."""
    _, params = load_params(workdir, SingleDeviceSharding(devices()[0]))
    return {str(path): device_get(value) for path, value in tree_leaves_with_path(params)}


def compare(workdir: Path, whole: Path, updates: int) -> None:
    """Raises AssertionError where a run is not what the undisturbed one is, or has left something behind."""
    for row, expected in zip(rows_of(workdir), rows_of(whole), strict=True):
        assert row == expected, f"{workdir} differs from the undisturbed run: {row} instead of {expected}"
    records = [newest_record(path) or {} for path in (workdir, whole)]
    assert all(record["step"] == updates for record in records)
    assert records[0]["checksums"] == records[1]["checksums"], "the last checkpoints differ"
    ours, theirs = arrays_of(workdir), arrays_of(whole)
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    left = [path.name for path in workdir.iterdir() if not re.fullmatch(KNOWN, path.name)]
    left += [path.name for path in (workdir / "checkpoints").iterdir() if not path.name.isdigit()]
    assert not left, f"left in {workdir}: {left}"
    assert len(list((workdir / "checkpoints").iterdir())) == 2, "more checkpoints than the newest two"
    assert not (workdir / "left_out.jsonl").read_text(), "an utterance was taken for damaged"


def soak(number: int, seed: int, folder: Path, updates: int) -> str:
    """A round; what happened in it, in words. Raises AssertionError."""
    random_ = random.Random(f"{seed} {number}")
    workdir, begin = folder / f"round-{number}", time.monotonic()
    shutil.rmtree(workdir, ignore_errors=True)
    storage = Storage(folder, random_.randrange(2**31), hang=random_.randint(500, 4000))
    ways, at = collections.Counter(), 0
    for _ in range(_LIVES):
        life = Life(start(folder, workdir, updates, storage, workers=number % 2))
        asked = disturb(life, random_, at, updates)
        way = judge(life.end(), asked, life)
        ways[way] += 1
        with (folder / f"round-{number}.log").open("a", encoding="utf-8") as log:
            print(f"=== {way}, {storage.counted()}\n{life}", file=log)
        at = max(life.updates, at)
        say(f"{time.strftime('%H:%M:%S')} round {number}, update {life.updates}: {way}, {storage.counted()}")
        if any(re.match("done: |nothing to do: ", line) for line in life.texts[0]):
            compare(workdir, folder / "undisturbed", updates)
            counted = ", ".join(f"{name} {count}" for name, count in storage.counted().items())
            took = format_duration(time.monotonic() - begin)
            return f"{ways.total()} starts, storage: {counted}; {took}; {json.dumps(ways)}"
    raise AssertionError(f"round {number} makes no progress: {dict(ways)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--first", type=int, default=1, help="the round to begin with")
    parser.add_argument("--rounds", type=int, default=20, help="the last round")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, updates = arguments.folder.resolve(), arguments.updates
    if not (folder / "corpus").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_corpus(folder / "corpus")
    try:
        if not (folder / "undisturbed/metrics.jsonl").exists() or len(rows_of(folder / "undisturbed")) != updates:
            shutil.rmtree(folder / "undisturbed", ignore_errors=True)
            life = Life(start(folder, folder / "undisturbed", updates))
            assert life.end() == [0] * PROCESSES, f"the undisturbed run failed:\n{life}"
        for number in range(arguments.first, arguments.rounds + 1):
            told = soak(number, arguments.seed, folder, updates)
            say(f"round {number} is as the undisturbed run, to the bit: {told}")
            shutil.rmtree(folder / f"round-{number}")
    except AssertionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say(f"rounds {arguments.first} to {arguments.rounds} of {updates} updates: every row as of the undisturbed run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
