"""Decoding of log-probabilities that come bit by bit, in segments that end between words: memory stays flat."""

import heapq
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding.beam import Beam
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.greedy import Hypothesis, best_path

Decoder = Callable[[np.ndarray], Sequence[Hypothesis]]  # log-probabilities (T, V) -> what was said, the best first


def make_decoder(vocabulary: Vocabulary, options: BeamOptions | None) -> Decoder:
    """Beam search, or (None) the best path.

    Raises:
      UserError: a language model or lexicon cannot be used.
    """
    if options is None:
        return lambda log_prob_TxV: [best_path(log_prob_TxV, vocabulary)]
    return Beam(vocabulary, options)


class SegmentDecoder:
    """Decodes one recording.

    A segment ends in the middle of its longest pause, where the best path has closed a word and begun none: greedy
    decoding then gives what it gives of the whole, and a language model begins anew at a pause.

    Args:
      decode: of one segment.
      frames: no segment is longer where there is such a pause in its second half; otherwise it waits for one.
      nbest: hypotheses that are wanted of all.
    """

    def __init__(self, decode: Decoder, vocabulary: Vocabulary, frames: int, nbest: int = 1):
        self._decode, self._vocabulary, self._frames, self._nbest = decode, vocabulary, frames, nbest
        self._held = np.zeros((0, len(vocabulary)), np.float32)
        # frame of held[0]; of what came before the best hypotheses, each with its score, as hypotheses of the segments
        self._at, self._best = 0, [(0.0, ())]

    def add(self, log_prob_TxV: np.ndarray) -> None:
        """Takes the next frames."""
        self._held = np.concatenate([self._held, log_prob_TxV])
        while len(self._held) > self._frames and (end := self._pause()):
            self._close(end)

    def partial(self) -> Hypothesis:
        """What was said so far, as it seems now: words of the open segment may change with what follows."""
        return _joined(self._with(len(self._held))[0])

    def finish(self) -> list[Hypothesis]:
        """All that was said: at most `nbest` hypotheses of different texts, the best one first."""
        self._close(len(self._held))
        found: dict[str, Hypothesis] = {}
        for hypothesis in map(_joined, self._best):
            found.setdefault(hypothesis.text, hypothesis)
        return list(found.values())

    def _close(self, end: int) -> None:
        self._best = self._with(end)
        self._held, self._at = self._held[end:], self._at + end

    def _with(self, end: int) -> list[tuple[float, tuple]]:
        """The best of what came before with the held frames up to `end`: segments are independent, scores add up."""
        parts = []
        for part in self._decode(np.ascontiguousarray(self._held[:end])):
            words = tuple(word._replace(begin=word.begin + self._at, end=word.end + self._at) for word in part.words)
            parts.append(part._replace(words=words))
        joined = (
            (score + part.score, (before, part)) for (score, before), part in itertools.product(self._best, parts)
        )
        return heapq.nlargest(self._nbest, joined, key=lambda scored: scored[0])

    def _pause(self) -> int | None:
        """Where the segment can end; None where no word ends after half its length."""
        path_T = self._held.argmax(-1)
        vocabulary, ids = self._vocabulary, range(len(self._vocabulary))
        spoken_T = ~np.isin(path_T, [i for i in ids if vocabulary.is_silent(i)])
        latest_T = np.maximum.accumulate(np.where(spoken_T, np.arange(len(path_T)), -1))  # the last that is not silent
        ends_T = np.isin(path_T, [i for i in ids if vocabulary.is_word_end(i)])
        between_T = ~spoken_T if vocabulary.delimiter is None else (latest_T < 0) | ends_T[latest_T]
        between_T[: self._frames // 2] = False
        for frames in (self._frames, len(path_T)):  # a longer segment only where there must be
            edges = np.flatnonzero(np.diff(between_T[:frames], prepend=False, append=False))
            if len(edges):
                begins, ends = edges[::2], edges[1::2]
                longest = int((ends - begins).argmax())
                return int(begins[longest] + ends[longest] + 1) // 2
        return None


def _joined(scored: tuple[float, tuple]) -> Hypothesis:
    """The hypotheses of all segments as one; they hang together from the last one to the first."""
    parts, (score, chain) = [], scored
    while chain:
        chain, part = chain
        parts.append(part)
    parts.reverse()
    words = tuple(word for part in parts for word in part.words)
    return Hypothesis(" ".join(part.text for part in parts if part.text), score, words)
