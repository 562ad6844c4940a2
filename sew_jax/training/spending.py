"""What updates cost: floating-point operations, counted from the architecture, and energy."""

import functools
from typing import Any

import jax
from ml_collections import ConfigDict

from sew_jax.compression import Draw
from sew_jax.models.config import BackboneConfig, PretrainHeadConfig
from sew_jax.models.cost import (
    count_data2vec_flop,
    count_macs,
    count_pretrain_flop,
    count_shared_macs,
    count_update_flop,
)
from sew_jax.models.data2vec import Data2VecModel
from sew_jax.models.frontend import frame_count
from sew_jax.models.kept_frames import masked_units, unit_of
from sew_jax.models.lengths import pooled_length
from sew_jax.models.masking import mask_slots
from sew_jax.models.pretrain import PretrainModel
from sew_jax.runtime.energy import EnergyMeter
from sew_jax.training.task import Task


def pretrain_flop(
    backbone: BackboneConfig, head: PretrainHeadConfig, drawn: Draw, samples: int, mask: ConfigDict
) -> float:
    """FLOP of an utterance of so many samples in an update of pre-training."""
    masked = mask_slots(frame_count(backbone, samples), prob=mask.prob, span=mask.span)
    return count_pretrain_flop(backbone, head, drawn.setting, samples, masked, drawn.others)


def data2vec_flop(model: Data2VecModel, drawn: Draw, samples: int) -> float:
    """FLOP of an utterance of so many samples in an update of data2vec 2.0."""
    backbone, settings = model.backbone, (drawn.setting, *drawn.others)
    unit = unit_of(settings, backbone.layers)
    units = pooled_length(frame_count(backbone, samples), unit)
    kept = (units - masked_units(units, model.head.mask_ratio)) * unit
    return count_data2vec_flop(backbone, model.head, drawn.setting, samples, kept, model.teacher, drawn.others)


class Spending:
    """FLOP and energy since the last row of metrics, so that the rows of a file add up to all of a run."""

    def __init__(self, config: ConfigDict, task: Task):
        self._config, self._model, self._teacher, self._meter = config, task.model, task.teacher, EnergyMeter()
        self._flop_of = functools.cache(self._count)
        # until then only what is new learns, and nothing goes back through the backbone
        self._learns_after = task.frozen_until("backbone/encoder") if task.frozen_until else 0
        self._tflop, self._joules = 0.0, 0.0

    def add(self, step: int, drawn: Draw, rows: int, samples: int) -> None:
        """Update `step`, counted from 1, of `rows` utterances padded to `samples`, those of all processes together."""
        self._tflop += rows * self._flop_of(drawn, samples, step > self._learns_after) / 1e12
        self._joules += (self._meter.read() or 0.0) * jax.process_count()

    def spent(self) -> dict[str, Any]:
        """For a row: what was spent since the row before; energy also counts evaluation and checkpoints."""
        joules = self._joules if self._meter.source else None
        row = {"tflop": self._tflop, "joules": joules, "energy_by": self._meter.source or None}
        self._tflop, self._joules = 0.0, 0.0
        return row

    def _count(self, drawn: Draw, samples: int, learns: bool) -> float:
        if isinstance(self._model, PretrainModel):
            return pretrain_flop(self._model.backbone, self._model.head, drawn, samples, self._config.mask)
        if isinstance(self._model, Data2VecModel):
            return data2vec_flop(self._model, drawn, samples)
        flop = count_update_flop(self._model.backbone, drawn.setting, samples, drawn.others)
        if not learns:
            flop = 2.0 * count_shared_macs(self._model.backbone, (drawn.setting, *drawn.others), samples)
        if self._teacher:  # a forward pass, but for the extractor, which is the run's own
            cost = count_macs(self._model.backbone, self._teacher.setting, samples)
            flop += 2.0 * (cost.feature_projection + cost.encoder)
        return flop
