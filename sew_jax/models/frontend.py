"""Front ends: 16 kHz waveform to features at 50 Hz, or 25 Hz.

B utterances, N samples, T frames, F mel bins, C channels. Whatever the front end, an utterance's features depend on its
valid samples only: statistics over time count valid frames, and the tail is zero.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.models.config import BackboneConfig
from sew_jax.models.layers import EPSILON, gelu, kaiming_normal, layer_norm, torch_uniform
from sew_jax.models.lengths import conv_length, mask_from_lengths, normalize_over_time, zero_padding
from sew_jax.models.products import dense_product, wide_on_cpu
from sew_jax.models.spectrum import HOP, MEL_BINS, WINDOW, kaldi_fbank, log_mel
from sew_jax.models.strided_conv import StridedConv

STACK = 2  # frames of 10 ms in one of 20 ms
# Convolutions over time and frequency, 3 x 3: those of SpeechBrain's BEST-RQ
FBANK_CHANNELS = (128, 32)
# Filters of the waveform and envelopes of each of them: number, taps, stride. RWTH's supervised features (Vieting et
# al. 2023, arXiv:2308.04286)
FILTERS, ENVELOPES = (150, 256, 10), (5, 40, 16)


def conv_stack(config: BackboneConfig) -> list[tuple[int, int, int]]:
    """(channels, kernel, stride) of each convolution of a waveform extractor.

    Sources: fairseq `Wav2Vec2Config.conv_feature_layers`; SEW `scripts/pt-sew.sh` (WFE-C, one pointwise layer after
    each strided one).
    """
    c = config.conv_width
    if config.frontend == "wav2vec2":
        return [(c, 10, 5)] + [(c, 3, 2)] * 4 + [(c, 2, 2)] * 2
    strided = [(2 * c, 3, 2), (2 * c, 3, 2), (4 * c, 3, 2), (4 * c, 3, 2), (8 * c, 2, 2), (8 * c, 2, 2)]
    stack = [(c, 10, 5)]
    for channels, kernel, stride in strided:
        stack += [(channels, kernel, stride), (channels, 1, 1)]
    return stack


def fbank_strides(config: BackboneConfig) -> tuple[int, int]:
    """Strides over time of the fbank front ends' convolutions; that over frequency is 2."""
    return (2, 2) if config.frontend == "fbank25" else (2, 1)


def feature_width(config: BackboneConfig) -> int:
    """Channels of the front end's output."""
    match config.frontend:
        case "logmel":
            return MEL_BINS * STACK
        case "fbank50" | "fbank25":
            return MEL_BINS // 4 * FBANK_CHANNELS[-1]
        case "scf":
            return FILTERS[0] * ENVELOPES[0] * STACK
    return conv_stack(config)[-1][0]


def frame_count(config: BackboneConfig, samples):
    """Frames of `samples` valid samples (int or array), at the front end's own rate."""
    match config.frontend:
        case "logmel":
            return conv_length(samples, WINDOW, HOP) // STACK
        case "fbank50" | "fbank25":
            return conv_length(samples, WINDOW, HOP) // math.prod(fbank_strides(config))
        case "scf":
            for _, taps, stride in (FILTERS, ENVELOPES):
                samples = conv_length(samples, taps, stride)
            return samples // STACK
    for _, kernel, stride in conv_stack(config):
        samples = conv_length(samples, kernel, stride)
    return samples


class Frontend(nn.Module):
    """wave (B, N), in [-1, 1] or int16, length (B,) in samples -> features (B, T, C), length (B,) in frames.

    The tail is zero.
    """

    config: BackboneConfig

    @nn.compact
    def __call__(self, wave_BxN, length_B):
        config = self.config
        if wave_BxN.dtype == jnp.int16:  # as the pipeline sends it, in half the bytes
            wave_BxN = wave_BxN.astype(jnp.float32) / 2**15
        if config.normalize_wave:
            wave_BxN = _normalize_wave(wave_BxN, length_B)
        if config.frontend == "logmel":
            mel_BxTxF = _normalize_mel(log_mel(wave_BxN, config.mel_top_hz), length_B, config)
            features = _stack(mel_BxTxF).astype(config.dtype)
        else:
            parts = {"fbank50": FbankConvs, "fbank25": FbankConvs, "scf": FilterBank}
            extractor = parts.get(config.frontend, ConvExtractor)
            if config.remat == "layers":
                extractor = nn.remat(extractor)
            features = extractor(config, name="extractor")(wave_BxN, length_B)
        frames_B = frame_count(config, length_B)
        return zero_padding(features, frames_B), frames_B


class ConvExtractor(nn.Module):
    """wav2vec 2.0's and SEW's convolutional extractors."""

    config: BackboneConfig

    @nn.compact
    def __call__(self, wave_BxN, length_B):
        config = self.config
        x_BxNxC = wave_BxN[:, :, None].astype(config.dtype)
        for i, (channels, kernel, stride) in enumerate(conv_stack(config)):
            conv = StridedConv(channels, kernel, stride, config.conv_bias, config.dtype, name=f"conv_{i}")
            x_BxNxC = conv(x_BxNxC)
            length_B = conv_length(length_B, kernel, stride)
            if config.conv_norm == "layer":
                x_BxNxC = layer_norm(config.dtype, name=f"norm_{i}")(x_BxNxC)
            elif i == 0:
                # computed again in the backward pass: kept, it is several float32 copies of the model's largest array
                x_BxNxC = nn.remat(TimeNorm)(name="norm_0")(x_BxNxC, length_B)
            x_BxNxC = gelu(x_BxNxC)
        return x_BxNxC


class FbankConvs(nn.Module):
    """Kaldi's log-mel energies, normalised over the utterance, through two strided convolutions over time and bins."""

    config: BackboneConfig

    @nn.compact
    def __call__(self, wave_BxN, length_B):
        config = self.config
        mel_BxTxF = _normalize_mel(kaldi_fbank(wave_BxN, config.mel_top_hz), length_B, config)
        x_BxTxFxC, length_B = mel_BxTxF[..., None].astype(config.dtype), conv_length(length_B, WINDOW, HOP)
        for i, (channels, stride) in enumerate(zip(FBANK_CHANNELS, fbank_strides(config), strict=True)):
            x_BxTxFxC = jnp.where(mask_from_lengths(length_B, x_BxTxFxC.shape[1])[:, :, None, None], x_BxTxFxC, 0)
            x_BxTxFxC = nn.Conv(
                channels,
                (3, 3),
                (stride, 2),
                padding=((1, int(stride == 1)), (1, 1)),  # so that `stride` frames are one, whatever follows them
                dtype=config.dtype,
                kernel_init=kaiming_normal,
                bias_init=torch_uniform(9 * x_BxTxFxC.shape[-1]),
                conv_general_dilated=_convolve,
                name=f"conv_{i}",
            )(x_BxTxFxC)
            # over bins and channels at once: of a bin alone the norm would hide how loud it is
            x_BxTxFxC = gelu(layer_norm(config.dtype, name=f"norm_{i}", axes=(-2, -1))(x_BxTxFxC))
            length_B = length_B // stride
        return x_BxTxFxC.reshape(*x_BxTxFxC.shape[:2], feature_width(config))


class FilterBank(nn.Module):
    """A learned bank of band-pass filters, and of each one's envelope a few learned averages under a root."""

    config: BackboneConfig

    @nn.compact
    def __call__(self, wave_BxN, length_B):
        del length_B  # a valid frame sees valid samples only
        dtype = self.config.dtype
        (filters, taps, hop), (averages, span, stride) = FILTERS, ENVELOPES
        filter_KxC = self.param("filters", kaiming_normal, (taps, filters)).astype(dtype)
        average_KxE = self.param("envelopes", kaiming_normal, (span, averages)).astype(dtype)
        window_BxTxK = _windows(wave_BxN.astype(dtype)[..., None], taps, hop)[..., 0]
        x_BxTxC = jnp.abs(dense_product(window_BxTxK, filter_KxC, (((2,), (0,)), ((), ()))))
        windows_BxTxKxC = _windows(x_BxTxC, span, stride)
        y_BxTxCxE = jnp.einsum("btkc,ke->btce", windows_BxTxKxC, average_KxE).astype(jnp.float32)
        # RWTH's 2.5th root; the slope of a root is infinite at zero, where digital silence lies
        root_BxTxC = ((jnp.abs(y_BxTxCxE) + 1e-3) ** 0.4).reshape(*y_BxTxCxE.shape[:2], filters * averages)
        return _stack(root_BxTxC).astype(dtype)


def _convolve(x, kernel, *arguments, **options):
    """`jax.lax.conv_general_dilated`, for flax's `Conv`."""
    return wide_on_cpu(lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, *arguments, **options), x, kernel)


def _windows(x_BxNxC, size: int, hop: int):
    """(B, T, size, C): the windows of a sequence, one every `hop` positions."""
    batch, positions, channels = x_BxNxC.shape
    count, blocks = conv_length(positions, size, hop), -(-size // hop)
    x_BxNxC = x_BxNxC[:, : (count + blocks - 1) * hop]
    x_BxNxC = jnp.pad(x_BxNxC, ((0, 0), (0, (count + blocks - 1) * hop - x_BxNxC.shape[1]), (0, 0)))
    x_BxIxHxC = x_BxNxC.reshape(batch, count + blocks - 1, hop, channels)
    return jnp.concatenate([x_BxIxHxC[:, i : i + count] for i in range(blocks)], 2)[:, :, :size]


def _stack(x_BxTxC):
    """Two frames of 10 ms side by side; an odd last one is left out."""
    batch, positions, channels = x_BxTxC.shape
    frames = positions // STACK
    return x_BxTxC[:, : frames * STACK].reshape(batch, frames, STACK * channels)


def _normalize_mel(mel_BxTxF, length_B, config: BackboneConfig):
    """Each bin centred and scaled over the utterance."""
    return normalize_over_time(mel_BxTxF, conv_length(length_B, WINDOW, HOP), EPSILON, config.mel_scale == "utterance")


class TimeNorm(nn.Module):
    """GroupNorm with one group a channel: each channel is normalised over the utterance's valid frames."""

    @nn.compact
    def __call__(self, x_BxTxC, length_B):
        scale = self.param("scale", nn.initializers.ones, (x_BxTxC.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x_BxTxC.shape[-1],))
        y = normalize_over_time(x_BxTxC.astype(jnp.float32), length_B, EPSILON)
        return (y * scale + bias).astype(x_BxTxC.dtype)


def _normalize_wave(wave_BxN, length_B):
    """Per-utterance normalisation over valid samples (1e-7 under the root, as transformers' feature extractor)."""
    x_BxNx1 = normalize_over_time(wave_BxN[:, :, None], length_B, 1e-7)
    return zero_padding(x_BxNx1, length_B)[:, :, 0]
