"""A teacher: a copy of a part of the parameters that follows them slowly, as an exponential moving average."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sew_jax.models.data2vec import TEACHER, teacher_part


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Its decay goes in a line from `start` to `end` over the first `anneal` updates (fairseq `get_annealed_rate`)."""

    start: float
    end: float
    anneal: float

    def decay(self, updates: jax.Array | int) -> jax.Array:
        """How much of the teacher stays at the update that is the `updates`-th applied one, counted from 1."""
        return self.end - (self.end - self.start) * jnp.maximum(1 - updates / max(self.anneal, 1), 0.0)

    def follow(self, batch_stats: dict[str, Any], params: Any, updates: jax.Array | int) -> dict[str, Any]:
        """Running averages with the teacher after an update that left `params`."""
        decay = self.decay(updates)
        slow = jax.tree.map(lambda t, p: decay * t + (1 - decay) * p, batch_stats[TEACHER], teacher_part(params))
        return batch_stats | {TEACHER: slow}

    def begin(self, batch_stats: dict[str, Any], params: Any) -> dict[str, Any]:
        """Running averages with a teacher that is its student."""
        return batch_stats | {TEACHER: teacher_part(params)}
