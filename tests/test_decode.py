"""Greedy CTC decoding against the definition."""

import itertools

import numpy as np

from sew_jax.data.text import LETTERS, Vocabulary
from sew_jax.decode import greedy


def test_collapse_then_drop_blanks():
    random, vocabulary = np.random.default_rng(0), Vocabulary(LETTERS)
    symbols = random.choice([0, 0, 4, 5, 6, 7], size=(50, 30))
    length = random.integers(0, 31, size=50)
    for row, n, text in zip(symbols, length, greedy(symbols, length, vocabulary), strict=True):
        kept = [int(s) for s, _ in itertools.groupby(row[:n]) if s != 0]
        assert text == " ".join("".join(LETTERS[s] for s in kept).replace("|", " ").split())


def test_encode_then_decode_a_path():
    vocabulary = Vocabulary(LETTERS)
    path = [x for s in vocabulary.encode("LET'S SEE") for x in (0, s, s)]  # blanks keep the double E apart
    assert greedy(np.array([path]), np.array([len(path)]), vocabulary) == ["LET'S SEE"]
