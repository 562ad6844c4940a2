"""Words with times as subtitle cues, and cues as SRT and WebVTT."""

import html
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sew_jax.decoding.greedy import Word
from sew_jax.rates import FRAME_SECONDS

# What players show well and viewers can read (the usual guidelines of broadcasters)
LINE, LINES, LONGEST, PAUSE, SHORTEST = 42, 2, 7.0, 1.0, 1.0  # characters, lines, then seconds


class Cue(NamedTuple):
    """Lines on the screen from `begin` to `end`, in milliseconds; `text` is what they say, as it was said."""

    begin: int
    end: int
    lines: tuple[str, ...]
    text: str


def cues(words: Sequence[Word]) -> list[Cue]:
    """Cues of words, in order and none over another.

    A cue ends before a pause, and where another word would make it too long to read or to show. A word that is longer
    than a whole cue is shown anyway, for as long as a cue may last.
    """
    groups: list[list[Word]] = []
    for word in words:
        if not groups or not _fits(groups[-1], word):
            groups.append([])
        groups[-1].append(word)
    made = []
    for i, group in enumerate(groups):
        begin, end = group[0].begin * FRAME_SECONDS, group[-1].end * FRAME_SECONDS
        following = groups[i + 1][0].begin * FRAME_SECONDS if i + 1 < len(groups) else float("inf")
        end = min(max(end, begin + SHORTEST), begin + LONGEST, following)
        made.append(Cue(round(1000 * begin), round(1000 * end), _wrapped(group), _said(group)))
    return made


def _fits(group: list[Word], word: Word) -> bool:
    pause, lasts = (word.begin - group[-1].end) * FRAME_SECONDS, (word.end - group[0].begin) * FRAME_SECONDS
    return pause < PAUSE and lasts <= LONGEST and len(_wrapped([*group, word])) <= LINES


def _said(words: Iterable[Word]) -> str:
    return " ".join(word.text for word in words)


def _wrapped(words: Iterable[Word]) -> tuple[str, ...]:
    return tuple(textwrap.wrap(_said(words), LINE))


def srt(words: Sequence[Word]) -> str:
    """SubRip text."""
    blocks = (
        f"{number}\n{_time(cue.begin, ',')} --> {_time(cue.end, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(cues(words), 1)
    )
    return "\n".join(blocks)


def vtt(words: Sequence[Word]) -> str:
    """WebVTT text."""
    blocks = (
        f"{_time(cue.begin, '.')} --> {_time(cue.end, '.')}\n" + html.escape("\n".join(cue.lines), quote=False) + "\n"
        for cue in cues(words)
    )
    return "\n".join(["WEBVTT\n", *blocks])


def _time(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{rest:03d}"
