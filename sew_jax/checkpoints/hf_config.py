"""The architecture of wav2vec 2.0, HuBERT and SEW between Hugging Face's `config.json` and ours."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.frontend import conv_stack, feature_width
from sew_jax.models.layers import EPSILON

# What Hugging Face's configuration classes assume where config.json is silent (transformers 4.57.6)
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_dropout": 0.1,
    "activation_dropout": 0.1,
    "attention_dropout": 0.1,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.1,
    "layerdrop": 0.1,
    "feat_extract_norm": "group",
    "conv_bias": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "do_stable_layer_norm": False,
    "squeeze_factor": 1,
    "num_codevectors_per_group": 320,
    "num_codevector_groups": 2,
    "contrastive_logits_temperature": 0.1,
    "num_negatives": 100,
    "codevector_dim": 256,
    "proj_codevector_dim": 256,
    "diversity_loss_weight": 0.1,
    "feat_quantizer_dropout": 0.0,
    "pad_token_id": 0,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
}
_SEW_DEFAULTS: dict[str, Any] = {
    "squeeze_factor": 2,
    "conv_dim": [64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512],
    "conv_kernel": [10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1],
    "conv_stride": [5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1],
}
# Defaults too, and all that we have the mathematics of
_REQUIRED: dict[str, Any] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": EPSILON,
    "add_adapter": False,
    "adapter_attn_dim": None,
    "conv_pos_batch_norm": False,
    "feat_proj_layer_norm": True,
}

# our field -> theirs
_BACKBONE = {
    "conv_norm": "feat_extract_norm",
    "conv_bias": "conv_bias",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "pre_norm": "do_stable_layer_norm",
    "pos_kernel": "num_conv_pos_embeddings",
    "pos_groups": "num_conv_pos_embedding_groups",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "input_dropout": "feat_proj_dropout",
    "layerdrop": "layerdrop",
}
_PRETRAIN_HEAD = {
    "codebooks": "num_codevector_groups",
    "codes": "num_codevectors_per_group",
    "code_width": "codevector_dim",
    "final_width": "proj_codevector_dim",
    "feature_dropout": "feat_quantizer_dropout",
    "negatives": "num_negatives",
    "logit_temperature": "contrastive_logits_temperature",
    "diversity_weight": "diversity_loss_weight",
}
_CLASSES = {
    "wav2vec2": {
        type(None): "Wav2Vec2Model",
        PretrainHeadConfig: "Wav2Vec2ForPreTraining",
        CTCHeadConfig: "Wav2Vec2ForCTC",
    },
    "hubert": {type(None): "HubertModel", CTCHeadConfig: "HubertForCTC"},
    "sew": {type(None): "SEWModel", CTCHeadConfig: "SEWForCTC"},
}


class Architecture(NamedTuple):
    """A model of ours: a backbone, the head on it (None: a bare backbone), and the factor it was trained at."""

    backbone: BackboneConfig
    head: PretrainHeadConfig | CTCHeadConfig | None
    squeeze: int


def read_architecture(config: Mapping[str, Any], normalize_wave: bool, source: str) -> Architecture:
    """Our configuration for a Hugging Face `config.json`.

    Args:
      normalize_wave: `do_normalize` of the preprocessor.
      source: what messages call the checkpoint.

    Raises:
      UserError: another architecture, or a variant whose mathematics we do not have.
    """
    family = config.get("model_type")
    if family not in _CLASSES:
        raise UserError(f"{source}: model_type {family!r} cannot be loaded; it must be one of {', '.join(_CLASSES)}")
    c = _filled(config)
    for key, default in _DEFAULTS.items():
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(c[key], kinds):
            raise UserError(f"{source}: config.json has {key}={c[key]!r}, which should be like {default!r}")
    for key, value in _REQUIRED.items():
        if c[key] != value:
            raise UserError(f"{source}: {key} is {c[key]!r}; only {value!r} can be loaded")
    backbone = BackboneConfig(
        frontend="wav2vec2" if len(c["conv_dim"]) == 7 else "compact",
        conv_width=c["conv_dim"][0],
        normalize_wave=normalize_wave,
        upsampler="linear" if family == "sew" else "residual",
        upsample_factors=(c["squeeze_factor"],),
        tail="drop" if family == "sew" else "keep",
        **{ours: c[theirs] for ours, theirs in _BACKBONE.items()},
    )
    if conv_stack(backbone) != list(zip(c["conv_dim"], c["conv_kernel"], c["conv_stride"], strict=False)):
        raise UserError(
            f"{source}: its convolutions (conv_dim, conv_kernel, conv_stride) are those of no known extractor"
        )
    if family == "sew" and c["squeeze_factor"] < 2:
        raise UserError(f"{source}: a squeeze_factor of {c['squeeze_factor']} cannot be loaded; SEW's is at least 2")
    if family != "sew" and feature_width(backbone) == backbone.width:
        raise UserError(f"{source}: hidden_size equals conv_dim; a projection between equal widths cannot be loaded")
    return Architecture(backbone, read_head((c.get("architectures") or [""])[0], c), c["squeeze_factor"])


def _filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` with the defaults of its family where it is silent or null."""
    defaults = _DEFAULTS | (_SEW_DEFAULTS if config.get("model_type") == "sew" else {}) | _REQUIRED
    return defaults | {key: value for key, value in config.items() if value is not None}


def read_head(kind: str, config: Mapping[str, Any]) -> PretrainHeadConfig | CTCHeadConfig | None:
    """The head of a class of Hugging Face's with that name, by its `config.json`; None where it is no head of ours."""
    c = _filled(config)
    if kind.endswith("ForCTC"):
        return CTCHeadConfig(symbols=c["vocab_size"], dropout=c["final_dropout"], blank=c["pad_token_id"])
    if kind.endswith("ForPreTraining"):
        return PretrainHeadConfig(**{ours: c[theirs] for ours, theirs in _PRETRAIN_HEAD.items()})
    return None


def write_architecture(family: str, architecture: Architecture) -> dict[str, Any]:
    """The `config.json` of a model: the inverse of `read_architecture`.

    Raises:
      UserError: that family cannot express the model.
    """
    backbone, head, squeeze = architecture
    _check_expressible(family, architecture)
    stack = conv_stack(backbone)
    c: dict[str, Any] = {
        "model_type": family,
        "architectures": [_CLASSES[family][type(head)]],
        "torch_dtype": "float32",
    }
    c |= {theirs: getattr(backbone, ours) for ours, theirs in _BACKBONE.items()}
    c |= dict(zip(("conv_dim", "conv_kernel", "conv_stride"), map(list, zip(*stack, strict=True)), strict=True))
    c |= {"hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": EPSILON}
    if family == "sew":
        del c["do_stable_layer_norm"]
        c |= {"squeeze_factor": squeeze}
    if isinstance(head, CTCHeadConfig):
        c |= {"vocab_size": head.symbols, "final_dropout": head.dropout, "pad_token_id": head.blank}
        c |= {"ctc_loss_reduction": "sum", "ctc_zero_infinity": True}
    elif head:
        c |= {theirs: getattr(head, ours) for ours, theirs in _PRETRAIN_HEAD.items()}
    return c


def _check_expressible(family: str, architecture: Architecture) -> None:
    backbone, head, squeeze = architecture
    name = {"wav2vec2": "Wav2Vec2", "hubert": "HuBERT", "sew": "SEW"}[family]
    sew = family == "sew"
    obstacles = {
        f"model.frontend is {backbone.frontend}": backbone.frontend not in ("wav2vec2", "compact"),
        "its squeeze factor is above 1": not sew and squeeze > 1,
        "its squeeze factor is 1": sew and squeeze == 1,
        "model.pre_norm is set": sew and backbone.pre_norm,
        f"model.upsampler is {backbone.upsampler}": sew and backbone.upsampler != "linear",
        "model.tail is keep": sew and backbone.tail != "drop",
        "model.width equals the extractor's": not sew and feature_width(backbone) == backbone.width,
        "head.projection is mlp": isinstance(head, PretrainHeadConfig) and head.projection != "linear",
        "it has a pre-training head": type(head) not in _CLASSES[family],
    }
    for obstacle, applies in obstacles.items():
        if applies:
            raise UserError(f"export: {name} cannot express this model, since {obstacle}")
