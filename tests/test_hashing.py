"""The integer hash behind every host-side draw."""

import numpy as np

from sew_jax.hashing import hash_u64, uniform_int


def test_a_pure_function_of_its_words():
    assert hash_u64(1, 2, "mask") == hash_u64(1, 2, "mask")
    values = {
        hash_u64(*words) for words in [(1, 2), (2, 1), (1, 2, 0), (1,), ("a",), ("b",), ("a", "b"), ("ab",), (1 << 64,)]
    }
    assert len(values) == 9


def test_uniform_over_its_bound():
    counts = np.bincount([uniform_int(7, 3, i, "x") for i in range(21_000)], minlength=7)
    # chi-square with 6 degrees of freedom: 22.5 is its 0.1 % point
    assert len(counts) == 7 and ((counts - 3000) ** 2 / 3000).sum() < 22.5
