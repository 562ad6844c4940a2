"""Stretches of an utterance that have a label each, as a manifest's `segments` gives them, as one line of text."""

import collections
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


def write_problem(reason: str) -> str:
    """What stands in place of segments that are none, for whoever needs them: a JSON string."""
    return json.dumps(reason, ensure_ascii=False)


def problem_of(text: str, seconds: float) -> str:
    """What is wrong with the segments of an utterance of a length; empty where nothing is."""
    parts = json.loads(text)
    if isinstance(parts, str):
        return parts
    late = next((start for start, *_ in parts if start >= seconds), None)
    if late is None:
        return ""
    return f"has a segment from {late:.2f} s on, and is {seconds:.2f} s long; segments are seconds from its own begin"


class Cutter:
    """Parts of a recording's segments, in the order of the parts."""

    def __init__(self, text: str):
        parts = json.loads(text)
        self._problem = text if isinstance(parts, str) else ""
        self._later = collections.deque() if self._problem else collections.deque(read_segments(text))
        self._open: list[Segment] = []

    def cut(self, begin: float, end: float) -> str:
        """Those of the part from `begin` to `end`, in seconds from its begin."""
        if self._problem:
            return self._problem
        while self._later and self._later[0].start < end:
            self._open.append(self._later.popleft())
        self._open = [part for part in self._open if part.end > begin]
        return write_segments(
            Segment(max(part.start, begin) - begin, min(part.end, end) - begin, part.label) for part in self._open
        )
