"""The architecture as frozen, hashable values."""

import dataclasses
from collections.abc import Collection
from typing import Any, Literal

from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.rates import FRAME_SAMPLES

Dtype = Literal["float32", "bfloat16"]
INT8 = "int8"  # of products; around them all is bfloat16
Remat = Literal["none", "dots", "layers"]


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Everything from the waveform to hidden states at the front end's rate (the defaults are wav2vec 2.0 base's)."""

    # two waveform extractors; log-mel energies; Kaldi's through two convolutions, at 50 or 25 Hz; learned filters
    frontend: Literal["wav2vec2", "compact", "logmel", "fbank50", "fbank25", "scf"] = "wav2vec2"
    conv_width: int = 512  # channels of the wav2vec2 extractor; the compact one's base width c (its output has 8c)
    conv_norm: Literal["group", "layer"] = "group"  # norm after the first convolution only, or after each one
    conv_bias: bool = False
    mel_top_hz: int = 8000  # where the highest filter of the log-mel and fbank front ends ends
    # what each log-mel bin is divided by: its own deviation over the utterance, or that of all bins together, which
    # leaves bins without speech as quiet as they are
    mel_scale: Literal["bin", "utterance"] = "bin"
    normalize_wave: bool = False  # zero mean and unit variance per utterance, as the layer-norm extractors expect
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn_width: int = 3072
    pre_norm: bool = False  # post-LN (base, LibriSpeech's large) or pre-LN (LV-60k's large)
    # a convolution before the layers, or by time in attention alone: pairs of channels that turn, or a bias
    positions: Literal["conv", "rotary", "alibi"] = "conv"
    pos_kernel: int = 128  # taps of the positional convolution
    pos_groups: int = 16
    pos_layers: int = 1  # positional convolutions; above 1 they have no weight norm, but norms after them: data2vec's
    rel_buckets: int = 0  # of distances whose learned biases attention adds to its scores, as WavLM does; 0: none
    rel_furthest: int = 800  # units from which on all distances share a bucket
    rel_unit: int = 1  # frames of a unit of distance: the squeeze factor that the buckets were trained at
    # WavLM's biases, gated by each query; or embeddings that queries and keys are compared with, as in SEW-D, of
    # `rel_buckets` to each side
    rel_form: Literal["gated", "disentangled"] = "gated"
    input_norm: bool = True  # a norm before post-LN layers, which SEW-D lacks
    norm_epsilon: float = 1e-5  # of the transformer's norms
    adapter_width: int = 0  # of the adapter after each pre-LN layer, as in MMS; 0: none
    # back to 50 Hz: frames repeated, plus a learned difference that starts at zero; SEW's own; or repeated alone
    upsampler: Literal["residual", "linear", "repeat"] = "residual"
    upsample_factors: tuple[int, ...] = ()  # squeeze factors above 1 that own an up-sampler
    tail: Literal["keep", "drop"] = "keep"  # the last T mod S frames: a shorter window, or dropped as SEW does
    compressor: bool = False  # owns one, which learns how much each frame weighs at the rates of a table
    # whether a merged frame counts in attention as the frames it is made of do, which models need that were trained
    # without merging (ToMe, arXiv 2210.09461)
    merge_bias: bool = True
    pool_ffn: bool = False  # the whole layer at the pooled query rate, feed-forward part included
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.1
    layerdrop: float = 0.05
    feature_grad_scale: float = 0.1  # on the extractor's gradient; 0 freezes it and skips its backward pass
    dtype: Dtype = "float32"  # of activations; parameters are float32 always
    int8: bool = False  # products of attention's and feed-forward's linear layers, in models that only compute
    # What a layer keeps for its backward pass: all, its matrix products, or its input alone (so the extractor, too);
    # the rest is computed again
    remat: Remat = "none"
    # On TPUs, layers of equal factors as the body of a loop, which compiles sooner. Not where the gradients of several
    # micro-batches are added up: those that a loop gives would be summed over the devices for each of them
    loop_layers: bool = True

    def __post_init__(self):
        object.__setattr__(self, "upsample_factors", tuple(sorted(s for s in set(self.upsample_factors) if s > 1)))
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise UserError(
                    f"model.{field}: {getattr(self, field)!r} is unknown; choose one of {', '.join(allowed)}"
                )
        for field in ("conv_width", "width", "layers", "heads", "ffn_width", "pos_kernel", "pos_groups", "pos_layers"):
            if getattr(self, field) < 1:
                raise UserError(f"model.{field}: {getattr(self, field)} must be at least 1")
        if not 1000 <= self.mel_top_hz <= 8000:
            raise UserError(
                f"model.mel_top_hz: {self.mel_top_hz} must lie between 1000 and 8000, half of the sample rate"
            )
        if self.width % self.heads:
            raise UserError(f"model.width {self.width} is no multiple of model.heads {self.heads}")
        if self.positions == "conv" and self.width % self.pos_groups:
            raise UserError(f"model.width {self.width} is no multiple of model.pos_groups {self.pos_groups}")
        if self.positions != "conv":
            self._check_times()
        if self.rel_buckets and not (self.rel_buckets >= 4 and self.rel_furthest > self.rel_buckets // 4):
            raise UserError(
                f"model.rel_buckets {self.rel_buckets} must be 0 or at least 4, and less than four times "
                f"model.rel_furthest {self.rel_furthest}"
            )
        if not self.input_norm and self.pre_norm:
            raise UserError("model.input_norm is off; it goes with model.pre_norm=False")
        if self.adapter_width and not self.pre_norm:
            raise UserError("model.adapter_width is set; adapters come with model.pre_norm=True")

    def _check_times(self) -> None:
        for field, plain in (("pos_layers", 1), ("rel_buckets", 0)):
            if getattr(self, field) != plain:
                raise UserError(
                    f"model.positions: {self.positions} stands for all other positions, and model.{field} is "
                    f"{getattr(self, field)}; set it to {plain}, or model.positions=conv"
                )
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise UserError(
                f"model.positions: rotary turns pairs of channels, and a head has {self.width // self.heads}; "
                "take model.width and model.heads that give it an even number, or alibi"
            )

    def check_setting(self, setting: Compression) -> None:
        """Whether the model can compute a setting.

        Raises:
          UserError: it has factors or shares for another number of layers, or leaves frames at uneven distances to a
            model that measures them.
        """
        setting.layer_pools(self.layers)
        if self.rel_buckets and (setting.merges or setting.rate < 1):
            raise UserError(
                f"setting: {setting} leaves frames at uneven distances, and this model's attention measures distances "
                f"(model.rel_buckets={self.rel_buckets}); give settings of squeeze and pools alone, such as s2q1k2"
            )

    @property
    def precision(self) -> str:
        """What it computes in, as `precision_fields` takes it."""
        return INT8 if self.int8 else self.dtype

    @property
    def attention_form(self) -> str:
        """How attention knows of positions, where it does."""
        return self.rel_form if self.positions == "conv" else self.positions

    @property
    def frontend_learns(self) -> bool:
        """Whether the front end has parameters; else no gradient reaches it, and nothing is to be penalised."""
        return self.frontend != "logmel"

    @property
    def frame_samples(self) -> int:
        """From one frame of the model to the next."""
        return FRAME_SAMPLES * (2 if self.frontend == "fbank25" else 1)


def precision_fields(precision: str) -> dict[str, Any]:
    """Fields of a model that computes in `float32`, `bfloat16` or `int8`."""
    return {"dtype": "bfloat16" if precision == INT8 else precision, "int8": precision == INT8}


# What a checkpoint's weights were trained as; the other fields are a run's own
ARCHITECTURE = (
    "frontend",
    "mel_top_hz",
    "mel_scale",
    "conv_width",
    "conv_norm",
    "conv_bias",
    "normalize_wave",
    "width",
    "layers",
    "heads",
    "ffn_width",
    "pre_norm",
    "positions",
    "pos_kernel",
    "pos_groups",
    "pos_layers",
    "rel_buckets",
    "rel_furthest",
    "rel_unit",
    "rel_form",
    "input_norm",
    "norm_epsilon",
    "adapter_width",
    "tail",
    "pool_ffn",
)
HEAD_ARCHITECTURE = ("codebooks", "codes", "code_width", "final_width", "projection", "mlp_width")
REMAT: tuple[Remat, ...] = ("none", "dots", "layers")  # each keeps less than the one before
_CHOICES = {
    "frontend": ("wav2vec2", "compact", "logmel", "fbank50", "fbank25", "scf"),
    "conv_norm": ("group", "layer"),
    "mel_scale": ("bin", "utterance"),
    "positions": ("conv", "rotary", "alibi"),
    "upsampler": ("residual", "linear", "repeat"),
    "tail": ("keep", "drop"),
    "rel_form": ("gated", "disentangled"),
    "dtype": ("float32", "bfloat16"),
    "remat": REMAT,
}


@dataclasses.dataclass(frozen=True)
class PretrainHeadConfig:
    """Quantizer, projections and contrastive task (defaults: wav2vec 2.0 base)."""

    codebooks: int = 2  # G
    codes: int = 320  # V, entries of each codebook
    code_width: int = 256  # of a quantized target, all groups together
    final_width: int = 256  # of the space in which cosines are taken
    projection: Literal["linear", "mlp"] = "linear"  # wav2vec 2.0's, or SEW's two-layer heads with BatchNorm
    mlp_width: int = 4096
    feature_dropout: float = 0.1  # on the quantizer's input
    negatives: int = 100
    logit_temperature: float = 0.1
    diversity_weight: float = 0.1
    penalty_weight: float = 10.0

    def __post_init__(self):
        if self.projection not in ("linear", "mlp"):
            raise UserError(f"head.projection: {self.projection!r} is unknown; choose linear or mlp")
        if self.code_width % self.codebooks:
            raise UserError(f"head.code_width {self.code_width} is no multiple of head.codebooks {self.codebooks}")


@dataclasses.dataclass(frozen=True)
class Data2VecConfig:
    """data2vec 2.0's masks, decoder, teacher and targets (defaults: its base for speech)."""

    clones: int = 8  # masks of each utterance in an update; front end and targets are computed once
    mask_ratio: float = 0.5  # of an utterance, exactly
    mask_adjust: float = 0.05  # so much more than the ratio would be masked if no two blocks overlapped
    mask_block: int = 5  # frames
    top_layers: int = 8  # whose feed-forward parts' outputs are averaged to a target
    decoder_width: int = 384
    decoder_layers: int = 4
    decoder_kernel: int = 7
    decoder_groups: int = 16
    decoder_dropout: float = 0.1  # on its input
    ema_start: float = 0.999  # the teacher's decay: how much of it stays at an update
    ema_end: float = 0.99999
    ema_anneal: float = 0.1875  # the fraction of num_steps after which the decay is there, in a line

    def __post_init__(self):
        if self.decoder_width % self.decoder_groups:
            raise UserError(
                f"data2vec.decoder_width {self.decoder_width} is no multiple of "
                f"data2vec.decoder_groups {self.decoder_groups}"
            )
        if self.ema_end < self.ema_start:
            raise UserError(f"data2vec.ema_end: {self.ema_end} must be at least data2vec.ema_start={self.ema_start}")


@dataclasses.dataclass(frozen=True)
class CTCHeadConfig:
    """The fine-tuning head."""

    symbols: int = 32
    dropout: float = 0.0  # before the linear layer
    blank: int = 0  # which symbol is the CTC blank


@dataclasses.dataclass(frozen=True)
class ClassifierHeadConfig:
    """The head that gives an utterance one of several labels."""

    labels: int = 2
    width: int = 256  # of the projection between the mean over frames and the labels
    dropout: float = 0.0  # before the projection
    layer_sum: bool = False  # reads a learned mean of all layers, as SUPERB's models do, in place of the last one


@dataclasses.dataclass(frozen=True)
class FrameHeadConfig:
    """The head that gives each frame one of several labels."""

    frame_labels: int = 2
    dropout: float = 0.0  # before the linear layer
    layer_sum: bool = False  # as ClassifierHeadConfig's


Head = PretrainHeadConfig | Data2VecConfig | CTCHeadConfig | ClassifierHeadConfig | FrameHeadConfig
LABEL_HEADS = (ClassifierHeadConfig, FrameHeadConfig)


def head_type(fields: Collection[str]) -> type[Head]:
    """The kind of head that a record with these fields is of."""
    if "symbols" in fields:
        return CTCHeadConfig
    if "labels" in fields:
        return ClassifierHeadConfig
    if "frame_labels" in fields:
        return FrameHeadConfig
    return Data2VecConfig if "clones" in fields else PretrainHeadConfig
