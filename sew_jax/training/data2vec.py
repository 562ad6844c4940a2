"""Pre-training by data2vec 2.0: regression of a slow teacher's layers from what is left of an utterance.

Several masks of an utterance share one pass of the front end and one of the teacher.
B utterances, M copies of each, R = B * M rows, T frames, D width.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sew_jax.compression import Compression, Draw, settings_table
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, Data2VecConfig
from sew_jax.models.cost import typical_macs
from sew_jax.models.data2vec import Data2VecModel, Data2VecOutput, targets, teacher_part
from sew_jax.models.kept_frames import KeptFrames, masked_units, unit_of
from sew_jax.models.noise import row_keys
from sew_jax.rates import SAMPLE_RATE
from sew_jax.training import losses
from sew_jax.training import optimizer as optim
from sew_jax.training.losses import Term
from sew_jax.training.task import LARGEST_ALONE, Learning, MicroLoss, Sandwich, adam, draws_of
from sew_jax.training.teacher import TEACHER, Teacher
from sew_jax.training.watchdog import Watchdog

_GUARDED_FROM = 5_000 / 400_000  # of all updates


def data2vec(recipe: ConfigDict, backbone: BackboneConfig, head: Data2VecConfig) -> Learning:
    """Pre-training by data2vec 2.0; targets are those of the table's largest setting.

    Raises:
      UserError: the model has too few layers, drops tails or measures distances, a setting has no masks, or a crop
        has no room for one.
    """
    table, steps, options = settings_table(**recipe.compression), recipe.num_steps, recipe.optim
    _check(recipe, backbone, head, table)
    model = Data2VecModel(backbone, head, max(table, key=functools.partial(typical_macs, backbone)))
    schedule = optim.warmup_cosine(options.lr, options.warmup * steps, options.total * steps)
    return Learning(
        model,
        data2vec_micro_loss(model, Sandwich(recipe.sandwich.weight)),
        adam(schedule, options, decay_vectors=False),
        schedule,
        Watchdog(guarded_from=round(_GUARDED_FROM * steps)),
        Teacher(teacher_part, model.teacher, annealed(head.ema_start, head.ema_end, head.ema_anneal * steps)),
    )


def annealed(start: float, end: float, updates: float) -> Callable[[jax.Array | int], jax.Array]:
    """A decay that goes in a line from `start` to `end` over the first `updates` (fairseq `get_annealed_rate`)."""
    return lambda done: end - (end - start) * jnp.maximum(1 - done / max(updates, 1), 0.0)


def _check(recipe: ConfigDict, backbone: BackboneConfig, head: Data2VecConfig, table: list[Compression]) -> None:
    if head.top_layers > backbone.layers:
        raise UserError(f"data2vec.top_layers: {head.top_layers} is more than model.layers={backbone.layers}")
    if backbone.width % head.decoder_groups:
        raise UserError(
            f"data2vec.decoder_groups: {head.decoder_groups} must divide model.width={backbone.width}; take another"
        )
    if backbone.rel_buckets:
        raise UserError(
            f"model.rel_buckets: {backbone.rel_buckets} asks for distances, and between frames that data2vec2's "
            "student sees are gaps; take 0, or objective=contrastive"
        )
    if backbone.tail == "drop":
        raise UserError("model.tail: data2vec2 learns from each frame; take keep")
    frames = int(recipe.input.crop_seconds * SAMPLE_RATE) // backbone.frame_samples
    for draw in draws_of(recipe, table, backbone):
        unit = unit_of((draw.setting, *draw.others), backbone.layers)
        if not masked_units(frames // unit, head.mask_ratio):
            raise UserError(
                f"input.crop_seconds: {recipe.input.crop_seconds} leaves nothing to mask at {draw}, whose masks are "
                f"drawn in units of {unit} frames; raise it, or data2vec.mask_ratio"
            )


def data2vec_micro_loss(model: Data2VecModel, sandwich: Sandwich = LARGEST_ALONE) -> MicroLoss:
    """Regression of the teacher's targets at masked frames; the weight is their number, all copies together.

    Settings beside the largest see the same frames, and count `weight_beside` each.
    """

    def micro_loss(params, batch_stats, batch, key, progress, draw: Draw):
        del progress
        mask_key, *model_keys = jax.random.split(key, 4)
        settings = (draw.setting, *draw.others)
        kept = model.keep(row_keys(mask_key, batch["crop"]), batch["length"], batch["wave"].shape[1], settings)
        out: Any = model.apply(
            {"params": params},
            batch["wave"],
            batch["length"],
            kept,
            draw.setting,
            deterministic=False,
            others=draw.others,
            row_B=batch["crop"],
            rngs=dict(zip(("dropout", "noise", "layerdrop"), model_keys, strict=True)),
        )
        target_RxTxD = kept.copies(targets(model, batch_stats[TEACHER], out.inputs_BxTxD, out.length_B))
        loss, metrics = _terms(out, target_RxTxD, kept)
        others = [losses.regression(x, target_RxTxD, kept.masked_RxT) for x in out.others_RxTxD]
        beside, of_others = sandwich.loss_beside(others, unit=1.0)
        return Term(loss.sum + beside, loss.weight), (metrics | of_others, batch_stats)

    return micro_loss


def _terms(out: Data2VecOutput, target_RxTxD, kept: KeptFrames) -> tuple[Term, dict[str, Term]]:
    loss = losses.regression(out.prediction_RxTxD, target_RxTxD, kept.masked_RxT)
    frames = kept.copies(out.length_B).sum().astype(jnp.float32)
    return loss, {
        "loss": loss,
        "target_std": Term(losses.deviation(target_RxTxD, kept.masked_RxT) * loss.weight, loss.weight),
        "prediction_std": Term(losses.deviation(out.prediction_RxTxD, kept.masked_RxT) * loss.weight, loss.weight),
        "masked_frac": Term(loss.weight, frames),
    }


def score(model: Data2VecModel, seed: int, variables, batch, compression: Compression) -> dict[str, jax.Array]:
    """The loss without noise, under masks that are the same at each evaluation (a setting's units decide which)."""
    kept = model.keep(
        row_keys(jax.random.key(seed), batch["crop"]), batch["length"], batch["wave"].shape[1], (compression,)
    )
    out: Any = model.apply(
        {"params": variables["params"]}, batch["wave"], batch["length"], kept, compression, deterministic=True
    )
    target_BxTxD = targets(model, variables["batch_stats"][TEACHER], out.inputs_BxTxD, out.length_B)
    _, metrics = _terms(out, kept.copies(target_BxTxD), kept)
    return {name: metrics[name].mean for name in ("loss", "target_std", "prediction_std")}
