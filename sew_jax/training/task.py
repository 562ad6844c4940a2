"""What is trained, as a value that the loop runs without knowing which task it is; and what both tasks share.

B utterances, T frames.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Sharding
from ml_collections import ConfigDict

from sew_jax.checkpoints.pretrained import Pretrained
from sew_jax.compression import Compression, Draw, sandwich_draws, uniform_draws
from sew_jax.console import listed, say
from sew_jax.data.labels import Labels
from sew_jax.data.problems import Problem
from sew_jax.data.sources import Source, open_source
from sew_jax.data.transcripts import Transcripts
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.models.classifier import ClassifierModel
from sew_jax.models.config import BackboneConfig
from sew_jax.models.cost import typical_macs
from sew_jax.models.ctc import CTCModel
from sew_jax.models.data2vec import Data2VecModel
from sew_jax.models.features import FeatureModel
from sew_jax.models.frame_classifier import FrameClassifierModel
from sew_jax.models.frontend import frame_count
from sew_jax.models.masking import MaskedFrames, mask_slots, masked_frames
from sew_jax.models.parameters import merge_params
from sew_jax.models.pretrain import PretrainModel
from sew_jax.rates import SAMPLE_RATE
from sew_jax.training import optimizer as optim
from sew_jax.training.losses import LOG2E, Term
from sew_jax.training.teacher import Teacher
from sew_jax.training.watchdog import Watchdog

Params = Any  # a tree of arrays
WarmStart = Callable[[Params, Sharding], Params]


class MicroLoss(Protocol):
    """A task's loss of one micro-batch, with dropout and all noise drawn from `key`: a pure function."""

    def __call__(
        self,
        params: Params,
        batch_stats: Any,
        batch: dict[str, jax.Array],
        key: jax.Array,
        progress: jax.Array | float,
        draw: Draw,
    ) -> tuple[Term, tuple[dict[str, Term], Any]]:
        """The loss in nats, as a sum and what divides it, with its metrics.

        Args:
          batch_stats: running averages: statistics of BatchNorm heads, a teacher's parameters; empty without.
          batch: `wave` (B, samples) and `length` (B,); `labels` (B, U) and `label_length` (B,) where there are
            transcripts, -1 where a row has none. Rows of length 0 are filler. `crop` (B,) numbers what the rows
            hold, by which noise is drawn.
          progress: the part of the run's updates that is done.
          draw: the settings to compute; a static argument.

        Returns:
          (loss, (metrics by name, new batch_stats)).
        """
        ...


class Task(NamedTuple):
    """All that training takes of a task.

    Attributes:
      table: settings of the run.
      draws: what an update may compute.
      problems: utterances that were left out.
      samples: (utterances,) what a batch takes of each.
      crops: (utterances,) how many times so much an epoch takes of each.
      vocabulary: of transcripts, or the labels that utterances or frames may have; None in pre-training.
      transcripts: as the vocabulary spells them; None in pre-training.
      architecture: the model, as JSON; with it another run builds it again.
      init: key -> variables.
      warm_start: (fresh parameters, placement of what is read) -> parameters.
      schedule: learning rate by the number of updates.
      frozen_until: the number of updates before which a parameter does not move, by its path; None: all move at once.
      origin: what the run starts from, as JSON; None: from nothing.
      teacher: what the model learns from beside its data; None: nothing.
    """

    table: list[Compression]
    draws: list[Draw]
    source: Source
    problems: list[Problem]
    samples: np.ndarray
    crops: np.ndarray
    vocabulary: Vocabulary | Labels | None
    transcripts: Transcripts | None
    model: PretrainModel | Data2VecModel | FeatureModel | CTCModel | ClassifierModel | FrameClassifierModel
    architecture: dict[str, Any]
    init: Callable[[jax.Array], dict[str, Any]]
    warm_start: WarmStart
    micro_loss: MicroLoss
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    watchdog: Watchdog
    frozen_until: Callable[[str], float] | None = None
    origin: dict[str, Any] | None = None
    teacher: Teacher | None = None


class Learning(NamedTuple):
    """What an update of pre-training computes, whatever the data; see `Task`."""

    model: PretrainModel | Data2VecModel | FeatureModel
    micro_loss: MicroLoss
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    watchdog: Watchdog
    teacher: Teacher | None = None
    frozen_until: Callable[[str], float] | None = None


@dataclasses.dataclass(frozen=True)
class SpanMask:
    """Spans as fairseq counts them: `prob` is spans a frame times `span`."""

    prob: float
    span: int
    min_spans: int

    def draw(self, backbone: BackboneConfig, key_B: jax.Array, batch: Mapping[str, jax.Array]) -> MaskedFrames:
        """Masks of a batch's utterances."""
        frames, length_B = (frame_count(backbone, n) for n in (batch["wave"].shape[1], batch["length"]))
        slots = mask_slots(frames, prob=self.prob, span=self.span)
        return masked_frames(key_B, length_B, frames, slots=slots, **dataclasses.asdict(self))


class Masks(NamedTuple):
    """Over time, and over channels."""

    time: SpanMask
    channel: SpanMask


@dataclasses.dataclass(frozen=True)
class Sandwich:
    """How the settings beside the largest count, where an update computes several.

    weight: of each one's own loss, to 1 of the largest's; distill: of its divergence from the largest's distribution.
    """

    weight: float = 0.0
    distill: float = 0.0

    def loss_beside(
        self, own: Sequence[Term], distilled: Sequence[Term] = (), unit: float = LOG2E
    ) -> tuple[jax.Array | float, dict[str, Term]]:
        """What the other settings add to the loss's sum, and their means as metrics; nothing where there are none.

        Args:
          unit: what a metric is of its loss: bits, or 1.
        """
        if not own:
            return 0.0, {}
        weight = len(own) * own[0].weight
        own_sum: Any = sum(term.sum for term in own)
        added, metrics = self.weight * own_sum, {"loss_others": Term(own_sum * unit, weight)}
        if distilled:
            distilled_sum: Any = sum(term.sum for term in distilled)
            added += self.distill * distilled_sum
            metrics["loss_distill"] = Term(distilled_sum * unit, weight)
        return added, metrics


LARGEST_ALONE = Sandwich()


def draws_of(config: ConfigDict, table: list[Compression], backbone: BackboneConfig) -> list[Draw]:
    """What an update may compute: one setting, or several where `sandwich` is on.

    Raises:
      UserError: the model cannot compute a setting of the table.
    """
    for setting in table:
        backbone.check_setting(setting)
    if not config.sandwich.enabled:
        return uniform_draws(table)
    return sandwich_draws(table, functools.partial(typical_macs, backbone))


def largest_trained(pretrained: Pretrained) -> Compression:
    """Of the settings that a pre-trained model was trained at."""
    return max(pretrained.trained, key=functools.partial(typical_macs, pretrained.backbone))


def fields_of_table(table: Sequence[Compression]) -> dict[str, Any]:
    """Fields of a `BackboneConfig` that follow from the settings that a model is trained at."""
    return {
        "upsample_factors": tuple(sorted({setting.squeeze for setting in table if setting.squeeze > 1})),
        "compressor": any(setting.rate < 1 for setting in table),
        "merge_bias": not any(setting.merges for setting in table),
    }


def open_audio(
    config: ConfigDict, *, min_samples: int, need_text: bool, target: str = "text"
) -> tuple[Source, list[Problem]]:
    """The source that a run's config names, and what of it is left out.

    Raises:
      UserError: there is none, or too much of it is damaged.
    """
    return open_source(
        config.data,
        config.split,
        min_samples=min_samples,
        max_samples=round(config.input.max_seconds * SAMPLE_RATE),
        need_text=need_text,
        max_bad=config.input.max_bad,
        target=target,
    )


def longest_samples(source: Source, speed: float) -> np.ndarray:
    """(utterances,) lengths at the slowest pace that `input.speed` may draw."""
    return np.ceil(source.samples / (1 - speed)).astype(np.int64)


def count_crops(source: Source, crop_samples: int, speed: float) -> np.ndarray:
    """(utterances,) crops that have room side by side in each, at least one, whatever pace `input.speed` draws."""
    return np.maximum(source.samples // math.ceil(crop_samples * (1 + speed)), 1)


def adam(
    schedule: optax.Schedule,
    options: ConfigDict,
    frozen_until: Callable[[str], float] | None = None,
    lr_scale: Callable[[str], float] | None = None,
    decay_vectors: bool = True,
) -> optax.GradientTransformation:
    """The optimiser that the config's `optim` describes; see `optimizer.adam`."""
    return optim.adam(
        schedule,
        eps=options.eps,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
        frozen_until=frozen_until,
        lr_scale=lr_scale,
        decay_vectors=decay_vectors,
    )


def warm_start_from(pretrained: Pretrained | None, leave: str = "") -> WarmStart:
    """Fresh parameters replaced by those of a pre-trained model, but for the part named `leave`; none without one."""

    def warm_start(fresh: Params, sharding: Sharding) -> Params:
        if not pretrained:
            return fresh
        state, saved = pretrained.load(sharding)
        left = [leave] if saved.pop(leave, None) else []
        params, new, unused = merge_params(fresh, saved, pretrained.name)
        others = [*_modules(left + unused), *pretrained.left_behind]
        say(
            f"parameters from {pretrained.name}, {state}" + listed("new", _modules(new)) + listed("left behind", others)
        )
        return params

    return warm_start


def _modules(names: list[str]) -> list[str]:
    """Modules of parameters; a parameter of the backbone's own is named itself."""
    return [re.sub(r"^backbone/(encoder/)?|/[^/]*$", "", name) for name in names]
