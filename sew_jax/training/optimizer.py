"""Schedules of the learning rate, the optimiser, and groups of parameters that start late or learn slower."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sew_jax.models.parameters import path_name

PathFunction = Callable[[str], float]  # from a parameter's path, "a/b/c"


def warmup_linear(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """wav2vec 2.0's pre-training schedule: update n has peak * n / warmup, then a line falls to 0 at `total_steps`."""

    def schedule(count: jax.Array | int) -> jax.Array:
        n = count + 1.0  # optax counts from 0, fairseq from 1
        down = (total_steps - n) / max(total_steps - warmup_steps, 1)
        return peak * jnp.clip(jnp.minimum(n / max(warmup_steps, 1), down), 0.0, 1.0)

    return schedule


def warmup_cosine(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """data2vec 2.0's: update n has peak * n / warmup, then half a cosine falls to 0 at `total_steps`."""

    def schedule(count: jax.Array | int) -> jax.Array:
        n = count + 1.0
        done = jnp.clip((n - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        return peak * jnp.minimum(n / max(warmup_steps, 1), 0.5 * (1 + jnp.cos(jnp.pi * done)))

    return schedule


def tri_stage(
    peak: float, total_steps: int, warmup: float = 0.1, hold: float = 0.4, initial: float = 0.01, final: float = 0.05
) -> optax.Schedule:
    """Fine-tuning schedule (fairseq `tri_stage`): from initial * peak up, hold, exponential fall to final * peak."""
    warmup_steps, hold_steps = warmup * total_steps, hold * total_steps
    decay_steps = max(total_steps - warmup_steps - hold_steps, 1)

    def schedule(count: jax.Array | int) -> jax.Array:
        up = initial + (1 - initial) * jnp.minimum(count / max(warmup_steps, 1), 1.0)
        decay = jnp.clip((count - warmup_steps - hold_steps) / decay_steps, 0.0, 1.0)
        return peak * up * final**decay

    return schedule


def adam(
    schedule: optax.Schedule,
    *,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    frozen_until: PathFunction | None = None,
    lr_scale: PathFunction | None = None,
    b2: float = 0.98,
    decay_vectors: bool = True,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on every parameter (fairseq), and groups that start late or have their own rate.

    Args:
      clip_norm: bound of the global gradient norm; 0 clips nothing.
      frozen_until: the update count at which a parameter starts to move (inf: never); None freezes nothing.
      lr_scale: what the schedule's rate is multiplied by for a parameter; None: by 1.
      decay_vectors: whether parameters of one axis, as biases and gains, decay too.
    """
    decayed = None if decay_vectors else lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    gate = _gate(frozen_until) if frozen_until else optax.identity()
    return optax.chain(
        gate,
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(b1=0.9, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, decayed) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(schedule),
        _scale_groups(lr_scale) if lr_scale else optax.identity(),
        gate,  # again: decay must not move what is frozen
    )


def _gate(frozen_until: PathFunction) -> optax.GradientTransformation:
    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        del params

        return moving_alone(updates, frozen_until, state.count), optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def moving_alone(updates: optax.Updates, frozen_until: PathFunction, count: jax.Array | int) -> optax.Updates:
    """Updates of what moves after `count` of them; zero for what is still frozen."""

    def gated(path, g):
        start = frozen_until(path_name(path))
        return jnp.zeros_like(g) if start == float("inf") else jnp.where(count >= start, g, jnp.zeros_like(g))

    return jax.tree_util.tree_map_with_path(gated, updates)


def _scale_groups(lr_scale: PathFunction) -> optax.GradientTransformation:
    def scale(updates, params=None):
        del params
        return jax.tree_util.tree_map_with_path(lambda path, u: u * lr_scale(path_name(path)), updates)

    return optax.stateless(scale)


def applied_updates(opt_state: optax.OptState) -> jax.Array:
    """How many updates have moved the parameters, skipped ones not counted: what the schedule takes, as in fairseq."""
    return optax.tree.get(opt_state, "ScaleByAdamState").count
