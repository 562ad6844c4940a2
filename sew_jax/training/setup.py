"""What happens before the first update: data and model are opened, an earlier run is found, compiling begins."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sew_jax.buckets import make_folder
from sew_jax.checkpoints.checkpointer import Checkpoints, check_place
from sew_jax.checkpoints.leftovers import Leftovers
from sew_jax.data.batch_plan import BatchPlan, choose_buckets, rows_per_bucket
from sew_jax.data.pipeline import Batches
from sew_jax.data.problems import DamagedAudio, write_problems
from sew_jax.errors import Unavailable
from sew_jax.files import WORKDIR_HINT, write_json, writing_to
from sew_jax.metrics.metrics_file import MetricsFile
from sew_jax.rates import SAMPLE_RATE
from sew_jax.runtime.agreement import at_all_processes, check_same, check_shared, what_computes
from sew_jax.runtime.programs import share_programs
from sew_jax.runtime.sharding import batch_sharding, make_mesh, share_of
from sew_jax.storage import patient
from sew_jax.training.finetuning import open_finetuning
from sew_jax.training.pretraining import open_pretraining
from sew_jax.training.reporter import first_screen, say_start
from sew_jax.training.resume import RECORD, changes_since, earlier_record, earlier_rows, wait_for_data
from sew_jax.training.starts import note_start
from sew_jax.training.step import TrainState
from sew_jax.training.task import Task
from sew_jax.training.template import Template
from sew_jax.training.updates import Updates, compile_updates
from sew_jax.training.validation import Validation


class Run(NamedTuple):
    """What the loop works with.

    Attributes:
      record: what the run says of itself in its checkpoints.
      leftovers: of saves that were interrupted; None in all processes but the first.
      updates: none where there is nothing to do.
      start: updates done before.
      state: that of update `start`; the first update takes it over.
    """

    task: Task
    mesh: Mesh
    batches: Batches
    damaged: DamagedAudio
    record: dict[str, Any]
    checkpoints: Checkpoints
    leftovers: Leftovers | None
    metrics: MetricsFile
    validation: Validation
    updates: Updates
    start: int
    state: TrainState


def open_task(config: ConfigDict, earlier: dict[str, Any] | None = None) -> Task:
    """The task that `config.mode` names; `earlier` is the record of the run that goes on.

    Raises:
      UserError: something in the config, the data or `init_from` does not fit.
    """
    return (open_pretraining if config.mode == "pretrain" else open_finetuning)(config, earlier)


@contextlib.contextmanager
def open_run(config: ConfigDict, workdir: Path) -> Iterator[Run]:
    """The run of a workdir, ready for its next update; on exit its files are closed.

    Raises:
      UserError: config, data, or an earlier run in the workdir do not fit; or the workdir cannot be written.
    """
    check_place(workdir, "workdir")
    check_same({"config": config.to_dict(), "versions": what_computes()})
    check_shared(workdir)
    share_programs(workdir)
    earlier = earlier_record(workdir)
    task = at_all_processes(lambda: patient(_open_when_there)(config, earlier))
    described = _described(config, task)
    check_same(described | {"left_out": len(task.problems)})
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    plan = _plan(config, task, mesh.size, earlier)
    template = Template(config, task, mesh)
    record = json.loads(json.dumps(described | {"parameters": template.parameters, "rows": plan.drawn}))
    changes = changes_since(workdir, earlier, record, config.resume)
    first_screen(config, task, plan, mesh, template.parameters, template.bytes_per_device)

    with contextlib.ExitStack() as stack:
        with writing_to(workdir, WORKDIR_HINT):
            make_folder(workdir)
        leftovers = Leftovers(workdir) if _first_host() else None
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, keep_every=config.keep_every)))
        restored = checkpoints.restore(template.like)
        if earlier and not restored:
            raise Unavailable(f"workdir: the checkpoints of {workdir} were there a moment ago, and are not now")
        start = restored.step if restored else 0
        say_start(workdir, start, restored.damaged if restored else [], changes, note_start(workdir, start))
        metrics = stack.enter_context(contextlib.closing(_open_files(workdir, task, record, start)))
        state = restored.state if restored else template.first_state()
        validation = stack.enter_context(
            contextlib.closing(Validation(config, task, mesh, workdir, start, template.like, metrics, checkpoints))
        )
        updates = Updates({})
        if start < config.num_steps and not validation.exhausted:
            checkpoints.prepare(state)
            updates = stack.enter_context(contextlib.closing(compile_updates(config, task, plan, template, start)))
        batches = Batches(
            task.source,
            plan,
            seed=config.seed,
            vocabulary=task.vocabulary,
            symbols_U=task.transcripts.symbols_U if task.transcripts else None,
            start=start,
            stop=config.num_steps,
            speed=config.input.speed,
            share=share_of(batch_sharding(mesh)),
        )
        damaged = DamagedAudio(config.data, config.input.max_bad, len(task.source), workdir if _first_host() else None)
        yield Run(
            task, mesh, batches, damaged, record, checkpoints, leftovers, metrics, validation, updates, start, state
        )


def _open_when_there(config: ConfigDict, earlier: dict[str, Any] | None) -> Task:
    if earlier:
        wait_for_data(earlier, config.data)
    return open_task(config, earlier)


def _first_host() -> bool:
    return jax.process_index() == 0


def _plan(config: ConfigDict, task: Task, devices: int, earlier: dict[str, Any] | None) -> BatchPlan:
    buckets, multiple = choose_buckets(task.samples, config.input.buckets), devices * config.accumulate
    rows = rows_per_bucket(buckets, round(config.input.batch_seconds * SAMPLE_RATE), multiple)
    before = earlier_rows(earlier, config.to_dict())  # a run keeps its batches whatever devices it goes on with
    if before and before.keys() == rows.keys():
        rows = before
    return BatchPlan(
        task.samples,
        rows,
        config.seed,
        shuffle=True,
        sizes=task.source.sizes,
        exponent=config.input.corpus_exponent,
        crops=task.crops,
        multiple=multiple,
    )


def _described(config: ConfigDict, task: Task) -> dict[str, Any]:
    """What a run says of itself before it has devices; `data` must not change under its feet."""
    return {
        "config": config.to_dict(),
        "architecture": task.architecture,
        "data": {"utterances": len(task.source), "sha256": task.source.fingerprint()},
        "origin": task.origin,
    }


def _open_files(workdir: Path, task: Task, record: dict[str, Any], start: int) -> MetricsFile:
    """Writes what describes the run; its metrics, those of updates after `start` dropped."""
    with writing_to(workdir, WORKDIR_HINT):
        if not _first_host():
            return MetricsFile(None, start)
        write_json(workdir / RECORD, record)
        write_problems(workdir, task.problems)
        if task.vocabulary:
            task.vocabulary.save(workdir)
        return MetricsFile(workdir / "metrics.jsonl", start)
