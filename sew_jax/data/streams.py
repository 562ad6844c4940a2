"""Streams of audio as libsndfile decodes them, a block at a time; whatever it raises becomes an AudioError."""

import contextlib
from collections.abc import Generator, Iterator

import numpy as np
import soundfile

from sew_jax.data.containers import open_parts
from sew_jax.data.problems import AudioError
from sew_jax.data.pyav_audio import decode_elsewhere
from sew_jax.rates import SAMPLE_RATE

_EXACT_SEEK = {"FLAC", "WAV", "WAVEX", "W64", "RF64", "AIFF", "AU", "CAF", "NIST"}  # lands on the very sample
_AT_ONCE = 2**22  # numbers that are decoded at a time, whatever a header promises
_UNKNOWN = 2**62  # frames; where libsndfile cannot know it says more
_GUESSED = {"MPEG_LAYER_I", "MPEG_LAYER_II"}  # codings whose frames it guesses from the size
_DENSEST = 8192  # frames that a byte can hold; of silence in FLAC's longest blocks it holds 6,000
_RATES = (1000, 1_000_000)  # Hz
_ERRORS = (soundfile.SoundFileError, OSError, RuntimeError, TypeError, ValueError, OverflowError, MemoryError)


class _Sequential(soundfile.SoundFile):
    """Reads on. soundfile seeks after each reading, which some codings cannot do, and MP3 not to the last bit."""

    def seekable(self) -> bool:
        return False


class Stream:
    """One stream of a file.

    Attributes:
      frames: how many there are; None where only decoding tells, as of FLAC that was written to a pipe, or MP2.
      format: libsndfile's name of the container.
      canonical: whether its samples are wanted as they are: 16 kHz, one channel, 16 bits.
      seeks: whether decoding can begin at any sample.

    Raises:
      AudioError: the header makes no sense.
    """

    def __init__(self, file: soundfile.SoundFile, size: int):
        rate, frames = file.samplerate, file.frames
        if not _RATES[0] <= rate <= _RATES[1]:
            raise AudioError(f"has a sample rate of {rate} Hz, which is none of speech")
        if _DENSEST * size < frames < _UNKNOWN:
            raise AudioError(f"is truncated: {size} bytes cannot hold the {frames} samples that it promises")
        self._file, self._done = file, 0
        self.rate, self.channels, self.format, coding = rate, file.channels, file.format, file.subtype
        self.frames = frames if frames < _UNKNOWN and coding not in _GUESSED else None
        self.canonical = (rate, self.channels, coding) == (SAMPLE_RATE, 1, "PCM_16")
        self.seeks = self.frames is not None and self.format in _EXACT_SEEK

    def skip(self, frames: int) -> int:
        """Goes up to `frames` further without decoding, if it seeks; returns how far."""
        if not self.seeks or self.frames is None:
            return 0
        frames = min(frames, self.frames - self._done)
        if frames:
            with _named():
                self._done = self._file.seek(self._done + frames)
        return frames

    def blocks(self, seconds: float, most: int | None = None) -> Iterator[np.ndarray]:
        """Blocks to the end, of `most` frames together: int16 (frames,) if canonical, else float32 (frames, channels).

        Raises:
          AudioError: it cannot be decoded, or ends before what was promised.
        """
        kind = {"dtype": "int16"} if self.canonical else {"dtype": "float32", "always_2d": True}
        block = min(max(round(seconds * self.rate), 1), max(_AT_ONCE // self.channels, 1))
        stop = None if most is None else self._done + most
        if self.frames is not None:
            stop = self.frames if stop is None else min(stop, self.frames)
        while stop is None or self._done < stop:
            wanted = block if stop is None else min(block, stop - self._done)
            with _named(f" beyond sample {self._done}" if self._done else ""):
                wave = self._file.read(wanted, **kind)
            self._done += len(wave)
            if len(wave):
                yield wave
            if len(wave) < wanted:
                if self.frames is not None:
                    raise AudioError(f"is truncated: {self._done} of {self.frames} samples can be decoded")
                break

    def count(self) -> int:
        """Frames from here to the end; decodes them where nothing else tells. Raises AudioError."""
        return sum(map(len, self.blocks(10.0))) if self.frames is None else self.frames - self._done


def open_streams(data: str | bytes) -> Generator[Stream, None, None]:
    """The streams of a file (a path, or its bytes), each open until the next is asked for.

    Raises:
      AudioError: it is none, or was cut.
    """
    for part in open_parts(data):
        size = part.size
        try:
            with _named():
                file = _Sequential(part.source)
        except AudioError as error:
            decoded = decode_elsewhere(data, error)
            file, size = _Sequential(decoded), decoded.getbuffer().nbytes
        with file:
            yield Stream(file, size)


@contextlib.contextmanager
def _named(where: str = "") -> Iterator[None]:
    """Whatever a file's content makes libsndfile, soundfile and NumPy raise is an AudioError."""
    try:
        yield
    except _ERRORS as error:
        # "Error opening NAME: REASON": callers know the name
        reason = " ".join(str(error).rpartition(": ")[2].split()).strip(" .") or type(error).__name__
        raise AudioError(f"cannot be decoded{where} ({reason})") from error
