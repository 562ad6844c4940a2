"""Labels right and wrong: counts that add up as those of words do, and macro F1 with its interval.

U utterances, C classes, R resamples.
"""

from collections.abc import Sequence

import numpy as np

from sew_jax.metrics.bootstrap import resampled_interval
from sew_jax.metrics.wer import ErrorCounts


def count_label(reference: str, label: str) -> ErrorCounts:
    """A label as a text of one word, so that the word error rate of many is the share of wrong ones."""
    wrong = int(reference != label)
    return ErrorCounts(words=1, substitutions=wrong, characters=1, character_errors=wrong, utterances=1)


def macro_f1(references: Sequence[str], labels: Sequence[str]) -> float:
    """The mean over classes of F1, the harmonic mean of precision and recall; classes that nothing has do not count.

    A class that is never right has 0, as scikit-learn has it.
    """
    return float(_macro_f1(*_numbered(references, labels))) if len(references) else 0.0


def macro_f1_interval(
    references: Sequence[str], labels: Sequence[str], seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """Its 95 % interval by resampling utterances, as that of a word error rate; of a single one both ends are its F1.

    What a draw leaves out of a small class is not counted in it, so the interval's middle may lie beside the value.
    """
    if not len(references):
        return 0.0, 0.0
    return resampled_interval(*_numbered(references, labels), _macro_f1, seed, resamples)


def _numbered(references: Sequence[str], labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    _, numbers = np.unique([*references, *labels], return_inverse=True)
    return numbers[: len(references)], numbers[len(references) :]


def _macro_f1(reference_xU: np.ndarray, label_xU: np.ndarray, axis: int = -1) -> np.ndarray:
    """(...) of (..., U) numbers of classes; `axis` is the last."""
    del axis
    *shape, utterances = reference_xU.shape
    reference_RxU, label_RxU = reference_xU.reshape(-1, utterances), label_xU.reshape(-1, utterances)
    resamples, classes = len(reference_RxU), int(max(reference_xU.max(), label_xU.max())) + 1
    first_Rx1 = np.arange(resamples)[:, None] * classes

    def count(number_x: np.ndarray) -> np.ndarray:
        return np.bincount(number_x.reshape(-1), minlength=resamples * classes).reshape(resamples, classes)

    hits_RxC = count((first_Rx1 + reference_RxU)[reference_RxU == label_RxU])
    seen_RxC = count(first_Rx1 + reference_RxU) + count(first_Rx1 + label_RxU)
    f1_R = (2 * hits_RxC / np.maximum(seen_RxC, 1)).sum(1) / (seen_RxC > 0).sum(1)
    return f1_R.reshape(shape)
