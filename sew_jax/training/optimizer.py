"""Schedules, freezing and the optimiser."""

import jax
import jax.numpy as jnp
import optax

from sew_jax.models.parameters import path_name


def warmup_linear(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """wav2vec 2.0's pre-training schedule: update n has peak * n / warmup, then a straight line to 0 at `total_steps`."""

    def schedule(count):
        n = count + 1.0  # optax counts from 0, fairseq from 1
        down = (total_steps - n) / max(total_steps - warmup_steps, 1)
        return peak * jnp.clip(jnp.minimum(n / max(warmup_steps, 1), down), 0.0, 1.0)

    return schedule


def tri_stage(
    peak: float, total_steps: int, warmup: float = 0.1, hold: float = 0.4, initial: float = 0.01, final: float = 0.05
) -> optax.Schedule:
    """Fine-tuning schedule (fairseq `tri_stage`): linear warm-up from initial * peak, hold, exponential fall to final * peak."""
    warmup_steps, hold_steps = warmup * total_steps, hold * total_steps
    decay_steps = max(total_steps - warmup_steps - hold_steps, 1)

    def schedule(count):
        up = initial + (1 - initial) * jnp.minimum(count / max(warmup_steps, 1), 1.0)
        decay = jnp.clip((count - warmup_steps - hold_steps) / decay_steps, 0.0, 1.0)
        return peak * up * final**decay

    return schedule


def gumbel_temperature(progress, start: float, end: float, anneal: float):
    """Temperature at a fraction `progress` of training: geometric from `start` to `end`, reached at the fraction `anneal`.

    With `anneal` above 1 training ends before the temperature is at `end`. fairseq multiplies by 0.999995 an update, so
    that 2.0 falls to 0.5 in 277,258 updates: an `anneal` of 0.693 for base's 400,000, and of 2.773 for SEW's 100,000.
    """
    return start * (end / start) ** jnp.minimum(progress / anneal, 1.0)


def adam(
    schedule: optax.Schedule,
    *,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    frozen_until=None,
    lr_scale=None,
    b2: float = 0.98,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on every parameter (fairseq), and groups that start late or have their own rate.

    Args:
      clip_norm: bound of the global gradient norm; 0 clips nothing.
      frozen_until: function from a parameter's path ("a/b/c") to the update count at which it starts to move (inf: never);
        None freezes nothing.
      lr_scale: function from a parameter's path to what the schedule's rate is multiplied by for it; None: by 1.
    """
    gate = _gate(frozen_until) if frozen_until else optax.identity()
    return optax.chain(
        gate,
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(b1=0.9, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(schedule),
        _scale_groups(lr_scale) if lr_scale else optax.identity(),
        gate,  # again: decay must not move what is frozen
    )


def _gate(frozen_until) -> optax.GradientTransformation:
    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        del params

        def scale(path, g):
            start = frozen_until(path_name(path))
            return jnp.zeros_like(g) if start == float("inf") else g * (state.count >= start)

        updates = jax.tree_util.tree_map_with_path(scale, updates)
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def _scale_groups(lr_scale) -> optax.GradientTransformation:
    def scale(updates, params=None):
        del params
        return jax.tree_util.tree_map_with_path(lambda path, u: u * lr_scale(path_name(path)), updates)

    return optax.stateless(scale)


def applied_updates(opt_state: optax.OptState) -> jax.Array:
    """How many updates have moved the parameters: what the schedule counts, as in fairseq; skipped ones are not in it."""
    return optax.tree.get(opt_state, "ScaleByAdamState").count
