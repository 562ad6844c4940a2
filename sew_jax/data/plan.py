"""The batch plan: batch i is a pure function of (seed, epoch, i), so a restart at any step needs no replay."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sew_jax.hashing import hash_u64

_GRID = 1600  # samples (0.1 s): bucket lengths are multiples of it


class Planned(NamedTuple):
    """One batch: `utterances` of static number, -1 where a row is filler; `bucket` is its length in samples."""

    index: int
    epoch: int
    bucket: int
    utterances: np.ndarray


def choose_buckets(samples: np.ndarray, count: int) -> list[int]:
    """At most `count` bucket lengths, multiples of 0.1 s, that waste the least padding on utterances of these lengths.

    Exact dynamic programme over at most 128 candidate lengths.
    """
    padded = np.sort(-(-samples // _GRID) * _GRID)
    candidates = np.unique(np.quantile(padded, np.linspace(0, 1, 128), method="higher"))
    # utterances up to each candidate; the first row stands for "none yet"
    upto = np.concatenate([[0], np.searchsorted(padded, candidates, side="right")])
    cost = np.full(len(candidates) + 1, np.inf)
    cost[0] = 0
    choices = []
    for _ in range(min(count, len(candidates))):
        # total[i, j]: candidates up to i are served, then j serves the rest up to itself
        total = cost[:, None] + (upto[None, 1:] - upto[:, None]) * candidates[None, :]
        total[np.tril_indices_from(total, -1)] = np.inf
        choice = total.argmin(0)
        choices.append(choice)
        cost = np.concatenate([[0], total.min(0)])
    buckets, end = [], len(candidates)
    for choice in reversed(choices):
        if end == 0:
            break
        buckets.append(int(candidates[end - 1]))
        end = choice[end - 1]
    return buckets[::-1]


def rows_per_bucket(buckets: Sequence[int], batch_samples: int, multiple: int) -> dict[int, int]:
    """Rows of each bucket's batches: about `batch_samples` of audio, a multiple of devices times micro-batches."""
    return {bucket: max(batch_samples // bucket // multiple, 1) * multiple for bucket in buckets}


class BatchPlan:
    """Every utterance exactly once an epoch, in batches of one bucket each; `plan[i]` for any i, without replay.

    Args:
      samples: (utterances,) lengths.
      rows: bucket length -> rows; an utterance goes to the smallest bucket that holds it, or (to be cropped) the largest.
      seed: of the order.
      shuffle: False keeps utterances sorted by length, longest bucket first.
    """

    def __init__(self, samples: np.ndarray, rows: dict[int, int], seed: int, shuffle: bool):
        self.rows, self._seed, self._shuffle = dict(sorted(rows.items())), seed, shuffle
        lengths = np.array(list(self.rows))
        bucket_U = np.minimum(np.searchsorted(lengths, samples), len(lengths) - 1)
        order = np.argsort(-samples, kind="stable")
        self._members = {int(b): order[bucket_U[order] == i] for i, b in enumerate(lengths)}
        self._members = {bucket: members for bucket, members in self._members.items() if len(members)}
        self.batches_per_epoch = sum(-(-len(m) // self.rows[b]) for b, m in self._members.items())
        self._samples = samples

    @property
    def buckets(self) -> list[int]:
        """Bucket lengths that hold utterances."""
        return sorted(self._members)

    @property
    def padding_efficiency(self) -> float:
        """Speech samples over samples computed, filler rows included."""
        computed = sum(-(-len(m) // self.rows[b]) * self.rows[b] * b for b, m in self._members.items())
        return float(sum(np.minimum(self._samples[m], b).sum() for b, m in self._members.items()) / computed)

    @property
    def seconds_per_batch(self) -> float:
        """Mean seconds of speech in a batch."""
        speech = sum(np.minimum(self._samples[m], b).sum() for b, m in self._members.items())
        return float(speech) / 16_000 / self.batches_per_epoch

    def members(self, bucket: int) -> np.ndarray:
        """Utterances of a bucket."""
        return self._members[bucket]

    def __getitem__(self, i: int) -> Planned:
        epoch, position = divmod(i, self.batches_per_epoch)
        bucket, utterances = self._epoch(epoch)[position]
        return Planned(i, epoch, bucket, utterances)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a plan lives as long as its run
    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        random = np.random.default_rng(hash_u64(self._seed, epoch, "order")) if self._shuffle else None
        batches = []
        for bucket, members in reversed(self._members.items()):
            if random:
                members = random.permutation(members)
            rows = self.rows[bucket]
            filled = np.concatenate([members, np.full(-len(members) % rows, -1, members.dtype)])
            batches += [(bucket, batch) for batch in filled.reshape(-1, rows)]
        return [batches[i] for i in random.permutation(len(batches))] if random else batches
