"""data2vec 2.0's masks: which frames of an utterance a student sees, several times over, with static shapes.

Time is cut into units of so many frames that no squeeze or pooling mixes what is seen with what is not. Masks follow
fairseq's `compute_block_mask_1d`, in units: blocks at random centres, then single units masked or unmasked at random
until a fixed share of the utterance is masked. An utterance's own length says how many units those are, so neither
padding nor the other rows change its masks; the array has room for those that the longest one keeps.
B utterances, M copies of each, R = B * M rows, T frames, W windows, U units, K kept units (static), D channels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.models.lengths import mask_from_lengths, pooled_length
from sew_jax.models.noise import draw_rows, split_rows


class KeptFrames(NamedTuple):
    """What is seen of each of an utterance's copies.

    Attributes:
      unit: frames of a unit; the last one of an utterance may have fewer.
      clones: M.
      unit_RxK: the units that are seen, in order; slots beyond those of a row point anywhere.
      kept_RxU: whether a unit is seen.
      length_R: frames that are seen.
      masked_RxT: frames that are not, of the utterance's own.
    """

    unit: int
    clones: int
    unit_RxK: jax.Array
    kept_RxU: jax.Array
    length_R: jax.Array
    masked_RxT: jax.Array

    @property
    def frames(self) -> int:
        """Frames of an array of what is seen."""
        return self.unit_RxK.shape[1] * self.unit

    def copies(self, x_Bx) -> jax.Array:
        """(R, ...) each row M times, side by side."""
        return jnp.repeat(x_Bx, self.clones, axis=0)

    def numbers(self, row_B) -> jax.Array | None:
        """(R,) what noise is drawn by: a number of its own for each copy."""
        if row_B is None:
            return None
        return (row_B[:, None] * self.clones + jnp.arange(self.clones)).reshape(-1)

    def without_masked(self, x_BxTxD) -> jax.Array:
        """(R, T, D) copies, zero where they are masked."""
        return jnp.where(self.masked_RxT[:, :, None], jnp.zeros((), x_BxTxD.dtype), self.copies(x_BxTxD))

    def gather(self, x_RxWxD, squeeze: int) -> jax.Array:
        """(R, K * unit / squeeze, D) windows of `squeeze` frames that are seen, side by side."""
        return _take_units(x_RxWxD, self.unit_RxK, self.unit // squeeze, self.kept_RxU.shape[1])

    def scatter(self, seen_RxFxD, else_RxTxD) -> jax.Array:
        """(R, T, D) the frames of `gather` where they were; all others as in `else_RxTxD`."""
        frames = else_RxTxD.shape[1]
        place_RxU = jnp.maximum(jnp.cumsum(self.kept_RxU, axis=1) - 1, 0)
        x_RxTxD = _take_units(seen_RxFxD, place_RxU, self.unit, self.unit_RxK.shape[1])[:, :frames]
        kept_RxT = jnp.repeat(self.kept_RxU, self.unit, axis=1)[:, :frames]
        return jnp.where(kept_RxT[:, :, None], x_RxTxD, else_RxTxD)


def unit_of(settings: Sequence[Compression], layers: int) -> int:
    """Frames of the smallest unit that each window and pool of the settings lies within.

    Raises:
      UserError: a setting has none, since it merges frames or has a rate.
    """
    for setting in settings:
        if setting.merges or setting.rate < 1:
            raise UserError(
                f"setting: {setting} would mix frames that are seen with such as are not; data2vec2 takes settings of "
                "squeeze and pools alone, such as s2q1k2"
            )
    pools = [(s.squeeze, *(s.squeeze * f for pool in set(s.layer_pools(layers)) for f in pool)) for s in settings]
    return math.lcm(*(factor for each in pools for factor in each))


def masked_units(units: int, ratio: float) -> int:
    """Units that are masked of so many."""
    return int(ratio * units)


def kept_frames(
    key_B, length_B, frames: int, *, unit: int, clones: int, ratio: float, adjust: float, block: int
) -> KeptFrames:
    """Masks for `clones` copies of each row, drawn by its key and length alone.

    Args:
      length_B: frames of each row, at most `frames`.
      ratio: masked units of all, rounded down to whole ones; below 1.
      adjust: what is masked by blocks, if none overlaps, beyond the ratio.
      block: frames of a block, rounded to whole units.
    """
    units, blocks = pooled_length(frames, unit), max(round(block / unit), 1)
    length_R = jnp.repeat(length_B, clones, axis=0)
    key_R = jax.vmap(lambda key: jax.random.split(key, clones))(key_B).reshape(-1)
    units_R = pooled_length(length_R, unit)
    # by tables: the same whole numbers for a length in every bucket, and those that the static sizes count with
    masked_of = np.array([masked_units(n, ratio) for n in range(units + 1)])
    centres_of = np.array([int(n * (ratio + adjust) / blocks) for n in range(units + 1)])

    centre_key_R, order_key_R = split_rows(key_R, 2)
    draw_RxC = draw_rows(jax.random.uniform, centre_key_R, (max(int(centres_of.max()), 1),))
    centre_RxC = jnp.minimum((draw_RxC * units_R[:, None]).astype(jnp.int32), units_R[:, None] - 1)
    drawn_RxC = mask_from_lengths(jnp.asarray(centres_of)[units_R], draw_RxC.shape[1])
    index_U = jnp.arange(units)
    offset_RxUxC = index_U[:, None] - (centre_RxC - blocks // 2)[:, None, :]
    in_block_RxU = ((offset_RxUxC >= 0) & (offset_RxUxC < blocks) & drawn_RxC[:, None]).any(-1)
    # those in blocks first, then the others, each in random order; so many as the ratio says are masked
    order_RxU = in_block_RxU + draw_rows(jax.random.uniform, order_key_R, (units,))
    valid_RxU = mask_from_lengths(units_R, units)
    rank_RxU = jnp.argsort(jnp.argsort(-jnp.where(valid_RxU, order_RxU, -1.0), axis=1), axis=1)
    masked_RxU = valid_RxU & (rank_RxU < jnp.asarray(masked_of)[units_R][:, None])

    kept_RxU = valid_RxU & ~masked_RxU
    kept = max(n - masked for n, masked in enumerate(masked_of.tolist()))
    unit_RxK = jnp.sort(jnp.where(kept_RxU, index_U, units), axis=1)[:, :kept]
    seen_RxU = jnp.where(kept_RxU, jnp.clip(length_R[:, None] - index_U * unit, 0, unit), 0)
    masked_RxT = jnp.repeat(masked_RxU, unit, axis=1)[:, :frames] & mask_from_lengths(length_R, frames)
    return KeptFrames(unit, clones, jnp.minimum(unit_RxK, units - 1), kept_RxU, seen_RxU.sum(1), masked_RxT)


def _take_units(x_RxLxD, unit_RxN, size: int, units: int) -> jax.Array:
    """(R, N * size, D) whole units of `size` positions of x, which is padded to `units` of them."""
    rows, positions, width = x_RxLxD.shape
    padded = jnp.pad(x_RxLxD, ((0, 0), (0, units * size - positions), (0, 0)))
    taken = jnp.take_along_axis(padded.reshape(rows, units, size * width), unit_RxN[:, :, None], axis=1)
    return taken.reshape(rows, -1, width)
