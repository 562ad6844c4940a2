"""Audio that libsndfile cannot read (AAC in MP4, WebM, WMA, AMR, ...), decoded by FFmpeg through the extra `av`."""

import errno
import io
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
import soxr

from sew_jax.data.audio_names import HEADERLESS_SUFFIXES, PYAV_SUFFIXES, suffix_of
from sew_jax.data.problems import AudioError
from sew_jax.rates import SAMPLE_RATE

_HEAD = 24  # bytes that tell what a file is
# Where in a file which bytes stand: its kind. Suffixes alone tell of streams that begin with a bare frame.
_MAGIC = (
    (4, b"ftyp", "MP4"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "ASF (WMA)"),
    (0, b"#!AMR", "AMR"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"TTA1", "True Audio (TTA)"),
    (0, b"FLV\1", "FLV"),
    (0, b"ADIF", "AAC"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"\x0bw", "AC-3"),
)
# Containers of libsndfile's with a coding that it lacks; what else is wrong with such a file is damage.
_SHARED = ((0, b"NIST_1A", "NIST SPHERE"), (0, b"OggS", "Ogg"), (0, b"RIFF", "RIFF"), (0, b"caff", "CAF"))
_LACKING = re.compile(
    "unimplemented|unsupported|not supported|not recognised|unknown format|compression"
    "|malformed 'fmt '|error in flac decoder",
    re.IGNORECASE,
)
# What lies in the place of audio -> what to do
_OTHER_THINGS = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself; fetch that: git lfs pull"),
    (b"<", "is a web page or XML, not audio; was its download refused?"),
    (b"\x1f\x8b", "is gzipped; unpack it: gunzip"),
    (b"PK\3\4", "is a ZIP archive; unpack it"),
)
# FFmpeg may open nothing that names further files, as play lists do, and nothing but what it is given.
_DEMUXERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,iff,matroska,mov,mp3,mpeg,mpegts,"
    "nistsphere,ogg,qcp,rm,shn,tak,tta,w64,wav,wv"
)
_OPTIONS = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}


def decode_elsewhere(data: str | bytes, refusal: AudioError) -> io.BytesIO:
    """A WAV file of what libsndfile refused: 16 kHz, its channels, 16 bits.

    Args:
      data: path of a file, or its bytes.
      refusal: what is said where it is no audio for PyAV either.

    Raises:
      AudioError: it is none, or PyAV is not installed, or cannot decode it.
    """
    head = _head_of(data)
    if other := next((what for begins, what in _OTHER_THINGS if head.startswith(begins)), None):
        raise AudioError(other) from refusal
    kind = _kind_of(data, head, lacking=bool(_LACKING.search(str(refusal))))
    if kind:
        return _decode(data, kind)
    if not isinstance(data, bytes) and suffix_of(data) in HEADERLESS_SUFFIXES:
        raise AudioError(
            "has no header that says what it is; give it one: "
            "sox -t raw -r RATE -e CODING -b BITS -c CHANNELS IN OUT.wav"
        ) from refusal
    raise refusal


def _head_of(data: str | bytes) -> bytes:
    if isinstance(data, bytes):
        return data[:_HEAD]
    with open(data, "rb") as file:
        return file.read(_HEAD)


def _kind_of(data: str | bytes, head: bytes, lacking: bool) -> str | None:
    """What audio for PyAV a file is, by its first bytes or else by its name; None where it is none."""
    suffix = "" if isinstance(data, bytes) else suffix_of(data)
    magic = _MAGIC + _SHARED if lacking else _MAGIC
    by_content = next((kind for at, begins, kind in magic if head[at:].startswith(begins)), None)
    return by_content or (suffix[1:] if suffix in PYAV_SUFFIXES else None)


def _decode(data: str | bytes, kind: str) -> io.BytesIO:
    """The first sound track; a piece at a time, so that a long one is in memory at 16 kHz and 16 bits alone."""
    try:
        import av  # here: an extra
    except ImportError as error:
        raise AudioError(
            f"is {kind}, in a coding that libsndfile lacks; it is read after pip install 'sew_jax[av]'"
        ) from error
    output = io.BytesIO()
    try:
        with (
            _opened(data) as file,
            av.open(file, options=dict(_OPTIONS), metadata_errors="replace") as container,
        ):
            if not container.streams.audio:
                raise AudioError(f"is {kind} without a sound track")
            pieces = _frames(container)
            first = list(itertools.islice(pieces, 1))
            channels = first[0][0].shape[1] if first else 1
            with soundfile.SoundFile(output, "w", SAMPLE_RATE, channels, "PCM_16", format="WAV") as wav:
                for piece in _at_16_khz(itertools.chain(first, pieces), channels):
                    wav.write(piece)
    except av.FFmpegError as error:  # errors of input are the file's: those of storage come as Python raised them
        reason = "it is cut short or damaged" if error.errno == errno.EIO else _in_a_line(error.strerror or error)
        raise AudioError(f"cannot be decoded ({reason})") from None
    except (OSError, ValueError, MemoryError) as error:
        raise AudioError(f"cannot be decoded ({_in_a_line(getattr(error, 'strerror', None) or error)})") from error
    output.seek(0)
    return output


def _in_a_line(text: Any) -> str:
    return " ".join(str(text).split())


def _opened(data: str | bytes) -> Any:
    return io.BytesIO(data) if isinstance(data, bytes) else open(os.fspath(data), "rb")


def _frames(container) -> Iterator[tuple[np.ndarray, int]]:
    """(float32 (frames, channels), rate) of each piece of the first sound track."""
    for frame in container.decode(container.streams.audio[0]):
        samples = frame.to_ndarray()  # (channels, frames), or of packed formats (1, frames x channels)
        channels = len(frame.layout.channels)
        samples = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
        yield _as_float(samples), frame.sample_rate


def _as_float(samples: np.ndarray) -> np.ndarray:
    """1 is full scale."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return (samples / float(2 ** (8 * samples.itemsize - 1))).astype(np.float32)
    return samples.astype(np.float32)


def _at_16_khz(pieces: Iterator[tuple[np.ndarray, int]], channels: int) -> Iterator[np.ndarray]:
    """int16 (samples, channels); where the rate changes, the rest begins anew. Pieces of others are averaged."""
    for rate, run in itertools.groupby(pieces, key=lambda piece: piece[1]):
        resampler = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, channels)
        for samples, _ in run:
            if samples.shape[1] != channels:
                samples = np.repeat(samples.mean(1, keepdims=True), channels, 1)
            yield to_int16(resampler.resample_chunk(samples) if resampler else samples)
        if resampler:
            yield to_int16(resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True))


def to_int16(wave: np.ndarray) -> np.ndarray:
    """Floats, of which 1 is full scale, as samples of 16 bits; louder ones are cut."""
    return np.round(wave * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
