"""Masks and negatives by property: what fairseq's sampler guarantees, and what others got wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.models.masking import gather_frames, mask_slots, masked_frames, negative_indices, span_mask
from sew_jax.models.noise import row_keys, split_rows

PUBLISHED = dict(prob=0.65, span=10, min_spans=2)
LENGTHS = np.array([200, 150, 60, 13, 12, 11, 10, 4, 1, 0])


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def rows_of(key, batch):
    return row_keys(key, jnp.arange(batch))


@pytest.fixture(scope="module")
def masks():
    draw = jax.jit(jax.vmap(lambda key: span_mask(rows_of(key, len(LENGTHS)), jnp.array(LENGTHS), 200, **PUBLISHED)))
    return np.asarray(draw(keys(200)))


def test_padding_and_the_last_frame_are_never_masked(masks):
    for i, length in enumerate(LENGTHS):
        assert not masks[:, i, max(length - 1, 0) :].any()


def test_runs_are_spans(masks):
    for i, length in enumerate(LENGTHS):
        for mask in masks[:, i]:
            edges = np.diff(np.concatenate([[0], mask.astype(int), [0]]))
            runs = np.flatnonzero(edges < 0) - np.flatnonzero(edges > 0)
            assert (runs >= PUBLISHED["span"]).all()
            assert len(runs) > 0 or length <= PUBLISHED["span"]


def test_too_short_for_a_span_stays_whole(masks):
    assert not masks[:, LENGTHS <= PUBLISHED["span"]].any()
    assert masks[:, LENGTHS > PUBLISHED["span"]].any(-1).all()


def test_masked_fraction_is_the_published_one(masks):
    # simulated with fairseq's sampler: 49.2 % of 200 frames (facts of wav2vec 2.0: about 49 %)
    assert masks[:, 0].mean() == pytest.approx(0.492, abs=0.012)


def test_starts_are_drawn_without_replacement():
    # spans of one frame: the number masked is exactly the number drawn
    mask = span_mask(rows_of(jax.random.key(1), 50), jnp.full((50,), 40), 40, prob=0.5, span=1, min_spans=0)
    assert (mask.sum(1) == 20).all()


def test_every_place_is_equally_likely():
    mask = jax.vmap(lambda key: span_mask(key[None], jnp.array([21]), 21, prob=0.0, span=1, min_spans=1))(keys(8000))
    counts = np.asarray(mask[:, 0].sum(0))
    assert counts[-1] == 0
    assert ((counts[:-1] - 400) ** 2 / 400).sum() < 43.8  # chi-square, 19 degrees of freedom, 0.1 %


def test_masked_frames_are_a_part_of_the_spans_in_order():
    slots = mask_slots(200, prob=0.65, span=10)
    for key in keys(20):
        key_B = rows_of(key, len(LENGTHS))
        frames = masked_frames(key_B, jnp.array(LENGTHS), 200, slots=slots, **PUBLISHED)
        mask_key_B, _ = split_rows(key_B, 2)
        spans = np.asarray(span_mask(mask_key_B, jnp.array(LENGTHS), 200, **PUBLISHED))
        index, valid, kept = map(np.asarray, frames)
        assert index.shape == valid.shape == (len(LENGTHS), slots)
        for b in range(len(LENGTHS)):
            chosen = index[b, valid[b]]
            assert valid[b, : len(chosen)].all()  # valid slots first
            assert (np.diff(chosen) > 0).all()  # distinct and in order
            assert len(chosen) == min(slots, spans[b].sum())
            assert spans[b, chosen].all()
            np.testing.assert_array_equal(np.flatnonzero(kept[b]), chosen)


def test_few_slots_stay_empty():
    slots = mask_slots(200, prob=0.65, span=10)
    frames = jax.vmap(lambda key: masked_frames(key[None], jnp.array([200]), 200, slots=slots, **PUBLISHED))(keys(100))
    assert frames.valid_BxM.mean() > 0.9


def test_gather_frames():
    x = jnp.arange(24.0).reshape(2, 4, 3)
    assert gather_frames(x, jnp.array([[3, 0], [1, 1]]))[:, :, 0].tolist() == [[9, 0], [15, 15]]


def test_negatives_are_other_valid_slots_of_the_same_utterance():
    valid = jnp.arange(12) < jnp.array([12, 5, 2, 1, 0])[:, None]
    index = np.asarray(negative_indices(rows_of(jax.random.key(2), 5), valid, 400))
    for b, count in enumerate([12, 5, 2]):
        for slot in range(count):
            drawn = index[b, slot]
            assert not (drawn == slot).any()
            assert ((drawn >= 0) & (drawn < count)).all()
            assert len(np.unique(drawn)) == count - 1  # each of the others occurs


def test_negatives_are_uniform():
    index = np.asarray(negative_indices(rows_of(jax.random.key(3), 1), jnp.ones((1, 11), bool), 10_000))[0]
    for slot in range(11):
        counts = np.delete(np.bincount(index[slot], minlength=11), slot)
        assert ((counts - 1000) ** 2 / 1000).sum() < 33  # chi-square, 9 degrees of freedom; 11 tests at 0.01 %


def test_masks_and_negatives_follow_what_a_row_holds_and_not_its_place():
    length, crop, order = jnp.array(LENGTHS), jnp.arange(len(LENGTHS)) * 7, np.random.default_rng(0).permutation(10)

    def draw(rows):
        key_B = row_keys(jax.random.key(4), crop[rows])
        frames = masked_frames(key_B, length[rows], 200, slots=90, **PUBLISHED)
        return frames, negative_indices(key_B, frames.valid_BxM, 5)

    for a, b in zip(jax.tree.leaves(draw(np.arange(10))), jax.tree.leaves(draw(order)), strict=True):
        np.testing.assert_array_equal(a[order], b)
    alike = np.asarray(
        masked_frames(row_keys(jax.random.key(4), crop), jnp.full(10, 200), 200, slots=90, **PUBLISHED)[2]
    )
    assert len(np.unique(alike, axis=0)) == 10  # no two rows have the same mask
