"""The parameters of wav2vec 2.0, HuBERT and SEW between Hugging Face's tensors and ours, nothing of files.

Every parameter is a pair of names and a layout. Import and export read the same list, so each is the other's inverse.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sew_jax.checkpoints.hf_config import Architecture
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.frontend import conv_stack, feature_width
from sew_jax.models.parameters import path_name
from sew_jax.models.pretrain import PretrainModel

MASK_EMBEDDING = "backbone/mask_embedding"


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
    family: str, architecture: Architecture, tensors: Mapping[str, np.ndarray], source: str
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
    if mismatch := "; ".join(f"{len(names)} {what}: {_list(names)}" for what, names in problems.items() if names):
        raise UserError(f"{source}: tensors and config.json do not match: {mismatch}")
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
    """The tree of a model's parameters, by shapes alone; a bare backbone's is that of a model less its head."""
    model = (
        PretrainModel(backbone, head)
        if isinstance(head, PretrainHeadConfig)
        else CTCModel(backbone, head or CTCHeadConfig())
    )
    params = jax.eval_shape(model.initialize, jax.random.key(0))["params"]
    return params if head else {"backbone": params["backbone"]}
