"""Merging of neighbouring frames that are alike: A-ToMe (arXiv 2306.16009) in the parallel form of ToMe (2210.09461).

B utterances, W frames before, V frames after, D channels, E channels of what frames are compared by.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sew_jax.models.lengths import mask_from_lengths, merged_away


class Track(NamedTuple):
    """What became of the frames that the first layer was given, W of them, after some layers have merged.

    Attributes:
      length_B: valid frames that are left.
      size_BxV: how many of the first frames each one left is the mean of; at padding 0.
      place_BxW: which frame each of the first ones has gone into; it never decreases.
      time_BxVx1: the mean time of what each one left is made of, for models that ask for it (see `times`).
    """

    length_B: jax.Array
    size_BxV: jax.Array
    place_BxW: jax.Array
    time_BxVx1: jax.Array | None = None

    @property
    def merged(self) -> bool:
        """Whether any layer has merged yet."""
        return self.size_BxV.shape[1] < self.place_BxW.shape[1]


def start_track(length_B, frames: int, time_BxWx1=None) -> Track:
    """Of frames none of which is merged."""
    valid_BxW = mask_from_lengths(length_B, frames)
    place_BxW = jnp.broadcast_to(jnp.arange(frames), valid_BxW.shape)
    return Track(length_B, valid_BxW.astype(jnp.float32), place_BxW, time_BxWx1)


def merge_neighbours(x_BxWxD, key_BxWxE, track: Track, share: float) -> tuple[jax.Array, Track]:
    """Merges a share of each utterance's frames into neighbours: (B, V, D), V = W - floor(share * W), and their track.

    Frames of even number are merged into one of odd number, their left or their right neighbour, whichever has the
    more similar key by cosine; those with the most similar neighbour go, exactly floor(share * length) of an utterance.
    A merged frame is the mean of the first frames that it stands for. What is chosen has no gradient.
    """
    frames = x_BxWxD.shape[1]
    left = frames - merged_away(frames, share)
    if left == frames:
        return x_BxWxD, track
    goes_left_BxW, goes_right_BxW = _choose(key_BxWxE, track.length_B, share)
    goes_BxW = goes_left_BxW | goes_right_BxW

    def gathered(y_BxWxC):
        """Each frame with what its neighbours give it."""
        from_left = jnp.pad(jnp.where(goes_right_BxW[:, :, None], y_BxWxC, 0)[:, :-1], ((0, 0), (1, 0), (0, 0)))
        from_right = jnp.pad(jnp.where(goes_left_BxW[:, :, None], y_BxWxC, 0)[:, 1:], ((0, 0), (0, 1), (0, 0)))
        return y_BxWxC + from_left + from_right

    # an utterance may keep fewer frames than there is room for, but never more; what is left keeps its order
    kept_BxV = jnp.argsort(goes_BxW, axis=1, stable=True)[:, :left]
    size_BxWx1 = track.size_BxV[:, :, None]
    total_BxVx1 = take_frames(gathered(size_BxWx1), kept_BxV)

    def mean(y_BxWxC):
        sum_BxVxC = take_frames(gathered(y_BxWxC.astype(jnp.float32) * size_BxWx1), kept_BxV)
        return (sum_BxVxC / jnp.maximum(total_BxVx1, 1)).astype(y_BxWxC.dtype)

    # a frame that goes left has the place of the last one kept before it, one that goes right that of the next one
    place_BxW = jnp.cumsum(~goes_BxW, axis=1) - 1 + goes_right_BxW
    place_BxW = jnp.minimum(place_BxW, left - 1)  # padding beyond
    length_B = track.length_B - merged_away(track.length_B, share)
    places = jnp.take_along_axis(place_BxW, track.place_BxW, axis=1)
    time_BxVx1 = None if track.time_BxVx1 is None else mean(track.time_BxVx1)
    return mean(x_BxWxD), Track(length_B, total_BxVx1[:, :, 0], places, time_BxVx1)


def unmerge(x_BxVxD, track: Track):
    """The frame that each of the first frames has gone into: (B, W, D)."""
    return take_frames(x_BxVxD, track.place_BxW)


def take_frames(x_BxTxC, index_BxW):
    """The frames of each utterance at its indices: (B, W, C)."""
    return jnp.take_along_axis(x_BxTxC, index_BxW[:, :, None], axis=1)


def _choose(key_BxWxE, length_B, share: float) -> tuple[jax.Array, jax.Array]:
    """Which frames are merged into their left, and which into their right neighbour, (B, W) each."""
    frames = key_BxWxE.shape[1]
    key_BxWxE = jax.lax.stop_gradient(key_BxWxE).astype(jnp.float32)
    unit_BxWxE = key_BxWxE * jax.lax.rsqrt(jnp.maximum(jnp.square(key_BxWxE).sum(-1, keepdims=True), 1e-20))
    alike_BxW = (unit_BxWxE * jnp.roll(unit_BxWxE, -1, axis=1)).sum(-1)  # of a frame and the next one
    alike_BxW = jnp.where(mask_from_lengths(length_B - 1, frames), alike_BxW, -jnp.inf)
    before_BxW = jnp.pad(alike_BxW[:, :-1], ((0, 0), (1, 0)), constant_values=-jnp.inf)
    even_W = jnp.arange(frames) % 2 == 0
    best_BxW = jnp.where(even_W, jnp.maximum(alike_BxW, before_BxW), -jnp.inf)
    # not top_k, for which a partitioner gathers the batch
    first_BxR = jnp.argsort(-best_BxW, axis=1, stable=True)[:, : merged_away(frames, share)]
    goes_BxR = mask_from_lengths(merged_away(length_B, share), first_BxR.shape[1])
    goes_BxW = jax.vmap(lambda at, goes: jnp.zeros(frames, bool).at[at].set(goes))(first_BxR, goes_BxR)
    left_BxW = before_BxW > alike_BxW
    return goes_BxW & left_BxW, goes_BxW & ~left_BxW
