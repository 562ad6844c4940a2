"""The batch plan by property."""

import itertools

import numpy as np
import pytest

from sew_jax.data.plan import BatchPlan, choose_buckets, rows_per_bucket

SAMPLES = np.random.default_rng(0).integers(8_000, 250_000, size=997)


@pytest.fixture(scope="module")
def plan():
    rows = rows_per_bucket(choose_buckets(SAMPLES, 4), 16_000 * 60, 2)
    return BatchPlan(SAMPLES, rows, seed=3, shuffle=True)


def test_each_utterance_once_an_epoch_in_a_bucket_that_holds_it(plan):
    for epoch in (0, 1, 7):
        batches = [plan[epoch * plan.batches_per_epoch + i] for i in range(plan.batches_per_epoch)]
        seen = np.concatenate([b.utterances for b in batches])
        np.testing.assert_array_equal(np.sort(seen[seen >= 0]), np.arange(len(SAMPLES)))
        for batch in batches:
            assert batch.epoch == epoch and len(batch.utterances) == plan.rows[batch.bucket]
            assert (SAMPLES[batch.utterances[batch.utterances >= 0]] <= batch.bucket).all()


def test_a_batch_is_a_pure_function_of_seed_and_index(plan):
    again = BatchPlan(SAMPLES, plan.rows, seed=3, shuffle=True)
    other = BatchPlan(SAMPLES, plan.rows, seed=4, shuffle=True)
    indices = [5000, 3, 4, 123_456, 3]
    for i in indices:  # in any order, without replay
        np.testing.assert_array_equal(plan[i].utterances, again[i].utterances)
    assert any(
        (plan[i].utterances.shape != other[i].utterances.shape) or (plan[i].utterances != other[i].utterances).any()
        for i in indices
    )


def test_epochs_differ(plan):
    first, second = (
        [tuple(plan[e * plan.batches_per_epoch + i].utterances) for i in range(plan.batches_per_epoch)] for e in (0, 1)
    )
    assert first != second and len(set(first) & set(second)) < 3


def test_evaluation_is_sorted_by_length():
    plan = BatchPlan(SAMPLES, rows_per_bucket(choose_buckets(SAMPLES, 3), 16_000 * 60, 1), seed=0, shuffle=False)
    order = [u for i in range(plan.batches_per_epoch) for u in plan[i].utterances if u >= 0]
    assert (np.diff(SAMPLES[order]) <= 0).all()


def test_an_utterance_longer_than_all_buckets_goes_to_the_largest():
    plan = BatchPlan(np.array([10, 1000]), {20: 1, 100: 1}, seed=0, shuffle=False)
    assert [(plan[i].bucket, plan[i].utterances.tolist()) for i in range(2)] == [(100, [1]), (20, [0])]


def test_buckets_waste_the_least():
    samples = np.array([1600, 1600, 1600, 3200, 8000, 8000, 9600, 16000])
    candidates = sorted(set(samples))

    def padded(buckets):
        return sum(min(b for b in buckets if b >= n) for n in samples)

    for count in (1, 2, 3, 4):
        best = min(padded(c) for c in itertools.combinations(candidates, count) if max(c) == 16000)
        buckets = choose_buckets(samples, count)
        assert len(buckets) <= count and padded(buckets) == best
    assert choose_buckets(samples, 50) == candidates


def test_bucket_lengths_are_on_a_grid_and_hold_everything():
    buckets = choose_buckets(SAMPLES, 4)
    assert len(buckets) == 4 and max(buckets) >= SAMPLES.max() and all(b % 1600 == 0 for b in buckets)


def test_rows_are_a_multiple_of_devices():
    assert rows_per_bucket([16_000, 160_000], 16_000 * 30, 8) == {16_000: 24, 160_000: 8}


def test_padding_efficiency_is_speech_over_what_is_computed(plan):
    batches = [plan[i] for i in range(plan.batches_per_epoch)]
    computed = sum(b.bucket * len(b.utterances) for b in batches)
    assert plan.padding_efficiency == pytest.approx(SAMPLES.sum() / computed)
    assert plan.seconds_per_batch == pytest.approx(SAMPLES.sum() / 16_000 / len(batches))
