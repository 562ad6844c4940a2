"""What becomes of what is listed: utterances as rows of an index with FLAC bytes, long recordings in pieces."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sew_jax.data import audio
from sew_jax.data.audio import AudioError
from sew_jax.data.entries import Entry, checked_length, fetch, is_part, read_bytes, read_part
from sew_jax.data.pauses import cut_at_pauses
from sew_jax.data.segments import Cutter
from sew_jax.data.tfds_listing import SCHEME, read_tfds
from sew_jax.rates import SAMPLE_RATE

Row = tuple[dict[str, Any], bytes]

_SHORTEST = 6  # times shorter than the longest piece is the shortest


class Limits(NamedTuple):
    """What is taken: seconds of audio, and whether a transcript must be there."""

    min_seconds: float
    cut_seconds: float
    max_seconds: float
    need_text: bool


def convert(entry: Entry, limits: Limits) -> Iterator[Row]:
    """Rows of the index with FLAC bytes: one, or one for each piece. Raises AudioError where it is not taken."""
    if limits.need_text and entry.text is None:
        raise AudioError("has no transcript (--config.transcripts=optional keeps such audio for pre-training)")
    if entry.path.startswith(SCHEME) or is_part(entry):
        wave = read_part(entry) if is_part(entry) else read_tfds(entry.path)
        if not entry.text and len(wave) > limits.cut_seconds * SAMPLE_RATE:
            yield from _pieces(entry, [wave], limits)
        else:
            yield _row(entry, wave, limits), audio.encode(wave)
        return
    data = fetch(entry.path)
    if not entry.text and checked_length(entry, audio.probe(data)) > limits.cut_seconds * SAMPLE_RATE:
        yield from _pieces(entry, audio.blocks(data), limits)
        return
    content = read_bytes(data)
    wave = audio.read(content)
    checked_length(entry, len(wave))
    yield _row(entry, wave, limits), content if audio.is_canonical_flac(content) else audio.encode(wave)


def _row(entry: Entry, wave: np.ndarray, limits: Limits) -> dict[str, Any]:
    """The row of an utterance that is taken as a whole. Raises AudioError where it is too short or too long."""
    seconds = len(wave) / SAMPLE_RATE
    if seconds < limits.min_seconds:
        raise AudioError(f"is {seconds:.2f} s long, shorter than min_seconds={limits.min_seconds:g}")
    if entry.text and seconds > limits.max_seconds:
        raise AudioError(f"is {seconds:.2f} s long, longer than max_seconds={limits.max_seconds:g}; cut it into pieces")
    return _columns(entry) | {"id": entry.id, "samples": len(wave), "source": None, "begin": None}


def _pieces(entry: Entry, blocks: Iterable[np.ndarray], limits: Limits) -> Iterator[Row]:
    """A recording without transcript, cut at pauses: `source` and `begin` of a row say where in it a piece begins."""
    longest = round(limits.cut_seconds * SAMPLE_RATE)
    shortest = max(longest // _SHORTEST, round(limits.min_seconds * SAMPLE_RATE))
    cutter = Cutter(entry.segments) if entry.segments is not None else None
    for number, (begin, wave) in enumerate(cut_at_pauses(blocks, longest, shortest)):
        row = _columns(entry) | {"id": f"{entry.id}#{number:04d}", "samples": len(wave), "text": None}
        if cutter:
            row["segments"] = cutter.cut(begin / SAMPLE_RATE, (begin + len(wave)) / SAMPLE_RATE)
        yield row | {"source": entry.id, "begin": begin}, audio.encode(wave)


def _columns(entry: Entry) -> dict[str, Any]:
    """What is said of an utterance."""
    return {"text": entry.text, "label": entry.label, "segments": entry.segments, "speaker": entry.speaker}
