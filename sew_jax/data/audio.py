"""Audio of any rate, width and channel count that libsndfile reads, as 16 kHz mono 16-bit: the one form of all sources.

Since files and prepared records give the same integers, training does not depend on where audio lies.
"""

import contextlib
import functools
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import soundfile
import soxr

from sew_jax.data.problems import AudioError
from sew_jax.data.pyav_audio import to_int16
from sew_jax.data.streams import Stream, open_streams
from sew_jax.rates import SAMPLE_RATE
from sew_jax.storage import is_away, patient, unavailable, unreadable

_BLOCK, _MINUTE = 10.0, 60.0  # seconds that are decoded at a time
_CANCELLED = 0.01  # of the loudest channel: what opposite phases leave of it
_FEW = 1000  # samples
_IN_MEMORY = 2**30  # bytes
_LEAST = 0.05  # seconds in which that is no accident
_LOUDEST = 256.0  # of full scale; more is no sound in floats, such as integers of 16 bits


def _with_cause(function: Callable[..., Any]) -> Callable[..., Any]:
    """What decoders say of a file they would say of its storage, too: it is believed of the file's bytes alone."""

    @functools.wraps(function)
    def asked(data: str | bytes, *arguments: Any, **options: Any) -> Any:
        try:
            return function(data, *arguments, **options)
        except AudioError as error:
            content = _content(data) if isinstance(data, str) else None
            if content is None:
                raise
            try:
                return function(content, *arguments, **options)
            except AudioError:
                raise error from None  # it knows the file's name

    return asked


@patient
def _content(path: str) -> bytes | None:
    """A file's bytes; None where there is no such file, it is another with its companion, or too large."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _IN_MEMORY or path.lower().endswith(".sd2"):
            return None
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        if is_away(error):
            raise
        return None


@patient
@_with_cause
def probe(data: str | bytes) -> int:
    """Samples that `read` will return, from the header alone where it knows them.

    Args:
      data: path of a file, or its bytes.

    Raises:
      AudioError: the header cannot be read, promises nothing, or more than the file holds.
    """
    samples = 0
    with contextlib.closing(open_streams(data)) as streams:
        for stream in streams:
            rate = stream.rate
            samples += (2 * stream.count() * SAMPLE_RATE + rate) // (2 * rate)  # half up, as soxr rounds
    if samples <= 0:
        raise AudioError("holds no audio")
    return samples


@patient
@_with_cause
def read(data: str | bytes, begin: int = 0, samples: int | None = None, channel: int | None = None) -> np.ndarray:
    """Speech as int16 at 16 kHz, channels averaged: (samples,). 1 is 2**-15 of full scale.

    No more is decoded than is wanted of 16 kHz, one channel and 16 bits in a container that seeks, such as FLAC; of
    other audio all that comes before it, too.

    Args:
      data: path of a file, or its bytes.
      begin: first sample wanted, at 16 kHz.
      samples: how many are wanted; None takes all there are. Fewer come where the audio ends.
      channel: takes this one alone, the first is 0; None averages them.

    Raises:
      AudioError: it cannot be decoded that far, is empty, lacks the channel, holds NaN or infinity, its channels
        cancel each other, or it is too faint for 16 bits.
    """
    found: list[np.ndarray] = []
    skip, left = begin, samples
    with contextlib.closing(open_streams(data)) as streams:
        for stream in streams:
            skip -= stream.skip(skip) if stream.canonical else 0
            if channel is not None and channel >= stream.channels:
                raise AudioError(f"has no channel {channel}; it has {stream.channels}")
            block, most = _MINUTE if stream.canonical else _BLOCK, None if left is None else skip + left
            for wave in _converted(stream, block, most, channel):
                part = wave[skip : None if left is None else skip + left]
                skip = max(skip - len(wave), 0)
                if len(part):
                    found.append(part)
                if left is not None:
                    left -= len(part)
                    if not left:
                        break
            if left == 0:
                break
    if not found:
        raise AudioError(f"ends before sample {begin}, where more was expected" if begin else "holds no audio")
    return found[0] if len(found) == 1 else np.concatenate(found)


def blocks(data: str | bytes, seconds: float = _BLOCK) -> Iterator[np.ndarray]:
    """What `read` gives of all the audio, a block at a time, in memory for two.

    Args:
      data: path of a file, or its bytes.
      seconds: of a block.

    Raises:
      AudioError: as `read` does, but after the blocks before the fault.
      Unavailable: its storage went away.
    """
    empty = True
    try:
        with contextlib.closing(open_streams(data)) as streams:
            for stream in streams:
                for wave in _converted(stream, seconds):
                    empty = False
                    yield wave
    except AudioError as error:
        if is_away(cause := unreadable(data) if isinstance(data, str) else error):
            raise unavailable(cause) from error
        raise
    if empty:
        raise AudioError("holds no audio")


def _converted(
    stream: Stream, seconds: float, most: int | None = None, channel: int | None = None
) -> Iterator[np.ndarray]:
    """The blocks of a stream as int16 at 16 kHz; of a canonical one no more than `most` samples."""
    if stream.canonical:
        yield from stream.blocks(seconds, most)
        return
    resampler = None if stream.rate == SAMPLE_RATE else soxr.ResampleStream(stream.rate, SAMPLE_RATE, 1)
    sounds = heard = False  # before it is integers, and after
    for wave, last in _with_end(stream.blocks(seconds)):
        floats = _one_channel(wave if channel is None else wave[:, channel : channel + 1], stream.rate)
        wave = to_int16(resampler.resample_chunk(floats, last=last) if resampler else floats)
        heard = heard or bool(wave[:_FEW].any() or wave.any())  # most are heard at once
        sounds = sounds or (not heard and bool(floats.any()))
        if len(wave):
            yield wave
    if sounds and not heard:
        raise AudioError("is too faint for 16 bits, which hold silence of it; was it divided by 2**15 twice?")


def _with_end(blocks: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Each block, and whether it is the last."""
    before = None
    for wave in blocks:
        if before is not None:
            yield before, False
        before = wave
    if before is not None:
        yield before, True


def to_canonical(wave: np.ndarray, rate: int) -> np.ndarray:
    """Samples of any rate as int16 at 16 kHz, channels averaged: (samples,).

    Args:
      wave: (frames,) or (frames, channels), integers of 16 bits in any type, or floats of which 1 is full scale.
      rate: in Hz.

    Raises:
      AudioError: it holds NaN, infinity, or integers of more than 16 bits; or its channels cancel each other.
    """
    if np.issubdtype(wave.dtype, np.integer):
        if wave.size and (wave.min() < -(2**15) or wave.max() >= 2**15):
            raise AudioError("holds integers of more than 16 bits")
        wave = wave.astype(np.float32) / 2**15
    wave = _one_channel(wave, rate)
    return to_int16(wave if rate == SAMPLE_RATE else soxr.resample(wave, rate, SAMPLE_RATE))


def encode(wave: np.ndarray) -> bytes:
    """int16 samples at 16 kHz as the bytes of a FLAC file."""
    file = io.BytesIO()
    soundfile.write(file, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def is_canonical_flac(data: bytes) -> bool:
    """Whether the bytes are a FLAC file of 16 kHz, one channel and 16 bits already, whose header knows its length."""
    with contextlib.closing(open_streams(data)) as streams:
        stream = next(streams)
        return stream.format == "FLAC" and stream.canonical and stream.frames is not None


def change_speed(wave: np.ndarray, factor: float) -> np.ndarray:
    """int16 `wave` played `factor` times as fast, pitch and formants with it (Ko et al. 2015): (samples / factor,)."""
    return to_int16(soxr.resample(wave.astype(np.float32) / 2**15, SAMPLE_RATE * factor, SAMPLE_RATE))


def _one_channel(wave: np.ndarray, rate: int) -> np.ndarray:
    """Floats of any number of channels as float32 of one.

    Raises:
      AudioError: they hold NaN, infinity or nonsense, or channels of opposite phase, whose mean is silence.
    """
    peak = _peak(wave)
    if not np.isfinite(peak):
        raise AudioError("holds NaN or infinite samples")
    if peak > _LOUDEST:
        raise AudioError(f"holds samples of up to {peak:.3g}, where 1 is full scale")
    wave = wave.astype(np.float32, copy=False).reshape(len(wave), -1)
    if wave.shape[1] == 1:
        return wave[:, 0]
    mean = wave.mean(1)
    if peak >= 2**-8 and len(wave) >= _LEAST * rate and _peak(mean) < _CANCELLED * peak:
        raise AudioError(f"has {wave.shape[1]} channels of opposite phase, whose mean is silence; keep one of them")
    return mean


def _peak(wave: np.ndarray) -> float:
    return float(max(wave.max(initial=0), -wave.min(initial=0)))
