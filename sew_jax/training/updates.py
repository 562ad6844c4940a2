"""The programs of a run's updates: a table for each phase, since what is frozen has no backward pass meanwhile.

The first phase's programs are compiled before the first update, those of a later one beside the updates before it.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sew_jax.compression import Draw
from sew_jax.console import format_duration, say
from sew_jax.data.batch_plan import BatchPlan
from sew_jax.data.pipeline import label_slots
from sew_jax.models.parameters import path_name
from sew_jax.runtime.programs import Compiling, compile_one, compile_table
from sew_jax.runtime.sharding import batch_sharding
from sew_jax.training.optimizer import PathFunction
from sew_jax.training.step import Gradients, TrainState, make_gradients, make_update
from sew_jax.training.task import Task
from sew_jax.training.template import Template

Update = Callable[..., tuple[TrainState, dict[str, jax.Array]]]  # (state, batch), the state taken over
_Table = dict[tuple[Draw, int], Any]  # by draw and bucket


class _Phase(NamedTuple):
    """Updates from `begin` on, whose programs are being compiled; `finish` makes them of the gradients' programs."""

    begin: int
    compiling: Compiling
    finish: Callable[[_Table], dict[tuple[Draw, int], Update]]


class Updates:
    """What computes an update, by how many are done before, its draw and its bucket.

    Args:
      tables: updates by the first that they serve.
      later: phases that begin after those.
    """

    def __init__(self, tables: dict[int, dict[tuple[Draw, int], Update]], later: list[_Phase]):
        self._tables, self._later = tables, later

    def at(self, done: int, drawn: Draw, bucket: int, progress: Callable[[], None] = lambda: None) -> Update:
        """The update after `done` others; where it waits for its program, `progress` is called now and then.

        Updates that were skipped are among `done`, so a phase may begin before what it trains is to move: the optimiser
        holds that still.
        """
        for phase in list(self._later):
            if phase.begin <= done or phase.compiling.is_over:
                self._tables[phase.begin] = phase.finish(phase.compiling.finish(progress))
                phase.compiling.close()
                self._later.remove(phase)
        return self._tables[max(begin for begin in self._tables if begin <= done)][drawn, bucket]

    def __len__(self) -> int:
        """Programs of all phases."""
        return sum(map(len, self._tables.values())) + sum(len(phase.compiling) for phase in self._later)

    def close(self) -> None:
        """Begins to compile no more."""
        for phase in self._later:
            phase.compiling.close()


def compile_updates(config: ConfigDict, task: Task, plan: BatchPlan, template: Template, start: int) -> Updates:
    """The updates after `start`, those of the first phase ready."""
    sums = Gradients(
        template.shardings.params, template.replicated, template.replicated, template.shardings.batch_stats
    )
    arguments = functools.partial(_arguments, task, plan, template)
    keys = [(drawn, bucket) for drawn in task.draws for bucket in plan.buckets]

    def gradients(begin: int):
        frozen = functools.partial(_is_frozen, task.frozen_until, begin)
        function = make_gradients(task.micro_loss, config.accumulate, frozen)
        return jax.jit(function, static_argnames="compression", out_shardings=sums)

    begin, *later = _phases(task.frozen_until, template, start, config.num_steps)
    jitted = gradients(begin)
    table = compile_table(jitted, keys, arguments, "training")
    example = jitted.eval_shape(*arguments(keys[0]), compression=keys[0][0])
    jitted_update = jax.jit(
        make_update(task.optimizer, task.schedule, task.frozen_until, task.teacher),
        donate_argnums=0,
        in_shardings=(template.shardings, sums),
        out_shardings=(template.shardings, template.replicated),
    )
    clock = time.monotonic()
    # gradients are not donated: the new state lies where the old one was, and no output is left to take their place
    update = compile_one(jitted_update.lower(template.like, example))
    say(f"compiled the update that all of them share in {format_duration(time.monotonic() - clock)}")

    def run(gradients, state: TrainState, batch) -> tuple[TrainState, dict[str, jax.Array]]:
        return update(state, gradients(state, batch, template.of_run))

    def finish(table: _Table) -> dict[tuple[Draw, int], Update]:
        return {key: functools.partial(run, gradients) for key, gradients in table.items()}

    phases = []
    for begin_later in later:
        say(f"more is trained from update {begin_later + 1} on; for that, beside the updates before:")
        phases.append(_Phase(begin_later, Compiling(gradients(begin_later), keys, arguments, "training"), finish))
    return Updates({begin: finish(table)}, phases)


def _is_frozen(frozen_until: PathFunction | None, begin: int, path: str) -> bool:
    return bool(frozen_until) and frozen_until(path) > begin  # type: ignore[misc]


def _phases(frozen_until: PathFunction | None, template: Template, start: int, stop: int) -> list[int]:
    """After how many updates each phase begins that has updates between `start` and `stop`: more is trained from then.

    The first one is that of update `start`.
    """
    paths = jax.tree_util.tree_leaves_with_path(template.like.params)
    begins = {0} | ({frozen_until(path_name(path)) for path, _ in paths} - {math.inf} if frozen_until else set())
    first = max(begin for begin in begins if begin <= start)
    return [int(begin) for begin in sorted(begins) if first <= begin < stop]


def _arguments(task: Task, plan: BatchPlan, template: Template, of: tuple[Draw, int]) -> tuple[Any, ...]:
    """Shapes of what an update of a bucket takes."""
    bucket, sharding = of[1], batch_sharding(template.mesh)
    rows = plan.rows[bucket]

    def shape(dtype, *dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *dims), dtype, sharding=sharding)

    batch = {"wave": shape(jnp.int16, bucket), "length": shape(jnp.int32), "crop": shape(jnp.int32)}
    if task.transcripts:
        batch["labels"] = shape(jnp.int32, label_slots(task.transcripts.symbols_U, plan)[bucket])
        batch["label_length"] = shape(jnp.int32)
    return template.like, batch, template.of_run
