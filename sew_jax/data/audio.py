"""Audio files: any rate and channel count that libsndfile reads, to 16 kHz mono."""

from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
EXTENSIONS = {".flac", ".wav", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".w64"}


class AudioError(Exception):
    """A file that holds no usable speech; the message says why, without the file's name."""


def probe(path: str | Path) -> int:
    """Samples that `read` will return, from the header alone.

    Raises:
      AudioError: the header cannot be read, or promises nothing.
    """
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise AudioError(_reason(path, error)) from error
    samples = round(info.frames * SAMPLE_RATE / info.samplerate) if info.samplerate else 0
    if samples <= 0:
        raise AudioError("holds no audio")
    return samples


def read(path: str | Path) -> np.ndarray:
    """The whole file as float32 in [-1, 1], 16 kHz, channels averaged: (samples,).

    Raises:
      AudioError: it cannot be decoded to its end, is empty, or holds NaN or infinity.
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            promised, rate = file.frames, file.samplerate
            wave_NxC = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise AudioError(_reason(path, error)) from error
    if not len(wave_NxC):
        raise AudioError("holds no audio")
    if len(wave_NxC) < promised:
        raise AudioError(f"is truncated: {len(wave_NxC)} of {promised} samples can be decoded")
    wave = wave_NxC.mean(1)
    if not np.isfinite(wave).all():
        raise AudioError("holds NaN or infinite samples")
    return wave if rate == SAMPLE_RATE else soxr.resample(wave, rate, SAMPLE_RATE)


def change_speed(wave: np.ndarray, factor: float) -> np.ndarray:
    """`wave` played `factor` times as fast, its pitch and formants moved with it (Ko et al. 2015): (samples / factor,)."""
    return soxr.resample(wave, SAMPLE_RATE * factor, SAMPLE_RATE)


def _reason(path, error: Exception) -> str:
    text = str(error).replace(str(path), "").strip(" :.'\"") or type(error).__name__
    return "cannot be decoded (" + " ".join(text.split()).removeprefix("Error opening").strip(" :'\"") + ")"
