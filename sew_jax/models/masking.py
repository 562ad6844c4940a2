"""Span masks and negatives with static shapes, each row a pure function of its key and length (`noise.row_keys`).

Masks follow fairseq's `compute_mask_indices` (static span length, overlaps allowed, starts without replacement in
[0, length - span), so the last frame is never masked), negatives its `sample_negatives`.
B utterances, T frames, M masked frames (static), N negatives.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sew_jax.models.lengths import mask_from_lengths
from sew_jax.models.noise import draw_rows, split_rows


class MaskedFrames(NamedTuple):
    """M frames of each utterance, in order; where `valid` is false the slot has no frame and weighs nothing."""

    index_BxM: jax.Array
    valid_BxM: jax.Array
    mask_BxT: jax.Array


def span_mask(key_B, length_B, frames: int, *, prob: float, span: int, min_spans: int) -> jax.Array:
    """(B, T) union of spans: floor(prob * length / span + U[0, 1)) of them, at least `min_spans`.

    An utterance of `span` frames or fewer has no place for a span and stays unmasked.
    """
    count_key_B, start_key_B = split_rows(key_B, 2)
    places_B = jnp.maximum(length_B - span, 0)
    spans_B = jnp.floor(prob * length_B / span + draw_rows(jax.random.uniform, count_key_B, ())).astype(jnp.int32)
    spans_B = jnp.minimum(jnp.maximum(spans_B, min_spans), places_B)
    # without replacement: the `spans` places with the highest random scores
    draw_BxT = draw_rows(jax.random.uniform, start_key_B, (frames,))
    score_BxT = jnp.where(mask_from_lengths(places_B, frames), draw_BxT, -1.0)
    rank_BxT = jnp.argsort(jnp.argsort(-score_BxT, axis=1), axis=1)
    started_BxT = jnp.cumsum(rank_BxT < spans_B[:, None], axis=1)
    ended_BxT = jnp.pad(started_BxT, ((0, 0), (span, 0)))[:, :frames]
    return started_BxT > ended_BxT


def mask_slots(frames: int, *, prob: float, span: int) -> int:
    """M for utterances of `frames` frames: the expected size of the union of spans, so that few slots stay empty."""
    places = max(frames - span, 1)
    missed = max(0.0, 1 - prob * frames / span / places) ** span
    return max(span, round((1 - missed) * frames))


def masked_frames(key_B, length_B, frames: int, *, slots: int, prob: float, span: int, min_spans: int) -> MaskedFrames:
    """Span masks cut to `slots` frames an utterance by un-masking random frames (fairseq `require_same_masks`)."""
    mask_key_B, drop_key_B = split_rows(key_B, 2)
    mask_BxT = span_mask(mask_key_B, length_B, frames, prob=prob, span=span, min_spans=min_spans)
    score_BxT = jnp.where(mask_BxT, draw_rows(jax.random.uniform, drop_key_B, (frames,)), -1.0)
    score_BxM, index_BxM = jax.lax.top_k(score_BxT, slots)
    # slots without a frame sort behind the frames, then point at frame 0
    index_BxM = jnp.sort(jnp.where(score_BxM >= 0, index_BxM, frames), axis=1)
    valid_BxM = index_BxM < frames
    kept_BxT = jax.vmap(lambda index: jnp.zeros(frames, bool).at[index].set(True, mode="drop"))(index_BxM)
    return MaskedFrames(jnp.where(valid_BxM, index_BxM, 0), valid_BxM, kept_BxT)


def gather_frames(x_BxTxC: jax.Array, index_BxM: jax.Array) -> jax.Array:
    """The frames at `index`: (B, M, C)."""
    return jnp.take_along_axis(x_BxTxC, index_BxM[:, :, None], axis=1)


def negative_indices(key_B, valid_BxM, negatives: int) -> jax.Array:
    """(B, M, N) slots of distractors: uniform over the other valid slots of the same utterance, with replacement.

    Rows that have no other valid slot hold meaningless indices; `losses.contrastive` gives them zero weight. Valid
    slots come first, as `masked_frames` orders them.
    """
    slots = valid_BxM.shape[1]
    others_B = jnp.maximum(valid_BxM.sum(1) - 1, 1)[:, None, None]
    draw = draw_rows(jax.random.uniform, key_B, (slots, negatives))
    index = jnp.minimum((draw * others_B).astype(jnp.int32), others_B - 1)
    return index + (index >= jnp.arange(slots)[:, None])
