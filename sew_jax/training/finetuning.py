"""CTC fine-tuning: the loss under time and channel masks, and what of a pre-trained model is frozen, and until when.

B utterances, T frames, D width, V symbols.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sew_jax.checkpoints.pretrained import Pretrained, open_origin
from sew_jax.compression import Compression, Draw, settings_table
from sew_jax.data.sources import Source
from sew_jax.data.transcripts import Transcripts, choose_symbols, impossible_pairs, spell_transcripts
from sew_jax.data.vocabulary import Vocabulary, open_vocabulary
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, CTCHeadConfig
from sew_jax.models.cost import count_macs, typical_macs
from sew_jax.models.ctc import CTCModel
from sew_jax.models.frontend import frame_count
from sew_jax.models.lengths import mask_from_lengths
from sew_jax.models.masking import span_mask
from sew_jax.models.noise import row_keys
from sew_jax.models.parameters import cast_ahead, merge_params
from sew_jax.rates import SAMPLE_RATE
from sew_jax.training import losses
from sew_jax.training import optimizer as optim
from sew_jax.training.losses import LOG2E, Term
from sew_jax.training.task import (
    LARGEST_ALONE,
    MicroLoss,
    Original,
    Params,
    Sandwich,
    SpanMask,
    Task,
    adam,
    draws_of,
    fields_of_table,
    longest_samples,
    open_audio,
    warm_start_from,
)
from sew_jax.training.watchdog import Watchdog


def open_finetuning(config: ConfigDict, earlier: dict[str, Any] | None = None) -> Task:
    """The task of a config of mode `finetune`; `earlier` is the record of the run that goes on.

    Raises:
      UserError: something in the config, the data or `init_from` does not fit.
    """
    pretrained = open_origin(config.init_from, earlier)
    if isinstance(pretrained.head, CTCHeadConfig) and pretrained.no_text and not config.vocabulary:
        raise UserError(
            f"vocabulary: that of {pretrained.name} cannot be used ({pretrained.no_text}); name another one, "
            "as with --config.vocabulary=auto"
        )
    table = settings_table(**config.compression)
    scratch = config.from_scratch
    backbone = dataclasses.replace(
        pretrained.backbone,
        **config.model,
        **fields_of_table(table),
        dtype=config.dtype,
        remat=config.remat,
        feature_grad_scale=1.0 if scratch else 0.0,  # a pre-trained extractor stays as it is
    )
    draws = draws_of(config, table, backbone)
    min_samples = round(config.input.min_seconds * SAMPLE_RATE)
    source, problems = open_audio(config, min_samples=min_samples, need_text=not config.teacher.weight)
    vocabulary, transcripts = _spelt(config, pretrained, backbone, source)
    head = CTCHeadConfig(symbols=len(vocabulary), dropout=config.head.dropout, blank=vocabulary.blank)
    model = CTCModel(backbone, head)
    options, mask = config.optim, config.mask
    schedule = optim.tri_stage(
        options.lr, config.num_steps, options.warmup, options.hold, options.initial, options.final
    )
    freezing = _freezing(config, model, pretrained)
    same_head = _is_spelt_alike(vocabulary, pretrained.vocabulary)
    if config.teacher.weight and not same_head:
        has = "other symbols than vocabulary" if pretrained.vocabulary else "no symbols"
        raise UserError(
            f"teacher.weight: {pretrained.name} has {has}, and its own are what is learnt; leave vocabulary empty and "
            "name a model that writes text, or set --config.teacher.weight=0"
        )

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
        architecture={"backbone": dataclasses.asdict(backbone), "head": dataclasses.asdict(head)},
        init=model.initialize,
        warm_start=warm_start_from(None if scratch else pretrained, leave="" if same_head else "symbols"),
        micro_loss=ctc_micro_loss(
            model,
            SpanMask(mask.time_prob, mask.time_span, min_spans=2),
            SpanMask(mask.channel_prob, mask.channel_span, min_spans=0),
            Sandwich(config.sandwich.weight, config.sandwich.distill),
            config.teacher.weight,
        ),
        optimizer=adam(schedule, options, freezing.frozen_until, freezing.lr_scale),
        schedule=schedule,
        watchdog=Watchdog(),
        frozen_until=freezing.frozen_until,
        origin=pretrained.recorded(),
        original=original_at(model, _largest(pretrained)) if config.teacher.weight else None,
    )


def _largest(pretrained: Pretrained) -> Compression:
    """Of the settings that it was trained at."""
    return max(pretrained.trained, key=functools.partial(typical_macs, pretrained.backbone))


def original_at(model: CTCModel, setting: Compression) -> Original:
    """The model's symbols at a setting before the first update, without masks and noise: logits (B, T, V).

    Its extractor is the run's own, which never moves, so that XLA computes it once for both.
    """

    def keep(params: Params) -> Params:
        backbone = {name: part for name, part in params["backbone"].items() if name != "frontend"}
        return cast_ahead(params | {"backbone": backbone}, model.backbone.dtype)

    def says(kept: Params, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        backbone = {name: part for name, part in params["backbone"].items() if name == "frontend"}
        whole = kept | {"backbone": kept["backbone"] | backbone}
        logits_BxTxV, _ = model.apply({"params": whole}, batch["wave"], batch["length"], setting, deterministic=True)
        return logits_BxTxV

    def macs(samples: int) -> int:
        cost = count_macs(model.backbone, setting, samples)
        return cost.feature_projection + cost.encoder

    return Original(macs, keep, says)


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
        vocabulary = open_vocabulary(name or "letters", (), normalizer)
    transcripts = spell_transcripts(vocabulary, source)
    notes = [transcripts.notes[0], *notes, *transcripts.notes[1:]]
    # every setting gives as many frames, since its output is brought back to the rate of the front end
    for pace, at in ((1.0, "at every setting"), (1 + config.input.speed, "where input.speed plays it fastest")):
        frames_U = np.asarray(frame_count(backbone, (source.samples / pace).astype(np.int64)))
        if found := impossible_pairs(transcripts, frames_U, source, at):
            notes += found
            break
    return vocabulary, transcripts._replace(notes=notes)


def _is_spelt_alike(one: Vocabulary, other: Vocabulary | None) -> bool:
    """Whether the same head writes both."""
    return other is not None and one == other.with_normalizer(one.normalizer)


class Freezing(NamedTuple):
    """From a parameter's path: the update at which it starts to move, and its share of the rate (None: all of it)."""

    frozen_until: Callable[[str], float]
    lr_scale: Callable[[str], float] | None


def _freezing(config: ConfigDict, model: CTCModel, pretrained: Pretrained) -> Freezing:
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
        return path in new or path.startswith("symbols/")

    def frozen_until(path: str) -> float:
        if is_new(path):
            return 0
        return math.inf if path.startswith("backbone/frontend/") else start

    def lr_scale(path: str) -> float:
        return 1.0 if is_new(path) else scale

    return Freezing(frozen_until, None if scale == 1 else lr_scale)


def ctc_micro_loss(
    model: CTCModel,
    time_mask: SpanMask,
    channel_mask: SpanMask,
    sandwich: Sandwich = LARGEST_ALONE,
    teacher_weight: float = 0.0,
) -> MicroLoss:
    """CTC under time and channel masks (SpecAugment as wav2vec 2.0 uses it); the weight is the number of utterances.

    With a `teacher_weight`, so many times the divergence from what the original says, which counts for
    utterances without a transcript, too.
    """

    def micro_loss(params, batch_stats, batch, key, progress, draw: Draw):
        del progress
        time_key, channel_key, *model_keys = jax.random.split(key, 4)
        rows, samples = batch["wave"].shape
        frames, width, blank = frame_count(model.backbone, samples), model.backbone.width, model.head.blank
        time_BxT = channel_BxD = None
        if time_mask.prob > 0:
            lengths = frame_count(model.backbone, batch["length"])
            time_BxT = span_mask(row_keys(time_key, batch["crop"]), lengths, frames, **dataclasses.asdict(time_mask))
        if channel_mask.prob > 0:
            widths = jnp.full((rows,), width)
            channel_keys = row_keys(channel_key, batch["crop"])
            channel_BxD = span_mask(channel_keys, widths, width, **dataclasses.asdict(channel_mask))
        outputs: Any = model.apply(
            {"params": params},
            batch["wave"],
            batch["length"],
            (draw.setting, *draw.others),
            deterministic=False,
            time_mask_BxT=time_BxT,
            channel_mask_BxD=channel_BxD,
            row_B=batch["crop"],
            rngs=dict(zip(("dropout", "layerdrop"), model_keys, strict=True)),
            method=CTCModel.at_settings,
        )
        (logits_BxTxV, *others), length_B = outputs
        weight_B = batch["length"] > 0

        is_spelt_B, label_length_B = batch["label_length"] >= 0, jnp.maximum(batch["label_length"], 0)
        weight = weight_B.sum().astype(jnp.float32)

        def own(logits_BxTxV: jax.Array) -> tuple[Term, dict[str, Term]]:
            spelt_B = weight_B & is_spelt_B
            ctc, impossible = losses.ctc(logits_BxTxV, length_B, batch["labels"], label_length_B, spelt_B, blank)
            if not teacher_weight:
                return ctc, {"ctc_invalid_frac": impossible}
            taught = losses.ctc_distillation(batch["original"], logits_BxTxV, length_B, weight_B)
            terms = {"loss_ctc": ctc, "loss_teacher": taught}
            in_bits = {name: Term(term.sum * LOG2E, term.weight) for name, term in terms.items()}
            return Term(ctc.sum + teacher_weight * taught.sum, weight), {"ctc_invalid_frac": impossible, **in_bits}

        loss, of_loss = own(logits_BxTxV)
        beside, metrics = sandwich.loss_beside(
            [own(other_BxTxV)[0] for other_BxTxV in others],
            [losses.ctc_distillation(logits_BxTxV, other_BxTxV, length_B, weight_B) for other_BxTxV in others],
        )
        valid_BxT = mask_from_lengths(length_B, frames)
        blanks = ((logits_BxTxV.argmax(-1) == blank) & valid_BxT).sum().astype(jnp.float32)
        metrics |= of_loss | {
            "loss": Term(loss.sum * LOG2E, loss.weight),
            "blank_frac": Term(blanks, valid_BxT.sum().astype(jnp.float32)),
        }
        return Term(loss.sum + beside, loss.weight), (metrics, batch_stats)

    return micro_loss
