"""How far a word error rate may be trusted: percentile bootstrap over utterances.

Words of an utterance share a speaker and a microphone, so it is utterances that are drawn again, as Bisani and Ney (2004)
do. U utterances, R resamples.
"""

import numpy as np
from numpy.typing import ArrayLike

_DRAWS_AT_ONCE = 1_000_000  # indices in memory


def wer_interval(errors_U: ArrayLike, words_U: ArrayLike, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """The 95 % interval of a word error rate, as fractions.

    Args:
      errors_U: word errors of each utterance.
      words_U: its reference words.

    Returns:
      (low, high). Of a single utterance both are its rate, since nothing is known of the spread; of none both are 0.
    """
    return _interval(errors_U, words_U, seed, resamples)


def difference_interval(
    errors_U: ArrayLike, other_errors_U: ArrayLike, words_U: ArrayLike, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """The 95 % interval of one system's word error rate less another's on the same utterances, as fractions.

    Both are counted on the same draws, so that what is hard for both cancels: where 0 lies outside, the systems differ by
    more than the choice of utterances explains, even if their own intervals overlap.
    """
    return _interval(np.subtract(errors_U, other_errors_U), words_U, seed, resamples)


def _interval(errors_U: ArrayLike, words_U: ArrayLike, seed: int, resamples: int) -> tuple[float, float]:
    errors_U, words_U = np.asarray(errors_U, np.int64), np.asarray(words_U, np.int64)
    if errors_U.shape != words_U.shape:
        raise ValueError(f"{errors_U.shape} errors, but {words_U.shape} words")
    utterances = len(errors_U)
    if not utterances:
        return 0.0, 0.0
    random, wer_R = np.random.default_rng(seed), np.empty(resamples)
    block = max(1, _DRAWS_AT_ONCE // utterances)
    for begin in range(0, resamples, block):
        part = wer_R[begin : begin + block]
        draw_RxU = random.integers(utterances, size=(len(part), utterances), dtype=np.int32)
        part[:] = errors_U[draw_RxU].sum(1) / np.maximum(words_U[draw_RxU].sum(1), 1)
    low, high = np.percentile(wer_R, (2.5, 97.5))
    return float(low), float(high)
