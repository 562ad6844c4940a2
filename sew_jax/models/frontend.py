"""Front ends: 16 kHz waveform to 50 Hz features.

B utterances, N samples, T frames, C channels. Whatever the front end, an utterance's features depend on its valid
samples only: statistics over time count valid frames, and the tail is zero.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sew_jax.models.config import BackboneConfig
from sew_jax.models.layers import EPSILON, gelu, layer_norm
from sew_jax.models.lengths import conv_length, mask_from_lengths, zero_padding
from sew_jax.models.strided_conv import StridedConv
from sew_jax.rates import SAMPLE_RATE

MEL_BINS, MEL_STACK = 80, 2
WINDOW, HOP, _FFT = 400, 160, 512  # 25 ms, 10 ms
FFT_BINS = _FFT // 2 + 1


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


def feature_width(config: BackboneConfig) -> int:
    """Channels of the front end's output."""
    return MEL_BINS * MEL_STACK if config.frontend == "logmel" else conv_stack(config)[-1][0]


def frame_count(config: BackboneConfig, samples):
    """50 Hz frames of `samples` valid samples (int or array)."""
    if config.frontend == "logmel":
        return conv_length(samples, WINDOW, HOP) // MEL_STACK
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
        if wave_BxN.dtype == jnp.int16:  # as the pipeline sends it, in half the bytes
            wave_BxN = wave_BxN.astype(jnp.float32) / 2**15
        if self.config.normalize_wave:
            wave_BxN = _normalize_wave(wave_BxN, length_B)
        if self.config.frontend == "logmel":
            features, frames_B = _log_mel(wave_BxN, length_B, self.config), frame_count(self.config, length_B)
            features = features.astype(self.config.dtype)
        else:
            extractor = nn.remat(ConvExtractor) if self.config.remat == "layers" else ConvExtractor
            features, frames_B = extractor(self.config, name="extractor")(wave_BxN, length_B)
        return zero_padding(features, frames_B), frames_B


class ConvExtractor(nn.Module):
    """wav2vec 2.0's and SEW's convolutional extractors."""

    config: BackboneConfig

    @nn.compact
    def __call__(self, wave_BxN, length_B):
        config = self.config
        x = wave_BxN[:, :, None].astype(config.dtype)
        for i, (channels, kernel, stride) in enumerate(conv_stack(config)):
            x = StridedConv(channels, kernel, stride, config.conv_bias, config.dtype, name=f"conv_{i}")(x)
            length_B = conv_length(length_B, kernel, stride)
            if config.conv_norm == "layer":
                x = layer_norm(config.dtype, name=f"norm_{i}")(x)
            elif i == 0:
                # computed again in the backward pass: kept, it is several float32 copies of the model's largest array
                x = nn.remat(TimeNorm)(name="norm_0")(x, length_B)
            x = gelu(x)
        return x, length_B


class TimeNorm(nn.Module):
    """GroupNorm with one group a channel: each channel is normalised over the utterance's valid frames."""

    @nn.compact
    def __call__(self, x_BxTxC, length_B):
        scale = self.param("scale", nn.initializers.ones, (x_BxTxC.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x_BxTxC.shape[-1],))
        y = normalize_over_time(x_BxTxC.astype(jnp.float32), length_B, EPSILON)
        return (y * scale + bias).astype(x_BxTxC.dtype)


def normalize_over_time(x_BxTxC, length_B, epsilon: float, one_scale: bool = False):
    """Zero mean and unit variance of each channel over valid frames; padded frames hold numbers of no meaning.

    With `one_scale` the variances' mean over channels is 1, not each one.
    """
    mask = mask_from_lengths(length_B, x_BxTxC.shape[1])[:, :, None]
    count = jnp.maximum(length_B, 1)[:, None, None]
    mean = jnp.where(mask, x_BxTxC, 0.0).sum(1, keepdims=True) / count
    centred = x_BxTxC - mean
    variance = jnp.where(mask, jnp.square(centred), 0.0).sum(1, keepdims=True) / count
    if one_scale:
        variance = variance.mean(2, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


def _normalize_wave(wave_BxN, length_B):
    """Per-utterance normalisation over valid samples (1e-7 under the root, as transformers' feature extractor)."""
    x_BxNx1 = normalize_over_time(wave_BxN[:, :, None], length_B, 1e-7)
    return zero_padding(x_BxNx1, length_B)[:, :, 0]


@functools.cache
def _mel_filters(top_hz: int) -> np.ndarray:
    """(FFT bins, MEL_BINS) triangles with equal spacing on the HTK mel scale, 20 Hz to `top_hz`."""

    def mel(hz):
        return 2595 * np.log10(1 + hz / 700)

    edges = 700 * (10 ** (np.linspace(mel(20.0), mel(top_hz), MEL_BINS + 2) / 2595) - 1)
    hz = np.arange(FFT_BINS)[:, None] * SAMPLE_RATE / _FFT
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    return np.maximum(0, np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre))).astype(np.float32)


@functools.cache
def _fourier_kernel() -> np.ndarray:
    """(window, 1, 2 * FFT bins): Hann-windowed cosines and sines, so that one convolution is the whole STFT."""
    time = np.arange(WINDOW)
    phase = 2 * np.pi * time[:, None] * np.arange(FFT_BINS) / _FFT
    window = 0.5 - 0.5 * np.cos(2 * np.pi * time / WINDOW)
    kernel = window[:, None] * np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    return kernel[:, None, :].astype(np.float32)


def _log_mel(wave_BxN, length_B, config: BackboneConfig):
    """Log-mel energies, each bin centred and scaled over the utterance, two 10 ms frames stacked: (B, T, 160)."""
    exact = jax.lax.Precision.HIGHEST  # a bf16 product would lose the quiet bins
    spectrum = jax.lax.conv_general_dilated(
        wave_BxN[:, :, None].astype(jnp.float32),
        jnp.asarray(_fourier_kernel()),
        (HOP,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=exact,
    )
    cosine, sine = jnp.split(spectrum, 2, axis=-1)
    mel = jnp.einsum("btf,fm->btm", cosine**2 + sine**2, _mel_filters(config.mel_top_hz), precision=exact)
    log_mel = jnp.log(jnp.maximum(mel, 1e-5))
    log_mel = normalize_over_time(log_mel, conv_length(length_B, WINDOW, HOP), EPSILON, config.mel_scale == "utterance")
    frames = log_mel.shape[1] // MEL_STACK
    return log_mel[:, : frames * MEL_STACK].reshape(log_mel.shape[0], frames, MEL_BINS * MEL_STACK)
