"""The transcripts of a source as a vocabulary spells them: what is wrong with them, and what a user should know."""

import collections
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sew_jax.data.normalize_text import format_characters, normalize_text, show, spell_characters
from sew_jax.data.sources import Source
from sew_jax.data.vocabulary import Vocabulary, characters_vocabulary
from sew_jax.errors import UserError

_RARE = 2  # utterances at most: a symbol of so few is more likely a slip than a letter
_SHOWN = 100  # symbols on the screen
_NAMED = 10  # utterances, and rare symbols, on the screen


class Transcripts(NamedTuple):
    """Of U utterances, the ids of their symbols counted.

    Attributes:
      symbols_U: symbols of each, delimiters included.
      frames_U: the least frames that CTC can write each on: a symbol a frame, and a blank between equal neighbours.
      notes: lines for the screen.
    """

    symbols_U: np.ndarray
    frames_U: np.ndarray
    notes: list[str]


def spell_transcripts(vocabulary: Vocabulary, source: Source) -> Transcripts:
    """Spells all transcripts of a source.

    An utterance without one has no symbols.

    Raises:
      UserError: one has a character without a symbol (the message names the first and counts the rest), or none of
        those that there are has a word.
    """
    symbols_U, frames_U = np.zeros(len(source), np.int32), np.zeros(len(source), np.int32)
    unknown, missing = [], 0
    for i in range(len(source)):
        text = source.text(i)
        if text is None:
            missing += 1
            continue
        try:
            ids = vocabulary.encode(text)
        except KeyError:
            unknown.append((source.id(i), vocabulary.unknown(text)))
            continue
        symbols_U[i] = len(ids)
        frames_U[i] = len(ids) + sum(a == b for a, b in itertools.pairwise(ids))
    if unknown:
        raise _unknown_characters(vocabulary, source.name, unknown)
    if not symbols_U.any() and missing < len(source):
        raise UserError(f"{source.name}: no transcript has a word; is the text in another field, or in other files?")
    notes = [_how_spelt(vocabulary), *text_notes(vocabulary, source)]
    if missing:
        notes.insert(1, f"            {missing} of {len(source)} utterances have no transcript")
    return Transcripts(symbols_U, frames_U, notes)


def _unknown_characters(vocabulary: Vocabulary, data: str, unknown: list[tuple[str, set[str]]]) -> UserError:
    name, characters = unknown[0]
    listed = " ".join(map(show, sorted(characters)[:20]))
    more = f" and {len(unknown) - 1} more utterances" if len(unknown) > 1 else ""
    apart = "; its words are symbols: put spaces between phonemes" if vocabulary.delimiter is None else ""
    return UserError(
        f"{data}: the transcript of {name}{more} has {listed}, which the vocabulary lacks{apart}; normalise the text "
        "(letters are capitals and apostrophe; --config.text_normalizer=upper or basic may do), or fine-tune with "
        "--config.vocabulary=auto"
    )


def _how_spelt(vocabulary: Vocabulary) -> str:
    words = "words are symbols" if vocabulary.delimiter is None else f"{show(vocabulary.delimiter)} ends a word"
    case = ", written in small letters" if vocabulary.lower_case else ""
    return f"  text      text_normalizer={vocabulary.normalizer}; {len(vocabulary)} symbols{case}; {words}"


def text_notes(vocabulary: Vocabulary, source: Source, *, empty: str = "they train silence") -> list[str]:
    """What a user should know of a source's texts: how many are empty, and what was dropped of them.

    Args:
      empty: what becomes of empty ones.
    """
    texts = [(i, text) for i in range(len(source)) if (text := source.text(i)) is not None]
    notes = []
    empties = [i for i, text in texts if not vocabulary.normalize(text)]
    if empties:
        first = source.id(empties[0])
        notes.append(f"  ! {len(empties)} of {len(texts)} transcripts are empty (first: {first}); {empty}")
    dropped = [(i, found) for i, text in texts if (found := format_characters(text, vocabulary.joiners))]
    if dropped:
        count = collections.Counter(c for _, found in dropped for c in found)
        notes.append(
            f"  ! {count.total()} format characters in {len(dropped)} transcripts are dropped (first: "
            f"{source.id(dropped[0][0])}): {spell_characters(''.join(count)[:_NAMED])}"
        )
    return notes


def impossible_pairs(transcripts: Transcripts, frames_U: np.ndarray, source: Source, at: str) -> list[str]:
    """A line on the utterances that have fewer frames than CTC needs for their transcripts; none where all have enough.

    Args:
      frames_U: frames of each utterance.
      at: at which settings that is so.
    """
    short = np.flatnonzero(frames_U < transcripts.frames_U)
    if not len(short):
        return []
    named = ", ".join(
        f"{source.id(i)} ({transcripts.frames_U[i]} needed, {frames_U[i]} there)" for i in short[:_NAMED].tolist()
    )
    more = f" and {len(short) - _NAMED} more" if len(short) > _NAMED else ""
    return [
        f"  ! {len(short)} transcripts have more symbols than their audio has frames, {at}: {named}{more}; "
        "CTC cannot write them and they give no loss"
    ]


def choose_symbols(source: Source, normalizer: str) -> tuple[Vocabulary, list[str]]:
    """The vocabulary `auto` of a source's texts; and lines that show its symbols, with where rare ones stand."""
    utterances: collections.Counter[str] = collections.Counter()
    first: dict[str, int] = {}
    for i, text in _texts(source, normalizer):
        for c in set(text) - {" "}:
            utterances[c] += 1
            first.setdefault(c, i)
    vocabulary = characters_vocabulary(utterances, normalizer)
    symbols = [symbol for symbol in vocabulary.symbols if symbol in utterances and symbol != vocabulary.delimiter]
    listed = " ".join(map(_bare, symbols[:_SHOWN]))
    more = f" and {len(symbols) - _SHOWN} more (vocab.json has all)" if len(symbols) > _SHOWN else ""
    notes = [f"  symbols   {len(symbols)} of the transcripts: {listed}{more}"]
    rare = sorted((s for s in symbols if utterances[s] <= _RARE), key=lambda s: (utterances[s], s))
    if rare:
        places = ", ".join(f"{show(s)} in {utterances[s]} (first: {source.id(first[s])})" for s in rare[:_NAMED])
        more = f" and {len(rare) - _NAMED} more" if len(rare) > _NAMED else ""
        notes.append(f"            {len(rare)} of them rare, in at most {_RARE} transcripts: {places}{more}")
    return vocabulary, notes


def _bare(symbol: str) -> str:
    return show(symbol).strip("'") if symbol != "'" else symbol


def _texts(source: Source, normalizer: str) -> Iterator[tuple[int, str]]:
    for i in range(len(source)):
        yield i, normalize_text(source.text(i) or "", normalizer)
