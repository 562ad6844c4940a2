"""A run's held-out evaluations in time: when they are due, their rows, the best checkpoint, and when to stop early.

All of it follows from the rows so far, so that a run that was killed goes on as if it had not been.
"""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sew_jax.buckets import as_path
from sew_jax.checkpoints.checkpointer import BEST, Checkpoints
from sew_jax.console import say
from sew_jax.errors import Unavailable, UserError
from sew_jax.files import WORKDIR_HINT, writing_to
from sew_jax.metrics.measure import measure_of
from sew_jax.metrics.metrics_file import MetricsFile, read_rows
from sew_jax.runtime.distributed import of_first_process
from sew_jax.runtime.programs import compile_table
from sew_jax.training.held_out import HeldOut, describe, mean_wer, open_held_out
from sew_jax.training.step import TrainState
from sew_jax.training.task import Task
from sew_jax.training.watchdog import check_held_out

FILE = "held_out.jsonl"


class Validation:
    """Evaluates a run's state every `config.eval.every` updates, and after the last.

    Args:
      start: the update that the run goes on from; later rows of an earlier start are dropped.
      like: shapes of the state.
      metrics, checkpoints: of the run's updates.

    Attributes:
      exhausted: whether the last `eval.patience` evaluations were no better than one before them.
    """

    def __init__(
        self,
        config: ConfigDict,
        task: Task,
        mesh: Mesh,
        workdir: Path,
        start: int,
        like: TrainState,
        metrics: MetricsFile,
        checkpoints: Checkpoints,
    ):
        self._config, self._workdir, self._checkpoints, self._rows = config, workdir, checkpoints, []
        self._held_out: HeldOut | None = open_held_out(config, task, mesh)
        self.exhausted = False
        self._open = contextlib.ExitStack()
        if not self._held_out:
            return
        first_host = jax.process_index() == 0
        with writing_to(workdir, WORKDIR_HINT):
            self._file = self._open.enter_context(
                contextlib.closing(MetricsFile(workdir / FILE if first_host else None, start, beside=metrics))
            )
        self._rows = self._comparable(read_rows(workdir / FILE) if first_host else [])
        self._best = None
        if task.vocabulary and config.eval.keep_best:
            self._best = self._open.enter_context(contextlib.closing(self._open_best(start)))
        self._baseline = _baseline(config) if task.vocabulary else {}
        self.exhausted = self._is_exhausted()
        if start < config.num_steps and not self.exhausted:
            keys = [(setting, bucket) for setting in self._held_out.settings for bucket in self._held_out.buckets]
            everywhere = NamedSharding(mesh, PartitionSpec())
            jitted = jax.jit(self._held_out.function, static_argnames="compression", out_shardings=everywhere)
            variables = _variables(like)
            self._programs = compile_table(
                jitted, keys, lambda key: self._held_out.arguments(variables, key), "held-out"
            )

    def _comparable(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the same split and settings as now, which a resumed run may change; at all processes alike."""
        names = [setting.name for setting in self._held_out.settings]
        rows = [row for row in json.loads(of_first_process(json.dumps(rows))) if row["split"] == self._held_out.split]
        same = [part for part in _by_step(rows).values() if [row["setting"] for row in part] == names]
        return [row for part in same for row in part]

    def _open_best(self, start: int) -> Checkpoints:
        best = Checkpoints(self._workdir / BEST, keep=None)
        # of updates that were lost: they will be done again, and saved again
        best.discard(step for step in best.steps() if step > start)
        return best

    def due(self, step: int) -> bool:
        """Whether the state after update `step` is evaluated."""
        return bool(self._held_out) and (step % self._config.eval.every == 0 or step == self._config.num_steps)

    def run(self, step: int, state: TrainState, progress: Callable[[], None]) -> None:
        """Evaluates, notes the rows, and keeps the checkpoint where it is the best so far.

        Args:
          progress: called after each part.
        """
        values = self._held_out.measure(self._programs, _variables(state), progress)
        rows = [
            {"step": step, "split": self._held_out.split, "setting": setting.name} | row
            for setting, row in zip(self._held_out.settings, values, strict=True)
        ]
        before = self._means()
        written = [_plain(row) for row in rows]
        for row in written:
            self._file.write(row)
        self._file.sync()
        self._rows += written
        self.exhausted = self._is_exhausted()
        is_best = mean_wer(written) < min(before.values(), default=math.inf)
        say(describe(self._held_out, rows) + (" | the best so far" if is_best else ""))
        for finding in check_held_out(rows, self._baseline.get(step, {})):
            say(f"  ! {finding}")
        if self._best and is_best:
            self._save_best(self._best, state, step, mean_wer(written))

    def _save_best(self, best: Checkpoints, state: TrainState, step: int, wer: float) -> None:
        meta = {"step": step, "split": self._held_out.split, "wer": wer}
        try:
            best.save(state, step, meta)
            best.wait()
        except Unavailable as error:
            if jax.process_count() > 1:  # the others do not know
                raise
            say(f"  ! the best checkpoint could not be written: {error.__cause__}; it is saved again")
            best.save_at_last(state, step, meta)
        # a kill takes the run back to one of its checkpoints, and then what was the best so far is the best again
        needed = {step} | {_best_step(self._means(), upto) for upto in self._checkpoints.steps()}
        best.discard(set(best.steps()) - needed)

    def _is_exhausted(self) -> bool:
        patience = self._config.eval.get("patience", 0)
        means = list(self._means().values())
        return 0 < patience < len(means) and min(means[-patience:]) >= min(means[:-patience])

    @property
    def best(self) -> str:
        """The best evaluation in words; empty where there is none."""
        means = self._means()
        step = _best_step(means, math.inf)
        if step is None or math.isinf(means[step]):
            return ""
        measure = measure_of(self._rows[0])
        reached = f"{measure.of(means[step]):.1%}"
        return f"the best by {measure.name} on {self._held_out.split} is that of update {step}, {reached}"

    def _means(self) -> dict[int, float]:
        return {step: mean_wer(rows) for step, rows in _by_step(self._rows).items()}

    def close(self) -> None:
        """Waits for the best checkpoint, and closes the files."""
        if self._held_out and self._best:
            self._best.wait()
        self._open.close()


def _variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it: names, numbers, and lists of them; null where not finite."""
    named = {name: value for name, value in row.items() if isinstance(value, (str, int))}
    rounded = {name: np.round(np.asarray(value, np.float64), 6) for name, value in row.items() if name not in named}
    return row | {name: np.where(np.isfinite(x), x, None).tolist() for name, x in rounded.items()}


def _by_step(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        steps.setdefault(row["step"], []).append(row)
    return steps


def _best_step(means: dict[int, float], upto: float) -> int | None:
    """The first of the best evaluations up to an update; None where there is none."""
    return min((step for step in means if step <= upto), key=means.get, default=None)


def _baseline(config: ConfigDict) -> dict[int, dict[str, dict[str, Any]]]:
    """Rows of the run from random weights that `eval.baseline` names: step -> setting -> row."""
    if not config.eval.baseline:
        return {}
    rows = read_rows(as_path(config.eval.baseline) / FILE)
    if not all("wer" in row for row in rows):
        raise UserError(f"eval.baseline: {config.eval.baseline} is no fine-tuning run: its evaluations have no WER")
    return {step: {row["setting"]: row for row in rows} for step, rows in _by_step(rows).items()}
