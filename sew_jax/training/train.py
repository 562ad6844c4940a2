"""The training loop: owns time, files and signals; nothing mathematical.

Update N is dispatched before the metrics of update N - 1 are read, so the device never waits for the host.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from sew_jax.checks.check import check_config
from sew_jax.compression import Draw, draw
from sew_jax.console import Progress, format_duration, say
from sew_jax.data.pipeline import Batch, read_ahead
from sew_jax.data.problems import Problem
from sew_jax.errors import Unavailable
from sew_jax.runtime.distributed import of_first_process, telling_others, texts_of_all
from sew_jax.runtime.preemption import stop_requests
from sew_jax.runtime.sharding import batch_sharding, place_ahead
from sew_jax.runtime.stall_watch import StallWatch, end_stalled
from sew_jax.training.reporter import Reporter
from sew_jax.training.setup import Run, open_run
from sew_jax.training.step import TrainState
from sew_jax.training.updates import Update

Placed = Iterator[tuple[Batch, dict[str, jax.Array]]]  # batches, and their arrays on the devices


class Summary(NamedTuple):
    """How a run ended: update reached, last row of metrics, programs, whether a signal stopped it, seconds."""

    step: int
    metrics: dict[str, Any]
    programs: int
    stopped: bool
    seconds: float


def train(config: ConfigDict, workdir: Path) -> Summary:
    """Trains until `config.num_steps` updates are done, from the newest checkpoint of `workdir` where there is one.

    Raises:
      UserError: config, data, or an earlier run in the workdir do not fit; the workdir cannot be written; or training
        diverged.
      Unavailable: the storage of the data or of the workdir stays away.
    """
    begin = time.monotonic()
    check_config(config)
    with open_run(config, workdir) as run, contextlib.ExitStack() as stack:
        reporter = Reporter(config, run.task, run.metrics, Progress(config.num_steps, run.start))
        stall = StallWatch(
            lambda sentence: say(f"  ! {sentence}", everywhere=True),
            limit=60 * config.stall_minutes or math.inf,
            end=lambda sentence: end_stalled(sentence, workdir, jax.process_index()),
        )
        beside = _Beside(config, run, reporter, stall)
        # a signal during the last save waits for it too
        stop_reason = stack.enter_context(stop_requests())
        workers = read_ahead(run.batches, workers=config.input.workers, threads=config.input.threads)
        batches = place_ahead(stack.enter_context(workers), batch_sharding(run.mesh))
        stack.enter_context(stall.watching())
        stack.enter_context(telling_others())
        step, state, reason = run.start, run.state, ""

        # no hidden copy between host and device inside the loop
        with jax.transfer_guard("disallow"):
            while step < config.num_steps and not run.validation.exhausted and not (reason := stop_reason(step)):
                batch, arrays, waited = beside.next_batch(batches)
                drawn = draw(run.task.draws, config.seed, step)
                state, scalars = beside.update_at(step, drawn, batch.bucket)(state, arrays)
                step += 1
                beside.read_metrics()  # of the update before, while the device is at this one
                beside.pending = _Update(step, drawn, batch, scalars, waited)
                if run.validation.due(step):
                    beside.validate(step, state)
                if step < config.num_steps and beside.is_save_due(step):
                    beside.read_metrics()
                    if not reporter.skipped_in_a_row:  # older checkpoints may be the sound ones
                        beside.save(step, state)
            beside.read_metrics()
        beside.finish(step, state, stopped=bool(reason))
    seconds = time.monotonic() - begin
    _say_end(config, workdir, run, step, beside.saved, reason, seconds)
    stopped = step < config.num_steps and not run.validation.exhausted
    return Summary(step, reporter.last, len(run.updates), stopped, seconds)


class _Update(NamedTuple):
    """An update that the device has been given; `waited`: seconds that it had nothing to do before."""

    step: int
    drawn: Draw
    batch: Batch
    scalars: dict[str, jax.Array]
    waited: float


class _Beside:
    """What is done beside the updates: audio in, metrics and checkpoints out. Where it waits long, it says for what.

    Attributes:
      pending: the update whose metrics are not read yet.
      saved: updates in the newest checkpoint.
    """

    def __init__(self, config: ConfigDict, run: Run, reporter: Reporter, stall: StallWatch):
        self._config, self._run, self._reporter, self._stall = config, run, reporter, stall
        self.pending: _Update | None = None
        self.saved, self._saved_at, self._save_failed = run.start, time.monotonic(), False

    def next_batch(self, batches: Placed) -> tuple[Batch, dict[str, jax.Array], float]:
        """A batch, its arrays on the devices, and the seconds that these had to wait for it."""
        begin = time.monotonic()
        with self._stall.waiting_for("audio"):
            batch, arrays = next(batches)
        device_was_busy = self.pending and not self.pending.scalars["loss"].is_ready()  # type: ignore[attr-defined]
        waited = 0.0 if device_was_busy else time.monotonic() - begin
        return batch, arrays, waited

    def update_at(self, step: int, drawn: Draw, bucket: int) -> Update:
        """What computes the update after `step` others."""
        with self._stall.waiting_for("a program"), self._reporter.paused():
            return self._run.updates.at(step, drawn, bucket, self._stall.progress)

    def read_metrics(self) -> None:
        """Waits for the pending update, if there is one, and notes its metrics."""
        if not self.pending:
            return
        with self._stall.waiting_for("the devices"):
            unread = self.pending.scalars.pop("unread")  # rows of any process
            self._reporter.read(*self.pending)
        if jax.device_get(unread):
            self._note_damaged(self.pending.batch)
        self.pending = None
        self._stall.progress()
        self._note_failed(self._run.checkpoints.check)

    def _note_damaged(self, batch: Batch) -> None:
        """Has all processes name, count and bound what one of them could not read."""
        with jax.transfer_guard("allow"):
            found = [json.loads(text) for text in texts_of_all(json.dumps(batch.problems))]
        self._run.damaged.add(Problem(*problem) for problems in found for problem in problems)

    def validate(self, step: int, state: TrainState) -> None:
        """The held-out evaluation."""
        self.read_metrics()
        with self._reporter.paused(), self._stall.waiting_for("the devices"), jax.transfer_guard("allow"):
            self._run.validation.run(step, state, self._stall.progress)

    def finish(self, step: int, state: TrainState, stopped: bool) -> None:
        """Saves what is not saved, and waits until it is written.

        Not what was stopped while updates are skipped: that may come of what was learnt since the last checkpoint.
        """
        sound = not (stopped and self._reporter.skipped_in_a_row)
        if sound and step > self.saved:
            self.save(step, state)
        with self._stall.waiting_for("a checkpoint"):
            self._note_failed(self._run.checkpoints.wait)
        if sound and self._save_failed:
            self.save(step, state)

    def _note_failed(self, ask: Callable[[], None]) -> None:
        """Storage that did not answer to a save costs no update: the next save is due at once, and waited for."""
        try:
            ask()
        except Unavailable as error:
            if jax.process_count() > 1:  # the others do not know
                raise
            say(f"  ! a checkpoint could not be written: {error.__cause__}; it is saved again")
            self._save_failed = True

    def is_save_due(self, step: int) -> bool:
        """Whether the state after an update is to be saved: so many updates, or minutes, after the last."""
        config = self._config
        if self._save_failed:
            return True
        if step % config.checkpoint_every == 0 or (config.keep_every and step % config.keep_every == 0):
            return True
        if not config.checkpoint_minutes or step % config.log_every:
            return False
        late = time.monotonic() - self._saved_at >= 60 * config.checkpoint_minutes
        with jax.transfer_guard("allow"):  # the first process's clock counts for all
            return of_first_process(str(late)) == str(True)

    def save(self, step: int, state: TrainState) -> None:
        """Begins to write a checkpoint, which goes on in the background."""
        with self._stall.waiting_for("a checkpoint"), self._reporter.paused(), jax.transfer_guard("allow"):
            self._run.metrics.sync()
            if self._run.leftovers:
                self._run.leftovers.clear()
            meta = {"step": step, **self._run.record}
            if not self._save_failed:
                self._note_failed(lambda: self._run.checkpoints.save(state, step, meta))
            if self._save_failed:
                self._run.checkpoints.save_at_last(state, step, meta)
                self._save_failed = False
        self.saved, self._saved_at = step, time.monotonic()


def _say_end(config: ConfigDict, workdir: Path, run: Run, step: int, saved: int, reason: str, seconds: float) -> None:
    if run.validation.best:
        say(run.validation.best)
    if run.validation.exhausted:
        say(f"stopped after update {step}: {config.eval.patience} evaluations were no better (eval.patience)")
    elif saved < step < config.num_steps:
        say(
            f"stopped by {reason} after update {step}, while updates had no finite loss and gradient: nothing was "
            f"saved since update {saved}, and the same command goes on from there"
        )
    elif step < config.num_steps:
        say(f"stopped by {reason} after update {step}, everything is saved; the same command goes on from there")
    elif run.start >= config.num_steps:
        say(
            f"nothing to do: {workdir} is at update {run.start} of {config.num_steps} already; "
            "raise --config.num_steps to go on"
        )
    else:
        say(f"done: {step} updates, {format_duration(seconds)}; checkpoint and metrics are in {workdir}")
