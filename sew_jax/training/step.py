"""Pure training steps: (state, batch, setting) -> (state, metrics).

A task gives a micro-batch's loss as sums; the step accumulates sums, weights and gradients over micro-batches and
divides once, so accumulation is exact. (BatchNorm heads and the diversity term see one micro-batch at a time.)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sew_jax.compression import Draw
from sew_jax.errors import UserError
from sew_jax.models.ctc import CTCModel
from sew_jax.models.frontend import frame_count
from sew_jax.models.lengths import mask_from_lengths
from sew_jax.models.masking import mask_slots, masked_frames, negative_indices, span_mask
from sew_jax.models.pretrain import PretrainModel
from sew_jax.training import losses
from sew_jax.training.losses import Term
from sew_jax.training.optimizer import applied_updates, gumbel_temperature
from sew_jax.training.state import TrainState

# (params, batch_stats, micro-batch, key, step, draw) -> (loss as a Term, (metrics as Terms, batch_stats))
MicroLoss = Callable[..., tuple[Term, tuple[dict[str, Term], Any]]]
LOG2E = 1.4426950408889634  # nats to bits, as fairseq logs losses


@dataclasses.dataclass(frozen=True)
class SpanMask:
    """Spans as fairseq counts them: `prob` is spans a frame times `span`."""

    prob: float
    span: int
    min_spans: int


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Gumbel temperature over training; see `optim.gumbel_temperature`."""

    start: float
    end: float
    anneal: float


@dataclasses.dataclass(frozen=True)
class Sandwich:
    """How the settings beside the largest count, where an update computes several.

    weight: of each one's own loss, to 1 of the largest's; distill: of its divergence from the largest's distribution.
    """

    weight: float = 0.0
    distill: float = 0.0

    def __post_init__(self):
        for field in ("weight", "distill"):
            if getattr(self, field) < 0:
                raise UserError(f"sandwich.{field}: {getattr(self, field)} must be at least 0")


def pretrain_micro_loss(
    model: PretrainModel, mask: SpanMask, temperature: Temperature, num_steps: int, sandwich: Sandwich = Sandwich()
) -> MicroLoss:
    """Contrastive + diversity + feature penalty; the weight is the number of masked frames.

    Settings beside the largest are trained on its masks, negatives and targets, which follow the largest alone.
    """
    head = model.head
    learned_frontend = model.backbone.frontend != "logmel"  # a fixed one has nothing to penalise

    def micro_loss(params, batch_stats, batch, key, step, draw: Draw):
        mask_key, negative_key, *model_keys = jax.random.split(key, 5)
        frames = frame_count(model.backbone, batch["wave"].shape[1])
        masked = masked_frames(
            mask_key, frame_count(model.backbone, batch["length"]), frames,
            slots=mask_slots(frames, prob=mask.prob, span=mask.span), **dataclasses.asdict(mask),
        )  # fmt: skip
        tau = gumbel_temperature(step / num_steps, temperature.start, temperature.end, temperature.anneal)
        out, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, batch["wave"], batch["length"], masked, draw.setting, tau,
            deterministic=False, others=draw.others, mutable=["batch_stats"],
            rngs=dict(zip(("dropout", "gumbel", "layerdrop"), model_keys, strict=True)),
        )  # fmt: skip

        quantized, valid_BxM = out.quantized, masked.valid_BxM
        negative_BxMxN = negative_indices(negative_key, valid_BxM, head.negatives)

        def logits(prediction_BxMxF, target_BxMxF):
            return losses.contrastive_logits(
                prediction_BxMxF, target_BxMxF, quantized.codes_BxMxG, negative_BxMxN, head.logit_temperature
            )

        largest_BxMxC = logits(out.prediction_BxMxF, out.target_BxMxF)
        contrastive, accuracy = losses.contrastive(largest_BxMxC, valid_BxM)
        weight = contrastive.weight
        diversity = losses.diversity(quantized.probs_BxMxGxV, valid_BxM, weight)
        penalty = Term(out.penalty * weight * learned_frontend, weight)
        total = contrastive.sum + head.diversity_weight * diversity.sum + head.penalty_weight * penalty.sum
        target_BxMxF = jax.lax.stop_gradient(out.target_BxMxF)
        others = [logits(prediction_BxMxF, target_BxMxF) for prediction_BxMxF in out.others_BxMxF]
        beside, metrics = _beside(
            sandwich,
            [losses.contrastive(logits_BxMxC, valid_BxM)[0] for logits_BxMxC in others],
            [losses.contrastive_distillation(largest_BxMxC, logits_BxMxC, valid_BxM) for logits_BxMxC in others],
        )

        probs_GxV = losses.mean_probabilities(quantized.probs_BxMxGxV, valid_BxM)
        hard_GxV = losses.mean_probabilities(jax.nn.one_hot(quantized.best_BxMxG, head.codes), valid_BxM)
        valid_frames = frame_count(model.backbone, batch["length"]).sum().astype(jnp.float32)
        metrics |= {
            "loss": Term(total * LOG2E, weight),
            "loss_contrastive": Term(contrastive.sum * LOG2E, weight),
            "loss_diversity": Term(head.diversity_weight * diversity.sum * LOG2E, weight),
            "loss_penalty": Term(head.penalty_weight * penalty.sum * LOG2E, weight),
            "accuracy": accuracy,
            "code_perplexity": Term(losses.perplexity(hard_GxV) * weight, weight),
            "prob_perplexity": Term(losses.perplexity(probs_GxV) * weight, weight),
            "temperature": Term(tau * weight, weight),
            "masked_frac": Term(valid_BxM.sum().astype(jnp.float32), valid_frames),
        }
        return Term(total + beside, weight), (metrics, updated.get("batch_stats", {}))

    return micro_loss


def ctc_micro_loss(
    model: CTCModel, time_mask: SpanMask, channel_mask: SpanMask, sandwich: Sandwich = Sandwich()
) -> MicroLoss:
    """CTC under time and channel masks (SpecAugment as wav2vec 2.0 uses it); the weight is the number of utterances."""

    def micro_loss(params, batch_stats, batch, key, step, draw: Draw):
        del step
        time_key, channel_key, *model_keys = jax.random.split(key, 4)
        rows, samples = batch["wave"].shape
        frames, width, blank = frame_count(model.backbone, samples), model.backbone.width, model.head.blank
        time_BxT = channel_BxD = None
        if time_mask.prob > 0:
            lengths = frame_count(model.backbone, batch["length"])
            time_BxT = span_mask(time_key, lengths, frames, **dataclasses.asdict(time_mask))
        if channel_mask.prob > 0:
            widths = jnp.full((rows,), width)
            channel_BxD = span_mask(channel_key, widths, width, **dataclasses.asdict(channel_mask))
        (logits, *others), length_B = model.apply(
            {"params": params},
            batch["wave"],
            batch["length"],
            (draw.setting, *draw.others),
            deterministic=False,
            time_mask_BxT=time_BxT,
            channel_mask_BxD=channel_BxD,
            rngs=dict(zip(("dropout", "layerdrop"), model_keys, strict=True)),
            method=CTCModel.at_settings,
        )
        weight_B = batch["length"] > 0

        def ctc(logits_BxTxV):
            return losses.ctc(logits_BxTxV, length_B, batch["labels"], batch["label_length"], weight_B, blank)

        loss, impossible = ctc(logits)
        beside, metrics = _beside(
            sandwich,
            [ctc(other)[0] for other in others],
            [losses.ctc_distillation(logits, other, length_B, weight_B) for other in others],
        )
        valid_BxT = mask_from_lengths(length_B, frames)
        blanks = ((logits.argmax(-1) == blank) & valid_BxT).sum().astype(jnp.float32)
        metrics |= {
            "loss": Term(loss.sum * LOG2E, loss.weight),
            "ctc_invalid_frac": impossible,
            "blank_frac": Term(blanks, valid_BxT.sum().astype(jnp.float32)),
        }
        return Term(loss.sum + beside, loss.weight), (metrics, batch_stats)

    return micro_loss


def _beside(sandwich: Sandwich, own: list[Term], distilled: list[Term]) -> tuple[jax.Array | float, dict[str, Term]]:
    """What settings beside the largest add to the loss's sum, and their means as metrics; nothing where there are none."""
    if not own:
        return 0.0, {}
    own_sum, distilled_sum = (sum(term.sum for term in terms) for terms in (own, distilled))
    weight = len(own) * own[0].weight
    metrics = {
        "loss_others": Term(own_sum * LOG2E, weight),
        "loss_distill": Term(distilled_sum * LOG2E, weight),
    }
    return sandwich.weight * own_sum + sandwich.distill * distilled_sum, metrics


def make_step(
    micro_loss: MicroLoss, optimizer: optax.GradientTransformation, schedule: optax.Schedule, accumulate: int
):
    """The training step (state, batch, key of the run, draw); `accumulate` micro-batches of equal size make one update.

    The key is an argument, so that runs that differ in their seed alone share their programs.
    Row r belongs to micro-batch r % accumulate, so that each host's contiguous rows hold its share of every micro-batch. An update whose loss or gradient is not finite
    changes nothing but the count of updates; its metric `skipped` is 1.
    """

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array, compression: Draw):
        key = jax.random.fold_in(key, state.step)

        def gradients(batch_stats, micro, index):
            def loss(params):
                term, aux = micro_loss(
                    params, batch_stats, micro, jax.random.fold_in(key, index), state.step, compression
                )
                return term.sum, (term.weight, *aux)

            grads, (weight, metrics, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
            return (grads, weight, metrics), batch_stats

        if accumulate == 1:
            (grads, weight, metrics), batch_stats = gradients(state.batch_stats, batch, 0)
        else:
            micros = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)
            first = jax.tree.map(lambda x: x[0], micros)
            shapes, _ = jax.eval_shape(gradients, state.batch_stats, first, 0)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            def body(carry, inputs):
                total, batch_stats = carry
                new, batch_stats = gradients(batch_stats, *inputs)
                return (jax.tree.map(jnp.add, total, new), batch_stats), None

            carry = (zeros, state.batch_stats)
            ((grads, weight, metrics), batch_stats), _ = jax.lax.scan(body, carry, (micros, jnp.arange(accumulate)))

        grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1.0), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        scalars = {name: term.mean for name, term in metrics.items()}
        scalars |= {
            "weight": weight,
            "lr": schedule(applied_updates(state.opt_state)),
            "grad_norm": optax.tree.norm(grads),
        }
        finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(scalars["grad_norm"])
        scalars["skipped"] = 1.0 - finite
        updated = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            batch_stats=batch_stats,
        )
        kept = state.replace(step=state.step + 1)
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, kept), scalars

    return step
