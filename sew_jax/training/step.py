"""The training step, pure: (state, batch, run, settings) -> (state, metrics), in two halves: gradients and update.

A task gives a micro-batch's loss as sums; the step accumulates sums, weights and gradients over micro-batches and
divides once, so accumulation is exact. (BatchNorm heads and the diversity term see one micro-batch at a time.)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sew_jax.compression import Draw
from sew_jax.models.parameters import path_name
from sew_jax.training.losses import Term
from sew_jax.training.optimizer import PathFunction, applied_updates, moving_alone
from sew_jax.training.task import MicroLoss, Params
from sew_jax.training.teacher import Teacher, but_teacher

Batch = dict[str, jax.Array]  # each array has the rows of a batch first
_Sums = tuple[Params, jax.Array, dict[str, Term]]  # gradients, weight and metrics of micro-batches


class OfRun(NamedTuple):
    """What a run's updates have in common, as arguments of their programs: runs that differ in it share these.

    key: of all that is random; num_steps: updates of the whole run.
    """

    key: jax.Array
    num_steps: jax.Array


class Gradients(NamedTuple):
    """What all micro-batches of an update sum to, and the last one's running statistics, a teacher not among them."""

    grads: Params
    weight: Any
    metrics: Any  # a Term for each; `unread` counts rows of all hosts whose audio could not be read
    batch_stats: Any


@flax.struct.dataclass
class TrainState:
    """What training carries from update to update; nothing random is in it: each draw is made from (seed, step).

    step: updates done; batch_stats: running averages: statistics of BatchNorm heads, a teacher (empty without).
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    batch_stats: Any


def new_state(variables: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        params=variables["params"],
        opt_state=optimizer.init(variables["params"]),
        batch_stats=variables.get("batch_stats", {}),
    )


def make_step(
    micro_loss: MicroLoss,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulate: int,
    teacher: Teacher | None = None,
) -> Callable[[TrainState, Batch, OfRun, Draw], tuple[TrainState, dict[str, jax.Array]]]:
    """The training step (state, batch, run, draw) in one function; its two halves are described below."""
    gradients, update = make_gradients(micro_loss, accumulate), make_update(optimizer, schedule, teacher=teacher)

    def step(state: TrainState, batch: Batch, run: OfRun, compression: Draw) -> tuple[TrainState, dict[str, jax.Array]]:
        return update(state, gradients(state, batch, run, compression))

    return step


def make_gradients(
    micro_loss: MicroLoss,
    accumulate: int,
    frozen: Callable[[str], bool] = lambda path: False,
) -> Callable[[TrainState, Batch, OfRun, Draw], Gradients]:
    """The half of a step that depends on the draw; `accumulate` micro-batches of equal size make one update.

    Row r belongs to micro-batch r % accumulate, so that each device holds its share of every micro-batch. All share one
    key: noise is drawn by what a row holds, and layers are dropped as in one batch. Parameters that are `frozen`, by
    their path, have a gradient of zero, and nothing of a backward pass is computed for them alone.
    """

    def held(path, x: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(x) if frozen(path_name(path)) else x

    def gradients(state: TrainState, batch: Batch, run: OfRun, compression: Draw) -> Gradients:
        key, progress = jax.random.fold_in(run.key, state.step), state.step / run.num_steps

        def of_micro_batch(batch_stats, micro):
            def loss(params):
                params = jax.tree_util.tree_map_with_path(held, params)
                term, aux = micro_loss(params, batch_stats, micro, key, progress, compression)
                return term.sum, (term.weight, *aux)

            grads, (weight, metrics, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
            return (grads, weight, metrics), batch_stats

        if accumulate == 1:
            (grads, weight, metrics), batch_stats = of_micro_batch(state.batch_stats, batch)
        else:
            sums, batch_stats = _accumulated(of_micro_batch, state.batch_stats, batch, accumulate)
            grads, weight, metrics = sums
        unread = ((batch["crop"] >= 0) & (batch["length"] == 0)).sum().astype(jnp.float32)
        metrics = metrics | {"unread": Term(unread, jnp.ones_like(unread))}
        return Gradients(grads, weight, metrics, but_teacher(batch_stats))

    return gradients


def make_update(
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    frozen_until: PathFunction | None = None,
    teacher: Teacher | None = None,
) -> Callable[[TrainState, Gradients], tuple[TrainState, dict[str, jax.Array]]]:
    """The half of a step that is the same for every draw, so that it is compiled once.

    An update whose loss or gradient is not finite, or whose weight is 0 as where none of its audio could be read,
    changes nothing but the count of updates; its metric `skipped` is 1. `frozen_until` is the optimiser's: `grad_norm`
    leaves out what does not move yet. A `teacher` follows the parameters of each update that is applied.
    """

    def update(state: TrainState, sums: Gradients) -> tuple[TrainState, dict[str, jax.Array]]:
        grads = jax.tree.map(lambda g: g / jnp.maximum(sums.weight, 1.0), sums.grads)
        if frozen_until:
            grads = moving_alone(grads, frozen_until, applied_updates(state.opt_state))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        scalars = {name: term.mean for name, term in sums.metrics.items()}
        scalars |= {
            "weight": sums.weight,
            "lr": schedule(applied_updates(state.opt_state)),
            "grad_norm": optax.tree.norm(grads),
        }
        finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(scalars["grad_norm"])
        applied = finite & (sums.weight > 0)
        scalars["skipped"] = 1.0 - applied
        params, batch_stats = optax.apply_updates(state.params, updates), state.batch_stats | sums.batch_stats
        if teacher and teacher.decay:
            scalars["ema_decay"] = teacher.decay(applied_updates(opt_state))
            batch_stats = teacher.follow(batch_stats, params, scalars["ema_decay"])
        updated = TrainState(step=state.step + 1, params=params, opt_state=opt_state, batch_stats=batch_stats)
        kept = dataclasses.replace(state, step=state.step + 1)
        return jax.tree.map(lambda new, old: jnp.where(applied, new, old), updated, kept), scalars

    return update


def _accumulated(
    gradients: Callable[[Any, Batch], tuple[_Sums, Any]], batch_stats: Any, batch: Batch, accumulate: int
) -> tuple[_Sums, Any]:
    """The sums of all micro-batches, one after the other, and the last one's statistics."""
    micros = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)
    first = jax.tree.map(lambda x: x[0], micros)
    shapes, _ = jax.eval_shape(gradients, batch_stats, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(carry, micro):
        total, batch_stats = carry
        new, batch_stats = gradients(batch_stats, micro)
        return (jax.tree.map(jnp.add, total, new), batch_stats), None

    carry, _ = jax.lax.scan(body, (zeros, batch_stats), micros)
    return carry
