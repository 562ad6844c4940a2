"""Keys of pre-training and of fine-tuning; those that joined later have defaults, so that older runs go on."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from sew_jax.checks.modes import (
    BATCH_SECONDS,
    BUCKETS,
    COMPRESSION,
    DATA,
    DTYPE,
    INIT_FROM,
    LANGUAGE,
    MESH,
    READERS,
    REMAT,
    SEED,
    TEXT_NORMALIZER,
    Mode,
    Rules,
    a_language_is_of_a_released_checkpoint,
    choice,
    defaults_of,
    layers_have_factors,
    lengths_are_in_order,
    mode,
    one_axis_is_the_rest,
)
from sew_jax.checks.rules import (
    INT32,
    Choice,
    Flag,
    Number,
    Rule,
    Settings,
    Text,
    at_least,
    choice_of,
    dropout,
    fraction,
    positive,
    whole,
)
from sew_jax.compression import settings_table
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, Data2VecConfig, PretrainHeadConfig
from sew_jax.rates import FRAME_SAMPLES, SAMPLE_RATE

_RUN: Rules = {
    "split": Text(),
    "seed": SEED,
    "num_steps": whole(1, "updates", INT32),
    "checkpoint_every": whole(1, "updates"),
    "checkpoint_minutes": at_least(0, "between checkpoints; 0: updates alone count", default=0.0),
    "keep_every": whole(0, "updates whose checkpoints stay; 0: the newest two alone", default=0),
    "stall_minutes": at_least(0, "without an update, after which the run ends; 0: never", default=0.0),
    "log_every": whole(1, "updates"),
    "dtype": DTYPE,
    "resume": Text(),
    "accumulate": whole(1, "micro-batches of an update"),
    "remat": REMAT,
    "mesh": MESH,
    "compression": COMPRESSION,
    "sandwich": {
        "enabled": Flag(),
        "weight": at_least(0, "of each setting but the largest"),
        "distill": at_least(0, "of the divergence from the largest setting"),
    },
}
_OPTIM: Rules = {
    "lr": positive("the learning rate at its peak"),
    "warmup": fraction("a fraction of num_steps"),
    "eps": positive("of Adam"),
    "weight_decay": at_least(0, ""),
    "clip_norm": at_least(0, "0: gradients are not clipped"),
    "max_skipped": whole(0, "updates in a row without a finite gradient"),
}
_EVAL: Rules = {
    "split": Text(),
    "every": whole(1, "updates; eval.split= (empty) holds nothing out"),
    "settings": Settings(),
}
_INPUT: Rules = {
    "batch_seconds": BATCH_SECONDS,
    "buckets": BUCKETS,
    "min_seconds": at_least(0, "of an utterance"),
    "max_seconds": positive("of an utterance"),
    "corpus_exponent": at_least(0, "0: corpora have equal shares, 1: shares by hours", default=1.0),
    "speed": Number("0: as recorded", 0, 0.5, below=True, default=0.0),
    **READERS,
}
_DROPOUTS: dict[str, Rule] = {
    "dropout": dropout("a probability"),
    "attention_dropout": dropout("a probability"),
    "activation_dropout": dropout("a probability"),
    "input_dropout": dropout("a probability"),
    "layerdrop": dropout("the probability that a layer is left out"),
}
_MODEL: dict[str, Rule] = {
    "frontend": choice_of(BackboneConfig, "frontend", inherits=True),
    "conv_width": whole(1, "channels", inherits=True),
    "conv_norm": choice_of(BackboneConfig, "conv_norm", inherits=True),
    "conv_bias": Flag(inherits=True),
    "mel_top_hz": whole(1000, "Hz; 8000 is half of the sample rate", 8000, inherits=True),
    "mel_scale": choice_of(BackboneConfig, "mel_scale", inherits=True),
    "normalize_wave": Flag(inherits=True),
    "width": whole(1, "", inherits=True),
    "layers": whole(1, "", inherits=True),
    "heads": whole(1, "", inherits=True),
    "ffn_width": whole(1, "", inherits=True),
    "pre_norm": Flag(inherits=True),
    "positions": choice_of(BackboneConfig, "positions", inherits=True, default="conv"),
    "pos_kernel": whole(1, "taps", inherits=True),
    "pos_groups": whole(1, "", inherits=True),
    "pos_layers": whole(1, "", inherits=True, default=1),
    "rel_buckets": whole(0, "0: none", inherits=True, default=0),
    "rel_furthest": whole(1, "units", inherits=True, default=800),
    "rel_unit": whole(1, "frames", inherits=True, default=1),
    "rel_form": choice_of(BackboneConfig, "rel_form", inherits=True, default="gated"),
    "input_norm": Flag(inherits=True, default=True),
    "norm_epsilon": positive("of norms", inherits=True, default=1e-5),
    "adapter_width": whole(0, "0: none", inherits=True, default=0),
    "upsampler": choice_of(BackboneConfig, "upsampler", inherits=True),
    "tail": choice_of(BackboneConfig, "tail", inherits=True),
    "pool_ffn": Flag(inherits=True),
    "feature_grad_scale": at_least(0, "0: the extractor is frozen"),
    **_DROPOUTS,
}
_HEAD: dict[str, Rule] = {
    "codebooks": whole(1, "", inherits=True),
    "codes": whole(2, "entries of a codebook", inherits=True),
    "code_width": whole(1, "", inherits=True),
    "final_width": whole(1, "", inherits=True),
    "projection": choice_of(PretrainHeadConfig, "projection", inherits=True),
    "mlp_width": whole(1, "", inherits=True),
    "feature_dropout": dropout("a probability"),
    "negatives": whole(1, "of each masked frame"),
    "logit_temperature": positive("by which cosines are divided"),
    "diversity_weight": at_least(0, "of its term in the loss"),
    "penalty_weight": at_least(0, "of its term in the loss"),
}
_DATA2VEC: dict[str, Rule] = {
    "clones": whole(1, "masks of each utterance"),
    "mask_ratio": Number("of an utterance", 0, 1, above=True, below=True),
    "mask_adjust": at_least(0, "beyond the ratio"),
    "mask_block": whole(1, "frames"),
    "top_layers": whole(1, "of which targets are made"),
    "decoder_width": whole(1, "channels"),
    "decoder_layers": whole(1, "convolutions"),
    "decoder_kernel": whole(1, "taps"),
    "decoder_groups": whole(1, ""),
    "decoder_dropout": dropout("a probability"),
    "ema_start": fraction("of the teacher that stays at an update"),
    "ema_end": fraction("of the teacher that stays at an update"),
    "ema_anneal": at_least(0, "the fraction of num_steps after which the decay is at its end"),
}


def needs_an_architecture(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """From the config, or from what it starts from."""
    if None in config.model.values() and not config.init_from:
        yield "init_from", "is empty; pretrain:inherit takes its architecture from there, hf:PATH or a workdir"


def _needs_a_codebook(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if None in config.temperature.values() and not config.init_from:
        yield "init_from", "is empty; pretrain:continued goes on with its codebook, from hf:PATH or a workdir"


def _widths_divide(config: ConfigDict) -> Iterator[tuple[str, str]]:
    owners = ((BackboneConfig, config.model), (PretrainHeadConfig, config.head), (Data2VecConfig, config.data2vec))
    for owner, part in owners:
        if None in part.values():  # known when init_from is opened
            continue
        try:
            owner(**part)
        except UserError as error:  # which names the key
            key, _, problem = str(error).partition(" ")
            yield key.removesuffix(":"), problem


def _a_teacher_is_trained(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.teacher.weight and config.from_scratch:
        yield "teacher.weight", "learns from init_from's model, and from_scratch starts without it; set one of them"


def _spans_fit_crops(config: ConfigDict) -> Iterator[tuple[str, str]]:
    frame = FRAME_SAMPLES * (2 if config.model.frontend == "fbank25" else 1)
    least = ((config.mask.span + 2) * frame + 400) / SAMPLE_RATE
    if config.input.crop_seconds < least:
        problem = f"{config.input.crop_seconds} is shorter than mask.span={config.mask.span} needs, {least:.3g} s"
        yield "input.crop_seconds", problem


def _something_is_masked(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.mask.prob == 0 and config.mask.min_spans == 0:
        yield "mask.prob", "0 and mask.min_spans=0 mask nothing, and there is nothing to learn; raise one of them"


def _temperature_falls(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if None not in config.temperature.values() and config.temperature.end > config.temperature.start:
        problem = f"{config.temperature.end} must be at most temperature.start={config.temperature.start}"
        yield "temperature.end", problem


def _rate_falls_after_warmup(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.optim.total <= config.optim.warmup:
        problem = f"{config.optim.total} must be above optim.warmup={config.optim.warmup}: the rate falls after it"
        yield "optim.total", problem


def _stages_fit(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.optim.warmup + config.optim.hold > 1:
        problem = f"{config.optim.hold} and optim.warmup={config.optim.warmup} are more than all updates together"
        yield "optim.hold", problem


def _sandwich_has_layers(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.sandwich.enabled and len(settings_table(**config.compression)) < 2:
        yield "sandwich.enabled", "a table of one setting has nothing beside the largest; name more in compression"


def _data2vec_fits(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.objective != "data2vec2":
        return
    layers, top = config.model.layers, config.data2vec.top_layers
    if layers is not None and top > layers:
        yield "data2vec.top_layers", f"{top} is more than model.layers={layers}"
    if config.model.tail == "drop":
        yield "model.tail", "data2vec2 learns from each frame; take keep"
    if config.sandwich.enabled and config.sandwich.distill:
        problem = f"{config.sandwich.distill:g} needs a distribution, which data2vec2 has none of; take 0"
        yield "sandwich.distill", problem


def _distill_fits(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.objective != "distill":
        return
    if not config.init_from:
        yield "init_from", "is empty; distill learns from the features of what it names, hf:PATH or a workdir"
    if config.sandwich.enabled and config.sandwich.distill:
        problem = f"{config.sandwich.distill:g} needs a distribution, and distill compares features; take 0"
        yield "sandwich.distill", problem


def _labels_are_not_spelt(config: ConfigDict) -> Iterator[tuple[str, str]]:
    for key in ("vocabulary", "text_normalizer"):
        if config.get("task") in ("classify", "frames") and config.get(key):
            yield key, f"{config[key]!r} is for transcripts; labels are taken as they stand, so leave it empty"


PRETRAIN = Mode(
    keys={
        "mode": mode("pretrain"),
        "data": DATA,
        "init_from": Text(),
        "objective": Choice("", ("contrastive", "data2vec2", "distill"), default="contrastive"),
        **_RUN,
        "model": defaults_of(BackboneConfig, _MODEL),
        "head": defaults_of(PretrainHeadConfig, _HEAD),
        "data2vec": defaults_of(Data2VecConfig, _DATA2VEC),
        "mask": {
            "prob": fraction("of frames that begin a span, times the span"),
            "span": whole(1, "frames"),
            "min_spans": whole(0, "of an utterance"),
        },
        "temperature": {
            "start": positive("", inherits=True),
            "end": positive("", inherits=True),
            "anneal": positive("the fraction of num_steps after which it is at its end"),
        },
        "optim": {**_OPTIM, "total": positive("a fraction of num_steps, or more than all")},
        "eval": {**_EVAL, "max_seconds": positive("seconds of audio")},
        "input": {**_INPUT, "crop_seconds": positive("of an utterance")},
    },
    together=(
        _distill_fits,
        needs_an_architecture,
        _needs_a_codebook,
        _widths_divide,
        layers_have_factors,
        one_axis_is_the_rest,
        lengths_are_in_order,
        _spans_fit_crops,
        _something_is_masked,
        _temperature_falls,
        _rate_falls_after_warmup,
        _sandwich_has_layers,
        _data2vec_fits,
    ),
)
FINETUNE = Mode(
    keys={
        "mode": mode("finetune"),
        "task": choice("ctc", "classify", "frames", default="ctc"),
        "data": DATA,
        "init_from": INIT_FROM,
        "language": LANGUAGE,
        "from_scratch": Flag(),
        "vocabulary": Text(),
        "teacher": {"weight": at_least(0, "of the divergence from init_from's own symbols", default=0.0)},
        "text_normalizer": TEXT_NORMALIZER,
        **_RUN,
        "model": _DROPOUTS,
        "head": {"dropout": dropout("a probability")},
        "mask": {
            "time_prob": fraction("of frames that begin a span, times the span"),
            "time_span": whole(1, "frames"),
            "channel_prob": fraction("of channels that begin a span, times the span"),
            "channel_span": whole(1, "channels"),
        },
        "optim": {
            **_OPTIM,
            "hold": fraction("a fraction of num_steps"),
            "initial": fraction("a fraction of optim.lr"),
            "final": Number("a fraction of optim.lr", 0, 1, above=True),
            "freeze": fraction("a fraction of num_steps"),
            "backbone_lr_scale": at_least(0, "times the rate; 0: what is pre-trained stays", default=1.0),
        },
        "eval": {
            **_EVAL,
            "keep_best": Flag(),
            "patience": whole(0, "evaluations; 0: none ends the run"),
            "baseline": Text(),
        },
        "input": _INPUT,
    },
    together=(
        one_axis_is_the_rest,
        lengths_are_in_order,
        _stages_fit,
        _sandwich_has_layers,
        _a_teacher_is_trained,
        a_language_is_of_a_released_checkpoint,
        _labels_are_not_spelt,
    ),
    filled=("init_from",),
)
