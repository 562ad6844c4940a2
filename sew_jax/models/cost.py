"""Multiply-accumulate operations of one utterance at a setting, counted from the architecture.

The table of published factors that this reproduces is in docs/; XLA's own count agrees (tests/models/test_cost.py).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from sew_jax.compression import Compression
from sew_jax.models.compressor import COMPRESSOR_TAPS
from sew_jax.models.config import BackboneConfig, Data2VecConfig, PretrainHeadConfig
from sew_jax.models.frontend import (
    ENVELOPES,
    FBANK_CHANNELS,
    FILTERS,
    conv_stack,
    fbank_strides,
    feature_width,
    frame_count,
)
from sew_jax.models.lengths import conv_length, merged_away, pooled_length, scaled_length
from sew_jax.models.spectrum import FFT_BINS, HOP, MEL_BINS, WINDOW
from sew_jax.models.upsamplers import upsampler_of
from sew_jax.rates import SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class Cost:
    """MACs of the backbone's parts (norms, activations and the head's last layer are not counted)."""

    extractor: int
    feature_projection: int
    pos_conv: int
    projections: int  # queries, keys, values and outputs
    attention: int  # scores and weighted sums
    feed_forward: int
    upsampler: int
    compressor: int = 0

    @property
    def encoder(self) -> int:
        """All but the front end."""
        return self.pos_conv + self.projections + self.attention + self.feed_forward + self.upsampler + self.compressor

    @property
    def total(self) -> int:
        return self.extractor + self.feature_projection + self.encoder


def count_macs(config: BackboneConfig, compression: Compression, samples: int) -> Cost:
    """MACs for one utterance of `samples` samples.

    Raises:
      UserError: the model cannot compute the setting.
    """
    config.check_setting(compression)
    width, frames = config.width, frame_count(config, samples)
    squeeze, rate = compression.squeeze, compression.rate
    windows = pooled_length(frames, squeeze) if config.tail == "keep" else frames // squeeze
    compressor = 0
    if rate < 1:
        windows = scaled_length(frames, rate)
        weights = COMPRESSOR_TAPS * width**2 if config.compressor else 0
        compressor = frames * (weights + 2 * windows * width)  # there and back
    projections = attention = feed_forward = 0
    left = windows
    merges = compression.layer_merges(config.layers)
    for (query_pool, kv_pool), share in zip(compression.layer_pools(config.layers), merges, strict=True):
        queries, keys = pooled_length(left, query_pool), pooled_length(left, kv_pool)
        compared = left if share and kv_pool > 1 else 0  # whose keys attention itself has no need of
        distances = _distances(config, queries, keys, query_pool, kv_pool)
        projections += (2 * (queries + keys + distances) + compared) * width**2
        attention += (2 * queries * keys + (queries + keys) * distances) * width
        attention += 8 * queries * width if config.rel_buckets and config.rel_form == "gated" else 0  # the gate
        left -= merged_away(left, share)
        at_rate = queries if config.pool_ffn and query_pool > 1 else left
        feed_forward += 2 * at_rate * width * (config.ffn_width + config.adapter_width)
    return Cost(
        extractor=sum(stage.macs for stage in _extractor(config, samples)),
        feature_projection=frames * feature_width(config) * width if feature_width(config) != width else 0,
        pos_conv=_convolved(config, frames, squeeze) * (config.pos_kernel * width**2 // config.pos_groups),
        projections=projections,
        attention=attention,
        feed_forward=feed_forward,
        upsampler=windows * width**2 * (upsampler_of(config, squeeze) or 0),
        compressor=compressor,
    )


def _distances(config: BackboneConfig, queries: int, keys: int, query_pool: int, kv_pool: int) -> int:
    """Distances whose embeddings disentangled attention compares with queries and keys; a batch projects them once."""
    if not config.rel_buckets or config.rel_form != "disentangled":
        return 0
    unit = math.gcd(query_pool, kv_pool)
    return (queries - 1) * (query_pool // unit) + (keys - 1) * (kv_pool // unit) + 1


def _convolved(config: BackboneConfig, frames: int, squeeze: int) -> int:
    """Frames of the positional convolutions' outputs."""
    if config.positions != "conv":
        return 0
    return frames * (config.pos_layers - 1) + pooled_length(frames, squeeze)


def count_shared_macs(config: BackboneConfig, settings: Sequence[Compression], samples: int) -> int:
    """MACs for one utterance of `samples` samples at several settings, which share one pass of the front end.

    Raises:
      UserError: the model cannot compute a setting.
    """
    first, *others = (count_macs(config, setting, samples) for setting in settings)
    return first.total + sum(cost.encoder for cost in others)


def typical_macs(config: BackboneConfig, compression: Compression) -> int:
    """MACs of ten seconds of speech: by what the settings of a table are ordered from largest to smallest."""
    return count_macs(config, compression, 10 * SAMPLE_RATE).total


def count_update_flop(
    config: BackboneConfig, compression: Compression, samples: int, others: Sequence[Compression] = ()
) -> float:
    """FLOP of one utterance's part of an update, on average over the layers that layer-drop leaves out.

    A backward pass costs twice its forward pass, and half of that where a layer's input needs no gradient; what has no
    parameters, or is frozen by `feature_grad_scale=0`, has none. `others` are settings that the update computes beside
    `compression`, on the same pass of the front end.
    """
    dropped = 0.0
    for setting in (compression, *others):
        one = count_macs(config, setting, samples)
        dropped += config.layerdrop * (one.projections + one.attention + one.feed_forward)
    return 6 * (count_shared_macs(config, (compression, *others), samples) - dropped) - 2 * _spared(config, samples)


def count_pretrain_flop(
    config: BackboneConfig,
    head: PretrainHeadConfig,
    compression: Compression,
    samples: int,
    masked: int,
    others: Sequence[Compression] = (),
) -> float:
    """FLOP of one utterance's part of an update of pre-training: `count_update_flop`, and the heads at `masked` frames.

    Not counted: norms, activations, softmax, and the optimiser, which costs the same for any number of utterances.
    """
    shared = feature_width(config) * head.codebooks * head.codes + head.code_width * head.codes
    each = masked * head.final_width  # cosines of all pairs, of which negatives are picked
    if head.projection == "linear":
        shared, each = shared + head.code_width * head.final_width, each + config.width * head.final_width
    else:
        shared += (head.code_width + head.final_width) * head.mlp_width
        each += (config.width + head.final_width) * head.mlp_width
    return count_update_flop(config, compression, samples, others) + 6 * masked * (shared + each * (1 + len(others)))


def count_data2vec_flop(
    config: BackboneConfig,
    head: Data2VecConfig,
    compression: Compression,
    samples: int,
    kept: int,
    teacher: Compression,
    others: Sequence[Compression] = (),
) -> float:
    """FLOP of one utterance's part of an update of data2vec 2.0: a front end, a teacher, and each copy's student.

    Args:
      kept: frames that a student's layers see.
    """
    frames, width = frame_count(config, samples), config.width
    kept_samples = kept * config.frame_samples + 240  # of which front ends make so many frames, but scf
    while frame_count(config, kept_samples) < kept:
        kept_samples += config.frame_samples
    wide, groups = head.decoder_width, head.decoder_groups
    first = head.decoder_kernel * width * wide // groups
    decoder = frames * (first + (head.decoder_layers - 1) * head.decoder_kernel * wide**2 // groups + wide * width)
    student = 0.0
    for setting in (compression, *others):
        seen, whole = count_macs(config, setting, kept_samples), count_macs(config, setting, samples)
        layers = (1 - config.layerdrop) * (seen.projections + seen.attention + seen.feed_forward)
        student += layers + seen.upsampler + whole.pos_conv + decoder
    whole = count_macs(config, teacher, samples)
    front = 6 * (whole.total - whole.encoder) - 2 * _spared(config, samples)
    return front + 2 * (whole.encoder - whole.upsampler) + 6 * head.clones * student


def _spared(config: BackboneConfig, samples: int) -> float:
    """MACs of a front end's backward pass that need not be computed."""
    stages = _extractor(config, samples)
    return sum(stage.macs * (2 - stage.backward if config.feature_grad_scale else 2) for stage in stages)


class _Stage(NamedTuple):
    """Of a front end: MACs, and what its backward pass costs, as a multiple of them."""

    macs: int
    backward: int


def _extractor(config: BackboneConfig, samples: int) -> list[_Stage]:
    windows = conv_length(samples, WINDOW, HOP)
    spectrum = _Stage(windows * (WINDOW * 2 * FFT_BINS + FFT_BINS * MEL_BINS), 0)
    match config.frontend:
        case "logmel":
            return [spectrum]
        case "fbank50" | "fbank25":
            stages, channels_in, frames, bins = [spectrum], 1, windows, MEL_BINS
            for channels, stride in zip(FBANK_CHANNELS, fbank_strides(config), strict=True):
                frames, bins = frames // stride, bins // 2
                stages.append(_Stage(frames * bins * 9 * channels_in * channels, min(len(stages), 2)))
                channels_in = channels
            return stages
        case "scf":
            (filters, taps, hop), (averages, span, stride) = FILTERS, ENVELOPES
            positions = conv_length(samples, taps, hop)
            averaged = conv_length(positions, span, stride) * span * filters * averages
            return [_Stage(positions * taps * filters, 1), _Stage(averaged, 2)]
    stages, channels_in = [], 1
    for channels, kernel, stride in conv_stack(config):
        samples = conv_length(samples, kernel, stride)
        stages.append(_Stage(samples * channels * kernel * channels_in, 2 if stages else 1))
        channels_in = channels
    return stages
