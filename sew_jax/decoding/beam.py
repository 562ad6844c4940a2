"""Beam search over CTC symbols, with a lexicon and an n-gram if there are any: flashlight's, with KenLM inside.

The one file that touches flashlight-text. Free of JAX, since worker processes import it.
"""

import contextlib
import copy
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flashlight.lib.text.decoder import (
    LM,
    CriterionType,
    LexiconDecoder,
    LexiconDecoderOptions,
    LexiconFreeDecoder,
    LexiconFreeDecoderOptions,
    LMState,
    SmearingMode,
    Trie,
    ZeroLM,
)
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary

from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.greedy import Hypothesis, words_of_path
from sew_jax.decoding.hot_words import HotPhrases
from sew_jax.decoding.lexicon import (
    Lexicon,
    not_a_model,
    open_lexicon,
    spell_phrases,
    symbol_labels,
    with_words,
    words_of_phrase,
)
from sew_jax.errors import UserError
from sew_jax.storage import patient, raise_if_away

_NO_SYMBOL = -1
_UNKNOWN = "<unk>"  # what n-grams call each word that they lack
_SURE = math.log(0.999)  # of a blank: another symbol there would cost more than any word of an n-gram gives back
_NEVER = -1e4  # a log-probability that no path survives which has another


class Beam:
    """Log-probabilities to hypotheses. Words of the lexicon alone are written, with the delimiter between them."""

    def __init__(self, vocabulary: Vocabulary, options: BeamOptions, lexicon: Lexicon | None = None):
        """
        Args:
          lexicon: of the options, where it has been opened already.

        Raises:
          UserError: a file cannot be read, is not what it should be, or does not match the vocabulary.
        """
        self._vocabulary = vocabulary
        if lexicon is None:
            lexicon = open_lexicon(vocabulary, options.lm, options.lexicon, options.hot_words)
        self.lexicon = lexicon
        # labels of the n-gram: words, or symbols at their ids
        self._words = symbol_labels(vocabulary)
        if self.lexicon.entries:
            self._words = [*(word for word in dict(self.lexicon.entries) if word != _UNKNOWN), _UNKNOWN]
        self._last = len(self._words) - 1  # label of the n-gram, which also stands for words that join later
        self._lm = _load(options.lm, self._words) if options.lm else ZeroLM()
        self._trie = self._build_trie() if self.lexicon.entries else None
        self._hot = self._hot_phrases(options.hot_words)
        self._use(options)

    def with_options(self, options: BeamOptions) -> "Beam":
        """The same language model and lexicon searched otherwise; with other hot words, if this one has none.

        Raises:
          UserError: a hot word has no symbols of the vocabulary.
        """
        other = copy.copy(self)
        if options.hot_words != self._options.hot_words:
            assert not self._options.hot_words  # words that have joined the lexicon stay there
            other._favour(options.hot_words)
        other._use(options)
        return other

    def _favour(self, phrases: Sequence[str]) -> None:
        """Adds hot words, also to the lexicon where they are new to it."""
        self.lexicon = with_words(self._vocabulary, self.lexicon, phrases)
        words = set(self._words)
        if self._trie and (new := [word for word in dict(self.lexicon.entries) if word not in words]):
            self._words = [*self._words, *new]
            self._trie = self._build_trie()
        self._hot = self._hot_phrases(phrases)

    def __call__(self, log_prob_TxV: np.ndarray) -> list[Hypothesis]:
        """At most `nbest` hypotheses of different texts, the best one first.

        Args:
          log_prob_TxV: natural logarithms, a row for each frame, a column for each symbol of the vocabulary.
        """
        frames, symbols = log_prob_TxV.shape
        if symbols != len(self._vocabulary):
            raise ValueError(f"{symbols} log-probabilities a frame for a vocabulary of {len(self._vocabulary)} symbols")
        if np.isnan(log_prob_TxV).any():
            raise UserError("the model's output holds NaN; beam search needs a model whose training ended well")
        if not frames:
            return [Hypothesis("", 0.0, ())]
        kept_T = self._kept(log_prob_TxV)
        frames = int(kept_T.sum())
        emissions = np.full((frames + 1, symbols), _NEVER, np.float32)
        np.maximum(log_prob_TxV[kept_T], _NEVER, out=emissions[:-1], casting="same_kind")
        if self._trie:  # one frame more, where a delimiter is free: else a last word without one would be lost
            emissions[-1, self._vocabulary.word_end] = -self._options.sil_score
            frames += 1
        best: dict[str, Hypothesis] = {}
        with self._one:
            results = self._decoder.decode(emissions.ctypes.data, frames, symbols)
        for result in results:
            hypothesis = self._hypothesis(result, log_prob_TxV, kept_T)
            best.setdefault(hypothesis.text, hypothesis)
            if len(best) == self._options.nbest:
                break
        return list(best.values())

    def _kept(self, log_prob_TxV: np.ndarray) -> np.ndarray:
        """Which frames are searched: of a run of sure blanks the first, since more of them change no path's symbols."""
        sure_T = log_prob_TxV[:, self._vocabulary.blank] > _SURE
        return ~(sure_T & np.roll(sure_T, 1)) | (np.arange(len(sure_T)) == 0)

    def _hypothesis(self, result, log_prob_TxV: np.ndarray, kept_T: np.ndarray) -> Hypothesis:
        path_T = np.full(len(log_prob_TxV), self._vocabulary.blank)
        path_T[kept_T] = result.tokens[1 : 1 + kept_T.sum()]  # a start precedes it
        words = words_of_path(path_T, log_prob_TxV[np.arange(len(path_T)), path_T], self._vocabulary)
        score = result.score + float(log_prob_TxV[~kept_T, self._vocabulary.blank].sum())
        if self._trie:
            said = [self._words[label] for label in result.words if label >= 0]
            labels = [word for label in said for word in self._vocabulary.normalize(label).split()]
            if len(words) > len(labels):  # the audio ends amid a word, and no hypothesis ends otherwise
                score -= _NEVER
            words = tuple(word._replace(text=label) for word, label in zip(words, labels, strict=False))
        return Hypothesis(" ".join(word.text for word in words), score, words)

    def _build_trie(self) -> Trie:
        trie, labels = Trie(len(self._vocabulary), self._vocabulary.word_end), {w: i for i, w in enumerate(self._words)}
        start = self._lm.start(False)
        for word, spelling in self.lexicon.entries:
            label = labels[word]
            trie.insert(list(spelling), label, self._lm.score(start, min(label, self._last))[1])
        trie.smear(SmearingMode.MAX)  # a word's beginning scores as the likeliest word that it may become
        return trie

    def _hot_phrases(self, phrases: Iterable[str]) -> dict[tuple[int, ...], int]:
        """Labels of the language model -> words of the phrase."""
        spelt = spell_phrases(self._vocabulary, list(phrases))
        if self._trie:
            labels = {word: i for i, word in enumerate(self._words)}
            said = (words_of_phrase(self._vocabulary, phrase, labels) for phrase in spelt)
            return {tuple(labels[word] for word in words): len(words) for words in said}
        # between delimiters, so that no longer word holds it; a search begins as if one had just been
        end = self._vocabulary.word_end
        around = () if end is None else (end,)
        said = (words_of_phrase(self._vocabulary, phrase, ()) for phrase in spelt)
        return {(*around, *symbols): len(words) for words, symbols in zip(said, spelt.values(), strict=True)}

    def _use(self, options: BeamOptions) -> None:
        vocabulary, self._options = self._vocabulary, options
        self._one = threading.Lock()  # a decoder has one search at a time, and hot words let other threads run
        end = () if self._trie or vocabulary.word_end is None else (vocabulary.word_end,)
        # kept, since a decoder does not keep what of it is Python's
        self._searched = lm = self._lm
        if self._hot:
            self._searched = lm = _HotLM(self._lm, self._last, self._hot, options, end)
        word_end = _NO_SYMBOL if vocabulary.word_end is None else vocabulary.word_end
        shared = {
            "beam_size": options.beam,
            "beam_size_token": options.beam_tokens or len(vocabulary),
            "beam_threshold": options.threshold,
            "lm_weight": options.lm_weight,
            "sil_score": options.sil_score,
            "log_add": options.log_add,
            "criterion_type": CriterionType.CTC,
        }
        if self._trie is None:
            self._decoder = LexiconFreeDecoder(LexiconFreeDecoderOptions(**shared), lm, word_end, vocabulary.blank, [])
            return
        of_words = LexiconDecoderOptions(**shared, word_score=options.word_score, unk_score=-math.inf)
        no_word = -1  # never said, as unk_score forbids it
        self._decoder = LexiconDecoder(of_words, self._trie, lm, word_end, vocabulary.blank, no_word, [], False)


class _HotLM(LM):
    """A language model with what hot phrases add, divided by the weight that the decoder multiplies it by.

    Args:
      last: label of `lm` that all beyond it count as.
      phrases: labels of each -> its words.
      end: what is added at the beginning, and at the end where it is not there yet: the delimiter, of symbols.
    """

    def __init__(
        self, lm: LM, last: int, phrases: Mapping[tuple[int, ...], int], options: BeamOptions, end: tuple[int, ...]
    ):
        super().__init__()
        boost = options.hot_boost / options.lm_weight
        self._phrases = HotPhrases({labels: boost * words for labels, words in phrases.items()}, len(end))
        self._lm, self._last, self._end = lm, last, end
        self._states: dict[LMState, tuple[Any, int, float]] = {}  # their state of `lm`, state of `_phrases`, last score

    def start(self, start_with_nothing: bool) -> LMState:
        state, hot = LMState(), 0
        for label in self._end:
            hot, _ = self._phrases.step(hot, label)
        self._states = {state: (self._lm.start(start_with_nothing), hot, 0.0)}  # those of the last utterance go
        return state

    def score(self, state: LMState, label: int) -> tuple[LMState, float]:
        following = state.child(label)
        if following not in self._states:
            inner, hot, _ = self._states[state]
            inner, score = self._lm.score(inner, min(label, self._last))
            hot, added = self._phrases.step(hot, label)
            self._states[following] = inner, hot, score + added
        return following, self._states[following][2]

    def finish(self, state: LMState) -> tuple[LMState, float]:
        inner, hot, _ = self._states[state]
        _, score = self._lm.finish(inner)
        for label in self._end:
            hot, added = self._phrases.step(hot, label)
            score += added
        return state, score + self._phrases.finish(hot)


def sentence_log10(lm: str, sentences: Iterable[str]) -> list[float]:
    """log10 of an n-gram's probability of each sentence, its end included. Unknown words count as <unk>.

    Raises:
      UserError: there is no such model.
    """
    split = [sentence.split() for sentence in sentences]
    words = list(dict.fromkeys(word for sentence in split for word in sentence))
    model, labels, totals = _load(lm, words), {word: i for i, word in enumerate(words)}, []
    for sentence in split:
        state, total = model.start(False), 0.0
        for word in sentence:
            state, score = model.score(state, labels[word])
            total += score
        totals.append(total + model.finish(state)[1])
    return totals


@patient
def _load(path: str, words: list[str]) -> KenLM:
    try:
        with _no_stderr():  # KenLM draws a bar there
            return KenLM(path, Dictionary(words))
    except (RuntimeError, ValueError, MemoryError) as error:
        raise_if_away(error)
        lines = str(error).splitlines() or [type(error).__name__]
        raise not_a_model(path, lines[-1].strip()) from error


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Nothing that libraries write to the error stream is seen meanwhile."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
