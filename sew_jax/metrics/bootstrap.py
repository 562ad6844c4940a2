"""How far a word error rate may be trusted: percentile bootstrap over utterances.

Words of an utterance share a speaker and a microphone, so it is utterances that are drawn again, as Bisani and Ney
(2004) do. U utterances, S and T seeds, R resamples.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

_DRAWS_AT_ONCE = 1_000_000  # indices in memory
_PERCENTILES = (2.5, 97.5)


def wer_interval(errors_U: ArrayLike, words_U: ArrayLike, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """The 95 % interval of a word error rate, as fractions.

    Args:
      errors_U: word errors of each utterance.
      words_U: its reference words.

    Returns:
      (low, high). Of a single utterance both are its rate, since nothing is known of the spread; of none both are 0.
    """
    return _interval(np.asarray(errors_U), words_U, seed, resamples)


def difference_interval(
    errors_U: ArrayLike, other_errors_U: ArrayLike, words_U: ArrayLike, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """The 95 % interval of one system's word error rate less another's on the same utterances, as fractions.

    Both are counted on the same draws, so that what is hard for both cancels: where 0 lies outside, the systems
    differ by more than the choice of utterances explains, even if their own intervals overlap.
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
    if not len(errors_U):
        return 0.0, 0.0, 0.0
    difference = float(_relative(errors_U, other_U))
    # "nearest" never mixes two draws, of which one may be infinite
    low, high = np.percentile(_resample(errors_U, other_U, _relative, seed, resamples), _PERCENTILES, method="nearest")
    return difference, float(low), float(high)


def _relative(errors_xU: np.ndarray, other_xU: np.ndarray, axis: int = -1) -> np.ndarray:
    errors, other = errors_xU.sum(axis), other_xU.sum(axis)
    alone = np.where(errors > 0, np.inf, 0.0)
    return np.where(other > 0, errors / np.where(other > 0, other, 1.0) - 1, alone)


def _rate(errors_xU: np.ndarray, words_xU: np.ndarray, axis: int = -1) -> np.ndarray:
    return errors_xU.sum(axis) / np.maximum(words_xU.sum(axis), 1)


def _interval(errors_U: np.ndarray, words_U: ArrayLike, seed: int, resamples: int) -> tuple[float, float]:
    errors_U, words_U = np.asarray(errors_U, np.int64), np.asarray(words_U, np.int64)
    if errors_U.shape != words_U.shape:
        raise ValueError(f"{errors_U.shape} errors, but {words_U.shape} words")
    if not len(errors_U):
        return 0.0, 0.0
    return resampled_interval(errors_U, words_U, _rate, seed, resamples)


def resampled_interval(
    first_U: np.ndarray, second_U: np.ndarray, statistic: Callable, seed: int, resamples: int
) -> tuple[float, float]:
    """The 95 % interval of `statistic(first (..., U), second (..., U), axis=-1)` over draws of utterances."""
    low, high = np.percentile(_resample(first_U, second_U, statistic, seed, resamples), _PERCENTILES)
    return float(low), float(high)


def _resample(first_U: np.ndarray, second_U: np.ndarray, ratio: Callable, seed: int, resamples: int) -> np.ndarray:
    """(R,) ratios of two sums over utterances, each time over the same draw of utterances."""
    from scipy import stats  # takes a second to import, which what stops before its first figure should not wait for

    if len(first_U) == 1:  # of which scipy resamples nothing
        return np.full(resamples, ratio(first_U, second_U))
    with np.errstate(invalid="ignore"):  # its own interval mixes draws, of which some may be infinite
        drawn = stats.bootstrap(
            (first_U, second_U),
            ratio,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _DRAWS_AT_ONCE // len(first_U)),
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return drawn.bootstrap_distribution
