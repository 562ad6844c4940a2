"""Log-mel energies of a waveform, one frame every 10 ms: this project's own, and Kaldi's.

B utterances, N samples, T frames of 10 ms, M mel bins. Nothing here is learned.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sew_jax.rates import SAMPLE_RATE

MEL_BINS = 80
WINDOW, HOP, _FFT = 400, 160, 512  # 25 ms, 10 ms
FFT_BINS = _FFT // 2 + 1
_LOWEST_HZ = 20.0
_PREEMPHASIS = 0.97
_EXACT = jax.lax.Precision.HIGHEST  # a bf16 product would lose the quiet bins


def log_mel(wave_BxN, top_hz: int):
    """Log energies (B, T, M) of a wave in [-1, 1]: Hann windows, HTK's mel scale with triangles straight in Hz."""
    return jnp.log(jnp.maximum(_energies(wave_BxN, hann_kernel(), htk_filters(top_hz)), 1e-5))


def kaldi_fbank(wave_BxN, top_hz: int):
    """Kaldi's `compute-fbank-feats` (B, T, M) of a wave in [-1, 1], without dither.

    Its defaults but for 80 bins and dither: samples as 16-bit integers, whole windows of 25 ms (`snip-edges`) without
    their mean, pre-emphasis 0.97, Povey's window, power spectrum of 512, triangles straight in mel from 20 Hz, and a
    floor of float32's epsilon under the logarithm (Kaldi's `feat/feature-fbank.cc` and `feat/mel-computations.cc`).
    """
    floor = float(np.finfo(np.float32).eps)
    return jnp.log(jnp.maximum(_energies(wave_BxN * 2**15, _kaldi_kernel(), _kaldi_filters(top_hz)), floor))


def _energies(wave_BxN, kernel: np.ndarray, filters: np.ndarray):
    spectrum = jax.lax.conv_general_dilated(
        wave_BxN[:, :, None].astype(jnp.float32),
        jnp.asarray(kernel),
        (HOP,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=_EXACT,
    )
    cosine, sine = jnp.split(spectrum, 2, axis=-1)
    return jnp.einsum("btf,fm->btm", cosine**2 + sine**2, filters, precision=_EXACT)


@functools.cache
def htk_filters(top_hz: int) -> np.ndarray:
    """(FFT bins, M) triangles with equal spacing on the HTK mel scale, 20 Hz to `top_hz`."""

    def mel(hz):
        return 2595 * np.log10(1 + hz / 700)

    edges = 700 * (10 ** (np.linspace(mel(_LOWEST_HZ), mel(top_hz), MEL_BINS + 2) / 2595) - 1)
    return _triangles(np.arange(FFT_BINS) * SAMPLE_RATE / _FFT, edges)


@functools.cache
def _kaldi_filters(top_hz: int) -> np.ndarray:
    """(FFT bins, M) triangles of equal width in mel, 20 Hz to `top_hz`; the bin of half the sample rate has no part."""

    def mel(hz):
        return 1127 * np.log(1 + hz / 700)

    edges = np.linspace(mel(_LOWEST_HZ), mel(top_hz), MEL_BINS + 2)
    filters = _triangles(mel(np.arange(FFT_BINS) * SAMPLE_RATE / _FFT), edges)
    filters[-1] = 0
    return filters


def _triangles(at_F: np.ndarray, edges: np.ndarray) -> np.ndarray:
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (at_F[:, None] - low) / (centre - low), (high - at_F[:, None]) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _fourier() -> np.ndarray:
    """(window, 2 * FFT bins): cosines and sines."""
    phase = 2 * np.pi * np.arange(WINDOW)[:, None] * np.arange(FFT_BINS) / _FFT
    return np.concatenate([np.cos(phase), np.sin(phase)], axis=1)


@functools.cache
def hann_kernel() -> np.ndarray:
    """(window, 1, 2 * FFT bins): Hann-windowed, so that one convolution is the whole STFT."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    return (window[:, None] * _fourier())[:, None, :].astype(np.float32)


@functools.cache
def _kaldi_kernel() -> np.ndarray:
    """(window, 1, 2 * FFT bins): all that Kaldi does to a window before its power is linear, so one convolution."""
    without_mean = np.eye(WINDOW) - 1 / WINDOW
    emphasis = np.eye(WINDOW) - _PREEMPHASIS * np.eye(WINDOW, k=-1)
    emphasis[0, 0] -= _PREEMPHASIS  # the sample before the first one counts as the first
    povey = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))) ** 0.85
    kernel = without_mean.T @ emphasis.T @ (povey[:, None] * _fourier())
    return kernel[:, None, :].astype(np.float32)
