"""Pre-training at the settings of a table: its objectives' common opening, and wav2vec 2.0's contrastive task.

B utterances, T frames, M masked frames, N negatives, C candidates (1 + N), F final width, G codebooks, V codes.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sew_jax.checkpoints.pretrained import Pretrained, open_origin
from sew_jax.compression import Draw, settings_table
from sew_jax.console import say
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, Data2VecConfig, Head, PretrainHeadConfig
from sew_jax.models.frontend import frame_count
from sew_jax.models.masking import mask_slots, negative_indices
from sew_jax.models.noise import row_keys
from sew_jax.models.pretrain import PretrainModel
from sew_jax.models.quantizer import Quantized, Temperature
from sew_jax.rates import SAMPLE_RATE
from sew_jax.training import losses
from sew_jax.training import optimizer as optim
from sew_jax.training.data2vec import data2vec
from sew_jax.training.distillation import distillation
from sew_jax.training.losses import LOG2E, Term
from sew_jax.training.task import (
    LARGEST_ALONE,
    Learning,
    MicroLoss,
    Sandwich,
    SpanMask,
    Task,
    adam,
    count_crops,
    draws_of,
    fields_of_table,
    largest_trained,
    longest_samples,
    open_audio,
    warm_start_from,
)
from sew_jax.training.watchdog import Watchdog


def contrastive(recipe: ConfigDict, backbone: BackboneConfig, head: PretrainHeadConfig) -> Learning:
    """Pre-training by wav2vec 2.0's contrastive task.

    Of the recipe `mask`, `temperature`, `sandwich`, `optim`, `num_steps` and `input.crop_seconds` are read.
    """
    model, steps, mask = PretrainModel(backbone, head), recipe.num_steps, SpanMask(**recipe.mask)
    schedule = optim.warmup_linear(recipe.optim.lr, recipe.optim.warmup * steps, recipe.optim.total * steps)
    sandwich = Sandwich(recipe.sandwich.weight, recipe.sandwich.distill)
    micro_loss = pretrain_micro_loss(model, mask, Temperature(**recipe.temperature), sandwich)
    frames = int(recipe.input.crop_seconds * SAMPLE_RATE) // backbone.frame_samples
    watchdog = Watchdog(
        chance=math.log2(1 + head.negatives),
        codebook=head.codebooks * head.codes,
        groups=head.codebooks,
        masked=mask_slots(frames, prob=mask.prob, span=mask.span) / frames,
    )
    return Learning(model, micro_loss, adam(schedule, recipe.optim), schedule, watchdog)


def open_pretraining(config: ConfigDict, earlier: dict[str, Any] | None = None) -> Task:
    """The task of a config of mode `pretrain`; `earlier` is the record of the run that goes on.

    Raises:
      UserError: something in the config, the data or `init_from` does not fit.
    """
    table = settings_table(**config.compression)
    pretrained = open_origin(config.init_from, earlier) if config.init_from else None
    backbone = BackboneConfig(
        **_inherit(config.model, pretrained and pretrained.backbone),
        **fields_of_table(table),
        dtype=config.dtype,
        remat=config.remat,
        loop_layers=config.accumulate == 1,
    )
    if config.objective == "contrastive":
        config = _from_its_end(config, pretrained)
    draws = draws_of(config, table, backbone)
    # a span needs its frames and a last one, which is never masked
    least = (config.mask.span + 2) * backbone.frame_samples + 400
    min_samples = max(round(config.input.min_seconds * SAMPLE_RATE), least)
    source, problems = open_audio(config, min_samples=min_samples, need_text=False)
    learning = _learning(config, backbone, pretrained)
    head = learning.model.head
    crop_samples = round(config.input.crop_seconds * SAMPLE_RATE)

    return Task(
        table=table,
        draws=draws,
        source=source,
        problems=problems,
        samples=np.minimum(longest_samples(source, config.input.speed), crop_samples),
        crops=count_crops(source, crop_samples, config.input.speed),
        vocabulary=None,
        transcripts=None,
        model=learning.model,
        architecture={"backbone": dataclasses.asdict(backbone), "head": head and dataclasses.asdict(head)},
        init=learning.model.initialize,
        warm_start=warm_start_from(pretrained),
        micro_loss=learning.micro_loss,
        optimizer=learning.optimizer,
        schedule=learning.schedule,
        watchdog=learning.watchdog,
        origin=pretrained and pretrained.recorded(),
        teacher=learning.teacher,
        frozen_until=learning.frozen_until,
    )


def _learning(config: ConfigDict, backbone: BackboneConfig, pretrained: Pretrained | None) -> Learning:
    """What the config's objective has an update compute.

    Raises:
      UserError: the objective does not fit the model.
    """
    if config.objective == "distill":
        assert pretrained  # the check of configs has seen to it
        return distillation(config, backbone, largest_trained(pretrained))
    if config.objective == "data2vec2":
        return data2vec(config, backbone, Data2VecConfig(**config.data2vec))
    return contrastive(config, backbone, PretrainHeadConfig(**_inherit(config.head, pretrained and pretrained.head)))


def _from_its_end(config: ConfigDict, pretrained: Pretrained | None) -> ConfigDict:
    """The config with a temperature that is None in it as at the end of what the run starts from.

    Raises:
      UserError: that has no codebook whose targets a higher temperature would scramble, or none is known.
    """
    wanted = [key for key, value in config.temperature.items() if value is None]
    if not wanted:
        return config
    if pretrained is None or pretrained.temperature is None:
        name = pretrained.name if pretrained else "nothing"
        raise UserError(
            f"init_from: {name} has no codebook and heads of pre-training to go on with; name a checkpoint that has "
            "them, such as hf:facebook/wav2vec2-xls-r-300m, or train new ones (--config=configs/pretrain.py:inherit)"
        )
    filled = ConfigDict(config.to_dict(), type_safe=False)
    filled.temperature.update(dict.fromkeys(wanted, pretrained.temperature))
    say(f"  codebook  that of {pretrained.name}, at the temperature that it ended with: {pretrained.temperature:g}")
    return filled


def pretrain_micro_loss(
    model: PretrainModel, mask: SpanMask, temperature: Temperature, sandwich: Sandwich = LARGEST_ALONE
) -> MicroLoss:
    """Contrastive + diversity + feature penalty; the weight is the number of masked frames.

    Settings beside the largest are trained on its masks, negatives and targets, which follow the largest alone.
    """
    head = model.head

    def micro_loss(params, batch_stats, batch, key, progress, draw: Draw):
        mask_key, negative_key, *model_keys = jax.random.split(key, 5)
        masked = mask.draw(model.backbone, row_keys(mask_key, batch["crop"]), batch)
        tau = temperature.at(progress)
        out, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["wave"],
            batch["length"],
            masked,
            draw.setting,
            tau,
            deterministic=False,
            others=draw.others,
            row_B=batch["crop"],
            mutable=["batch_stats"],
            rngs=dict(zip(("dropout", "gumbel", "layerdrop"), model_keys, strict=True)),
        )
        quantized, valid_BxM = out.quantized, masked.valid_BxM
        negative_BxMxN = negative_indices(row_keys(negative_key, batch["crop"]), valid_BxM, head.negatives)

        def logits(prediction_BxMxF, target_BxMxF) -> jax.Array:
            return losses.contrastive_logits(
                prediction_BxMxF, target_BxMxF, quantized.codes_BxMxG, negative_BxMxN, head.logit_temperature
            )

        largest_BxMxC = logits(out.prediction_BxMxF, out.target_BxMxF)
        contrastive, accuracy = losses.contrastive(largest_BxMxC, valid_BxM)
        weight = contrastive.weight
        diversity = losses.diversity(quantized.probs_BxMxGxV, valid_BxM, weight)
        penalty = Term(out.penalty * weight if model.backbone.frontend_learns else jnp.zeros_like(weight), weight)
        total = contrastive.sum + head.diversity_weight * diversity.sum + head.penalty_weight * penalty.sum

        target_BxMxF = jax.lax.stop_gradient(out.target_BxMxF)
        others = [logits(prediction_BxMxF, target_BxMxF) for prediction_BxMxF in out.others_BxMxF]
        beside, metrics = sandwich.loss_beside(
            [losses.contrastive(logits_BxMxC, valid_BxM)[0] for logits_BxMxC in others],
            [losses.contrastive_distillation(largest_BxMxC, logits_BxMxC, valid_BxM) for logits_BxMxC in others],
        )
        valid_frames = frame_count(model.backbone, batch["length"]).sum().astype(jnp.float32)
        metrics |= {
            "loss": Term(total * LOG2E, weight),
            "loss_contrastive": Term(contrastive.sum * LOG2E, weight),
            "loss_diversity": Term(head.diversity_weight * diversity.sum * LOG2E, weight),
            "loss_penalty": Term(head.penalty_weight * penalty.sum * LOG2E, weight),
            "accuracy": accuracy,
            **_perplexities(quantized, valid_BxM, weight, head.codes),
            "temperature": Term(tau * weight, weight),
            "masked_frac": Term(valid_BxM.sum().astype(jnp.float32), valid_frames),
        }
        return Term(total + beside, weight), (metrics, updated.get("batch_stats", {}))

    return micro_loss


def _perplexities(quantized: Quantized, valid_BxM: jax.Array, weight: jax.Array, codes: int) -> dict[str, Term]:
    """How many codes are in use: by the hard choices without noise, and by their probabilities."""
    hard_GxV = losses.mean_probabilities(jax.nn.one_hot(quantized.best_BxMxG, codes), valid_BxM)
    probs_GxV = losses.mean_probabilities(quantized.probs_BxMxGxV, valid_BxM)
    return {
        "code_perplexity": Term(losses.perplexity(hard_GxV) * weight, weight),
        "prob_perplexity": Term(losses.perplexity(probs_GxV) * weight, weight),
    }


def _inherit(options: ConfigDict, inherited: BackboneConfig | Head | None) -> dict[str, Any]:
    """Options with those that are None taken from what the run starts from; a head of another kind gives none."""
    given = {name: value for name, value in options.items() if value is not None}
    return given | {
        name: getattr(inherited, name) for name in options if name not in given and hasattr(inherited, name)
    }
