"""Decoding of log-probabilities that come bit by bit, in segments that end between words: memory stays flat."""

import functools
from collections.abc import Callable

import numpy as np

from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding.beam import Beam, BeamOptions
from sew_jax.decoding.greedy import Hypothesis, best_path

Decoder = Callable[[np.ndarray], Hypothesis]  # log-probabilities (T, V) -> what was said


def make_decoder(vocabulary: Vocabulary, options: BeamOptions | None) -> Decoder:
    """Beam search, or (None) the best path.

    Raises:
      UserError: a language model or lexicon cannot be used.
    """
    if options is None:
        return functools.partial(best_path, vocabulary=vocabulary)
    beam = Beam(vocabulary, options)
    return lambda log_prob_TxV: beam(log_prob_TxV)[0]


class SegmentDecoder:
    """Decodes one recording.

    A segment ends in the middle of its longest pause, where the best path has closed a word and begun none: greedy
    decoding then gives what it gives of the whole, and a language model begins anew at a pause.

    Args:
      decode: of one segment.
      frames: no segment is longer where there is such a pause in its second half; otherwise it waits for one.
    """

    def __init__(self, decode: Decoder, vocabulary: Vocabulary, frames: int):
        self._decode, self._vocabulary, self._frames = decode, vocabulary, frames
        self._held = np.zeros((0, len(vocabulary)), np.float32)
        self._at, self._parts = 0, []  # frame of held[0]; hypotheses of what came before

    def add(self, log_prob_TxV: np.ndarray) -> None:
        """Takes the next frames."""
        self._held = np.concatenate([self._held, log_prob_TxV])
        while len(self._held) > self._frames and (end := self._pause()):
            self._close(end)

    def finish(self) -> Hypothesis:
        """All that was said."""
        self._close(len(self._held))
        words = tuple(word for part in self._parts for word in part.words)
        text = " ".join(part.text for part in self._parts if part.text)
        return Hypothesis(text, sum(part.score for part in self._parts), words)

    def _close(self, end: int) -> None:
        part = self._decode(np.ascontiguousarray(self._held[:end]))
        words = tuple(word._replace(begin=word.begin + self._at, end=word.end + self._at) for word in part.words)
        self._parts.append(part._replace(words=words))
        self._held, self._at = self._held[end:], self._at + end

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
