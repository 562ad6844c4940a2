"""Losses of fine-tuning under time and channel masks (SpecAugment as wav2vec 2.0 uses it): CTC, and of labels.

B utterances, T frames, D width, V symbols, C labels.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sew_jax.compression import Draw
from sew_jax.models.classifier import ClassifierModel
from sew_jax.models.ctc import CTCModel
from sew_jax.models.frame_classifier import FrameClassifierModel
from sew_jax.models.frontend import frame_count
from sew_jax.models.lengths import mask_from_lengths
from sew_jax.models.masking import span_mask
from sew_jax.models.noise import row_keys
from sew_jax.training import losses
from sew_jax.training.losses import LOG2E, Term
from sew_jax.training.task import LARGEST_ALONE, Masks, MicroLoss, Sandwich
from sew_jax.training.teacher import Teacher, original_params


def ctc_micro_loss(
    model: CTCModel,
    masks: Masks,
    sandwich: Sandwich = LARGEST_ALONE,
    teacher_weight: float = 0.0,
    teacher: Teacher | None = None,
) -> MicroLoss:
    """CTC; the weight is the number of utterances.

    With a `teacher`, `teacher_weight` times the divergence from its symbols, which counts for utterances without a
    transcript, too; it hears them without masks and noise.
    """

    def micro_loss(params, batch_stats, batch, key, progress, draw: Draw):
        del progress
        (logits_BxTxV, *others), length_B = _outputs(model, masks, params, batch, key, draw)
        blank, weight_B = model.head.blank, batch["length"] > 0
        is_spelt_B, label_length_B = batch["label_length"] >= 0, jnp.maximum(batch["label_length"], 0)
        weight = weight_B.sum().astype(jnp.float32)
        if teacher:
            variables = {"params": original_params(batch_stats, params)}
            said_BxTxV, _ = model.apply(variables, batch["wave"], batch["length"], teacher.setting, deterministic=True)

        def own(logits_BxTxV: jax.Array) -> tuple[Term, dict[str, Term]]:
            spelt_B = weight_B & is_spelt_B
            ctc, impossible = losses.ctc(logits_BxTxV, length_B, batch["labels"], label_length_B, spelt_B, blank)
            if not teacher:
                return ctc, {"ctc_invalid_frac": impossible}
            taught = losses.ctc_distillation(said_BxTxV, logits_BxTxV, length_B, weight_B)
            terms = {"loss_ctc": ctc, "loss_teacher": taught}
            in_bits = {name: Term(term.sum * LOG2E, term.weight) for name, term in terms.items()}
            return Term(ctc.sum + teacher_weight * taught.sum, weight), {"ctc_invalid_frac": impossible, **in_bits}

        loss, of_loss = own(logits_BxTxV)
        beside, metrics = sandwich.loss_beside(
            [own(other_BxTxV)[0] for other_BxTxV in others],
            [losses.ctc_distillation(logits_BxTxV, other_BxTxV, length_B, weight_B) for other_BxTxV in others],
        )
        valid_BxT = mask_from_lengths(length_B, logits_BxTxV.shape[1])
        blanks = ((logits_BxTxV.argmax(-1) == blank) & valid_BxT).sum().astype(jnp.float32)
        metrics |= of_loss | {
            "loss": Term(loss.sum * LOG2E, loss.weight),
            "blank_frac": Term(blanks, valid_BxT.sum().astype(jnp.float32)),
        }
        return Term(loss.sum + beside, loss.weight), (metrics, batch_stats)

    return micro_loss


def label_micro_loss(
    model: ClassifierModel | FrameClassifierModel, masks: Masks, sandwich: Sandwich = LARGEST_ALONE
) -> MicroLoss:
    """Cross-entropy of each label, of which an utterance has one or one a frame; the weight is their number."""

    def micro_loss(params, batch_stats, batch, key, progress, draw: Draw):
        del progress
        (logits_BxTxC, *others), length_B = _outputs(model, masks, params, batch, key, draw)
        told, weight_B = (length_B, batch["labels"], batch["label_length"]), batch["length"] > 0
        loss, right = losses.label_cross_entropy(logits_BxTxC, *told)
        beside, metrics = sandwich.loss_beside(
            [losses.label_cross_entropy(other_BxTxC, *told)[0] for other_BxTxC in others],
            [losses.ctc_distillation(logits_BxTxC, other_BxTxC, length_B, weight_B) for other_BxTxC in others],
        )
        metrics |= {"loss": Term(loss.sum * LOG2E, loss.weight), "accuracy": right}
        return Term(loss.sum + beside, loss.weight), (metrics, batch_stats)

    return micro_loss


def _outputs(
    model: CTCModel | ClassifierModel | FrameClassifierModel, masks: Masks, params, batch, key, draw: Draw
) -> Any:
    """Logits at each setting of a draw, and the frames of each utterance, of masked input."""
    time_key, channel_key, *model_keys = jax.random.split(key, 4)
    rows, samples = batch["wave"].shape
    frames, width = frame_count(model.backbone, samples), model.backbone.width
    time_BxT = channel_BxD = None
    if masks.time.prob > 0:
        lengths = frame_count(model.backbone, batch["length"])
        time_BxT = span_mask(row_keys(time_key, batch["crop"]), lengths, frames, **dataclasses.asdict(masks.time))
    if masks.channel.prob > 0:
        widths = jnp.full((rows,), width)
        channel_keys = row_keys(channel_key, batch["crop"])
        channel_BxD = span_mask(channel_keys, widths, width, **dataclasses.asdict(masks.channel))
    return model.apply(
        {"params": params},
        batch["wave"],
        batch["length"],
        (draw.setting, *draw.others),
        deterministic=False,
        time_mask_BxT=time_BxT,
        channel_mask_BxD=channel_BxD,
        row_B=batch["crop"],
        rngs=dict(zip(("dropout", "layerdrop"), model_keys, strict=True)),
        method=type(model).at_settings,
    )
