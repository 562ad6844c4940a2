"""The programs of a run's updates: a table for each phase, since what is frozen has no backward pass meanwhile.

The largest program is compiled before the first update, so that what does not fit is known at once; the others beside
the updates, in the order of need: an update waits for its own.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sew_jax.compression import Draw, draw
from sew_jax.console import format_duration, say
from sew_jax.data.batch_plan import BatchPlan
from sew_jax.data.pipeline import label_slots
from sew_jax.models.cost import count_shared_macs
from sew_jax.models.parameters import path_name
from sew_jax.runtime.programs import Compiling, compile_one
from sew_jax.runtime.sharding import batch_sharding
from sew_jax.training.optimizer import PathFunction
from sew_jax.training.step import Gradients, TrainState, make_gradients, make_update
from sew_jax.training.task import Task
from sew_jax.training.teacher import but_teacher
from sew_jax.training.template import Template

Update = Callable[..., tuple[TrainState, dict[str, jax.Array]]]  # (state, batch), the state taken over
_Key = tuple[Draw, int]  # draw and bucket
_LOOK_AHEAD = 5  # updates for each program, from which the order of need is known


class Updates:
    """What computes an update, by how many are done before, its draw and its bucket.

    Args:
      phases: the programs of gradients, by the first update that they serve.
      run: an update, from one of these programs, the state and a batch; None where there are none.
    """

    def __init__(self, phases: dict[int, Compiling], run: Callable | None = None):
        self._phases, self._run = phases, run

    def at(self, done: int, drawn: Draw, bucket: int, progress: Callable[[], None] = lambda: None) -> Update:
        """The update after `done` others; where it waits for its program, `progress` is called now and then.

        Updates that were skipped are among `done`, so a phase may begin before what it trains is to move: the optimiser
        holds that still.
        """
        phase = self._phases[max(begin for begin in self._phases if begin <= done)]
        assert self._run
        return functools.partial(self._run, phase.program((drawn, bucket), progress))

    def __len__(self) -> int:
        """Programs of all phases."""
        return sum(map(len, self._phases.values()))

    def close(self) -> None:
        """Begins to compile no more."""
        for phase in self._phases.values():
            phase.close()


def compile_updates(config: ConfigDict, task: Task, plan: BatchPlan, template: Template, start: int) -> Updates:
    """The updates after `start`, the largest one ready."""
    everywhere, averages = template.replicated, but_teacher(template.shardings.batch_stats)
    sums = Gradients(template.shardings.params, everywhere, everywhere, averages)
    arguments = functools.partial(_arguments, task, plan, template)
    keys = _in_order_of_need(config, task, plan, start)

    def gradients(begin: int):
        frozen = functools.partial(_is_frozen, task.frozen_until, begin)
        function = make_gradients(task.micro_loss, config.accumulate, frozen)
        return jax.jit(function, static_argnames="compression", out_shardings=sums)

    first, *later = _phases(task.frozen_until, template, start, config.num_steps)
    jitted_first = gradients(first)
    # before threads begin: what is traced here, the largest program is made of
    example = jitted_first.eval_shape(*arguments(keys[0]), compression=keys[0][0])
    with contextlib.ExitStack() as stack:
        compiling = stack.enter_context(contextlib.closing(Compiling(jitted_first, keys, arguments, "training")))
        phases = {first: compiling}
        for begin in later:
            say(f"more is trained from update {begin + 1} on; for that, after these:")
            phases[begin] = Compiling(gradients(begin), keys, arguments, "training", after=compiling)
        jitted = jax.jit(
            make_update(task.optimizer, task.schedule, task.frozen_until, task.teacher),
            donate_argnums=0,
            in_shardings=(template.shardings, sums),
            out_shardings=(template.shardings, template.replicated),
        )
        clock = time.monotonic()
        # gradients are not donated: the new state lies where the old one was, and no output is left to take their place
        update = compile_one(jitted.lower(template.like, example))
        say(f"compiled the update that all of them share in {format_duration(time.monotonic() - clock)}")
        compiling.program(keys[0])
        stack.pop_all()  # from here on `Updates` ends them

    def run(gradients, state: TrainState, batch) -> tuple[TrainState, dict[str, jax.Array]]:
        return update(state, gradients(state, batch, template.of_run))

    return Updates(phases, run)


def _in_order_of_need(config: ConfigDict, task: Task, plan: BatchPlan, start: int) -> list[_Key]:
    """All draws and buckets: the largest, which tells whether all fit, and the others as the next updates have them."""
    keys = [(drawn, bucket) for bucket in sorted(plan.buckets, reverse=True) for drawn in task.draws]

    def macs(key: _Key) -> int:
        drawn, bucket = key
        return count_shared_macs(task.model.backbone, (drawn.setting, *drawn.others), bucket)

    largest = max(keys, key=macs)
    steps = range(start, min(start + _LOOK_AHEAD * len(keys), config.num_steps))
    needed = [(draw(task.draws, config.seed, step), plan[step].bucket) for step in steps]
    return list(dict.fromkeys([largest, *needed, *keys]))


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
