"""Fine-tuning, to transcripts by CTC or to labels: what is spelt, and what is frozen until when."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from sew_jax.checkpoints.pretrained import Pretrained, open_origin
from sew_jax.compression import settings_table
from sew_jax.data.labels import FrameLabels, Labels, choose_labels, spell_labels
from sew_jax.data.sources import Source
from sew_jax.data.transcripts import Transcripts, choose_symbols, impossible_pairs, spell_transcripts
from sew_jax.data.vocabulary import Vocabulary, open_vocabulary
from sew_jax.errors import UserError
from sew_jax.models.classifier import ClassifierModel
from sew_jax.models.config import BackboneConfig, ClassifierHeadConfig, CTCHeadConfig, FrameHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.frame_classifier import FrameClassifierModel
from sew_jax.models.frontend import frame_count
from sew_jax.models.parameters import merge_params
from sew_jax.rates import SAMPLE_RATE
from sew_jax.training import optimizer as optim
from sew_jax.training.finetune_losses import ctc_micro_loss, label_micro_loss
from sew_jax.training.task import (
    Masks,
    MicroLoss,
    Sandwich,
    SpanMask,
    Task,
    adam,
    draws_of,
    fields_of_table,
    largest_trained,
    longest_samples,
    open_audio,
    warm_start_from,
)
from sew_jax.training.teacher import Teacher, original
from sew_jax.training.watchdog import Watchdog


def open_finetuning(config: ConfigDict, earlier: dict[str, Any] | None = None) -> Task:
    """The task of a config of mode `finetune`; `earlier` is the record of the run that goes on.

    Raises:
      UserError: something in the config, the data or `init_from` does not fit.
    """
    pretrained = open_origin(config.init_from, earlier)
    makes, target = _TASKS[config.task]
    writes = isinstance(pretrained.head, CTCHeadConfig) and target == "text"
    if writes and pretrained.no_text and not config.vocabulary:
        raise UserError(
            f"vocabulary: that of {pretrained.name} cannot be used ({pretrained.no_text}); name another one, "
            "as with --config.vocabulary=auto"
        )
    if target != "text" and config.teacher.weight:
        raise UserError(
            f"teacher.weight: with task={config.task} there is no text to teach; set --config.teacher.weight=0"
        )
    table = settings_table(**config.compression)
    scratch = config.from_scratch
    backbone = dataclasses.replace(
        pretrained.backbone,
        **config.model,
        **fields_of_table(table),
        dtype=config.dtype,
        remat=config.remat,
        loop_layers=config.accumulate == 1,
        feature_grad_scale=1.0 if scratch else 0.0,  # a pre-trained extractor stays as it is
    )
    draws = draws_of(config, table, backbone)
    min_samples = round(config.input.min_seconds * SAMPLE_RATE)
    source, problems = open_audio(config, min_samples=min_samples, need_text=not config.teacher.weight, target=target)
    options, mask = config.optim, config.mask
    masks = Masks(SpanMask(mask.time_prob, mask.time_span, 2), SpanMask(mask.channel_prob, mask.channel_span, 0))
    sandwich = Sandwich(config.sandwich.weight, config.sandwich.distill)
    vocabulary, transcripts, model, micro_loss, teacher = makes(config, pretrained, backbone, source, masks, sandwich)
    schedule = optim.tri_stage(
        options.lr, config.num_steps, options.warmup, options.hold, options.initial, options.final
    )
    freezing = _freezing(config, model, pretrained)

    return Task(
        table=table,
        draws=draws,
        source=source,
        problems=problems,
        samples=longest_samples(source, config.input.speed),
        crops=np.ones(len(source), np.int64),
        vocabulary=vocabulary,
        transcripts=transcripts,
        model=model,
        architecture={"backbone": dataclasses.asdict(backbone), "head": dataclasses.asdict(model.head)},
        init=model.initialize,
        warm_start=warm_start_from(None if scratch else pretrained, leave=_another_head(vocabulary, pretrained)),
        micro_loss=micro_loss,
        optimizer=adam(schedule, options, freezing.frozen_until, freezing.lr_scale),
        schedule=schedule,
        watchdog=Watchdog(),
        frozen_until=freezing.frozen_until,
        origin=pretrained.recorded(),
        teacher=teacher,
    )


class _Made(NamedTuple):
    """What differs between the tasks of fine-tuning."""

    symbols: Vocabulary | Labels
    spelt: Transcripts
    model: CTCModel | ClassifierModel | FrameClassifierModel
    micro_loss: MicroLoss
    teacher: Teacher | None = None


def _writing(
    config: ConfigDict,
    pretrained: Pretrained,
    backbone: BackboneConfig,
    source: Source,
    masks: Masks,
    sandwich: Sandwich,
) -> _Made:
    """CTC on transcripts, and on what the original says.

    Raises:
      UserError: that has other symbols.
    """
    vocabulary, transcripts = _spelt(config, pretrained, backbone, source)
    head = CTCHeadConfig(symbols=len(vocabulary), dropout=config.head.dropout, blank=vocabulary.blank)
    model, weight = CTCModel(backbone, head), config.teacher.weight
    if weight and _another_head(vocabulary, pretrained):
        has = "other symbols than vocabulary" if pretrained.vocabulary else "no symbols"
        raise UserError(
            f"teacher.weight: {pretrained.name} has {has}, and its own are what is learnt; leave vocabulary empty and "
            "name a model that writes text, or set --config.teacher.weight=0"
        )
    teacher = original(backbone.dtype, largest_trained(pretrained)) if weight else None
    return _Made(vocabulary, transcripts, model, ctc_micro_loss(model, masks, sandwich, weight, teacher), teacher)


def _labelling(
    config: ConfigDict,
    pretrained: Pretrained,
    backbone: BackboneConfig,
    source: Source,
    masks: Masks,
    sandwich: Sandwich,
) -> _Made:
    """Cross-entropy on labels, with the head of a classifier that `init_from` may be, in its form."""
    model: ClassifierModel | FrameClassifierModel
    dropout, known = config.head.dropout, pretrained.head
    if config.task == "frames":
        labels, note = choose_labels(source, FrameLabels((), backbone.frame_samples), pretrained.labels)
        of_frames = known if isinstance(known, FrameHeadConfig) else FrameHeadConfig()
        model = FrameClassifierModel(
            backbone, dataclasses.replace(of_frames, frame_labels=len(labels), dropout=dropout)
        )
    else:
        labels, note = choose_labels(source, Labels(()), pretrained.labels)
        of_utterances = known if isinstance(known, ClassifierHeadConfig) else ClassifierHeadConfig()
        model = ClassifierModel(backbone, dataclasses.replace(of_utterances, labels=len(labels), dropout=dropout))
    spelt = spell_labels(labels, longest_samples(source, config.input.speed), note)
    return _Made(labels, spelt, model, label_micro_loss(model, masks, sandwich))


# what makes each task, and what of a manifest it learns
_TASKS = {"ctc": (_writing, "text"), "classify": (_labelling, "label"), "frames": (_labelling, "segments")}


def _spelt(
    config: ConfigDict, pretrained: Pretrained, backbone: BackboneConfig, source: Source
) -> tuple[Vocabulary, Transcripts]:
    """What the config names, else the checkpoint's vocabulary, else letters; and the source's transcripts spelt by it.

    Raises:
      UserError: it lacks characters of the transcripts.
    """
    name, normalizer, notes = config.vocabulary, config.text_normalizer, []
    if not normalizer and pretrained.vocabulary:
        normalizer = pretrained.vocabulary.normalizer
    if name == "auto":
        vocabulary, notes = choose_symbols(source, normalizer)
    elif not name and pretrained.vocabulary:
        vocabulary = pretrained.vocabulary.with_normalizer(normalizer)
    else:
        vocabulary = open_vocabulary(name or "letters", normalizer)
    transcripts = spell_transcripts(vocabulary, source)
    notes = [transcripts.notes[0], *notes, *transcripts.notes[1:]]
    # every setting gives as many frames, since its output is brought back to the rate of the front end
    for pace, at in ((1.0, "at every setting"), (1 + config.input.speed, "where input.speed plays it fastest")):
        frames_U = np.asarray(frame_count(backbone, (source.samples / pace).astype(np.int64)))
        if found := impossible_pairs(transcripts, frames_U, source, at):
            notes += found
            break
    return vocabulary, transcripts._replace(notes=notes)


def _another_head(symbols: Vocabulary | Labels, pretrained: Pretrained) -> str:
    """The layer of what a run starts from that gives other symbols; empty where it gives these."""
    if isinstance(symbols, Labels):
        return "" if symbols == pretrained.labels else "classifier"
    other = pretrained.vocabulary
    return "" if other is not None and symbols == other.with_normalizer(symbols.normalizer) else "symbols"


class Freezing(NamedTuple):
    """From a parameter's path: the update at which it starts to move, and its share of the rate (None: all of it)."""

    frozen_until: Callable[[str], float]
    lr_scale: Callable[[str], float] | None


def _freezing(
    config: ConfigDict, model: CTCModel | ClassifierModel | FrameClassifierModel, pretrained: Pretrained
) -> Freezing:
    """A pre-trained extractor never moves, what else is pre-trained after `optim.freeze`; what is new, at once."""
    if config.from_scratch:
        return Freezing(lambda path: 0, None)
    scale = config.optim.backbone_lr_scale
    start = round(config.optim.freeze * config.num_steps)
    new: set[str] = set()
    if start > 0 or scale != 1:
        shapes = jax.eval_shape(model.initialize, jax.random.key(config.seed))["params"]
        new = set(merge_params(shapes, pretrained.shapes(), pretrained.name)[1])

    def is_new(path: str) -> bool:
        return path in new or not path.startswith("backbone/")

    def frozen_until(path: str) -> float:
        if is_new(path):
            return 0
        return math.inf if path.startswith("backbone/frontend/") else start

    def lr_scale(path: str) -> float:
        return 1.0 if is_new(path) else scale

    return Freezing(frozen_until, None if scale == 1 else lr_scale)
