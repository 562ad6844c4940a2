"""Decoders of one vocabulary, where many options are asked for: what they read they share."""

import dataclasses
import functools
import threading

from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding.beam import Beam
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.incremental import Decoder, make_decoder

_KEPT = 4  # of those with words that are new to it each has a lexicon of its own: 2 kB a word, 7 us to make


class Decoders:
    """A decoder for each options; several threads may ask."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary, self._lock = vocabulary, threading.Lock()
        self._opened: dict[tuple[str, str], Beam] = {}  # of each language model and lexicon, without hot words
        self._recent = functools.lru_cache(_KEPT)(self._make)

    def __call__(self, options: BeamOptions | None) -> Decoder:
        """Beam search, or (None) the best path.

        Raises:
          UserError: a language model, lexicon or hot word cannot be used.
        """
        with self._lock:  # a language model must not be read twice
            return self._recent(options)

    def _make(self, options: BeamOptions | None) -> Decoder:
        if options is None:
            return make_decoder(self._vocabulary, None)
        files = options.lm, options.lexicon
        if files not in self._opened:
            self._opened[files] = Beam(self._vocabulary, dataclasses.replace(options, hot_words=()))
        return self._opened[files].with_options(options)
