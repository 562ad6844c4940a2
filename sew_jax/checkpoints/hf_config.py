"""The architecture of released speech encoders between Hugging Face's `config.json` and ours."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sew_jax.checkpoints.hf_families import DEFAULTS, FAMILIES, PRETRAIN_HEAD, REQUIRED
from sew_jax.errors import UserError
from sew_jax.models.config import (
    BackboneConfig,
    ClassifierHeadConfig,
    CTCHeadConfig,
    FrameHeadConfig,
    Head,
    PretrainHeadConfig,
)
from sew_jax.models.frontend import conv_stack, feature_width

# Fields in which a family may differ from wav2vec 2.0 base, and which those that have no key for them must leave alone
_PARTS = (
    "conv_norm",
    "pre_norm",
    "positions",
    "pos_layers",
    "rel_buckets",
    "adapter_width",
    "input_norm",
    "norm_epsilon",
)

_ONE_LABEL = "single_label_classification"


class Architecture(NamedTuple):
    """A model of ours: a backbone, the head on it (None: a bare backbone), and the factor it was trained at."""

    backbone: BackboneConfig
    head: Head | None
    squeeze: int


def read_architecture(config: Mapping[str, Any], normalize_wave: bool, source: str) -> Architecture:
    """Our configuration for a Hugging Face `config.json`.

    Args:
      normalize_wave: `do_normalize` of the preprocessor.
      source: what messages call the checkpoint.

    Raises:
      UserError: another architecture, or a variant whose mathematics we do not have.
    """
    if config.get("model_type") not in FAMILIES:
        raise UserError(
            f"{source}: model_type {config.get('model_type')!r} cannot be loaded; it must be one of "
            f"{', '.join(FAMILIES)}"
        )
    family, c = FAMILIES[config["model_type"]], _filled(config)
    for key, default in {**DEFAULTS, **family.defaults}.items():
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(c[key], kinds):
            raise UserError(f"{source}: config.json has {key}={c[key]!r}, which should be like {default!r}")
    for field, least in family.least.items():
        if c[family.fields[field]] < least:
            raise UserError(
                f"{source}: {family.fields[field]} is {c[family.fields[field]]}; it must be {least} or more"
            )
    unread = {"adapter_attn_dim": 0} if "adapter_width" not in family.fields else {}
    read = set(family.fields.values())
    for key, value in {**REQUIRED, **unread, **family.required}.items():
        if key not in read and c[key] != value:
            raise UserError(f"{source}: {key} is {c[key]!r}; only {value!r} can be loaded")
    convolutions = [(key, c[key]) for key in ("conv_dim", "conv_kernel", "conv_stride")]
    for key, sizes in convolutions:
        if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise UserError(f"{source}: config.json has {key}={sizes!r}, which should be whole numbers")
    try:
        backbone = BackboneConfig(
            **{
                "frontend": "wav2vec2" if len(c["conv_dim"]) == 7 else "compact",
                "conv_width": c["conv_dim"][0],
                "normalize_wave": normalize_wave,
                "upsample_factors": (c["squeeze_factor"],),
                **family.shared,
                **{ours: c[theirs] for ours, theirs in family.fields.items()},
            }
        )
    except UserError as error:
        raise UserError(f"{source}: its config.json describes no model ({error})") from error
    if conv_stack(backbone) != list(zip(*dict(convolutions).values(), strict=False)):
        raise UserError(
            f"{source}: its convolutions (conv_dim, conv_kernel, conv_stride) are those of no known extractor"
        )
    if family.squeezes and c["squeeze_factor"] < 2:
        raise UserError(
            f"{source}: a squeeze_factor of {c['squeeze_factor']} cannot be loaded; {family.stem}'s is at least 2"
        )
    if not family.squeezes and feature_width(backbone) == backbone.width:
        raise UserError(f"{source}: hidden_size equals conv_dim; a projection between equal widths cannot be loaded")
    try:
        head = read_head((c.get("architectures") or [""])[0], c)
    except UserError as error:
        raise UserError(f"{source}: its config.json describes no head ({error})") from error
    if family.squeezes and isinstance(head, ClassifierHeadConfig) and head.layer_sum:
        raise UserError(
            f"{source}: use_weighted_layer_sum is True; only False can be loaded of {family.stem}, whose layers "
            "transformers averages at the squeezed rate"
        )
    return Architecture(backbone, head, c["squeeze_factor"])


def _filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` with the defaults of its family where it is silent or null."""
    given = {key: value for key, value in config.items() if value is not None}
    family = FAMILIES[config["model_type"]]
    wanted = {**REQUIRED, **family.required}
    filled = {**DEFAULTS, **wanted, **family.defaults, **given}
    if filled["hidden_act"] in ("gelu", "gelu_python"):  # two names of one function
        filled["hidden_act"] = wanted["hidden_act"]
    kinds, all_kinds = given.get("pos_att_type"), wanted.get("pos_att_type")
    if isinstance(kinds, list) and all_kinds and sorted(map(str, kinds)) == sorted(all_kinds):  # a set
        filled["pos_att_type"] = all_kinds
    return filled


def read_head(kind: str, config: Mapping[str, Any]) -> Head | None:
    """The head of a class of Hugging Face's with that name, by its `config.json`; None where it is no head of ours."""
    c = _filled(config)
    if kind.endswith("ForCTC"):
        return CTCHeadConfig(symbols=c["vocab_size"], dropout=c["final_dropout"], blank=c["pad_token_id"])
    if kind.endswith("ForSequenceClassification") and c.get("problem_type") in (None, _ONE_LABEL):
        names = c.get("id2label") or {}
        return ClassifierHeadConfig(
            labels=len(names) or 2, width=c["classifier_proj_size"], layer_sum=c["use_weighted_layer_sum"]
        )
    if kind.endswith("ForAudioFrameClassification") and c.get("problem_type") == _ONE_LABEL:  # else each its own
        return FrameHeadConfig(frame_labels=len(c.get("id2label") or {}) or 2, layer_sum=c["use_weighted_layer_sum"])
    if kind.endswith("ForPreTraining") and PretrainHeadConfig in FAMILIES[config["model_type"]].heads:
        return PretrainHeadConfig(**{ours: c[theirs] for ours, theirs in PRETRAIN_HEAD.items()})
    return None


def write_architecture(family: str, architecture: Architecture) -> dict[str, Any]:
    """The `config.json` of a model: the inverse of `read_architecture`.

    Raises:
      UserError: that family cannot express the model.
    """
    backbone, head, squeeze = architecture
    kind = FAMILIES[family]
    _check_expressible(family, architecture)
    stack = conv_stack(backbone)
    c: dict[str, Any] = {
        "model_type": family,
        "architectures": [class_name(family, head)],
        "torch_dtype": "float32",
    }
    c |= {**REQUIRED, **kind.required}
    c |= {theirs: getattr(backbone, ours) for ours, theirs in kind.fields.items()}
    c |= dict(zip(("conv_dim", "conv_kernel", "conv_stride"), map(list, zip(*stack, strict=True)), strict=True))
    if not backbone.adapter_width:
        c.pop("adapter_attn_dim", None)  # for transformers, adapters of no width are adapters
    if kind.squeezes:
        c |= {"squeeze_factor": squeeze}
    if isinstance(head, CTCHeadConfig):
        c |= {"vocab_size": head.symbols, "final_dropout": head.dropout, "pad_token_id": head.blank}
        c |= {"ctc_loss_reduction": "sum", "ctc_zero_infinity": True}
    elif isinstance(head, ClassifierHeadConfig):
        c |= {"classifier_proj_size": head.width, "use_weighted_layer_sum": head.layer_sum}
    elif isinstance(head, FrameHeadConfig):
        c |= {"use_weighted_layer_sum": head.layer_sum, "problem_type": _ONE_LABEL}
    elif head:
        c |= {theirs: getattr(head, ours) for ours, theirs in PRETRAIN_HEAD.items()}
    return c


def class_name(family: str, head: Head | None) -> str:
    """transformers' class of a family's models with that head."""
    suffixes = {
        CTCHeadConfig: "ForCTC",
        ClassifierHeadConfig: "ForSequenceClassification",
        FrameHeadConfig: "ForAudioFrameClassification",
        PretrainHeadConfig: "ForPreTraining",
        type(None): "Model",
    }
    return FAMILIES[family].stem + suffixes[type(head)]


def family_of(backbone: BackboneConfig, squeeze: int) -> str:
    """The family that computes what a backbone does at a squeeze factor, if any does."""
    if backbone.rel_buckets and backbone.rel_form == "disentangled":
        return "sew-d"
    if squeeze > 1:
        return "sew"
    if backbone.rel_buckets:
        return "wavlm"
    return "data2vec-audio" if backbone.pos_layers > 1 else "wav2vec2"


def _check_expressible(family: str, architecture: Architecture) -> None:
    backbone, head, squeeze = architecture
    kind, default = FAMILIES[family], BackboneConfig()
    fixed = {field: getattr(default, field) for field in _PARTS if field not in kind.fields} | dict(kind.shared)
    of_frames = isinstance(head, FrameHeadConfig)
    named = "labels of frames (--config.format=sew_jax takes them)" if of_frames else "a pre-training head"
    obstacles = {
        f"model.frontend is {backbone.frontend}": backbone.frontend not in ("wav2vec2", "compact"),
        "its squeeze factor is above 1": not kind.squeezes and squeeze > 1,
        "its head reads all layers": kind.squeezes and isinstance(head, ClassifierHeadConfig) and head.layer_sum,
        "its squeeze factor is 1": kind.squeezes and squeeze == 1,
        "model.width equals the extractor's": not kind.squeezes and feature_width(backbone) == backbone.width,
        "head.projection is mlp": isinstance(head, PretrainHeadConfig) and head.projection != "linear",
        f"it has {named}": head is not None and type(head) not in kind.heads,
        f"model.rel_unit is not the squeeze factor {squeeze}": backbone.rel_buckets and backbone.rel_unit != squeeze,
    }
    obstacles |= {f"model.{x} is {getattr(backbone, x)}": getattr(backbone, x) != value for x, value in fixed.items()}
    obstacles |= {
        f"model.{x} is {getattr(backbone, x)}": getattr(backbone, x) < least for x, least in kind.least.items()
    }
    for obstacle, applies in obstacles.items():
        if applies:
            raise UserError(f"export: {kind.stem} cannot express this model, since {obstacle}")
