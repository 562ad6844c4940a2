"""The parameters of released speech encoders between Hugging Face's tensors and ours, nothing of files.

Every parameter is a pair of names and a layout. Import (`hf_match`) and export read the same list, so each is the
other's inverse.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sew_jax.checkpoints.hf_config import Architecture
from sew_jax.checkpoints.hf_families import FAMILIES
from sew_jax.models.classifier import ClassifierModel
from sew_jax.models.config import (
    LABEL_HEADS,
    BackboneConfig,
    ClassifierHeadConfig,
    CTCHeadConfig,
    Data2VecConfig,
    FrameHeadConfig,
    Head,
    PretrainHeadConfig,
)
from sew_jax.models.ctc import CTCModel
from sew_jax.models.data2vec import Data2VecModel
from sew_jax.models.features import FeatureModel
from sew_jax.models.frame_classifier import FrameClassifierModel
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
_PER_HEAD = Layout(lambda x_1xHx1x1: x_1xHx1x1.reshape(-1), lambda x_H: x_H.reshape(1, -1, 1, 1))
_LAYER = {
    "attention/query": "attention.q_proj",
    "attention/key": "attention.k_proj",
    "attention/value": "attention.v_proj",
    "attention/out": "attention.out_proj",
    "attention_norm": "layer_norm",
    "ffn_in": "feed_forward.intermediate_dense",
    "ffn_out": "feed_forward.output_dense",
    "ffn_norm": "final_layer_norm",
}
_BERTS_LAYER = {
    "attention/query": "attention.self.query_proj",
    "attention/key": "attention.self.key_proj",
    "attention/value": "attention.self.value_proj",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
_POS_CONV = "encoder.pos_conv_embed.conv"


def _gains(x_OxIxK: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(x_OxIxK, dtype=np.float64).sum((0, 1))).astype(np.float32)


def _directions(x_OxIxK: np.ndarray) -> np.ndarray:
    """The weight itself, of whose length the gain takes care; a tap of zeros has a gain of 0, but needs a direction."""
    return np.where(_gains(x_OxIxK) > 0, x_OxIxK, np.float32(1)).T


# Where weight norm was folded before the model was stored: our paths -> the one tensor, and what makes each of it
FOLDED_WEIGHT = f"{_POS_CONV}.weight"
UNFOLD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "backbone/encoder/pos_conv/weight_g": _gains,
    "backbone/encoder/pos_conv/weight_v": _directions,
}


def parameter_names(family: str, architecture: Architecture) -> dict[str, tuple[str, Layout]]:
    """Our path of each parameter -> (Hugging Face's name, a backbone's without its class's prefix; layout)."""
    backbone, head, squeeze = architecture
    names: dict[str, tuple[str, Layout]] = {}

    def affine(path: str, name: str, bias: bool = True) -> None:
        names[f"{path}/kernel"] = (f"{name}.weight", _REVERSED)
        if bias:
            names[f"{path}/bias"] = (f"{name}.bias", _SAME)

    def norm(path: str, name: str) -> None:
        names[f"{path}/scale"] = (f"{name}.weight", _SAME)
        names[f"{path}/bias"] = (f"{name}.bias", _SAME)

    for i in range(len(conv_stack(backbone))):
        ours, theirs = "backbone/frontend/extractor", f"feature_extractor.conv_layers.{i}"
        affine(f"{ours}/conv_{i}", f"{theirs}.conv", bias=backbone.conv_bias)
        if backbone.conv_norm == "layer" or i == 0:
            norm(f"{ours}/norm_{i}", f"{theirs}.layer_norm")
    if FAMILIES[family].squeezes:
        norm("backbone/feature_norm", "layer_norm")
        projection = "feature_projection"
    else:
        norm("backbone/feature_norm", "feature_projection.layer_norm")
        projection = "feature_projection.projection"
    if feature_width(backbone) != backbone.width:
        affine("backbone/feature_projection", projection)
    names[MASK_EMBEDDING] = ("masked_spec_embed", _SAME)

    ours, theirs = "backbone/encoder", "encoder"
    if backbone.pos_layers == 1:
        names[f"{ours}/pos_conv/weight_g"] = (f"{_POS_CONV}.weight_g", _GAIN)
        names[f"{ours}/pos_conv/weight_v"] = (f"{_POS_CONV}.weight_v", _REVERSED)
        names[f"{ours}/pos_conv/bias"] = (f"{_POS_CONV}.bias", _SAME)
    else:
        for i in range(backbone.pos_layers):
            affine(f"{ours}/pos_conv/conv_{i}", f"{theirs}.pos_conv_embed.layers.{i}.conv")
    if backbone.rel_buckets and backbone.rel_form == "disentangled":
        names[f"{ours}/relative_embeddings/embedding"] = (f"{theirs}.encoder.rel_embeddings.weight", _SAME)
        norm(f"{ours}/relative_embeddings/norm", f"{theirs}.encoder.LayerNorm")
    elif backbone.rel_buckets:
        names[f"{ours}/relative_bias/embedding"] = (f"{theirs}.layers.0.attention.rel_attn_embed.weight", _SAME)
    if backbone.input_norm:
        norm(f"{ours}/norm", f"{theirs}.layer_norm")
    stem, parts = ("encoder.layer", _BERTS_LAYER) if family == "sew-d" else ("layers", _LAYER)
    for i in range(backbone.layers):
        layer, their_layer = f"{ours}/layer_{i}", f"{theirs}.{stem}.{i}"
        for part, name in parts.items():
            (norm if part.endswith("_norm") else affine)(f"{layer}/{part}", f"{their_layer}.{name}")
        if backbone.rel_buckets and backbone.rel_form == "gated":
            affine(f"{layer}/attention/gate/linear", f"{their_layer}.attention.gru_rel_pos_linear")
            names[f"{layer}/attention/gate/scale"] = (f"{their_layer}.attention.gru_rel_pos_const", _PER_HEAD)
        if backbone.adapter_width:
            norm(f"{layer}/adapter/norm", f"{their_layer}.adapter_layer.norm")
            affine(f"{layer}/adapter/down", f"{their_layer}.adapter_layer.linear_1")
            affine(f"{layer}/adapter/up", f"{their_layer}.adapter_layer.linear_2")
    if squeeze > 1:
        affine(f"{ours}/upsample_{squeeze}/linear", f"{theirs}.upsample.projection")

    if isinstance(head, CTCHeadConfig):
        affine("symbols", "lm_head")
    elif isinstance(head, LABEL_HEADS):
        if isinstance(head, ClassifierHeadConfig):
            affine("projector", "projector")
        affine("classifier", "classifier")
        if head.layer_sum:
            names["layer_weights"] = ("layer_weights", _SAME)
    elif isinstance(head, PretrainHeadConfig):
        groups, codes = head.codebooks, head.codes
        names["quantizer/codebook"] = (
            "quantizer.codevectors",
            Layout(lambda x: x.reshape(groups, codes, -1), lambda x: x.reshape(1, groups * codes, -1)),
        )
        affine("quantizer/logits", "quantizer.weight_proj")
        affine("project_target", "project_q")
        affine("project_prediction", "project_hid")
    return names


def to_hugging_face(family: str, architecture: Architecture, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Hugging Face's tensors of our parameters, as its classes name them. Other up-samplers stay behind."""
    flat = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}
    prefix = f"{FAMILIES[family].prefix}." if architecture.head else ""  # a head's class has the backbone as a module

    def whole(path: str, name: str) -> str:
        return prefix + name if path.startswith("backbone/") else name

    names = parameter_names(family, architecture)
    return {whole(path, name): layout.write(flat[path]) for path, (name, layout) in names.items() if path in flat}


def parameter_shapes(backbone: BackboneConfig, head: Head | None) -> dict[str, Any]:
    """The tree of a model's parameters, by shapes alone."""
    return unflatten_dict(flat_shapes(backbone, head), sep="/")


@functools.cache  # tracing a model takes a third of a second
def flat_shapes(backbone: BackboneConfig, head: Head | None) -> Mapping[str, jax.ShapeDtypeStruct]:
    """The same by path."""
    model = model_of(backbone, head)
    return flatten_dict(jax.eval_shape(model.initialize, jax.random.key(0))["params"], sep="/")


def model_of(
    backbone: BackboneConfig, head: Head | None
) -> PretrainModel | Data2VecModel | CTCModel | ClassifierModel | FrameClassifierModel | FeatureModel:
    """The model with that head."""
    if isinstance(head, PretrainHeadConfig):
        return PretrainModel(backbone, head)
    if isinstance(head, Data2VecConfig):
        return Data2VecModel(backbone, head)
    if isinstance(head, ClassifierHeadConfig):
        return ClassifierModel(backbone, head)
    if isinstance(head, FrameHeadConfig):
        return FrameClassifierModel(backbone, head)
    return CTCModel(backbone, head) if head else FeatureModel(backbone)
