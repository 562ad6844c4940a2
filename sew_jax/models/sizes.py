"""The published sizes, and this project's own small one."""

import dataclasses
from typing import Any

from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, PretrainHeadConfig

_SEW = dict(frontend="compact", conv_width=64, pos_kernel=31, upsampler="linear")

_LARGE = dict(width=1024, layers=24, heads=16, ffn_width=4096)
_NO_DROPOUT = dict(dropout=0.0, attention_dropout=0.0, input_dropout=0.0, layerdrop=0.0)
_LAYER_NORMS = dict(pre_norm=True, conv_norm="layer", conv_bias=True, normalize_wave=True)


def _slim(layers: int, width: int, ffn_width: int, heads: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return dict(layers=layers, width=width, ffn_width=ffn_width, heads=heads), {}


# Architecture beyond BackboneConfig's defaults, and the head's. Sources: fairseq's wav2vec2_base_librispeech.yaml
# (base) and wav2vec2_large_librivox.yaml (large_lv60k) in examples/wav2vec/config/pretraining; for LibriSpeech's large,
# of which fairseq has no file, wav2vec 2.0's section 4.2 and what torchaudio's WAV2VEC2_LARGE says of the released
# checkpoint; SEW's scripts/pt-sew.sh; torchaudio's `wav2vec2_xlsr_1b` with the released model's config.json; `slim_*`
# and `small`, whose layers are few and wide, the wav2vec 2.0 configs of Liu et al. 2024 (arXiv:2409.16295,
# andi611/fairseq): shapes for one budget, named by their MACs. `demo`, `cpu_hour` and `gpu_day` are this project's.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "large": (_LARGE | dict(dropout=0.0, layerdrop=0.2), dict(final_width=768, code_width=768)),
    "large_lv60k": (
        _LARGE
        | _LAYER_NORMS
        | dict(dropout=0.0, attention_dropout=0.0, input_dropout=0.0, layerdrop=0.0, feature_grad_scale=1.0),
        dict(final_width=768, code_width=768, feature_dropout=0.0, penalty_weight=0.0),
    ),
    "xlsr_1b": (
        _LAYER_NORMS | dict(width=1280, layers=48, heads=16, ffn_width=5120),
        dict(final_width=1024, code_width=1024),
    ),
    "sew_tiny": (_SEW | dict(width=512, heads=8, ffn_width=2048), dict(projection="mlp")),
    "sew_small": (_SEW, dict(projection="mlp")),
    "sew_mid": (_SEW | dict(layers=24, layerdrop=0.2), dict(projection="mlp")),
    "slim_30": _slim(4, 192, 320, 4),
    "slim_50": _slim(5, 320, 768, 8),
    "slim_70": _slim(7, 384, 768, 8),
    "slim_100": _slim(12, 384, 768, 8),
    "slim_130": _slim(13, 416, 1024, 8),
    "slim_200": _slim(15, 528, 1024, 12),
    "small": _slim(3, 640, 2048, 8),
    "gpu_day": (dict(frontend="fbank50"), {}),
    "cpu_hour": (
        dict(frontend="fbank25", width=192, layers=6, heads=6, ffn_width=768, pos_kernel=31) | _NO_DROPOUT,
        dict(codes=32, code_width=128, final_width=128, feature_dropout=0.0, diversity_weight=0.2),
    ),
    "demo": (
        dict(frontend="logmel", width=128, layers=4, heads=4, ffn_width=512, pos_kernel=31) | _NO_DROPOUT,
        dict(codes=16, code_width=128, final_width=128, feature_dropout=0.0, diversity_weight=0.2),
    ),
}


def size_names() -> str:
    """The published sizes, for messages."""
    return ", ".join(SIZES)


def published(size: str) -> tuple[BackboneConfig, PretrainHeadConfig]:
    """The two configurations of a published size.

    Raises:
      UserError: there is none of that name.
    """
    if size not in SIZES:
        raise UserError(f"size {size!r} is unknown; choose one of {size_names()}")
    backbone, head = SIZES[size]
    return BackboneConfig(**backbone), PretrainHeadConfig(**head)


def model_options(size: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a config file says of a published size: every field that is not the run's own (table, dtype, form).

    Raises:
      UserError: there is no such size.
    """
    backbone, head = published(size)
    options = dataclasses.asdict(backbone)
    for of_the_run in ("upsample_factors", "compressor", "merge_bias", "dtype", "int8", "remat", "loop_layers"):
        del options[of_the_run]
    return options, dataclasses.asdict(head)
