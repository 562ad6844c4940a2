"""Labels right and wrong: counts that add up as those of words do, and macro F1 with its interval.

U utterances, C classes, R resamples.
"""

from collections.abc import Sequence

import numpy as np

from sew_jax.metrics.bootstrap import resampled_interval
from sew_jax.metrics.wer import ErrorCounts


def count_labels(references: Sequence[str], labels: Sequence[str]) -> ErrorCounts:
    """An utterance's labels, one or one a frame, as words, so that the word error rate is the share of wrong ones.

    The longer of the two has frames at its end that the other lacks, which do not count.
    """
    pairs = list(zip(references, labels, strict=False))
    wrong = sum(reference != label for reference, label in pairs)
    counts = {"words": len(pairs), "substitutions": wrong, "characters": len(pairs), "character_errors": wrong}
    return ErrorCounts(**counts, utterances=1)


def macro_f1(references: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> float:
    """The mean over classes of F1, the harmonic mean of precision and recall; classes that nothing has do not count.

    A class that is never right has 0, as scikit-learn has it.

    Args:
      references, labels: of each utterance, as `count_labels` takes them.
    """
    return float(_macro_f1(*(x.sum(0) for x in _hits_and_seen(references, labels)))) if len(references) else 0.0


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


def _hits_and_seen(
    references: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """(U, C) how often each utterance is right about a class; and has it, by the reference and by the labels."""
    pairs = [list(zip(*both, strict=False)) for both in zip(references, labels, strict=True)]
    names = sorted({name for utterance in pairs for pair in utterance for name in pair})
    number = {name: i for i, name in enumerate(names)}
    hits_UxC, seen_UxC = np.zeros((2, len(pairs), len(names)))
    for hits_C, seen_C, utterance in zip(hits_UxC, seen_UxC, pairs, strict=True):
        for reference, label in utterance:
            seen_C[number[reference]] += 1
            seen_C[number[label]] += 1
            hits_C[number[label]] += reference == label
    return hits_UxC, seen_UxC


def _macro_f1(hits_xC: np.ndarray, seen_xC: np.ndarray) -> np.ndarray:
    """(...) of (..., C) counts."""
    return (2 * hits_xC / np.maximum(seen_xC, 1)).sum(-1) / np.maximum((seen_xC > 0).sum(-1), 1)
