"""The training loop: owns time, files and signals; nothing mathematical.

Update N is dispatched before the metrics of update N - 1 are read, so the device never waits for the host.
"""

import contextlib
import functools
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sew_jax.checkpoints.checkpointer import Checkpoints
from sew_jax.compression import Draw, draw
from sew_jax.console import Progress, format_duration, say
from sew_jax.data.batch_plan import BatchPlan, choose_buckets, rows_per_bucket
from sew_jax.data.pipeline import Batches, label_slots, read_ahead
from sew_jax.data.problems import DamagedAudio, write_problems
from sew_jax.errors import UserError
from sew_jax.files import WORKDIR_HINT, write_json, writing_to
from sew_jax.metrics.metrics_file import MetricsFile
from sew_jax.rates import SAMPLE_RATE
from sew_jax.runtime.preemption import stop_requests
from sew_jax.runtime.programs import compile_table
from sew_jax.runtime.sharding import batch_sharding, bytes_per_device, make_mesh, place_ahead, tree_shardings
from sew_jax.runtime.stall_watch import StallWatch
from sew_jax.training.reporter import Reporter, first_screen, say_start
from sew_jax.training.resume import RECORD, changes_since, earlier_record, earlier_rows
from sew_jax.training.state import TrainState, new_state
from sew_jax.training.step import make_step
from sew_jax.training.task import Task, open_task
from sew_jax.training.validation import Validation


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
      UserError: config, data, or an earlier run in the workdir do not fit; the workdir cannot be written; or training diverged.
    """
    begin = time.monotonic()
    for key in ("num_steps", "checkpoint_every", "log_every", "accumulate"):
        if config[key] < 1:
            raise UserError(f"{key}: {config[key]} must be at least 1")
    if config.input.corpus_exponent < 0:
        raise UserError(f"input.corpus_exponent: {config.input.corpus_exponent} must be at least 0")
    task = open_task(config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    earlier = earlier_record(workdir)
    plan = _plan(config, task, mesh.size, earlier)
    first_host = jax.process_index() == 0

    def make_state(key) -> TrainState:
        return new_state(task.init(key), task.optimizer)

    replicated = NamedSharding(mesh, PartitionSpec())
    key = jax.jit(jax.random.key, static_argnums=0, out_shardings=replicated)(config.seed)
    shapes = jax.eval_shape(make_state, key)
    shardings = tree_shardings(mesh, shapes)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes.params))
    record = {"config": config.to_dict(), "architecture": task.architecture, "parameters": parameters}
    record |= {"data": _fingerprint(task), "rows": plan.drawn}
    record = json.loads(json.dumps(record))  # as a reader of the file will see it
    changes = changes_since(workdir, earlier, record, config.resume)
    first_screen(config, task, plan, mesh, parameters, bytes_per_device(shapes, shardings))

    with contextlib.ExitStack() as stack:
        with writing_to(workdir, WORKDIR_HINT):
            workdir.mkdir(parents=True, exist_ok=True)
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir)))
        restored = checkpoints.restore(like)
        start = restored.step if restored else 0
        say_start(workdir, start, restored.damaged if restored else [], changes)
        with writing_to(workdir, WORKDIR_HINT):
            if first_host:
                write_json(workdir / RECORD, record)
                write_problems(workdir, task.problems)
                if task.vocabulary:
                    task.vocabulary.save(workdir)
            metrics = MetricsFile(workdir / "metrics.jsonl" if first_host else None, start)
        stack.enter_context(contextlib.closing(metrics))
        if restored:
            state = restored.state
        else:
            state = jax.jit(make_state, out_shardings=shardings)(key)
            params = jax.device_put(task.warm_start(state.params, replicated), shardings.params)
            state = state.replace(params=params)
        del restored  # its state is given to the first update

        jitted = jax.jit(
            make_step(task.micro_loss, task.optimizer, task.schedule, config.accumulate),
            static_argnames="compression", donate_argnums=0, out_shardings=(shardings, replicated),
        )  # fmt: skip
        validation = stack.enter_context(
            contextlib.closing(Validation(config, task, mesh, workdir, start, like, metrics, checkpoints))
        )
        programs = {}
        if start < config.num_steps and not validation.exhausted:
            keys = [(drawn, bucket) for drawn in task.draws for bucket in plan.buckets]
            arguments = functools.partial(_arguments, like, key, task, plan, batch_sharding(mesh))
            programs = compile_table(jitted, keys, arguments, "training")

        batches = Batches(
            task.source, plan, seed=config.seed, vocabulary=task.vocabulary, start=start, stop=config.num_steps,
            speed=config.input.speed, host=jax.process_index(), hosts=jax.process_count(),
        )  # fmt: skip
        reporter = Reporter(config, task, metrics, Progress(config.num_steps, start))
        damaged = DamagedAudio(config.data, config.input.max_bad, workdir if first_host else None)
        stall = StallWatch(lambda sentence: say(f"  ! {sentence}", everywhere=True))
        step, saved, pending, reason = start, start, None, ""

        def finish(update) -> None:
            with stall.waiting_for("the devices"):
                reporter.read(*update)
            stall.progress()
            checkpoints.check()

        def save() -> None:
            nonlocal saved
            with stall.waiting_for("a checkpoint"), reporter.paused(), jax.transfer_guard("allow"):
                metrics.sync()
                checkpoints.save(state, step, {"step": step, **record})
            saved = step

        # a signal during the last save waits for it too
        stop_reason = stack.enter_context(stop_requests())
        data = stack.enter_context(read_ahead(batches, workers=config.input.workers, threads=config.input.threads))
        placed = place_ahead(data, batch_sharding(mesh))
        stack.enter_context(stall.watching())
        # no hidden copy between host and device inside the loop
        with jax.transfer_guard("disallow"):
            while step < config.num_steps and not validation.exhausted and not (reason := stop_reason(step)):
                waiting = time.monotonic()
                with stall.waiting_for("audio"):
                    batch, arrays = next(placed)
                # no waiting where the device was busy all the while
                starved = not pending or pending[3]["loss"].is_ready()
                waited = (time.monotonic() - waiting) * starved
                damaged.add(batch.problems)
                drawn = draw(task.draws, config.seed, step)
                state, scalars = programs[drawn, batch.bucket](state, arrays, key)
                step += 1
                if pending:
                    finish(pending)
                pending = (step, drawn, batch, scalars, waited)
                if validation.due(step):
                    finish(pending)
                    pending = None
                    with reporter.paused(), stall.waiting_for("the devices"), jax.transfer_guard("allow"):
                        validation.run(step, state)
                if step % config.checkpoint_every == 0 and step < config.num_steps:
                    if pending:
                        finish(pending)
                        pending = None
                    if not reporter.skipped_in_a_row:  # older checkpoints may be the sound ones
                        save()
            if pending:
                finish(pending)
        if step > saved:
            save()
        with stall.waiting_for("a checkpoint"):
            checkpoints.wait()
    seconds = time.monotonic() - begin
    if validation.best:
        say(validation.best)
    if validation.exhausted:
        say(f"stopped after update {step}: {config.eval.patience} evaluations were no better (eval.patience)")
    elif step < config.num_steps:
        say(f"stopped by {reason} after update {step}, everything is saved; the same command goes on from there")
    elif start >= config.num_steps:
        say(
            f"nothing to do: {workdir} is at update {start} of {config.num_steps} already; raise --config.num_steps to go on"
        )
    else:
        say(f"done: {step} updates, {format_duration(seconds)}; checkpoint and metrics are in {workdir}")
    stopped = step < config.num_steps and not validation.exhausted
    return Summary(step, reporter.last, len(programs), stopped, seconds)


def _plan(config: ConfigDict, task: Task, devices: int, earlier: dict[str, Any] | None) -> BatchPlan:
    buckets, multiple = choose_buckets(task.samples, config.input.buckets), devices * config.accumulate
    rows = rows_per_bucket(buckets, round(config.input.batch_seconds * SAMPLE_RATE), multiple)
    before = earlier_rows(earlier, config.to_dict())  # a run keeps its batches whatever devices it goes on with
    if before and before.keys() == rows.keys():
        rows = before
    return BatchPlan(
        task.samples, rows, config.seed, shuffle=True, sizes=task.source.sizes, exponent=config.input.corpus_exponent,
        multiple=multiple,
    )  # fmt: skip


def _arguments(like: TrainState, key: jax.Array, task: Task, plan: BatchPlan, sharding, of: tuple[Draw, int]):
    bucket = of[1]
    rows = plan.rows[bucket]

    def shape(dtype, *dims):
        return jax.ShapeDtypeStruct((rows, *dims), dtype, sharding=sharding)

    batch = {"wave": shape(jnp.int16, bucket), "length": shape(jnp.int32)}
    if task.vocabulary:
        batch["labels"] = shape(jnp.int32, label_slots(task.source, plan)[bucket])
        batch["label_length"] = shape(jnp.int32)
    return like, batch, key


def _fingerprint(task: Task) -> dict[str, Any]:
    """What must not change under a run's feet: utterances, their order and lengths."""
    return {"utterances": len(task.source), "sha256": task.source.fingerprint()}
