"""Labels right and wrong: counts that add up as those of words do, and macro F1 with its interval.

U utterances, C classes, R resamples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sew_jax.metrics.bootstrap import resampled_interval
from sew_jax.metrics.wer import ErrorCounts


def count_labels(references: Sequence[str], labels: Sequence[str]) -> ErrorCounts:
    """An utterance's labels, one or one a frame, as words, so that the word error rate is the share of wrong ones."""
    wrong = sum(reference != label for reference, label in zip(references, labels, strict=True))
    counts = {"words": len(labels), "substitutions": wrong, "characters": len(labels), "character_errors": wrong}
    return ErrorCounts(**counts, utterances=1)


def macro_f1(references: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> float:
    """The mean over classes of F1, the harmonic mean of precision and recall; classes that nothing has do not count.

    A class that is never right has 0, as scikit-learn has it.

    Args:
      references, labels: of each utterance, as `count_labels` takes them.
    """
    hits_UxC, seen_UxC = _hits_and_seen(references, labels)
    return float(_macro_f1(np.asarray(hits_UxC.sum(0)), np.asarray(seen_UxC.sum(0))))


def macro_f1_interval(
    references: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """Its 95 % interval by resampling utterances, as that of a word error rate; of a single one both ends are its F1.

    What a draw leaves out of a small class is not counted in it, so the interval's middle may lie beside the value.
    """
    if not len(references):
        return 0.0, 0.0
    hits_UxC, seen_UxC = _hits_and_seen(references, labels)

    def of_draws(utterance_xU: np.ndarray, same_xU: np.ndarray, axis: int = -1) -> np.ndarray:
        del same_xU, axis
        *shape, utterances = utterance_xU.shape
        drawn_RxU = utterance_xU.reshape(-1, utterances)
        first_Rx1 = np.arange(len(drawn_RxU))[:, None] * utterances
        count_RxU = np.bincount((first_Rx1 + drawn_RxU).reshape(-1), minlength=drawn_RxU.size).reshape(drawn_RxU.shape)
        return _macro_f1(count_RxU @ hits_UxC, count_RxU @ seen_UxC).reshape(shape)

    utterance_U = np.arange(len(references))
    return resampled_interval(utterance_U, utterance_U, of_draws, seed, resamples)


def _hits_and_seen(references: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> tuple[Any, Any]:
    """(U, C), sparse: how often each utterance is right about a class; and has it, on either side."""
    from scipy import sparse  # takes a moment to import, which what stops before its first figure should not wait for

    told, found = ([label for utterance in side for label in utterance] for side in (references, labels))
    lengths_U = [len(utterance) for utterance in labels]
    names, numbers = np.unique([*told, *found], return_inverse=True)
    told_N, found_N = numbers[: len(told)], numbers[len(told) :]
    utterance_N = np.repeat(np.arange(len(labels)), lengths_U)
    shape = len(labels), len(names)

    def count(number_N: np.ndarray, utterance_N: np.ndarray) -> Any:
        return sparse.coo_array((np.ones(len(number_N)), (utterance_N, number_N)), shape).tocsr()

    right_N = told_N == found_N
    return count(found_N[right_N], utterance_N[right_N]), count(told_N, utterance_N) + count(found_N, utterance_N)


def _macro_f1(hits_xC: np.ndarray, seen_xC: np.ndarray) -> np.ndarray:
    """(...) of (..., C) counts."""
    return (2 * hits_xC / np.maximum(seen_xC, 1)).sum(-1) / np.maximum((seen_xC > 0).sum(-1), 1)
