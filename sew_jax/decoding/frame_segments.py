"""Labels of frames to stretches of time. T frames, C labels."""

import itertools
from typing import NamedTuple

import numpy as np

from sew_jax.data.labels import FrameLabels
from sew_jax.rates import SAMPLE_RATE


class FrameSegment(NamedTuple):
    """Seconds of frames in a row that have the same label, and the mean of its probability over them."""

    label: str
    start: float
    end: float
    confidence: float


def segments_of(log_prob_TxC: np.ndarray, labels: FrameLabels) -> list[FrameSegment]:
    """The likeliest label of each frame, in runs."""
    best_T = log_prob_TxC.argmax(1)
    edges = np.flatnonzero(np.diff(best_T, prepend=-1, append=-1)).tolist()
    seconds = labels.frame_samples / SAMPLE_RATE
    return [
        FrameSegment(
            labels.names[best_T[begin]],
            begin * seconds,
            end * seconds,
            float(np.exp(log_prob_TxC[begin:end, best_T[begin]]).mean()),
        )
        for begin, end in itertools.pairwise(edges)
    ]
