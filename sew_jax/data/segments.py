"""Stretches of an utterance that have a label each, as a manifest's `segments` gives them, as one line of text."""

import json
from collections.abc import Iterable
from typing import NamedTuple


class Segment(NamedTuple):
    """Seconds from the utterance's begin; a label without white space."""

    start: float
    end: float
    label: str


def write_segments(segments: Iterable[Segment]) -> str:
    """JSON, by their begin, of those with the same one in their order: [[0.3, 1.25, "speech"], ...]."""
    return json.dumps(sorted(segments, key=lambda part: part.start), ensure_ascii=False)


def read_segments(text: str) -> list[Segment]:
    """The inverse of `write_segments`."""
    return [Segment(*part) for part in json.loads(text)]


def cut_segments(text: str, begin: float, end: float) -> str:
    """Those of a part of the utterance, by seconds from its begin."""
    parts = (
        Segment(max(part.start, begin) - begin, min(part.end, end) - begin, part.label) for part in read_segments(text)
    )
    return write_segments(part for part in parts if part.start < part.end)
