"""The kinds of models that transformers names: what its `config.json` calls their parts, and what they all share.

A new kind is an entry here, the names of its tensors (`hf_weights`) where they differ, and whatever part is really new.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sew_jax.models.config import ClassifierHeadConfig, CTCHeadConfig, FrameHeadConfig, PretrainHeadConfig
from sew_jax.models.layers import EPSILON

# Fields of BackboneConfig -> keys of config.json
_TRANSFORMER = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "pos_groups": "num_conv_pos_embedding_groups",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "input_dropout": "feat_proj_dropout",
    "layerdrop": "layerdrop",
    "conv_bias": "conv_bias",
}
_SEW = _TRANSFORMER | {"conv_norm": "feat_extract_norm", "pos_kernel": "num_conv_pos_embeddings"}
_NORMS = _SEW | {"pre_norm": "do_stable_layer_norm"}
_WAV2VEC2 = _NORMS | {"adapter_width": "adapter_attn_dim"}


_WITH_FRAMES = (CTCHeadConfig, ClassifierHeadConfig, FrameHeadConfig)
_TEXT_AND_LABELS = (CTCHeadConfig, ClassifierHeadConfig)


class Family(NamedTuple):
    """One `model_type`."""

    stem: str  # of its classes' names
    prefix: str  # of its backbone's tensors in a class with a head
    fields: Mapping[str, str]
    heads: tuple[type, ...] = _TEXT_AND_LABELS  # for which there is a class
    shared: Mapping[str, Any] = {}  # fields of BackboneConfig that all its models have
    least: Mapping[str, int] = {}  # of fields, without which it would be another family
    defaults: Mapping[str, Any] = {}  # of its configuration class, where they are not wav2vec 2.0's
    required: Mapping[str, Any] = {}  # beside REQUIRED, or in its place
    squeezes: bool = False


FAMILIES = {
    "wav2vec2": Family("Wav2Vec2", "wav2vec2", _WAV2VEC2, (*_WITH_FRAMES, PretrainHeadConfig)),
    "hubert": Family("Hubert", "hubert", _WAV2VEC2),
    "unispeech": Family("UniSpeech", "unispeech", _WAV2VEC2),
    "unispeech-sat": Family("UniSpeechSat", "unispeech_sat", _WAV2VEC2, _WITH_FRAMES),
    "data2vec-audio": Family(
        "Data2VecAudio",
        "data2vec_audio",
        _TRANSFORMER | {"pos_layers": "num_conv_pos_embeddings", "pos_kernel": "conv_pos_kernel_size"},
        _WITH_FRAMES,
        shared={"conv_norm": "layer"},
        least={"pos_layers": 2},
        defaults={"num_conv_pos_embeddings": 5},
    ),
    "wavlm": Family(
        "WavLM",
        "wavlm",
        _NORMS | {"rel_buckets": "num_buckets", "rel_furthest": "max_bucket_distance"},
        _WITH_FRAMES,
        least={"rel_buckets": 4},
    ),
    "sew": Family(
        "SEW",
        "sew",
        _SEW,
        shared={"upsampler": "linear", "tail": "drop"},
        defaults={
            "squeeze_factor": 2,
            "conv_dim": [64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512],
            "conv_kernel": [10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1],
            "conv_stride": [5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1],
        },
        squeezes=True,
    ),
}

_COMPACT = FAMILIES["sew"]
FAMILIES["sew-d"] = _COMPACT._replace(
    stem="SEWD",
    prefix="sew_d",
    fields={key: name for key, name in _SEW.items() if key not in ("dropout", "activation_dropout", "layerdrop")}
    | {
        "dropout": "activation_dropout",
        "rel_buckets": "position_buckets",
        "rel_furthest": "max_position_embeddings",
        "rel_unit": "squeeze_factor",
        "norm_epsilon": "layer_norm_eps",
    },
    shared={**_COMPACT.shared, "rel_form": "disentangled", "input_norm": False},
    least={"rel_buckets": 4},
    defaults={**_COMPACT.defaults, "layer_norm_eps": 1e-7},
    required={
        "hidden_act": "gelu_python",
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 0,
        "feature_layer_norm_eps": EPSILON,
    },
)

# What transformers' configuration classes assume where config.json is silent (4.57.6)
DEFAULTS: dict[str, Any] = {
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
    "conv_pos_kernel_size": 19,
    "do_stable_layer_norm": False,
    "num_buckets": 320,
    "max_bucket_distance": 800,
    "adapter_attn_dim": 0,  # theirs is null
    "squeeze_factor": 1,
    "position_buckets": 256,
    "max_position_embeddings": 512,
    "num_codevectors_per_group": 320,
    "num_codevector_groups": 2,
    "contrastive_logits_temperature": 0.1,
    "num_negatives": 100,
    "codevector_dim": 256,
    "proj_codevector_dim": 256,
    "diversity_loss_weight": 0.1,
    "feat_quantizer_dropout": 0.0,
    "pad_token_id": 0,
    "classifier_proj_size": 256,
    "use_weighted_layer_sum": False,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
}
# Defaults too, and all that we have the mathematics of
REQUIRED: dict[str, Any] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": EPSILON,
    "add_adapter": False,
    "conv_pos_batch_norm": False,
    "feat_proj_layer_norm": True,
}
PRETRAIN_HEAD = {
    "codebooks": "num_codevector_groups",
    "codes": "num_codevectors_per_group",
    "code_width": "codevector_dim",
    "final_width": "proj_codevector_dim",
    "feature_dropout": "feat_quantizer_dropout",
    "negatives": "num_negatives",
    "logit_temperature": "contrastive_logits_temperature",
    "diversity_weight": "diversity_loss_weight",
}
