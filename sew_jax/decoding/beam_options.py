"""What a beam search is asked for: by a config, or from Python."""

import dataclasses
import math
import os
from collections.abc import Sequence

from ml_collections import ConfigDict

from sew_jax.checks.evaluation import asks_for_search
from sew_jax.errors import UserError
from sew_jax.names import split_names


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    """A beam search. Weights are SEW's, which are fairseq's defaults too; so is the beam.

    Of `beam_tokens` and `threshold` the defaults are measured: SEW's (all, 25) found the same texts of all that was
    tried, with an n-gram and without, in twice the time (tests/beam_speed.py).

    A hypothesis scores: log-probability of its path (natural) + lm_weight * log10 of the n-gram's probability of its
    words and their end + word_score * words + sil_score * frames of the delimiter.

    Attributes:
      lm: path of an ARPA, also gzipped, or a KenLM binary: an n-gram of words, or one of the model's symbols.
      lexicon: path of a list of words, with their spelling or without; empty: the words of `lm`.
      beam: hypotheses that are kept at each frame.
      beam_tokens: symbols of a frame that may go on, the likeliest; 0: all.
      threshold: a hypothesis so far behind the best one is dropped. fairseq's later default is 50.
      nbest: hypotheses that are wanted of an utterance.
      log_add: whether paths of the same words are summed; otherwise the best one counts.
      hot_words: words and phrases that are favoured, also given as a list or joined by commas; of a lexicon that lacks
        them they become part.
      hot_boost: what a hot word adds to the score, natural; a phrase adds that for each of its words, where it stands
        whole. Below 0 they are disfavoured.
    """

    lm: str = ""
    lexicon: str = ""
    beam: int = 50
    beam_tokens: int = 12
    threshold: float = 20.0
    lm_weight: float = 2.0
    word_score: float = -1.0  # without a lexicon there is none
    sil_score: float = 0.0
    nbest: int = 1
    log_add: bool = False
    hot_words: Sequence[str] = ()  # kept as a tuple
    hot_boost: float = 5.0

    def __post_init__(self):
        words = split_names(self.hot_words) if isinstance(self.hot_words, str) else self.hot_words
        object.__setattr__(self, "hot_words", tuple(words))
        if self.beam < 1 or not 1 <= self.nbest <= self.beam or self.beam_tokens < 0 or not self.threshold > 0:
            raise UserError(
                f"beam: beam={self.beam}, nbest={self.nbest}, beam_tokens={self.beam_tokens}, "
                f"threshold={self.threshold:g} must be at least 1, 1 to beam, at least 0, and above 0"
            )
        for name in ("lm_weight", "word_score", "sil_score", "hot_boost"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"beam: {name}={getattr(self, name)} must be a number")
        if self.hot_words and not self.lm_weight:
            raise UserError("beam: hot_words are weighed with the n-gram; lm_weight must not be 0 (lm=none works, too)")


def chosen_options(config: ConfigDict) -> BeamOptions | None:
    """What `config.lm` and `config.beam` ask for: search with an n-gram, with `none`, or (empty) the best path alone.

    Several hypotheses and hot words are found by search in any case.

    Raises:
      UserError: a value makes no sense.
    """
    return search_options(config) if asks_for_search(config) else None


def given_options(lm: str | os.PathLike | BeamOptions, hot_words: Sequence[str], nbest: int) -> BeamOptions | None:
    """Of beam search, as Python gives them; None for the best path alone."""
    options = lm if isinstance(lm, BeamOptions) else BeamOptions(lm=os.fspath(lm)) if lm else None
    if hot_words or nbest != 1:
        options = options or BeamOptions()
        words = hot_words or options.hot_words
        options = dataclasses.replace(options, nbest=max(nbest, options.nbest) if nbest > 0 else nbest, hot_words=words)
    return options


def search_options(config: ConfigDict) -> BeamOptions:
    """Those of the search that `config.lm` and `config.beam` describe, whether they ask for it or not.

    Raises:
      UserError: a value makes no sense.
    """
    options = {key: value for key, value in config.beam.items() if key != "workers"}
    if "nbest" in config:
        options["nbest"] = config.nbest
    return BeamOptions(lm="" if config.lm == "none" else config.lm, **options)
