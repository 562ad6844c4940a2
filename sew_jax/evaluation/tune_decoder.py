"""Weights of a language model, chosen by word errors on a dev split."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sew_jax.console import say
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.beam_pool import BeamPool
from sew_jax.errors import UserError
from sew_jax.metrics.wer import ErrorCounts, count_errors

# Where the first half of the trials looks. The weights tuned for wav2vec 2.0 with 4-grams (its paper) lie well inside
LM_WEIGHTS, WORD_SCORES = (0.0, 5.0), (-4.0, 4.0)
_LEAST = 0.01  # of the n-gram's weight where there are hot words, which are weighed with it
_NEAR = 0.1  # of these ranges: deviation of the other half around the best so far


class Trial(NamedTuple):
    """Weights, and the errors made with them."""

    lm_weight: float
    word_score: float
    errors: ErrorCounts


def tune(
    pool: BeamPool, log_probs: Sequence[np.ndarray], references: Sequence[str], *, trials: int = 30, seed: int = 0
) -> tuple[BeamOptions, list[Trial]]:
    """The pool's options with the `lm_weight` and `word_score` of fewest word errors.

    Of equals that of fewest character errors is taken, then the first tried.

    The weights of the pool's options are tried first, then draws over the whole range, then draws around the best.

    Args:
      log_probs: (frames, symbols) of each dev utterance.
      references: what was said in each.

    Raises:
      UserError: there is nothing to tune or to measure by.
    """
    options = pool.options
    if not options.lm and not options.lexicon:
        raise UserError("tune: without an n-gram or a lexicon there are no weights to tune; name one by lm or lexicon")
    if trials < 1 or not any(reference.split() for reference in references):
        raise UserError("tune: it takes at least one trial and one reference with words")
    random, count, tried = np.random.default_rng(seed), functools.cache(count_errors), []
    least = _LEAST if options.hot_words else LM_WEIGHTS[0]
    for number in range(trials):
        if number:
            point = _draw(random, None if number <= trials // 2 else best(tried))
            # without an n-gram its weight is nothing
            point = (max(point[0], least) if options.lm else options.lm_weight, point[1])
        else:
            point = (options.lm_weight, options.word_score)
        weighed = dataclasses.replace(options, lm_weight=point[0], word_score=point[1], nbest=1)
        hypotheses = pool.decode(log_probs, weighed, quiet=True)
        errors = sum((count(r, h[0].text) for r, h in zip(references, hypotheses, strict=True)), ErrorCounts())
        tried.append(Trial(*point, errors))
    chosen = best(tried)
    say(
        f"  tuned in {trials} trials: lm_weight {chosen.lm_weight:.2f}, word_score {chosen.word_score:.2f}: "
        f"WER {chosen.errors.wer:.2%}, {tried[0].errors.wer:.2%} before"
    )
    return dataclasses.replace(options, lm_weight=chosen.lm_weight, word_score=chosen.word_score), tried


def best(tried: Sequence[Trial]) -> Trial:
    """That of fewest word errors, then character errors, then the first."""
    return min(tried, key=lambda trial: (trial.errors.wer, trial.errors.cer))


def _draw(random: np.random.Generator, around: Trial | None) -> tuple[float, float]:
    point = []
    middles = (around.lm_weight, around.word_score) if around else (None, None)
    for (low, high), middle in zip((LM_WEIGHTS, WORD_SCORES), middles, strict=True):
        value = random.uniform(low, high) if middle is None else random.normal(middle, _NEAR * (high - low))
        point.append(float(np.clip(value, low, high)))
    return point[0], point[1]
