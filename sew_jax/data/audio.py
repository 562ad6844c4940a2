"""Audio of any rate, width and channel count that libsndfile reads, as 16 kHz mono 16-bit: the one form of all sources.

Since files and prepared records give the same integers, training does not depend on where audio lies.
"""

import io
import os
import re
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from sew_jax.rates import SAMPLE_RATE

EXTENSIONS = {".flac", ".wav", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".w64"}

_EXACT_SEEK = {"FLAC", "WAV", "W64", "AIFF"}  # formats whose seek lands on the very sample


class AudioError(Exception):
    """A file that holds no usable speech; the message says why, without the file's name."""


def probe(data: str | bytes) -> int:
    """Samples that `read` will return, from the header alone.

    Args:
      data: path of a file, or its bytes.

    Raises:
      AudioError: the header cannot be read, or promises nothing.
    """
    with _opened(data) as file:
        rate = file.samplerate
        samples = (2 * file.frames * SAMPLE_RATE + rate) // (2 * rate) if rate else 0  # half up, as soxr rounds
    if samples <= 0:
        raise AudioError("holds no audio")
    return samples


def read(data: str | bytes, begin: int = 0, samples: int | None = None) -> np.ndarray:
    """Speech as int16 at 16 kHz, channels averaged: (samples,). 1 is 2**-15 of full scale.

    Args:
      data: path of a file, or its bytes.
      begin: first sample wanted, at 16 kHz.
      samples: how many are wanted; None takes all there are. Fewer come where the audio ends.

    Raises:
      AudioError: it cannot be decoded to its end, is empty, or holds NaN or infinity.
    """
    with _opened(data) as file:
        rate, canonical = file.samplerate, _is_canonical(file) and file.format in _EXACT_SEEK
        promised = file.frames
        try:
            if canonical:  # no more is decoded than is wanted
                start = min(begin, promised)
                promised = promised - start if samples is None else min(promised - start, samples)
                if start:
                    file.seek(start)
                wave = file.read(promised, dtype="int16")
            else:
                wave = file.read(dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError, RuntimeError) as error:
            raise AudioError(_reason(data, error)) from error
    if not len(wave):
        raise AudioError(f"ends before sample {begin}, where more was expected" if begin else "holds no audio")
    if len(wave) < promised:
        raise AudioError(f"is truncated: {len(wave)} of {promised} samples can be decoded")
    if canonical:
        return wave
    return to_canonical(wave, rate)[begin : None if samples is None else begin + samples]


def blocks(data: str | bytes, seconds: float = 10.0) -> Iterator[np.ndarray]:
    """What `read` gives of all the audio (of MP3 to the last bit but one), a block at a time, in memory for a block.

    Args:
      data: path of a file, or its bytes.
      seconds: of a block.

    Raises:
      AudioError: as `read` does, but after the blocks before the fault.
    """
    with _opened(data) as file:
        canonical, left = _is_canonical(file), file.frames
        resampler = None if file.samplerate == SAMPLE_RATE else soxr.ResampleStream(file.samplerate, SAMPLE_RATE, 1)
        if left <= 0:
            raise AudioError("holds no audio")
        while left:
            wanted = min(left, round(seconds * file.samplerate))
            try:
                wave = file.read(wanted, dtype="int16" if canonical else "float32", always_2d=not canonical)
            except (soundfile.SoundFileError, OSError, RuntimeError) as error:
                raise AudioError(_reason(data, error)) from error
            if len(wave) < wanted:
                read = file.frames - left + len(wave)
                raise AudioError(f"is truncated: {read} of {file.frames} samples can be decoded")
            left -= wanted
            if not canonical:
                wave = _one_channel(wave)
                wave = _to_int16(resampler.resample_chunk(wave, last=not left) if resampler else wave)
            yield wave


def to_canonical(wave: np.ndarray, rate: int) -> np.ndarray:
    """Samples of any rate as int16 at 16 kHz, channels averaged: (samples,).

    Args:
      wave: (frames,) or (frames, channels), integers of 16 bits in any type, or floats of which 1 is full scale.
      rate: in Hz.

    Raises:
      AudioError: it holds NaN, infinity, or integers of more than 16 bits.
    """
    if np.issubdtype(wave.dtype, np.integer):
        if wave.size and (wave.min() < -(2**15) or wave.max() >= 2**15):
            raise AudioError("holds integers of more than 16 bits")
        wave = wave.astype(np.float32) / 2**15
    wave = _one_channel(wave)
    return _to_int16(wave if rate == SAMPLE_RATE else soxr.resample(wave, rate, SAMPLE_RATE))


def encode(wave: np.ndarray) -> bytes:
    """int16 samples at 16 kHz as the bytes of a FLAC file."""
    file = io.BytesIO()
    soundfile.write(file, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def is_canonical_flac(data: bytes) -> bool:
    """Whether the bytes are a FLAC file of 16 kHz, one channel and 16 bits already."""
    with _opened(data) as file:
        return file.format == "FLAC" and _is_canonical(file)


def change_speed(wave: np.ndarray, factor: float) -> np.ndarray:
    """int16 `wave` played `factor` times as fast, pitch and formants with it (Ko et al. 2015): (samples / factor,)."""
    return _to_int16(soxr.resample(wave.astype(np.float32) / 2**15, SAMPLE_RATE * factor, SAMPLE_RATE))


def _one_channel(wave: np.ndarray) -> np.ndarray:
    """Floats of any number of channels as float32 of one. Raises AudioError at NaN and infinity."""
    if not np.isfinite(wave).all():
        raise AudioError("holds NaN or infinite samples")
    return wave.astype(np.float32).reshape(len(wave), -1).mean(1)


def _to_int16(wave: np.ndarray) -> np.ndarray:
    return np.round(wave * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)


def _is_canonical(file: soundfile.SoundFile) -> bool:
    return (file.samplerate, file.channels, file.subtype) == (SAMPLE_RATE, 1, "PCM_16")


def _opened(data: str | bytes) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(io.BytesIO(data) if isinstance(data, bytes) else str(data))
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        if not isinstance(data, bytes) and not os.path.exists(data):
            raise AudioError("does not exist") from error
        if not (data if isinstance(data, bytes) else os.path.getsize(data)):
            raise AudioError("is empty") from error
        raise AudioError(_reason(data, error)) from error


def _reason(data: str | bytes, error: Exception) -> str:
    """What libsndfile says, without the file's name, which callers know."""
    text = str(error).rpartition("opening ")[2]
    text = re.sub(r"<_io\.BytesIO.*?>", "", text) if isinstance(data, bytes) else text.replace(repr(str(data)), "")
    return "cannot be decoded (" + (" ".join(text.split()).strip(" :.") or type(error).__name__) + ")"
