"""What a user reads of a run: the first screen, a line now and then, warnings; and the rows of `metrics.jsonl`."""

import contextlib
import math
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sew_jax.compression import Draw
from sew_jax.console import Progress, say
from sew_jax.data.batch_plan import BatchPlan
from sew_jax.data.pipeline import Batch
from sew_jax.errors import Diverged
from sew_jax.metrics.metrics_file import MetricsFile
from sew_jax.rates import SAMPLE_RATE
from sew_jax.training.spending import Spending
from sew_jax.training.task import Task
from sew_jax.training.watchdog import LOCAL

# Of longer runs not each update has a row: row and event of one are 1.2 KB, and all of a run's stay below 100 MB
_ROWS = 50_000


def first_screen(
    config: ConfigDict, task: Task, plan: BatchPlan, mesh: Mesh, parameters: int, state_bytes: int
) -> None:
    """What is about to run: `parameters` of the model, and bytes of the state that each device holds."""
    device = jax.devices()[0]
    say(f"sew_jax {config.mode}")
    say(
        f"  devices   {mesh.size} x {device.device_kind} ({device.platform}), "
        f"mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']}"
    )
    say(
        f"  model     {parameters / 1e6:.2f} M parameters, {config.dtype} compute; "
        f"state {state_bytes / 2**20:.1f} MiB a device"
    )
    say(f"  settings  {len(task.table)}: {' '.join(map(str, task.table))}")
    hours = task.source.samples.sum() / SAMPLE_RATE / 3600
    say(f"  data      {task.source.name}: {len(task.source)} utterances, {hours:.2f} h")
    if len(task.source.sizes) > 1:
        shares = zip(task.source.names, plan.corpus_shares, strict=True)
        listed = ", ".join(f"{name} {share:.0%}" for name, share in shares)
        say(f"            an epoch's audio: {listed} (input.corpus_exponent={config.input.corpus_exponent:g})")
    if task.problems:
        first = task.problems[0]
        say(f"            {len(task.problems)} left out (left_out.jsonl), the first: {first.id} {first.reason}")
    for note in task.transcripts.notes if task.transcripts else ():
        say(note)
    buckets = ", ".join(f"{b / SAMPLE_RATE:.1f} s x {_rows(plan, b)}" for b in plan.buckets)
    say(f"  buckets   {buckets}; {plan.padding_efficiency:.0%} of what is computed is speech")
    say(
        f"  update    {plan.seconds_per_batch:.0f} s of audio in {config.accumulate} micro-batch(es); "
        f"{plan.batches_per_epoch} updates an epoch, {config.num_steps} in all = "
        f"{config.num_steps / plan.batches_per_epoch:.1f} epochs"
    )


def say_start(
    workdir: Path, start: int, damaged: list[tuple[int, str]], changes: list[str], versions: list[str]
) -> None:
    """Where a run begins and why."""
    say(f"  outputs   {workdir}")
    newest = "the newest that is whole" if damaged else "the newest checkpoint there"
    say(
        f"  start     resumes at update {start}: {newest}"
        if start
        else "  start     from update 0: no checkpoint there yet"
    )
    for step, reason in damaged:
        say(f"            that of update {step} is damaged ({reason}) and lies in {workdir}/damaged now")
    for change in changes:
        say(f"            other than before, as config.resume allows: {change}")
    for change in versions:
        say(f"            other than at the last start: {change}")


def _rows(plan: BatchPlan, bucket: int) -> str:
    filler = plan.rows[bucket] - plan.drawn[bucket]
    return f"{plan.drawn[bucket]}" + (f" (and {filler} empty rows, for so many devices)" if filler else "")


class Reporter:
    """Turns finished metrics into rows of the file, lines on the screen and warnings."""

    def __init__(self, config: ConfigDict, task: Task, metrics: MetricsFile, progress: Progress):
        self._config, self._task, self._metrics, self._progress = config, task, metrics, progress
        self._row_every = -(-config.num_steps // _ROWS)
        self._spending = Spending(config, task)
        self._window: list[dict[str, Any]] = []
        self._clock = time.monotonic()
        self.last: dict[str, Any] = {}
        self.skipped_in_a_row, self._skipped = 0, 0

    def read(self, step: int, setting: Draw, batch: Batch, scalars: dict[str, jax.Array], waited: float) -> None:
        """Waits for an update's metrics and notes them."""
        values = {name: float(value) for name, value in jax.device_get(scalars).items()}
        now = time.monotonic()
        seconds, self._clock = max(now - self._clock, 1e-9), now
        audio = float(batch.arrays["length"].sum()) / SAMPLE_RATE * jax.process_count()
        row = {
            "step": step,
            "time": round(time.time(), 1),
            "epoch": batch.epoch,
            "batch": batch.number,
            "setting": setting.name,
        }
        row |= {"bucket_s": batch.bucket / SAMPLE_RATE}
        row |= {"batch_ids": f"{zlib.crc32(' '.join(batch.ids).encode()):08x}", **values}
        row |= {
            "steps_per_s": 1 / seconds,
            "audio_h_per_h": audio / seconds,
            "input_wait_frac": min(waited / seconds, 1.0),
        }
        # null where not finite: JSON has no such numbers
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._spending.add(step, setting, len(batch.arrays["length"]) * jax.process_count(), batch.bucket)
        if step % self._row_every == 0 or step == self._config.num_steps or values["skipped"]:
            self._metrics.write(row | self._spending.spent())
        self._progress.update(step)
        self.last = row
        if values["skipped"]:
            self._note_skipped(step, setting, batch, values)
        else:
            self.skipped_in_a_row = 0
            self._window.append(row)
            for kind, finding in self._task.watchdog.check(row).items():
                say(f"  ! {finding}", everywhere=kind in LOCAL)
        if step % self._config.log_every == 0 or step == self._config.num_steps:
            say(self._line(step, setting) if self._window else f"step {step}/{self._config.num_steps} | all skipped")
            self._metrics.flush()
            self._window.clear()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside counts for no update."""
        begin = time.monotonic()
        with self._progress.paused():
            yield
        self._clock += time.monotonic() - begin

    def _note_skipped(self, step: int, setting: Draw, batch: Batch, values: dict[str, float]) -> None:
        self._skipped += 1
        if values["weight"] == 0:  # nothing that another learning rate would mend
            what = f"it has nothing to learn from (batch {batch.number})"
            say(f"  ! update {step} is skipped: {what}; {self._skipped} so far")
            return
        self.skipped_in_a_row += 1
        what = f"loss {values['loss']}, gradient norm {values['grad_norm']} ({setting}, batch {batch.number})"
        say(f"  ! update {step} is skipped: {what}; {self._skipped} so far")
        if self.skipped_in_a_row > self._config.optim.max_skipped:
            raise Diverged(
                f"training diverged: {self.skipped_in_a_row} updates in a row had no finite loss and gradient, "
                f"the last with {what}; nothing was saved since the first of them: "
                "lower optim.lr or set optim.clip_norm, and start again"
            )

    def _line(self, step: int, setting: Draw) -> str:
        mean = {
            k: float(np.mean([r[k] for r in self._window])) for k, v in self._window[0].items() if isinstance(v, float)
        }
        parts = [f"step {step}/{self._config.num_steps}"]
        if "loss_contrastive" in mean:
            head = self._task.architecture["head"]
            terms = " ".join(
                f"{name} {mean[f'loss_{key}']:.2f}"
                for name, key in (("ctr", "contrastive"), ("div", "diversity"), ("pen", "penalty"))
            )
            parts += [f"loss {mean['loss']:.2f} bits ({terms})", f"acc {mean['accuracy']:.3f}"]
            codes = f"{mean['code_perplexity']:.0f}/{head['codebooks'] * head['codes']}"
            parts += [f"codes {codes} ppl {mean['prob_perplexity']:.0f}"]
        elif "target_std" in mean:
            parts += [f"loss {mean['loss']:.3f}", f"std {mean['prediction_std']:.3f} of {mean['target_std']:.3f}"]
            parts += [f"ema {mean['ema_decay']:.5f}"]
        elif "distance" in mean:
            parts += [f"loss {mean['loss']:.3f}", f"distance {mean['distance']:.3f}"]
        elif "accuracy" in mean:
            parts += [f"loss {mean['loss']:.2f} bits", f"accuracy {mean['accuracy']:.1%}"]
        else:
            taught = ""
            if "loss_teacher" in mean:
                taught = f" (ctc {mean['loss_ctc']:.2f} teacher {mean['loss_teacher']:.2f})"
            parts += [f"loss {mean['loss']:.2f} bits{taught}", f"blank {mean['blank_frac']:.0%}"]
        parts += [setting.name, f"{self._progress.rate:.2g} step/s {mean['audio_h_per_h']:.0f} h-audio/h"]
        parts += [f"wait {mean['input_wait_frac']:.0%}", f"eta {self._progress.left}"]
        return " | ".join(parts)
