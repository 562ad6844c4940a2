"""CTC symbols to text, to words with times, and to hypotheses. Free of JAX, since worker processes import it."""

from typing import NamedTuple

import numpy as np

from sew_jax.data.labels import Labels
from sew_jax.data.vocabulary import Vocabulary


class Word(NamedTuple):
    """A word on frames begin to end (exclusive); confidence is the geometric mean of its symbols' best frames."""

    text: str
    begin: int
    end: int
    confidence: float


class Hypothesis(NamedTuple):
    """What may have been said, and its score: log-probability of the path, with a language model's share."""

    text: str
    score: float
    words: tuple[Word, ...]


def greedy(path_T: np.ndarray, vocabulary: Vocabulary) -> str:
    """The transcript of a path of CTC symbols: repeats collapsed, blanks dropped."""
    first_T = np.diff(path_T, prepend=-1) != 0  # of each run of equal symbols
    return vocabulary.decode(path_T[first_T & (path_T != vocabulary.blank)].tolist())


def read_best(path_T: np.ndarray, symbols: Vocabulary | Labels) -> str:
    """What the most likely symbols of an utterance say: its transcript, or its labels."""
    return greedy(path_T, symbols) if isinstance(symbols, Vocabulary) else symbols.decode(path_T.tolist())


def best_path(log_prob_TxV: np.ndarray, vocabulary: Vocabulary) -> Hypothesis:
    """The most likely symbol of each frame, as a hypothesis."""
    path_T = log_prob_TxV.argmax(-1)
    log_prob_T = log_prob_TxV[np.arange(len(path_T)), path_T]
    words = words_of_path(path_T, log_prob_T, vocabulary)
    return Hypothesis(" ".join(word.text for word in words), float(log_prob_T.sum()), words)


def words_of_path(path_T: np.ndarray, log_prob_T: np.ndarray, vocabulary: Vocabulary) -> tuple[Word, ...]:
    """Words of a path of CTC symbols.

    Args:
      path_T: a symbol's id for each frame, repeats and blanks included.
      log_prob_T: what the model gave that symbol at that frame.
    """
    edges = np.flatnonzero(np.diff(path_T, prepend=-1, append=-1))
    words, letters = [], []  # letters of the word that is being read: (text, begin, end, best log-probability)

    def close():
        if letters:
            texts, begins, ends, scores = zip(*letters, strict=True)
            if text := vocabulary.write("".join(texts)):
                words.append(Word(text, begins[0], ends[-1], float(np.exp(np.mean(scores)))))
            letters.clear()

    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        symbol = int(path_T[begin])
        if vocabulary.is_word_end(symbol):
            close()
        elif not vocabulary.is_silent(symbol):
            letters.append((vocabulary.symbols[symbol], begin, end, log_prob_T[begin:end].max()))
            if vocabulary.delimiter is None:
                close()
    close()
    return tuple(words)
