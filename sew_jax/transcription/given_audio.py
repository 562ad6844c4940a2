"""Audio as a caller of the Python API gives it: a path, a file's bytes, an array, or an array with its rate."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from sew_jax.data import audio as audio_files
from sew_jax.data.audio import AudioError
from sew_jax.errors import UserError
from sew_jax.rates import SAMPLE_RATE
from sew_jax.transcription.recordings import Recording

Audio = str | os.PathLike | bytes | np.ndarray | tuple[np.ndarray, int]


def recording_of(audio: Audio, rate: int, number: int) -> Recording:
    """An item of a list as what is transcribed.

    Args:
      rate: in Hz, of an array that comes without one.
      number: of the item, from 0.

    Raises:
      UserError: it is no audio, or cannot be read.
    """
    try:
        if isinstance(audio, (str, os.PathLike)):
            path = os.fspath(audio)
            return Recording(path, Path(path).stem, path, audio_files.probe(path))
        name = f"item {number}"
        if isinstance(audio, bytes):
            return Recording(name, name, audio, audio_files.probe(audio))
        wave = audio_files.to_canonical(*_array(audio, rate))
        return Recording(name, name, wave, len(wave))
    except AudioError as error:
        raise UserError(f"audio: {_name(audio)} {error}") from error


def wave_of(audio: Audio, rate: int) -> np.ndarray:
    """Float32 samples at 16 kHz; floats at 16 kHz are taken as they are, not rounded to 16 bits as a file's.

    Args:
      rate: in Hz, of an array that comes without one.

    Raises:
      UserError: it is no audio, or cannot be read.
    """
    try:
        if isinstance(audio, (str, os.PathLike, bytes)):
            wave = audio_files.read(audio if isinstance(audio, bytes) else os.fspath(audio))
        else:
            wave, rate = _array(audio, rate)
            if rate != SAMPLE_RATE or np.issubdtype(wave.dtype, np.integer):
                wave = audio_files.to_canonical(wave, rate)
    except AudioError as error:
        raise UserError(f"audio: {_name(audio)} {error}") from error
    return wave.astype(np.float32) / 2**15 if wave.dtype == np.int16 else wave.astype(np.float32)


def _array(audio: Any, rate: int) -> tuple[np.ndarray, int]:
    """An array and its rate, checked."""
    if isinstance(audio, tuple) and len(audio) == 2 and not isinstance(audio[0], (str, os.PathLike, bytes)):
        audio, rate = audio
    if not hasattr(audio, "__array__"):
        raise UserError(
            f"audio: {type(audio).__name__} is none; give a path, a file's bytes, an array, or (array, rate)"
        )
    wave = np.asarray(audio)
    if wave.ndim != 1:
        raise UserError(f"audio: an array of shape {wave.shape} is not mono; average its channels to (samples,)")
    if not wave.size:
        raise UserError("audio: the array is empty")
    if not np.issubdtype(wave.dtype, np.floating) and not np.issubdtype(wave.dtype, np.integer):
        raise UserError(f"audio: an array of {wave.dtype} holds no samples; give integers of 16 bits or floats")
    if not np.isfinite(wave).all():
        raise UserError("audio: the array holds NaN or infinite samples")
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not 1000 <= rate <= 1_000_000:
        raise UserError(f"rate: {rate!r} is no sample rate; give the array's, in Hz, such as 16000")
    return wave, rate


def _name(audio: Audio) -> str:
    if isinstance(audio, (str, os.PathLike)):
        return os.fspath(audio)
    return "a file's bytes" if isinstance(audio, bytes) else "an array"
