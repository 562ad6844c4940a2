"""A teacher: a copy of a part of the parameters, which stays what it was or follows them slowly."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from sew_jax.compression import Compression
from sew_jax.models.parameters import cast_ahead

TEACHER = "teacher"  # its parameters, among the running averages of a training state
_SHARED = "frontend"  # the extractor, which a run from trained parameters never moves


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What a model learns from beside its data.

    Attributes:
      part: parameters of the model -> what of them the teacher has a copy of.
      setting: at which it is computed, whatever the model's.
      decay: of an exponential moving average: number of applied updates, from 1 -> how much of it stays. None: it stays
        what it was before the first update.
    """

    part: Callable[[Any], Any]
    setting: Compression
    decay: Callable[[jax.Array | int], jax.Array] | None = None

    def begin(self, batch_stats: dict[str, Any], params: Any) -> dict[str, Any]:
        """Running averages with a teacher that is its student."""
        return batch_stats | {TEACHER: self.part(params)}

    def follow(self, batch_stats: dict[str, Any], params: Any, decay: jax.Array) -> dict[str, Any]:
        """Running averages with the teacher after an update that left `params`."""
        part = self.part(params)
        slow = jax.tree.map(lambda t, p: decay * t + (1 - decay) * p, batch_stats[TEACHER], part)
        return batch_stats | {TEACHER: slow}


def but_teacher(batch_stats: dict[str, Any]) -> dict[str, Any]:
    """The other running averages."""
    return {name: x for name, x in batch_stats.items() if name != TEACHER}


def original(dtype: str, setting: Compression) -> Teacher:
    """The model as it was before the first update, at a setting.

    Its extractor is the run's own, so that XLA computes it once for both.
    """

    def part(params: Any) -> Any:
        backbone = {name: x for name, x in params["backbone"].items() if name != _SHARED}
        return cast_ahead(params | {"backbone": backbone}, dtype)

    return Teacher(part, setting)


def original_params(batch_stats: dict[str, Any], params: Any) -> Any:
    """All parameters of a teacher that `original` makes, without gradient."""
    kept = batch_stats[TEACHER]
    shared = {name: x for name, x in params["backbone"].items() if name == _SHARED}
    return jax.lax.stop_gradient(kept | {"backbone": kept["backbone"] | shared})
