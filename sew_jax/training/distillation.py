"""Pre-training by distillation: a trained encoder's own features, learnt at each setting of a table.

No labels and no masks: both get the same audio. Each layer is compared with the same layer of the encoder as it was
(DPHuBERT, arXiv:2305.17651, whose student has a counterpart of each layer, too, compares some), in units in which each
channel of an utterance counts alike, as data2vec's targets do, so that neither loud layers nor loud channels decide.
B utterances, T frames, D width.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sew_jax.compression import Compression, Draw
from sew_jax.models.config import BackboneConfig
from sew_jax.models.features import FeatureModel, layers_at_frames
from sew_jax.models.lengths import mask_from_lengths
from sew_jax.training import losses
from sew_jax.training import optimizer as optim
from sew_jax.training.losses import Term
from sew_jax.training.task import LARGEST_ALONE, Learning, MicroLoss, Sandwich, adam
from sew_jax.training.teacher import Teacher, original, original_params
from sew_jax.training.watchdog import Watchdog


def distillation(recipe: ConfigDict, backbone: BackboneConfig, setting: Compression) -> Learning:
    """Pre-training of a model that was trained at a setting; its extractor stays as it is."""
    model, teacher = FeatureModel(backbone), original(backbone.dtype, setting)
    steps, options = recipe.num_steps, recipe.optim
    schedule = optim.warmup_linear(options.lr, options.warmup * steps, options.total * steps)
    return Learning(
        model,
        distill_micro_loss(model, teacher, Sandwich(recipe.sandwich.weight)),
        adam(schedule, options, _frozen_until),
        schedule,
        Watchdog(),
        teacher,
        _frozen_until,
    )


def _frozen_until(path: str) -> float:
    return math.inf if path.startswith("backbone/frontend/") else 0


def distill_micro_loss(model: FeatureModel, teacher: Teacher, sandwich: Sandwich = LARGEST_ALONE) -> MicroLoss:
    """Relative error of all layers' states, the output in place of the last one's; the weight is the number of frames.

    Settings beside the largest get the same audio, and count `weight_beside` each.
    """

    def micro_loss(params, batch_stats, batch, key, progress, draw: Draw):
        del progress
        rngs = dict(zip(("dropout", "layerdrop"), jax.random.split(key), strict=True))
        (target,), length_B = _features(model, original_params(batch_stats, params), batch, (teacher.setting,))
        (first, *others), _ = _features(model, params, batch, (draw.setting, *draw.others), rngs)
        loss, metrics = _terms(first, target, length_B)
        own = [_terms(other, target, length_B)[0] for other in others]
        beside, of_others = sandwich.loss_beside(own, unit=1.0)
        return Term(loss.sum + beside, loss.weight), (metrics | of_others, batch_stats)

    return micro_loss


def score(model: FeatureModel, teacher: Teacher, variables, batch, compression: Compression) -> dict[str, jax.Array]:
    """The loss without noise; of the output, its relative error, and its mean cosine to the teacher's."""
    params = variables["params"]
    of_teacher = original_params(variables["batch_stats"], params)
    (target,), length_B = _features(model, of_teacher, batch, (teacher.setting,))
    (layers,), _ = _features(model, params, batch, (compression,))
    valid_BxT = mask_from_lengths(length_B, layers[-1].shape[1])
    cosine = jnp.where(valid_BxT, losses.cosine(layers[-1], target[-1]), 0.0).sum() / jnp.maximum(valid_BxT.sum(), 1)
    _, metrics = _terms(layers, target, length_B)
    return {name: term.mean for name, term in metrics.items()} | {"cosine": cosine}


def _terms(layers: list[jax.Array], target: list[jax.Array], length_B) -> tuple[Term, dict[str, Term]]:
    errors = [losses.relative_error(x, t, length_B) for x, t in zip(layers, target, strict=True)]
    total: Any = sum(error.sum for error in errors)
    loss = Term(total / len(errors), errors[-1].weight)
    return loss, {"loss": loss, "distance": errors[-1]}


def _features(
    model: FeatureModel, params, batch, settings: tuple[Compression, ...], rngs: dict[str, jax.Array] | None = None
) -> tuple[list[list[jax.Array]], jax.Array]:
    """What each layer gives at each setting, (B, T, D), of the last one the output; frames (B,). Noise is by `rngs`."""
    (outputs, length_B), noted = model.apply(
        {"params": params},
        batch["wave"],
        batch["length"],
        settings,
        deterministic=rngs is None,
        row_B=batch["crop"],
        rngs=rngs,
        mutable=["intermediates"],
        method=FeatureModel.at_settings,
    )
    frames, states = outputs[0].shape[1], noted["intermediates"]["backbone"]["encoder"]["states"]
    layers = [
        [*layers_at_frames(model.backbone, of_setting, setting, length_B, frames)[:-1], output]
        for of_setting, setting, output in zip(states, settings, outputs, strict=True)
    ]
    return layers, length_B
