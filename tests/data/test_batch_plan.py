"""The batch plan by property."""

import itertools
import tracemalloc

import numpy as np
import pytest

from sew_jax.data.batch_plan import BatchPlan, choose_buckets, rows_per_bucket

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


def test_buckets_take_turns_at_random(plan):
    """As many neighbours of another bucket as in any random order: an epoch is not one long bucket after another."""
    size = plan.batches_per_epoch
    for epoch in (0, 1):
        buckets = np.array([plan[epoch * size + i].bucket for i in range(size)])
        _, counts = np.unique(buckets, return_counts=True)
        shares = counts / size
        changes = (buckets[1:] != buckets[:-1]).mean()
        assert len(counts) == 4 and abs(changes - (1 - (shares**2).sum())) < 4 * 0.5 / np.sqrt(size)


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


# Lengths in seconds of LibriSpeech's three training splits at these quantiles, as icefall's recipe lists them
# (egs/librispeech/ASR/local/display_manifest_statistics.py; copies at 0.9 and 1.1 times the pace included)
QUANTILES = [0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1]
LIBRISPEECH = {
    28_539: [1.3, 1.9, 2.2, 2.5, 4.2, 6.4, 11.4, 13.8, 15.3, 16.7, 17.3, 18.1, 18.4, 18.8, 27.2],
    104_014: [1.0, 1.8, 2.2, 2.5, 4.2, 6.2, 11.2, 13.7, 15.3, 16.6, 17.3, 18.1, 18.4, 18.8, 33.0],
    148_688: [0.8, 1.7, 2.1, 2.3, 3.5, 5.0, 9.8, 13.4, 15.1, 16.5, 17.2, 18.1, 18.4, 18.9, 31.0],
}


def librispeech_samples():
    random = np.random.default_rng(0)
    seconds = [np.interp(random.random(count), QUANTILES, values) for count, values in LIBRISPEECH.items()]
    return (np.concatenate(seconds) * 16_000).astype(np.int64)


def test_four_buckets_waste_less_than_a_tenth_of_librispeech():
    """As wav2vec 2.0 base crops it, at 15.6 s, in batches of 5,600 s on 64 devices."""
    samples = librispeech_samples()
    assert samples.sum() / 16_000 / 3600 == pytest.approx(961, rel=0.01)  # hours of the three splits
    cropped = np.minimum(samples, round(15.6 * 16_000))
    rows = rows_per_bucket(choose_buckets(cropped, 4), 5600 * 16_000, 64)
    assert len(rows) == 4 and BatchPlan(cropped, rows, 0, True).padding_efficiency >= 0.9


def epoch_of(plan, epoch):
    batches = [plan[epoch * plan.batches_per_epoch + i] for i in range(plan.batches_per_epoch)]
    utterances = np.concatenate([b.utterances for b in batches])
    return utterances[utterances >= 0]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_corpora_share_an_epoch_by_a_power_of_their_hours(exponent):
    """The audio that an epoch takes of each, against the formula; at 1 each utterance is read once."""
    sizes = [800, 150, 47]
    rows = rows_per_bucket(choose_buckets(SAMPLES, 3), 16_000 * 60, 2)
    plan = BatchPlan(SAMPLES, rows, seed=1, shuffle=True, sizes=sizes, exponent=exponent)
    corpus = np.repeat([0, 1, 2], sizes)
    hours = np.bincount(corpus, weights=SAMPLES)
    wanted = hours**exponent / (hours**exponent).sum() * hours.sum()
    read = np.concatenate([epoch_of(plan, epoch) for epoch in range(8)])
    got = np.bincount(corpus[read], weights=SAMPLES[read]) / 8
    np.testing.assert_allclose(got, wanted, rtol=0.03)
    if exponent == 1:
        np.testing.assert_array_equal(np.sort(epoch_of(plan, 3)), np.arange(len(SAMPLES)))


def test_within_a_corpus_none_is_read_again_before_all_others_were():
    sizes = [900, 97]
    rows = rows_per_bucket(choose_buckets(SAMPLES, 3), 16_000 * 60, 2)
    plan = BatchPlan(SAMPLES, rows, seed=1, shuffle=True, sizes=sizes, exponent=0.3)
    count = np.zeros(len(SAMPLES), int)
    for epoch in range(6):
        np.add.at(count, epoch_of(plan, epoch), 1)
        for bucket in plan.buckets:
            members = plan.members(bucket)
            for first in (True, False):
                counts = count[members[(members < 900) == first]]
                assert np.ptp(counts) <= 1


# A few files of 20 minutes among many short ones, cropped to 15.6 s
CROP = 249_600
MIXED = np.concatenate([SAMPLES, np.random.default_rng(1).integers(900, 1200, 5) * 16_000])
CROPS = np.maximum(MIXED // CROP, 1)


def mixed_plan(**options):
    samples = np.minimum(MIXED, CROP)
    rows = rows_per_bucket(choose_buckets(samples, 4), 16_000 * 60, 2)
    return BatchPlan(samples, rows, seed=3, shuffle=True, crops=CROPS, **options)


def crops_of(plan, epoch):
    """(utterance, crop) of an epoch, in order."""
    batches = [plan[epoch * plan.batches_per_epoch + i] for i in range(plan.batches_per_epoch)]
    pairs = [(int(u), int(c)) for b in batches for u, c in zip(b.utterances, b.crops, strict=True) if u >= 0]
    return pairs


def test_an_epoch_holds_each_crop_of_each_file_once():
    plan = mixed_plan()
    wanted = [(u, c) for u, crops in enumerate(CROPS) for c in range(crops)]
    first, second = (crops_of(plan, epoch) for epoch in (0, 5))
    assert sorted(first) == sorted(second) == wanted and first != second
    long = [place for place, (u, _) in enumerate(first) if u == len(MIXED) - 1]
    assert np.ptp(long) > len(first) / 2  # not one after another
    hours = sum(min(MIXED[u], CROP) for u, _ in first)
    assert plan.seconds_per_batch * plan.batches_per_epoch == pytest.approx(hours / 16_000)
    computed = sum(plan[i].bucket * len(plan[i].utterances) for i in range(plan.batches_per_epoch))
    assert plan.padding_efficiency == pytest.approx(hours / computed)


def test_corpora_of_long_files_share_an_epoch_by_hours():
    """A corpus of 5 long files and one of many short ones, by the audio that an epoch takes of each."""
    sizes = [len(SAMPLES), 5]
    audio = np.minimum(MIXED, CROP) * CROPS
    for exponent in (0.0, 0.5, 1.0):
        hours = np.array([audio[: sizes[0]].sum(), audio[sizes[0] :].sum()], float)
        wanted = hours**exponent / (hours**exponent).sum() * hours.sum()
        plan = mixed_plan(sizes=sizes, exponent=exponent)
        pairs = [pair for epoch in range(8) for pair in crops_of(plan, epoch)]
        got = [sum(min(MIXED[u], CROP) for u, _ in pairs if (u >= sizes[0]) == second) / 8 for second in (False, True)]
        np.testing.assert_allclose(got, wanted, rtol=0.03)
        counts = [pairs.count((u, c)) for u in range(sizes[0], len(MIXED)) for c in range(CROPS[u])]
        assert np.ptp(counts) <= 1  # none is read again before all others were


def test_a_million_long_files_stay_in_arrays():
    """61 million crops are counted, not listed."""
    samples = np.full(1_000_000, CROP)
    tracemalloc.start()
    plan = BatchPlan(samples, {CROP: 64}, seed=0, shuffle=True, crops=np.full(1_000_000, 61))
    planned = plan[123_456_789]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.batches_per_epoch == -(-61_000_000 // 64) and len(set(planned.utterances)) > 60
    assert peak < 100 * 2**20
