"""What is trained: pre-training and CTC fine-tuning as values that the loop runs without knowing which is which."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from sew_jax.checkpoints.pretrained import Pretrained, open_pretrained
from sew_jax.compression import Compression, Draw, sandwich_draws, settings_table, uniform_draws
from sew_jax.console import say
from sew_jax.data.problems import Problem
from sew_jax.data.sources import Source, open_source
from sew_jax.data.vocabulary import Vocabulary, check_texts, open_vocabulary
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.cost import typical_macs
from sew_jax.models.ctc import CTCModel
from sew_jax.models.masking import mask_slots
from sew_jax.models.parameters import merge_params
from sew_jax.models.pretrain import PretrainModel
from sew_jax.rates import FRAME_SAMPLES, FRAMES_PER_SECOND, SAMPLE_RATE
from sew_jax.training import optimizer as optim
from sew_jax.training.step import MicroLoss, Sandwich, SpanMask, Temperature, ctc_micro_loss, pretrain_micro_loss
from sew_jax.training.watchdog import Watchdog


class Task(NamedTuple):
    table: list[Compression]
    draws: list[Draw]  # what an update may compute
    source: Source
    problems: list[Problem]  # utterances that were left out
    samples: np.ndarray  # (utterances,) what a batch takes of each
    vocabulary: Vocabulary | None
    model: PretrainModel | CTCModel
    architecture: dict[str, Any]  # the model, as JSON; with it another run builds it again
    init: Callable[[jax.Array], dict[str, Any]]  # key -> variables
    warm_start: Callable[[Any, Any], Any]  # (fresh parameters, sharding of all) -> parameters
    micro_loss: MicroLoss
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    watchdog: Watchdog


class Learning(NamedTuple):
    """What an update of pre-training computes, whatever the data."""

    model: PretrainModel
    micro_loss: MicroLoss
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


def pretraining(recipe: ConfigDict, backbone: BackboneConfig, head: PretrainHeadConfig) -> Learning:
    """Pre-training of a model; of the recipe `mask`, `temperature`, `sandwich`, `optim` and `num_steps` are read."""
    model, steps = PretrainModel(backbone, head), recipe.num_steps
    schedule = optim.warmup_linear(recipe.optim.lr, recipe.optim.warmup * steps, recipe.optim.total * steps)
    micro_loss = pretrain_micro_loss(
        model, SpanMask(**recipe.mask), Temperature(**recipe.temperature), steps, _sandwich(recipe)
    )
    return Learning(model, micro_loss, _adam(schedule, recipe.optim), schedule)


def open_task(config: ConfigDict) -> Task:
    """The task that `config.mode` names.

    Raises:
      UserError: something in the config, the data or `init_from` does not fit.
    """
    return {"pretrain": _pretrain, "finetune": _finetune}[config.mode](config)


def _pretrain(config: ConfigDict) -> Task:
    table = settings_table(**config.compression)
    origin = open_pretrained(config.init_from) if config.init_from else None
    if not origin and None in config.model.values():
        raise UserError("init_from is empty; pretrain:inherit takes its architecture from there, hf:PATH or a workdir")
    backbone = BackboneConfig(
        **_inherit(config.model, origin and origin.backbone), upsample_factors=_factors(table), dtype=config.dtype,
        remat=config.remat,
    )  # fmt: skip
    head = PretrainHeadConfig(**_inherit(config.head, origin and origin.head))
    _check_schedules(table, backbone)
    mask = SpanMask(**config.mask)
    # a span needs its frames and a last one, which is never masked
    min_samples = max(round(config.input.min_seconds * SAMPLE_RATE), (mask.span + 2) * FRAME_SAMPLES + 400)
    source, problems = open_source(
        config.data, config.split, min_samples=min_samples, max_samples=round(config.input.max_seconds * SAMPLE_RATE),
        need_text=False, max_bad=config.input.max_bad,
    )  # fmt: skip
    learning = pretraining(config, backbone, head)
    frames = int(config.input.crop_seconds * FRAMES_PER_SECOND)

    return Task(
        table=table,
        draws=_draws(config, table, backbone),
        source=source,
        problems=problems,
        samples=np.minimum(_longest(source, config.input.speed), round(config.input.crop_seconds * SAMPLE_RATE)),
        vocabulary=None,
        model=learning.model,
        architecture={"backbone": dataclasses.asdict(backbone), "head": dataclasses.asdict(head)},
        init=learning.model.initialize,
        warm_start=_warm_start(origin),
        micro_loss=learning.micro_loss,
        optimizer=learning.optimizer,
        schedule=learning.schedule,
        watchdog=Watchdog(
            chance=math.log2(1 + head.negatives),
            codebook=head.codebooks * head.codes,
            groups=head.codebooks,
            masked=mask_slots(frames, prob=mask.prob, span=mask.span) / frames,
        ),
    )


def _finetune(config: ConfigDict) -> Task:
    origin = open_pretrained(config.init_from)
    table = settings_table(**config.compression)
    scratch = config.from_scratch
    backbone = dataclasses.replace(
        origin.backbone, **config.model, upsample_factors=_factors(table), dtype=config.dtype, remat=config.remat,
        feature_grad_scale=1.0 if scratch else 0.0,  # a pre-trained extractor stays as it is
    )  # fmt: skip
    _check_schedules(table, backbone)
    source, problems = open_source(
        config.data, config.split, min_samples=round(config.input.min_seconds * SAMPLE_RATE),
        max_samples=round(config.input.max_seconds * SAMPLE_RATE), need_text=True, max_bad=config.input.max_bad,
    )  # fmt: skip
    if not config.vocabulary and origin.vocabulary:
        vocabulary = origin.vocabulary
    else:
        vocabulary = open_vocabulary(config.vocabulary or "letters", map(source.text, range(len(source))))
    check_texts(vocabulary, source)
    head = CTCHeadConfig(symbols=len(vocabulary), dropout=config.head.dropout, blank=vocabulary.blank)
    model = CTCModel(backbone, head)
    optim_ = config.optim
    schedule = optim.tri_stage(optim_.lr, config.num_steps, optim_.warmup, optim_.hold, optim_.initial, optim_.final)
    start = 0 if scratch else round(optim_.freeze * config.num_steps)

    if optim_.backbone_lr_scale < 0:
        raise UserError(f"optim.backbone_lr_scale: {optim_.backbone_lr_scale} must be at least 0")
    fresh: set[str] = set()
    if not scratch and (start > 0 or optim_.backbone_lr_scale != 1):
        shapes = jax.eval_shape(model.initialize, jax.random.key(config.seed))["params"]
        fresh = set(merge_params(shapes, origin.shapes(), origin.name)[1])

    def is_new(path: str) -> bool:
        return scratch or path in fresh or path.startswith("symbols/")

    def frozen_until(path: str) -> float:
        if is_new(path):
            return 0
        return math.inf if path.startswith("backbone/frontend/") else start

    def lr_scale(path: str) -> float:
        return 1.0 if is_new(path) else optim_.backbone_lr_scale

    mask = config.mask
    return Task(
        table=table,
        draws=_draws(config, table, backbone),
        source=source,
        problems=problems,
        samples=_longest(source, config.input.speed),
        vocabulary=vocabulary,
        model=model,
        architecture={"backbone": dataclasses.asdict(backbone), "head": dataclasses.asdict(head)},
        init=model.initialize,
        warm_start=_warm_start(None if scratch else origin, leave="" if vocabulary == origin.vocabulary else "symbols"),
        micro_loss=ctc_micro_loss(
            model,
            SpanMask(mask.time_prob, mask.time_span, 2),
            SpanMask(mask.channel_prob, mask.channel_span, 0),
            _sandwich(config),
        ),
        optimizer=_adam(schedule, optim_, frozen_until, None if optim_.backbone_lr_scale == 1 else lr_scale),
        schedule=schedule,
        watchdog=Watchdog(),
    )


def _inherit(options: ConfigDict, of_origin: BackboneConfig | PretrainHeadConfig | CTCHeadConfig | None) -> dict:
    """Options with those that are None taken from what the run starts from; a head of another kind gives none."""
    given = {name: value for name, value in options.items() if value is not None}
    return given | {
        name: getattr(of_origin, name) for name in options if name not in given and hasattr(of_origin, name)
    }


def _longest(source: Source, speed: float) -> np.ndarray:
    """(utterances,) lengths at the slowest pace that may be drawn."""
    if not 0 <= speed < 0.5:
        raise UserError(f"input.speed: {speed} must lie between 0 (as recorded) and 0.5")
    return np.ceil(source.samples / (1 - speed)).astype(np.int64)


def _factors(table: list[Compression]) -> tuple[int, ...]:
    return tuple(sorted({setting.squeeze for setting in table if setting.squeeze > 1}))


def _draws(config: ConfigDict, table: list[Compression], backbone: BackboneConfig) -> list[Draw]:
    if not config.sandwich.enabled:
        return uniform_draws(table)
    return sandwich_draws(table, functools.partial(typical_macs, backbone))


def _sandwich(config: ConfigDict) -> Sandwich:
    return Sandwich(config.sandwich.weight, config.sandwich.distill)


def _check_schedules(table: list[Compression], backbone: BackboneConfig) -> None:
    for setting in table:
        setting.layer_pools(backbone.layers)


def _adam(
    schedule: optax.Schedule, options: ConfigDict, frozen_until=None, lr_scale=None
) -> optax.GradientTransformation:
    return optim.adam(
        schedule,
        eps=options.eps,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
        frozen_until=frozen_until,
        lr_scale=lr_scale,
    )


def _warm_start(origin: Pretrained | None, leave: str = ""):
    """Fresh parameters replaced by those of an origin, but for the part named `leave`; no change without an origin."""

    def warm_start(fresh, sharding):
        if not origin:
            return fresh
        state, saved = origin.load(sharding)
        left = [leave] if saved.pop(leave, None) else []
        params, new, unused = merge_params(fresh, saved, origin.name)
        say(f"parameters from {origin.name}, {state}" + _aside("new", new) + _aside("left behind", left + unused))
        return params

    return warm_start


def _aside(what: str, names: list[str]) -> str:
    modules = list(dict.fromkeys(name.rsplit("/", 1)[0].removeprefix("backbone/encoder/") for name in names))
    return f"; {what}: {', '.join(modules)}" if modules else ""
