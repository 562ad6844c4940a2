"""The integer hash behind every host-side draw."""

from collections import Counter

import numpy as np
import pytest

from sew_jax.hashing import hash_u64, permute, uniform_int


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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_a_permutation_puts_each_place_somewhere_else_and_needs_no_others(size):
    places = permute(np.arange(size), size, 7, "a")
    np.testing.assert_array_equal(np.sort(places), np.arange(size))
    some = np.random.default_rng(0).integers(size, size=5)
    np.testing.assert_array_equal(permute(some, size, 7, "a"), places[some])
    if size > 100:
        assert (places != permute(np.arange(size), size, 8, "a")).mean() > 0.9


def test_permutations_are_uniform():
    """All 24 orders of four, by their key: chi-square at 23 degrees of freedom, 1 in 10,000 is above 54."""
    counts = Counter(tuple(permute(np.arange(4), 4, key)) for key in range(4800))
    assert len(counts) == 24 and sum((n - 200) ** 2 / 200 for n in counts.values()) < 54
