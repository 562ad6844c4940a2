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


def relative_difference(
    errors_SxU: ArrayLike, other_errors_TxU: ArrayLike, seed: int = 0, resamples: int = 1000
) -> tuple[float, float, float]:
    """By how much one system's errors, averaged over its S seeds, differ from another's on the same utterances.

    Utterances are drawn jointly for both systems and all seeds, so that what is hard for all cancels.

    Returns:
      (difference, low, high) as fractions of the other's errors, with the 95 % interval. 0 where neither errs, infinite
      where the other alone never does.
    """
    errors_U, other_U = (np.asarray(errors, np.float64).mean(0) for errors in (errors_SxU, other_errors_TxU))
    if errors_U.shape != other_U.shape:
        raise ValueError(f"{errors_U.shape} utterances, but {other_U.shape} of the other")
    utterances = len(errors_U)
    if not utterances:
        return 0.0, 0.0, 0.0
    random, relative_R = np.random.default_rng(seed), np.empty(resamples)
    block = max(1, _DRAWS_AT_ONCE // utterances)
    for begin in range(0, resamples, block):
        part = relative_R[begin : begin + block]
        draw_RxU = random.integers(utterances, size=(len(part), utterances), dtype=np.int32)
        part[:] = _relative(errors_U[draw_RxU].sum(1), other_U[draw_RxU].sum(1))
    # "nearest" never mixes two draws, of which one may be infinite
    low, high = np.percentile(relative_R, (2.5, 97.5), method="nearest")
    return float(_relative(errors_U.sum(), other_U.sum())), float(low), float(high)


def _relative(errors: ArrayLike, other: ArrayLike) -> np.ndarray:
    errors, other = np.asarray(errors, np.float64), np.asarray(other, np.float64)
    alone = np.where(errors > 0, np.inf, 0.0)
    return np.where(other > 0, errors / np.where(other > 0, other, 1.0) - 1, alone)


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
