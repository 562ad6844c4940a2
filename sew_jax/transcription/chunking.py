"""Long audio in chunks that overlap, and what a model says of the chunks merged to what it says of the whole.

Chunks begin on a grid on which frames, squeeze and pools line up with those of the whole, so that each frame means the
same moment in any chunk; where layers merge frames, which of them depends on the chunk. Of two neighbours each one's
frames count up to the middle of what they share. Free of JAX.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.rates import FRAME_SAMPLES, SAMPLE_RATE

_LEAST_OVERLAP = 0.1  # seconds; a front end's window must not lack what two chunks share
_BUCKETS_PER_OCTAVE, _SHORTEST_BUCKET = 2, 2.0  # seconds


class Chunk(NamedTuple):
    """Samples `begin` and on of a recording; `last` closes it."""

    begin: int
    wave: np.ndarray  # int16
    last: bool


class Chunking(NamedTuple):
    """Samples of a chunk, from one chunk's begin to the next one's, of the grid on which all begin, and of a frame."""

    length: int
    hop: int
    grid: int
    frame: int = FRAME_SAMPLES

    @property
    def frames(self) -> int:
        """No chunk has more of them."""
        return self.length // self.frame

    def count(self, samples: int) -> int:
        """Chunks of a recording."""
        return 1 + max(-(-(samples - self.length) // self.hop), 0)


def make_chunking(
    chunk_seconds: float, overlap_seconds: float, setting: Compression, layers: int, frame: int = FRAME_SAMPLES
) -> Chunking:
    """Chunks of a length, neighbours of which share at least `overlap_seconds`; `frame`: samples of a model's frame.

    Raises:
      UserError: the overlap leaves no way ahead, or is too short to hold a frame.
    """
    pools = {factor for pair in setting.layer_pools(layers) for factor in pair}
    grid = frame * setting.squeeze * math.lcm(*pools)
    length, hop = round(chunk_seconds * SAMPLE_RATE), round((chunk_seconds - overlap_seconds) * SAMPLE_RATE)
    if overlap_seconds < _LEAST_OVERLAP:
        raise UserError(
            f"overlap_seconds: {overlap_seconds:g} is too short to merge chunks; give {_LEAST_OVERLAP} or more"
        )
    if hop < grid:
        raise UserError(
            f"chunk_seconds: {chunk_seconds:g} must be at least {grid / SAMPLE_RATE:g} s more than "
            f"overlap_seconds={overlap_seconds:g} at {setting}"
        )
    return Chunking(length, hop // grid * grid, grid, frame)


def cut(blocks: Iterable[np.ndarray], chunking: Chunking) -> Iterator[Chunk]:
    """The chunks of a recording that comes in blocks; no more than a chunk and a block are held.

    The last chunk of several begins earlier than its turn, so that it is about as long as the others: statistics over
    a short one would differ.
    """
    held, at, begin = np.zeros(0, np.int16), 0, 0  # held[0] is sample `at`; the next chunk's turn is at `begin`
    for block in blocks:
        held = np.concatenate([held, block])
        while at + len(held) > begin + chunking.length:  # more follows: this is not the last
            held, at = held[begin - at :], begin
            yield Chunk(begin, held[: chunking.length], last=False)
            begin += chunking.hop
    latest = max(at + len(held) - chunking.length, 0)
    begin = min(begin, -(-latest // chunking.grid) * chunking.grid)
    yield Chunk(begin, held[begin - at :], last=True)


class ChunkMerger:
    """Merges what was computed of a recording's chunks: every frame, of so many samples, comes once, in order."""

    def __init__(self, frame: int = FRAME_SAMPLES):
        self._frame = frame
        self._held: np.ndarray | None = None
        self._at = 0  # held[0] is frame `_at`; the next chunk may know these better

    def add(self, chunk: Chunk, log_prob_TxV: np.ndarray) -> np.ndarray:
        """The frames that are final with this chunk, (frames, V); chunks come in order."""
        first = chunk.begin // self._frame
        if self._held is None:
            done, start = log_prob_TxV[:0], first
        else:
            start = (first + self._at + len(self._held)) // 2
            done = self._held[: start - self._at]
        # copied: a view would keep the whole batch
        self._held, self._at = log_prob_TxV[start - first :].copy(), start
        return np.concatenate([done, self._held]) if chunk.last else done


def bucket_grid(length: int) -> list[int]:
    """Lengths that chunks are padded to, ascending: from `length` down by the root of 2, in multiples of 0.1 s."""
    grid, buckets, step = SAMPLE_RATE // 10, [length], 2 ** (-1 / _BUCKETS_PER_OCTAVE)
    while (shorter := math.ceil(length * step ** len(buckets) / grid) * grid) >= _SHORTEST_BUCKET * SAMPLE_RATE:
        buckets.append(shorter)
    return buckets[::-1]


def bucket_of(samples: int, length: int) -> int:
    """The shortest of `bucket_grid(length)` that holds so many samples; the grid goes on upwards beyond `length`."""
    if samples <= length:
        return next(bucket for bucket in bucket_grid(length) if bucket >= samples)
    grid = SAMPLE_RATE // 10
    while samples > length:
        length = math.ceil(length * 2 ** (1 / _BUCKETS_PER_OCTAVE) / grid) * grid
    return length
