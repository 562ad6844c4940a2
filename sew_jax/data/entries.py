"""An utterance before its audio is opened, and what opens it: files, segments of files, rows of Parquet and Arrow.

Paths may be local or remote (gs://, s3://), through etils.epath; a remote scheme needs its package (gcsfs, s3fs).
"""

import concurrent.futures
import functools
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath

from sew_jax.buckets import is_remote
from sew_jax.console import Progress, say
from sew_jax.data import audio, known_lengths, packed
from sew_jax.data.addresses import AddressError, open_address
from sew_jax.data.audio_names import DOUBTFUL_SUFFIXES, is_audio_name, suffix_of
from sew_jax.data.problems import AudioError
from sew_jax.rates import SAMPLE_RATE
from sew_jax.storage import is_file, patient

_T = TypeVar("_T")
_AT_ONCE, _CHUNK = 256, 64  # chunks that wait for threads, and items of one
_SILENCE = 10.0  # seconds after which what takes long says how far it is
_SOME = 1000  # files whose headers are read in a moment
_MANY = 20_000  # files whose headers take long enough to say so, or to be believed
TOLERANCE = 0.1  # seconds by which a manifest may be wrong about a file


class Entry(NamedTuple):
    """An utterance; with a `problem` it cannot be used."""

    id: str
    path: str
    text: str | None = None  # None: it has no transcript
    label: str | None = None  # None: it has none
    segments: str | None = None  # labels of stretches, as `write_segments` has them; None: it has none
    speaker: str = ""
    samples: int | None = None  # at 16 kHz; None: not known yet, of a segment: to the end of the file
    problem: str | None = None
    begin: int | None = None  # first sample of a segment, at 16 kHz; None: the utterance is the file
    channel: int | None = None  # of the file; None: all of them, averaged
    seconds: float | None = None  # how long the file is, as a manifest says; to be checked


@patient
def fetch(path: str) -> str | bytes:
    """What `audio.read` takes: a local path itself, the bytes of a remote file or of a row of a table.

    Raises:
      AudioError: there is none.
      OSError: its store fails, which says nothing about the audio.
    """
    if packed.is_packed(path):
        return packed.read_packed(path)
    if not is_remote(path):
        return path
    try:
        return open_address(path).read_bytes()
    except AddressError as error:
        raise AudioError(str(error)) from error
    except FileNotFoundError as error:
        raise AudioError("does not exist") from error
    except packed.OF_THE_FILE as error:
        raise AudioError(f"cannot be fetched ({error.strerror or type(error).__name__})") from error


def is_audio_file(path: str) -> bool:
    """Whether a file is taken for audio: by its name, or where that leaves a doubt by what is in it."""
    if is_audio_name(path):
        return True
    if suffix_of(path) not in DOUBTFUL_SUFFIXES or is_remote(path):
        return False
    try:
        return audio.probe(path) > 0
    except AudioError:
        return False


def in_threads(function: Callable[[Any], _T], items: Iterable[Any], doing: str = "") -> list[_T]:
    """`function` of each item, in order; for work that waits for disks and networks.

    Args:
      doing: what is said, with how far it is and the time that is left, of what lasts longer than a few seconds.
    """
    items, done, threads = list(items), [], min(32, 4 * (os.cpu_count() or 1))
    progress, said = Progress(len(items)), time.monotonic()
    size = max(min(_CHUNK, len(items) // threads), 1)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for begin in range(0, len(items), size * _AT_ONCE):  # what waits takes memory
            end = min(begin + size * _AT_ONCE, len(items))
            chunks = (items[i : min(i + size, end)] for i in range(begin, end, size))
            for results in pool.map(lambda chunk: [function(item) for item in chunk], chunks):
                done += results
                progress.update(len(done))
                if doing and time.monotonic() - said > _SILENCE:
                    said = time.monotonic()
                    say(f"  {doing}: {len(done)}/{len(items)} | {progress.rate:.0f}/s | eta {progress.left}")
    return done


def mark_duplicates(entries: list[Entry]) -> list[Entry]:
    """All but the first entry of each id become problems."""
    first: dict[str, str] = {}
    marked = []
    for entry in entries:
        if entry.problem is None and entry.id in first:
            entry = entry._replace(problem=f"has the id of another utterance ({first[entry.id]})")
        elif entry.problem is None:
            first[entry.id] = entry.path
        marked.append(entry)
    return marked


def measure(entries: list[Entry], root: str) -> list[Entry]:
    """Fills in lengths from the files' headers, each read once; audio without a readable header becomes a problem.

    What a manifest says of lengths is believed of remote files, and of more files than it takes long to open; there it
    is checked when audio is read. Of many files what an earlier start read is kept (`known_lengths`).

    Args:
      root: the data that the entries belong to.
    """
    unknown = {e.path for e in entries if not e.problem and (e.seconds is None and e.samples is None)}
    known = {e.path for e in entries if not e.problem} - unknown
    believed = {path for path in known if is_remote(path) or len(known) > _MANY}
    paths = list(dict.fromkeys(e.path for e in entries if not e.problem))

    def look(path: str) -> int | AudioError | None:
        try:
            if path not in believed:
                return audio.probe(fetch(path))
            return None if is_remote(path) or is_file(packed.file_of(path)) else AudioError("does not exist")
        except AudioError as error:
            return error

    doing = "reading the lengths of files"
    if len(paths) < _SOME:
        found = dict(zip(paths, in_threads(look, paths, doing), strict=True))
    else:
        found = _recalled(root, [path for path in paths if path not in believed], look, doing)
        others = [path for path in paths if path in believed]
        found |= zip(others, in_threads(look, others, "looking for files"), strict=True)
    return [entry if entry.problem else _measured(entry, found[entry.path]) for entry in entries]


def _recalled(root: str, paths: list[str], look: Callable, doing: str) -> dict[str, Any]:
    """What `look` finds of files, without a look at those of which an earlier start knew it."""
    stamps = np.array(in_threads(known_lengths.stamp, paths, "looking for files"), np.int64).reshape(-1, 2)
    samples = known_lengths.recall(root, paths, stamps)
    news = np.flatnonzero(samples == known_lengths.UNKNOWN).tolist()
    found = dict(zip(paths, samples.tolist(), strict=True))
    if news:
        if len(news) > _MANY:
            say(f"reading the lengths of {len(news)} files, once (configs/prepare.py makes this unnecessary)")
        looked = in_threads(look, [paths[i] for i in news], doing)
        found |= zip((paths[i] for i in news), looked, strict=True)
        samples[news] = [known_lengths.UNKNOWN if isinstance(one, AudioError) else one for one in looked]
        known_lengths.remember(root, paths, stamps, samples)
    return found


def _measured(entry: Entry, found: int | AudioError | None) -> Entry:
    """An entry with its length; `found` is its file's, None where that is not looked up."""
    if isinstance(found, AudioError):
        named = f": {entry.path}" if str(found) == "does not exist" else ""  # which an id leaves open
        return entry._replace(problem=f"{found}{named}")
    if found is None:
        return entry if entry.begin is not None else entry._replace(samples=round(entry.seconds * SAMPLE_RATE))
    try:
        return entry._replace(samples=checked_length(entry, found), seconds=None)
    except AudioError as error:
        return entry._replace(problem=str(error))


def checked_length(entry: Entry, samples: int) -> int:
    """How many samples an utterance has whose file has so many.

    Raises:
      AudioError: a manifest says something else of it, by more than `TOLERANCE`.
    """
    length = samples / SAMPLE_RATE
    if entry.begin is None:
        if entry.seconds is not None and abs(entry.seconds - length) > TOLERANCE:
            raise AudioError(
                f"is {length:.2f} s long, and its manifest says {entry.seconds:g}; mend the duration, or leave it out"
                " (for a part of a file give offset and duration)"
            )
        return samples
    left = samples - entry.begin
    if left <= 0 or (entry.samples is not None and entry.samples - left > TOLERANCE * SAMPLE_RATE):
        end = "the end" if entry.samples is None else f"{(entry.begin + entry.samples) / SAMPLE_RATE:.2f} s"
        raise AudioError(f"is the part from {entry.begin / SAMPLE_RATE:.2f} s to {end} of a file of {length:.2f} s")
    return left if entry.samples is None else min(left, entry.samples)


def is_part(entry: Entry) -> bool:
    """Whether an utterance is a part of its file, in time or of its channels."""
    return entry.begin is not None or entry.channel is not None


def read_segment(entry: Entry, begin: int, samples: int | None) -> np.ndarray:
    """int16 (samples,) of an utterance that was measured, from its sample `begin` on. Raises AudioError."""
    data = fetch(entry.path)
    if entry.seconds is not None:  # as a manifest says, which is to be checked still
        checked_length(entry, audio.probe(data))
    if entry.begin is None:
        return audio.read(data, begin, samples, entry.channel)
    left = max(entry.samples - begin, 0)
    wanted = left if samples is None else min(left, samples)
    wave = audio.read(data, entry.begin + begin, wanted, entry.channel)
    if wanted - len(wave) > TOLERANCE * SAMPLE_RATE:
        raise AudioError(f"ends at {(entry.begin + begin + len(wave)) / SAMPLE_RATE:.2f} s of its file, too early")
    return wave


def read_part(entry: Entry) -> np.ndarray:
    """int16 (samples,) of an utterance that is a part of its file, and was not measured. Raises AudioError."""
    wave = _whole_file(entry.path, entry.channel)
    samples, begin = checked_length(entry, len(wave)), entry.begin or 0
    return wave[begin : begin + samples]


@functools.lru_cache(maxsize=1)
def _whole_file(path: str, channel: int | None) -> np.ndarray:
    """The segments of a recording follow one another, and most codings are read from their start alone."""
    return audio.read(fetch(path), channel=channel)


@patient
def read_bytes(data: str | bytes) -> bytes:
    """All bytes of what `fetch` gave. Raises AudioError, and OSError as `fetch` does."""
    if isinstance(data, bytes):
        return data
    try:
        return epath.Path(data).read_bytes()
    except FileNotFoundError as error:
        raise AudioError("does not exist") from error
    except packed.OF_THE_FILE as error:
        raise AudioError(f"cannot be read ({error.strerror or type(error).__name__})") from error
