"""Intervals against what theory says of them."""

import numpy as np
import pytest

from sew_jax.metrics import bootstrap
from sew_jax.metrics.bootstrap import difference_interval, wer_interval


def binomial(utterances, rate, seed=0):
    """Utterances of ten words, each wrong by chance."""
    words = np.full(utterances, 10)
    return np.random.default_rng(seed).binomial(words, rate), words


def test_the_interval_is_that_of_the_normal_approximation():
    errors, words = binomial(2000, 0.2)
    rate = errors.sum() / words.sum()
    low, high = wer_interval(errors, words, resamples=4000)
    half = 1.96 * errors.std() / 10 / np.sqrt(len(errors))  # of a mean of 2,000 rates
    assert low == pytest.approx(rate - half, abs=0.05 * half) and high == pytest.approx(rate + half, abs=0.05 * half)


def test_it_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(400):
        low, high = wer_interval(*binomial(100, 0.2, seed), seed=seed, resamples=200)
        covered += low <= 0.2 <= high
    assert 0.91 < covered / 400 < 0.985  # 0.95 with a deviation of 0.011


def test_utterances_are_drawn_whole():
    """The same errors in few utterances are less certain than when they are spread out."""
    words, spread = np.full(400, 10), np.ones(400, int)
    lumped = np.where(np.arange(400) % 10, 0, 10)
    assert wer_interval(spread, words) == (0.1, 0.1)
    low, high = wer_interval(lumped, words)
    assert low < 0.08 and high > 0.12


def test_a_paired_difference_is_seen_where_the_intervals_overlap():
    hardness = np.random.default_rng(0).integers(0, 9, 300)
    words = np.full(300, 10)
    better, worse = hardness, hardness + (np.arange(300) % 5 == 0)  # 0.2 errors more an utterance
    assert wer_interval(better, words)[1] > wer_interval(worse, words)[0]
    low, high = difference_interval(worse, better, words)
    assert 0 < low < 0.02 < high
    assert difference_interval(better, worse, words) == pytest.approx((-high, -low))


def test_equal_systems_do_not_differ():
    first, words = binomial(500, 0.2, 1)
    low, high = difference_interval(first, np.random.default_rng(2).permutation(first), words)
    assert low < 0 < high
    assert difference_interval(first, first, words) == (0, 0)


def test_the_seed_decides():
    errors, words = binomial(997, 0.3)
    assert wer_interval(errors, words, seed=3) == wer_interval(errors, words, seed=3) != wer_interval(errors, words)


def test_blocks_change_nothing(monkeypatch):
    errors, words = binomial(50, 0.3)
    whole = wer_interval(errors, words, resamples=100)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 350)
    assert wer_interval(errors, words, resamples=100) == whole


@pytest.mark.parametrize(
    ("errors", "words", "interval"),
    [
        ([3], [10], (0.3, 0.3)),
        ([], [], (0, 0)),
        ([0, 0], [0, 0], (0, 0)),
        ([25, 25], [1, 1], (25, 25)),
    ],
    ids=["one utterance", "none", "no words", "more errors than words"],
)
def test_little_to_go_by(errors, words, interval):
    assert wer_interval(errors, words) == pytest.approx(interval)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="errors"):
        wer_interval([1, 2], [10])
