"""What the released fixtures were made of, for `make.py` and for the tests."""

import numpy as np

LENGTHS = (4000, 4400, 6401)  # 12, 13 and 19 frames: those that a squeeze factor divides and those that it does not
VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")


def waves() -> list[np.ndarray]:
    """An utterance of each length, quiet and off centre, so that a forgotten normalisation shows."""
    random = np.random.default_rng(0)
    return [(0.1 * random.normal(size=n) + 0.02).astype(np.float32) for n in LENGTHS]
