"""The training loop: owns time, files and signals; nothing mathematical.

Update N is dispatched before the metrics of update N - 1 are read, so the device never waits for the host.
"""

import functools
import json
import math
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sew_jax.checkpoint import Checkpoints
from sew_jax.compression import Compression, draw
from sew_jax.data.pipeline import Batch, Batches, label_slots, read_ahead
from sew_jax.data.plan import BatchPlan, choose_buckets, rows_per_bucket
from sew_jax.data.sources import Problem
from sew_jax.errors import UserError
from sew_jax.files import write_json
from sew_jax.metrics import MetricsFile
from sew_jax.preemption import stop_requests
from sew_jax.programs import compile_table
from sew_jax.progress import Progress, format_duration, say
from sew_jax.sharding import batch_sharding, bytes_per_device, make_mesh, place_ahead, tree_shardings
from sew_jax.state import TrainState, new_state
from sew_jax.steps import make_step
from sew_jax.tasks import Task, open_task

# A run may be resumed with other values of these: they change neither the model nor the data order
_FREE_KEYS = (
    "num_steps",
    "log_every",
    "checkpoint_every",
    "mesh",
    "input.workers",
    "input.threads",
    "input.max_bad",
    "optim.max_skipped",
)


class Summary(NamedTuple):
    """How a run ended: update reached, last row of metrics, number of programs, whether a signal stopped it, seconds."""

    step: int
    metrics: dict[str, Any]
    programs: int
    stopped: bool
    seconds: float


def train(config: ConfigDict, workdir: Path) -> Summary:
    """Trains until `config.num_steps` updates are done, from the newest checkpoint of `workdir` where there is one.

    Raises:
      UserError: config, data, or an earlier run in the workdir do not fit; or training diverged.
    """
    begin = time.monotonic()
    for key in ("num_steps", "checkpoint_every", "log_every", "accumulate"):
        if config[key] < 1:
            raise UserError(f"{key}: {config[key]} must be at least 1")
    if config.input.corpus_exponent < 0:
        raise UserError(f"input.corpus_exponent: {config.input.corpus_exponent} must be at least 0")
    task = open_task(config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    plan = _plan(config, task, mesh.size)
    first_host = jax.process_index() == 0

    def make_state(key) -> TrainState:
        return new_state(task.init(key), task.optimizer)

    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(make_state, key)
    shardings = tree_shardings(mesh, shapes)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    replicated = NamedSharding(mesh, PartitionSpec())

    record = {"config": config.to_dict(), "architecture": task.architecture, "data": _fingerprint(task)}
    record = json.loads(json.dumps(record))  # as a reader of the file will see it
    _check_same_run(workdir, record)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir)
    start = checkpoints.latest() or 0
    _first_screen(config, workdir, task, plan, mesh, shapes, shardings, start)
    if first_host:
        write_json(workdir / "config.json", record)
        _write_problems(workdir, task.problems)
        if task.vocabulary:
            task.vocabulary.save(workdir)
    if start:
        state = checkpoints.restore(start, like)
    else:
        state = jax.jit(make_state, out_shardings=shardings)(key)
        params = jax.device_put(task.warm_start(state.params, replicated), shardings.params)
        state = state.replace(params=params)

    jitted = jax.jit(
        make_step(task.micro_loss, task.optimizer, task.schedule, config.seed, config.accumulate),
        static_argnames="compression", donate_argnums=0, out_shardings=(shardings, replicated),
    )  # fmt: skip
    programs = {}
    if start < config.num_steps:
        keys = [(setting, bucket) for setting in task.table for bucket in plan.buckets]
        arguments = functools.partial(_arguments, like, task, plan, batch_sharding(mesh))
        programs = compile_table(jitted, keys, arguments, "training")

    batches = Batches(
        task.source, plan, seed=config.seed, vocabulary=task.vocabulary, start=start, stop=config.num_steps,
        speed=config.input.speed, host=jax.process_index(), hosts=jax.process_count(),
    )  # fmt: skip
    metrics = MetricsFile(workdir / "metrics.jsonl" if first_host else None, start)
    progress = Progress(config.num_steps, start)
    reader = _Reader(config, task, metrics, progress)
    bad = _BadAudio(config.input.max_bad, workdir if first_host else None)
    step, saved, pending, reason = start, start, None, ""

    def save():
        nonlocal saved
        with progress.paused(), jax.transfer_guard("allow"):
            metrics.flush()
            checkpoints.save(state, step, {"step": step, **record})
            saved = step

    try:
        with (
            stop_requests() as stop_reason,
            read_ahead(batches, workers=config.input.workers, threads=config.input.threads) as data,
        ):
            placed = place_ahead(data, batch_sharding(mesh))
            # no hidden copy between host and device inside the loop
            with jax.transfer_guard("disallow"):
                while step < config.num_steps and not (reason := stop_reason(step)):
                    waiting = time.monotonic()
                    batch, arrays = next(placed)
                    # no waiting where the device was busy all the while
                    starved = not pending or pending[3]["loss"].is_ready()
                    waited = (time.monotonic() - waiting) * starved
                    bad.note(batch.problems)
                    setting = draw(task.table, config.seed, step)
                    state, scalars = programs[setting, batch.bucket](state, arrays)
                    step += 1
                    if pending:
                        reader.read(*pending)
                    pending = (step, setting, batch, scalars, waited)
                    if step % config.checkpoint_every == 0 and step < config.num_steps:
                        reader.read(*pending)
                        pending = None
                        if not reader.skipped_in_a_row:  # older checkpoints may be the sound ones
                            save()
                if pending:
                    reader.read(*pending)
            if step > saved:
                save()
    finally:
        metrics.close()
        checkpoints.close()
    seconds = time.monotonic() - begin
    if step < config.num_steps:
        say(f"stopped by {reason} after update {step}, everything is saved; the same command goes on from there")
    elif start == config.num_steps:
        say(
            f"nothing to do: {workdir} is at update {start} of {config.num_steps} already; raise --config.num_steps to go on"
        )
    else:
        say(f"done: {step} updates, {format_duration(seconds)}; checkpoint and metrics are in {workdir}")
    return Summary(step, reader.last, len(programs), step < config.num_steps, seconds)


def _plan(config: ConfigDict, task: Task, devices: int) -> BatchPlan:
    buckets = choose_buckets(task.samples, config.input.buckets)
    rows = rows_per_bucket(buckets, round(config.input.batch_seconds * 16_000), devices * config.accumulate)
    sizes, exponent = task.source.sizes, config.input.corpus_exponent
    return BatchPlan(task.samples, rows, config.seed, shuffle=True, sizes=sizes, exponent=exponent)


def _arguments(like: TrainState, task: Task, plan: BatchPlan, sharding, key: tuple[Compression, int]):
    bucket = key[1]
    rows = plan.rows[bucket]

    def shape(dtype, *dims):
        return jax.ShapeDtypeStruct((rows, *dims), dtype, sharding=sharding)

    batch = {"wave": shape(jnp.int16, bucket), "length": shape(jnp.int32)}
    if task.vocabulary:
        batch["labels"] = shape(jnp.int32, label_slots(task.source, plan)[bucket])
        batch["label_length"] = shape(jnp.int32)
    return like, batch


def _fingerprint(task: Task) -> dict[str, Any]:
    """What must not change under a run's feet: utterances, their order and lengths."""
    return {"utterances": len(task.source), "sha256": task.source.fingerprint()}


def _check_same_run(workdir: Path, record: dict[str, Any]) -> None:
    """Raises UserError where the workdir holds a run that this one cannot continue."""
    if not (workdir / "config.json").is_file() or not (workdir / "checkpoints").is_dir():
        return
    try:
        before = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
        old, new = (_flat(r["config"]) for r in (before, record))
    except (ValueError, KeyError) as error:
        raise UserError(f"workdir: {workdir}/config.json cannot be read ({error}); use another --workdir") from error
    for key in sorted(old.keys() | new.keys()):
        if not key.startswith(_FREE_KEYS) and old.get(key) != new.get(key):
            raise UserError(
                f"workdir: {workdir} holds a run with config.{key}={old.get(key)!r}, this one has {new.get(key)!r}; "
                "use the same value to resume it, or another --workdir"
            )
    if before["data"] != record["data"]:
        raise UserError(
            f"workdir: the data of {workdir} have changed ({before['data']['utterances']} utterances then, "
            f"{record['data']['utterances']} now, or other lengths); use another --workdir"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _write_problems(workdir: Path, problems: Iterable[Problem], mode: str = "w") -> None:
    with (workdir / "left_out.jsonl").open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(p._asdict(), ensure_ascii=False) + "\n" for p in problems)


def _first_screen(
    config, workdir, task: Task, plan: BatchPlan, mesh, shapes: TrainState, shardings, start: int
) -> None:
    device = jax.devices()[0]
    params = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes.params))
    update = plan.seconds_per_batch
    say(f"sew_jax {config.mode}")
    say(
        f"  devices   {mesh.size} x {device.device_kind} ({device.platform}), mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']}"
    )
    say(
        f"  model     {params / 1e6:.2f} M parameters, {config.dtype} compute; state {bytes_per_device(shapes, shardings) / 2**20:.1f} MiB a device"
    )
    say(f"  settings  {len(task.table)}: {' '.join(map(str, task.table))}")
    say(
        f"  data      {task.source.name}: {len(task.source)} utterances, {task.source.samples.sum() / 16_000 / 3600:.2f} h"
    )
    if len(task.source.sizes) > 1:
        shares = zip(task.source.names, plan.corpus_shares, strict=True)
        listed = ", ".join(f"{name} {share:.0%}" for name, share in shares)
        say(f"            an epoch's audio: {listed} (input.corpus_exponent={config.input.corpus_exponent:g})")
    if task.problems:
        first = task.problems[0]
        say(f"            {len(task.problems)} left out (left_out.jsonl), the first: {first.id} {first.reason}")
    buckets = ", ".join(f"{b / 16_000:.1f} s x {plan.rows[b]}" for b in plan.buckets)
    say(f"  buckets   {buckets}; {plan.padding_efficiency:.0%} of what is computed is speech")
    say(
        f"  update    {update:.0f} s of audio in {config.accumulate} micro-batch(es); {plan.batches_per_epoch} updates an epoch, {config.num_steps} in all = {config.num_steps / plan.batches_per_epoch:.1f} epochs"
    )
    say(f"  outputs   {workdir}")
    say(
        f"  start     resumes at update {start}: the newest checkpoint there"
        if start
        else "  start     from update 0: no checkpoint there yet"
    )


class _Reader:
    """Turns finished metrics into rows of the file, lines on the screen and warnings."""

    def __init__(self, config: ConfigDict, task: Task, metrics: MetricsFile, progress: Progress):
        self._config, self._task, self._metrics, self._progress = config, task, metrics, progress
        self._window: list[dict[str, Any]] = []
        self._clock = time.monotonic()
        self.last: dict[str, Any] = {}
        self.skipped_in_a_row, self._skipped = 0, 0

    def read(self, step: int, setting: Compression, batch: Batch, scalars: dict[str, jax.Array], waited: float) -> None:
        """Waits for an update's metrics and notes them."""
        values = {name: float(value) for name, value in jax.device_get(scalars).items()}
        now = time.monotonic()
        seconds, self._clock = max(now - self._clock, 1e-9), now
        audio = float(batch.arrays["length"].sum()) / 16_000 * jax.process_count()
        row = {"step": step, "epoch": batch.epoch, "batch": batch.index, "setting": setting.name}
        row |= {"batch_ids": f"{zlib.crc32(' '.join(batch.ids).encode()):08x}", **values}
        row |= {
            "steps_per_s": 1 / seconds,
            "audio_h_per_h": audio / seconds,
            "input_wait_frac": min(waited / seconds, 1.0),
        }
        # null where not finite: JSON has no such numbers
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._metrics.write(row)
        self._progress.update(step)
        self.last = row
        if values["skipped"]:
            self._note_skipped(step, setting, batch, values)
        else:
            self.skipped_in_a_row = 0
            self._window.append(row)
            for finding in self._task.watchdog.check(row):
                say(f"  ! {finding}")
        if step % self._config.log_every == 0 or step == self._config.num_steps:
            say(self._line(step, setting) if self._window else f"step {step}/{self._config.num_steps} | all skipped")
            self._metrics.flush()
            self._window.clear()

    def _note_skipped(self, step: int, setting: Compression, batch: Batch, values: dict[str, float]) -> None:
        self.skipped_in_a_row += 1
        self._skipped += 1
        what = f"loss {values['loss']}, gradient norm {values['grad_norm']} ({setting}, batch {batch.index})"
        say(f"  ! update {step} is skipped: {what}; {self._skipped} so far")
        if self.skipped_in_a_row > self._config.optim.max_skipped:
            raise UserError(
                f"training diverged: {self.skipped_in_a_row} updates in a row had no finite loss and gradient, the last with {what}; "
                "nothing was saved since the first of them: lower optim.lr or set optim.clip_norm, and start again"
            )

    def _line(self, step: int, setting: Compression) -> str:
        mean = {
            k: float(np.mean([r[k] for r in self._window])) for k, v in self._window[0].items() if isinstance(v, float)
        }
        parts = [f"step {step}/{self._config.num_steps}"]
        if "accuracy" in mean:
            head = self._task.architecture["head"]
            terms = " ".join(
                f"{name} {mean[f'loss_{key}']:.2f}"
                for name, key in (("ctr", "contrastive"), ("div", "diversity"), ("pen", "penalty"))
            )
            parts += [f"loss {mean['loss']:.2f} bits ({terms})", f"acc {mean['accuracy']:.3f}"]
            parts += [
                f"codes {mean['code_perplexity']:.0f}/{head['codebooks'] * head['codes']} ppl {mean['prob_perplexity']:.0f}"
            ]
        else:
            parts += [f"loss {mean['loss']:.2f} bits", f"blank {mean['blank_frac']:.0%}"]
        parts += [setting.name, f"{self._progress.rate:.2g} step/s {mean['audio_h_per_h']:.0f} h-audio/h"]
        parts += [f"wait {mean['input_wait_frac']:.0%}", f"eta {self._progress.left}"]
        return " | ".join(parts)


class _BadAudio:
    """Names audio that fails to decode while training, once each, up to a bound; adds it to the workdir's list."""

    def __init__(self, bound: int, workdir: Path | None):
        self._bound, self._workdir, self._seen = bound, workdir, {}

    def note(self, problems: tuple[Problem, ...]) -> None:
        for problem in problems:
            if problem.id not in self._seen:
                self._seen[problem.id] = problem
                if self._workdir:
                    _write_problems(self._workdir, [problem], "a")
                say(f"  ! {problem.id} {problem.reason}; it is skipped ({len(self._seen)} so far)")
        if len(self._seen) > self._bound:
            first = next(iter(self._seen.values()))
            raise UserError(
                f"data: {len(self._seen)} utterances cannot be read (first: {first.id} {first.reason}); mend or remove them, "
                f"or raise --config.input.max_bad={self._bound}"
            )
