"""wav2vec 2.0, HuBERT and SEW between Hugging Face's form and ours: configurations and parameters, nothing of files.

Every parameter is a pair of names and a layout. Import and export read the same list, so each is the other's inverse.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.frontend import conv_stack, feature_width
from sew_jax.models.layers import EPSILON
from sew_jax.models.parameters import path_name
from sew_jax.models.pretrain import PretrainModel

MASK_EMBEDDING = "backbone/mask_embedding"

# What Hugging Face's configuration classes assume where config.json is silent (transformers 4.57.6)
_DEFAULTS = dict(
    vocab_size=32, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
    hidden_dropout=0.1, activation_dropout=0.1, attention_dropout=0.1, feat_proj_dropout=0.0, final_dropout=0.1,
    layerdrop=0.1, feat_extract_norm="group", conv_bias=False,
    num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16, do_stable_layer_norm=False, squeeze_factor=1,
    num_codevectors_per_group=320, num_codevector_groups=2, contrastive_logits_temperature=0.1, num_negatives=100,
    codevector_dim=256, proj_codevector_dim=256, diversity_loss_weight=0.1, feat_quantizer_dropout=0.0, pad_token_id=0,
    conv_dim=[512] * 7, conv_kernel=[10, 3, 3, 3, 3, 2, 2], conv_stride=[5, 2, 2, 2, 2, 2, 2],
)  # fmt: skip
_SEW_DEFAULTS = dict(
    squeeze_factor=2, conv_dim=[64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512],
    conv_kernel=[10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1], conv_stride=[5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1],
)  # fmt: skip
# Defaults too, and all that we have the mathematics of
_REQUIRED = dict(
    hidden_act="gelu", feat_extract_activation="gelu", layer_norm_eps=EPSILON, add_adapter=False, adapter_attn_dim=None,
    conv_pos_batch_norm=False, feat_proj_layer_norm=True,
)  # fmt: skip

# our field -> theirs
_BACKBONE = dict(
    conv_norm="feat_extract_norm", conv_bias="conv_bias", width="hidden_size", layers="num_hidden_layers",
    heads="num_attention_heads", ffn_width="intermediate_size", pre_norm="do_stable_layer_norm",
    pos_kernel="num_conv_pos_embeddings", pos_groups="num_conv_pos_embedding_groups", dropout="hidden_dropout",
    attention_dropout="attention_dropout", activation_dropout="activation_dropout", input_dropout="feat_proj_dropout",
    layerdrop="layerdrop",
)  # fmt: skip
_PRETRAIN_HEAD = dict(
    codebooks="num_codevector_groups", codes="num_codevectors_per_group", code_width="codevector_dim",
    final_width="proj_codevector_dim", feature_dropout="feat_quantizer_dropout", negatives="num_negatives",
    logit_temperature="contrastive_logits_temperature", diversity_weight="diversity_loss_weight",
)  # fmt: skip
_CLASSES = {
    "wav2vec2": {
        type(None): "Wav2Vec2Model", PretrainHeadConfig: "Wav2Vec2ForPreTraining", CTCHeadConfig: "Wav2Vec2ForCTC"
    },
    "hubert": {type(None): "HubertModel", CTCHeadConfig: "HubertForCTC"},
    "sew": {type(None): "SEWModel", CTCHeadConfig: "SEWForCTC"},
}  # fmt: skip


class Architecture(NamedTuple):
    """A model of ours: a backbone, the head on it (None: a bare backbone), and the factor it was trained at."""

    backbone: BackboneConfig
    head: PretrainHeadConfig | CTCHeadConfig | None
    squeeze: int


def read_architecture(config: Mapping[str, Any], normalize_wave: bool, origin: str) -> Architecture:
    """Our configuration for a Hugging Face `config.json`.

    Args:
      normalize_wave: `do_normalize` of the preprocessor.
      origin: what messages call the checkpoint.

    Raises:
      UserError: another architecture, or a variant whose mathematics we do not have.
    """
    family = config.get("model_type")
    if family not in _CLASSES:
        raise UserError(f"{origin}: model_type {family!r} cannot be loaded; it must be one of {', '.join(_CLASSES)}")
    told = {key: value for key, value in config.items() if value is not None}
    c = _DEFAULTS | (_SEW_DEFAULTS if family == "sew" else {}) | _REQUIRED | told
    for key, default in _DEFAULTS.items():
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(c[key], kinds):
            raise UserError(f"{origin}: config.json has {key}={c[key]!r}, which should be like {default!r}")
    for key, value in _REQUIRED.items():
        if c[key] != value:
            raise UserError(f"{origin}: {key} is {c[key]!r}; only {value!r} can be loaded")
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
            f"{origin}: its convolutions (conv_dim, conv_kernel, conv_stride) are those of no known extractor"
        )
    if family == "sew" and c["squeeze_factor"] < 2:
        raise UserError(f"{origin}: a squeeze_factor of {c['squeeze_factor']} cannot be loaded; SEW's is at least 2")
    if family != "sew" and feature_width(backbone) == backbone.width:
        raise UserError(f"{origin}: hidden_size equals conv_dim; a projection between equal widths cannot be loaded")
    return Architecture(backbone, _read_head(c), c["squeeze_factor"])


def _read_head(c: Mapping[str, Any]) -> PretrainHeadConfig | CTCHeadConfig | None:
    kind = (c.get("architectures") or [""])[0]
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
    c = {"model_type": family, "architectures": [_CLASSES[family][type(head)]], "torch_dtype": "float32"}
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
        f"model.frontend is {backbone.frontend}": backbone.frontend == "logmel",
        "its squeeze factor is above 1": not sew and squeeze > 1,
        "its squeeze factor is 1": sew and squeeze == 1,
        "model.pre_norm is set": sew and backbone.pre_norm,
        f"model.upsampler is {backbone.upsampler}": sew and backbone.upsampler != "linear",
        "model.tail is keep": sew and backbone.tail != "drop",
        "model.width equals the extractor's": not sew and feature_width(backbone) == backbone.width,
        "head.projection is mlp": isinstance(head, PretrainHeadConfig) and head.projection != "linear",
        "it has a pre-training head": type(head) not in _CLASSES[family],
    }
    for obstacle, found in obstacles.items():
        if found:
            raise UserError(f"export: {name} cannot express this model, since {obstacle}")


class Layout(NamedTuple):
    """How a parameter is stored: theirs to ours, and ours to theirs."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


_SAME = Layout(lambda x: x, lambda x: x)
_REVERSED = Layout(np.transpose, np.transpose)  # linear layers (O, I) and convolutions (O, I, K)
_GAIN = Layout(lambda x_1x1xK: x_1x1xK.reshape(-1), lambda x_K: x_K.reshape(1, 1, -1))


def parameter_names(family: str, architecture: Architecture) -> dict[str, tuple[str, Layout]]:
    """Our path of each parameter -> (Hugging Face's name, layout)."""
    backbone, head, squeeze = architecture
    names: dict[str, tuple[str, Layout]] = {}

    def affine(path: str, name: str, bias: bool = True) -> None:
        names[f"{path}/kernel"] = (f"{name}.weight", _REVERSED)
        if bias:
            names[f"{path}/bias"] = (f"{name}.bias", _SAME)

    def norm(path: str, name: str) -> None:
        names[f"{path}/scale"] = (f"{name}.weight", _SAME)
        names[f"{path}/bias"] = (f"{name}.bias", _SAME)

    prefix = f"{family}." if head else ""
    for i in range(len(conv_stack(backbone))):
        ours, theirs = "backbone/frontend/extractor", f"{prefix}feature_extractor.conv_layers.{i}"
        affine(f"{ours}/conv_{i}", f"{theirs}.conv", bias=backbone.conv_bias)
        if backbone.conv_norm == "layer" or i == 0:
            norm(f"{ours}/norm_{i}", f"{theirs}.layer_norm")
    if family == "sew":
        norm("backbone/feature_norm", f"{prefix}layer_norm")
        projection = f"{prefix}feature_projection"
    else:
        norm("backbone/feature_norm", f"{prefix}feature_projection.layer_norm")
        projection = f"{prefix}feature_projection.projection"
    if feature_width(backbone) != backbone.width:
        affine("backbone/feature_projection", projection)
    names[MASK_EMBEDDING] = (f"{prefix}masked_spec_embed", _SAME)

    ours, theirs = "backbone/encoder", f"{prefix}encoder"
    names[f"{ours}/pos_conv/weight_g"] = (f"{theirs}.pos_conv_embed.conv.weight_g", _GAIN)
    names[f"{ours}/pos_conv/weight_v"] = (f"{theirs}.pos_conv_embed.conv.weight_v", _REVERSED)
    names[f"{ours}/pos_conv/bias"] = (f"{theirs}.pos_conv_embed.conv.bias", _SAME)
    norm(f"{ours}/norm", f"{theirs}.layer_norm")
    for i in range(backbone.layers):
        layer, their_layer = f"{ours}/layer_{i}", f"{theirs}.layers.{i}"
        for part, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
            affine(f"{layer}/attention/{part}", f"{their_layer}.attention.{short}_proj")
        norm(f"{layer}/attention_norm", f"{their_layer}.layer_norm")
        affine(f"{layer}/ffn_in", f"{their_layer}.feed_forward.intermediate_dense")
        affine(f"{layer}/ffn_out", f"{their_layer}.feed_forward.output_dense")
        norm(f"{layer}/ffn_norm", f"{their_layer}.final_layer_norm")
    if squeeze > 1:
        affine(f"{ours}/upsample_{squeeze}/linear", f"{theirs}.upsample.projection")

    if isinstance(head, CTCHeadConfig):
        affine("symbols", "lm_head")
    elif head:
        groups, codes = head.codebooks, head.codes
        names["quantizer/codebook"] = (
            "quantizer.codevectors",
            Layout(lambda x: x.reshape(groups, codes, -1), lambda x: x.reshape(1, groups * codes, -1)),
        )
        affine("quantizer/logits", "quantizer.weight_proj")
        affine("project_target", "project_q")
        affine("project_prediction", "project_hid")
    return names


def from_hugging_face(
    family: str, architecture: Architecture, tensors: Mapping[str, np.ndarray], origin: str
) -> dict[str, Any]:
    """Our parameter tree of Hugging Face's tensors. A mask embedding may be missing, as from models that never mask.

    Raises:
      UserError: tensors are missing, left over, or of another shape; the message lists them.
    """
    tensors = {_one_spelling(name): x for name, x in tensors.items()}
    shapes = {
        path_name(path): x.shape
        for path, x in jax.tree_util.tree_leaves_with_path(parameter_shapes(architecture.backbone, architecture.head))
    }
    tree: dict[str, Any] = {}
    missing, misshapen = [], []
    for path, (name, layout) in parameter_names(family, architecture).items():
        if name not in tensors:
            if path != MASK_EMBEDDING:
                missing.append(name)
            continue
        theirs = tensors.pop(name)
        if theirs.size != math.prod(shapes[path]) or (ours := layout.read(theirs)).shape != shapes[path]:
            misshapen.append(f"{name} {theirs.shape}")
            continue
        *modules, leaf = path.split("/")
        functools.reduce(lambda node, module: node.setdefault(module, {}), modules, tree)[leaf] = ours
    problems = {"missing": missing, "of another shape": misshapen, "without a place": sorted(tensors)}
    if found := "; ".join(f"{len(names)} {what}: {_list(names)}" for what, names in problems.items() if names):
        raise UserError(f"{origin}: tensors and config.json do not match: {found}")
    return tree


def _list(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def to_hugging_face(family: str, architecture: Architecture, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Hugging Face's tensors of our parameters: the inverse of `from_hugging_face`. Other up-samplers stay behind."""
    flat = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}
    names = parameter_names(family, architecture)
    return {name: layout.write(flat[path]) for path, (name, layout) in names.items() if path in flat}


def _one_spelling(name: str) -> str:
    """torch has called the two parts of a weight-normed weight by two pairs of names."""
    name = name.replace(".parametrizations.weight.original0", ".weight_g")
    return name.replace(".parametrizations.weight.original1", ".weight_v")


def parameter_shapes(backbone: BackboneConfig, head: PretrainHeadConfig | CTCHeadConfig | None) -> dict[str, Any]:
    """The tree of a model's parameters, by shapes alone; a bare backbone's is that of a model with a head, less the head."""
    model = (
        PretrainModel(backbone, head)
        if isinstance(head, PretrainHeadConfig)
        else CTCModel(backbone, head or CTCHeadConfig())
    )
    params = jax.eval_shape(model.initialize, jax.random.key(0))["params"]
    return params if head else {"backbone": params["backbone"]}
