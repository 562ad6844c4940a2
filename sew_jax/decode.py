"""CTC symbols to text."""

import numpy as np

from sew_jax.data.text import Vocabulary


def greedy(symbol_BxT: np.ndarray, length_B: np.ndarray, vocabulary: Vocabulary) -> list[str]:
    """Transcripts of the best path: repeats collapsed, blanks dropped, frames beyond an utterance's length ignored."""
    texts = []
    for symbols, length in zip(symbol_BxT, length_B, strict=True):
        path = symbols[:length]
        first = np.diff(path, prepend=-1) != 0  # of each run of equal symbols
        texts.append(vocabulary.decode(path[first & (path != vocabulary.blank)].tolist()))
    return texts
