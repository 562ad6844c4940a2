"""Ends runs at random, starts them again, and compares what they leave with runs that nothing has ended.

  python -m tests.fault_loop --kills=100 [--bucket]

Two jobs in turn, pre-training (micro-batches, BatchNorm heads, layer-drop, two settings) and fine-tuning (frozen at
first, layer-drop, two buckets), both with worker processes, which the runs that nothing ends do without. Each life of a
run ends by SIGKILL, SIGTERM, both, or several SIGTERM, at a random moment: while it starts, between updates, or while
it saves. Every row of metrics must be the same to the bit: loss, setting, batch and all else but times. Exit status 1
where one is not.

With --bucket the workdirs of what is ended lie under gs://, which a stand-in on this machine answers for (gcsfs must be
installed): each answer comes 10 ms late, 5 % are refused, and now and then all are for 3 s.
"""

import argparse
import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sew_jax.buckets import as_path
from sew_jax.checkpoints.checkpointer import COMMIT
from sew_jax.console import format_duration, say
from sew_jax.metrics.metrics_file import read_metrics
from tests.data.stand_in import StandIn, serve, variables
from tests.runs import make_corpus

ROOT = Path(__file__).parents[1]
TIMES = ("time", "steps_per_s", "audio_h_per_h", "input_wait_frac", "joules")
UPDATES, CHECKPOINT_EVERY, DEVICES = 40, 4, 2
_PATIENCE_S = 900
WORKERS = 2  # that read for a run which is to be ended
_SIZE = ("width=32", "layers=2", "heads=2", "ffn_width=32", "pos_kernel=5")
COMMON = [
    f"--config.checkpoint_every={CHECKPOINT_EVERY}",
    "--config.log_every=1",
    "--config.model.layerdrop=0.3",
    "--config.compression.squeeze=1,2",
    "--config.compression.query_pool=1",
    "--config.accumulate=2",
    f"--config.mesh.fsdp={DEVICES}",
]
PRETRAIN = ["--config=configs/pretrain.py", *(f"--config.model.{option}" for option in _SIZE)]
PRETRAIN += ["--config.head.codes=8", "--config.head.projection=mlp", "--config.head.mlp_width=16"]
PRETRAIN += ["--config.input.batch_seconds=6"]
FINETUNE = ["--config=configs/finetune.py", "--config.optim.freeze=0.3", "--config.input.batch_seconds=4"]

# Signals of one ending, each after a pause of at most so many seconds
ENDINGS: dict[str, tuple[tuple[signal.Signals, float], ...]] = {
    "SIGKILL": ((signal.SIGKILL, 0.3),),
    "SIGTERM": ((signal.SIGTERM, 0.3),),
    "SIGTERM, SIGTERM": ((signal.SIGTERM, 0.3), (signal.SIGTERM, 0.2)),
    "SIGTERM three times": ((signal.SIGTERM, 0.3), (signal.SIGTERM, 0.1), (signal.SIGTERM, 0.1)),
    "SIGTERM, SIGKILL": ((signal.SIGTERM, 0.3), (signal.SIGKILL, 0.5)),
}


class Job(NamedTuple):
    name: str
    options: list[str]


def start(job: Job, workdir: Path, folder: Path, workers: int = WORKERS) -> subprocess.Popen:
    """A process of the command line, its output as text."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES)}
    environment |= {"SEW_JAX_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "sew_jax.main", *job.options, *COMMON, f"--workdir={workdir}"]
    command += [f"--config.input.workers={workers}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> None:
    """Waits for a run that nothing ends. Raises AssertionError where it fails."""
    output = process.communicate(timeout=_PATIENCE_S)[0]
    assert process.returncode == 0, output


def live(process: subprocess.Popen, random_: random.Random) -> str:
    """Ends a run at a random moment; returns how, or nothing where it was done before."""
    ending = random_.choice(list(ENDINGS))
    starting = random_.random() < 0.15
    left = random_.randint(1, 15) if starting else random_.randint(1, 2 * CHECKPOINT_EVERY)  # lines, or updates
    lines, impatience = [], threading.Timer(_PATIENCE_S, process.kill)  # a run that hangs must not hang the loop
    impatience.start()
    for line in process.stdout:
        lines.append(line)
        left -= starting or line.startswith("step ")
        if left <= 0:
            break
    else:
        impatience.cancel()
        assert process.wait() == 0, "".join(lines)
        return ""
    impatience.cancel()
    for number, pause in ENDINGS[ending]:
        time.sleep(random_.uniform(0, pause))
        process.send_signal(number)
    output = "".join(lines) + process.communicate(timeout=_PATIENCE_S)[0]
    assert process.returncode in (0, -signal.SIGTERM, -signal.SIGKILL), output  # never an error
    return ending


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """What a run has noted, without times."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(workdir)]


def fault_loop(
    kills: int, seed: int, folder: Path, updates: int = UPDATES, bucket: StandIn | None = None
) -> collections.Counter[str]:
    """Ends runs of so many updates `kills` times in all; returns how often each way.

    Args:
      bucket: what answers for gs://, where these runs then have their workdirs.

    Raises:
      AssertionError: a run failed, or left other rows than the unbroken one.
    """
    random_, done = random.Random(seed), collections.Counter()
    common = [f"--config.data={make_corpus(folder / 'corpus')}", f"--config.num_steps={updates}"]
    jobs = [
        Job("pretrain", [*PRETRAIN, *common]),
        Job("finetune", [*FINETUNE, *common, f"--config.init_from={folder / 'unbroken-pretrain'}"]),
    ]
    whole = {}
    run = 0
    while done.total() < kills:
        job = jobs[run % len(jobs)]
        if job.name not in whole:
            finish(start(job, folder / f"unbroken-{job.name}", folder, workers=0))
            whole[job.name] = rows_of(folder / f"unbroken-{job.name}")
            assert len(whole[job.name]) == updates
        workdir, ended = (as_path("gs://bucket") if bucket else folder) / f"broken-{run}-{job.name}", True
        while ended and done.total() < kills:
            ended = live(start(job, workdir, folder), random_)
            done[ended] += bool(ended)
            say(f"{done.total()}/{kills} {job.name} {run}: {ended or 'done'}")
        if ended:
            finish(start(job, workdir, folder))
        for row, expected in zip(rows_of(workdir), whole[job.name], strict=True):
            assert row == expected, f"{workdir} differs from the unbroken run: {row} instead of {expected}"
        if bucket:
            _check_left(bucket, f"bucket/{workdir.name}/")
        run += 1
    return done


def _check_left(bucket: StandIn, prefix: str) -> None:
    """Raises AssertionError where a run has left part of a checkpoint, or what no page names."""
    names = bucket.names(prefix)
    steps = {name.rsplit("checkpoints/", 1)[1].partition("/")[0] for name in names if "checkpoints/" in name}
    parts = {step for step in steps if not any(name.endswith(f"/{step}/{COMMIT}") for name in names)}
    usual = ("checkpoints/", "metrics/", "starts/", "left_out/", "events.out.tfevents.", "config.json")
    others = [name for name in names if not name.startswith((*usual, "vocab.json", "tokenizer_config.json"))]
    assert not parts and not others, f"{prefix} holds parts of {parts}, and {others}"


@contextlib.contextmanager
def faulty_bucket() -> Iterator[StandIn]:
    """A stand-in for gs://, of this process and those that it starts."""
    bucket = StandIn()
    ended = threading.Event()

    def go_away() -> None:
        while not ended.wait(20):
            bucket.away = True
            ended.wait(3)
            bucket.away = False

    with serve(bucket) as address:
        os.environ |= variables(address)
        bucket.delay, bucket.refused = 0.01, 0.05
        thread = threading.Thread(target=go_away)
        thread.start()
        try:
            yield bucket
        finally:
            ended.set()
            thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bucket", action="store_true")
    arguments = parser.parse_args()
    begin = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="sew_jax_faults_") as folder,
        faulty_bucket() if arguments.bucket else contextlib.nullcontext() as bucket,
    ):
        try:
            done = fault_loop(arguments.kills, arguments.seed, Path(folder), bucket=bucket)
        except AssertionError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    told = ", ".join(f"{count} by {ending}" for ending, count in done.items() if ending)
    took = format_duration(time.monotonic() - begin)
    say(f"ended {done.total()} times ({told}); every row is that of the unbroken runs, to the bit; {took}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
