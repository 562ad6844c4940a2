"""The batch plan: batch i is a pure function of (seed, epoch, i), so a restart at any step needs no replay."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sew_jax.hashing import permute
from sew_jax.rates import SAMPLE_RATE

_GRID = 1600  # samples (0.1 s): bucket lengths are multiples of it


class Planned(NamedTuple):
    """Batch `number`: `utterances` in a static number of rows, -1 in filler ones; `bucket`: their length in samples.

    `crops`: which of its crops a row takes of its utterance, 0 where there is one alone.
    """

    number: int
    epoch: int
    bucket: int
    utterances: np.ndarray
    crops: np.ndarray


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
    """Batches of one bucket each; `plan[i]` for any i is computed from (seed, epoch, i), and nothing is replayed.

    With one corpus, or `exponent` 1, an epoch holds each crop of each utterance exactly once. Otherwise an epoch is as
    long, but its audio is shared among corpora in proportion to (hours of the corpus) ** exponent (the sampling of
    XLS-R, arXiv 2111.09296); within a corpus no crop is read again before all others were. Crops are counted, not
    listed: memory grows with the utterances alone.

    Args:
      samples: (utterances,) lengths.
      rows: bucket length -> utterances of a batch; an utterance goes to the smallest bucket that holds it, or (to be
        cropped) the largest.
      seed: of the order.
      shuffle: False, for one corpus, keeps utterances sorted by length, longest first.
      sizes: utterances of each corpus, which follow one another; None: one corpus.
      crops: (utterances,) how many crops of about `samples` an epoch takes of each; None: one.
      multiple: filler rows make the rows of a batch divisible by it, so that any number of devices computes the same
        batches.

    Attributes:
      crops: (utterances,) as given.
      drawn: bucket length -> utterances of a full batch.
      rows: bucket length -> rows of a batch, filler rows included.
      corpus_shares: (corpora,) each one's share of an epoch's audio.
    """

    def __init__(
        self,
        samples: np.ndarray,
        rows: dict[int, int],
        seed: int,
        shuffle: bool,
        *,
        sizes: Sequence[int] | None = None,
        exponent: float = 1.0,
        crops: np.ndarray | None = None,
        multiple: int = 1,
    ):
        self.crops = np.ones(len(samples), np.int64) if crops is None else crops
        self.drawn, self._seed, self._shuffle = dict(sorted(rows.items())), seed, shuffle
        self.rows = {length: -(-count // multiple) * multiple for length, count in self.drawn.items()}
        lengths = np.array(list(self.drawn))
        bucket_U = np.minimum(np.searchsorted(lengths, samples), len(lengths) - 1)
        sizes = sizes or [len(samples)]
        corpus_U = np.repeat(np.arange(len(sizes)), sizes)
        repeats, self.corpus_shares = _repeats(samples * self.crops, corpus_U, exponent)
        cell_U = bucket_U * len(sizes) + corpus_U
        order = np.argsort(cell_U, kind="stable") if shuffle else np.lexsort((-samples, cell_U))
        cells = np.split(order, np.cumsum(np.bincount(cell_U, minlength=len(lengths) * len(sizes)))[:-1])
        self._groups: list[_Bucket] = []
        for i in reversed(range(len(lengths))):
            members = cells[i * len(sizes) : (i + 1) * len(sizes)]
            crop_ends = [np.cumsum(self.crops[m]) for m in members]
            draws = [
                round(int(ends[-1]) * times) if len(ends) else 0 for ends, times in zip(crop_ends, repeats, strict=True)
            ]
            if sum(draws):
                self._groups.append(_Bucket(int(lengths[i]), members, crop_ends, np.cumsum([0, *draws])))
        batches = [-(-group.ends[-1] // self.drawn[group.length]) for group in self._groups]
        self._first = np.cumsum([0, *batches])
        self.batches_per_epoch = int(self._first[-1])
        self._samples = samples

    @property
    def buckets(self) -> list[int]:
        """Bucket lengths that hold utterances."""
        return sorted(group.length for group in self._groups)

    @property
    def padding_efficiency(self) -> float:
        """Speech samples over samples computed, filler rows included."""
        batches = np.diff(self._first)
        computed = sum(n * self.rows[g.length] * g.length for n, g in zip(batches, self._groups, strict=True))
        return self._speech / float(computed)

    @property
    def seconds_per_batch(self) -> float:
        """Mean seconds of speech in a batch."""
        return self._speech / SAMPLE_RATE / self.batches_per_epoch

    @property
    def _speech(self) -> float:
        """Samples of speech in an epoch, on average."""
        return float(
            sum(
                np.average(np.minimum(self._samples[m], group.length), weights=self.crops[m]) * draws
                for group in self._groups
                for m, draws in zip(group.members, np.diff(group.ends), strict=True)
                if draws
            )
        )

    def members(self, bucket: int) -> np.ndarray:
        """Utterances of a bucket."""
        return np.concatenate(next(group.members for group in self._groups if group.length == bucket))

    def __getitem__(self, i: int) -> Planned:
        epoch, place = divmod(i, self.batches_per_epoch)
        if self._shuffle:
            place = int(permute(np.array(place), self.batches_per_epoch, self._seed, epoch, "batches"))
        number = int(np.searchsorted(self._first, place, side="right")) - 1
        group = self._groups[number]
        drawn = self.drawn[group.length]
        begin = (place - int(self._first[number])) * drawn
        draws = np.arange(begin, min(begin + drawn, group.ends[-1]))
        utterances, crops = np.full(self.rows[group.length], -1, np.int64), np.zeros(self.rows[group.length], np.int64)
        utterances[: len(draws)], crops[: len(draws)] = self._drawn(group, epoch, draws)
        return Planned(i, epoch, group.length, utterances, crops)

    def _drawn(self, group: "_Bucket", epoch: int, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which utterances an epoch's draws from a bucket are, and which of their crops."""
        if not self._shuffle:
            return group.crop(0, draws)
        key = (self._seed, group.length)
        places = permute(draws, int(group.ends[-1]), *key, epoch, "draws")
        corpora = np.searchsorted(group.ends, places, side="right") - 1
        utterances, crops = np.empty(len(draws), np.int64), np.empty(len(draws), np.int64)
        for corpus in np.unique(corpora):
            mine, size = corpora == corpus, int(group.crop_ends[corpus][-1])
            # the corpus is read round and round, in another order each time
            share = int(group.ends[corpus + 1] - group.ends[corpus])
            rounds, within = np.divmod(epoch * share + places[mine] - group.ends[corpus], size)
            for turn in np.unique(rounds):
                within[rounds == turn] = permute(within[rounds == turn], size, *key, int(corpus), int(turn), "round")
            utterances[mine], crops[mine] = group.crop(int(corpus), within)
        return utterances, crops


class _Bucket(NamedTuple):
    """A bucket.

    Attributes:
      members: its utterances by corpus.
      crop_ends: by corpus, how many crops the utterances up to each have.
      ends: where each corpus' draws of an epoch end; the first entry is 0.
    """

    length: int
    members: list[np.ndarray]
    crop_ends: list[np.ndarray]
    ends: np.ndarray

    def crop(self, corpus: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The utterances whose crops lie at `places` among all of a corpus, and which of their crops these are."""
        ends = self.crop_ends[corpus]
        at = np.searchsorted(ends, places, side="right")
        begins = np.where(at > 0, ends[at - 1], 0)
        return self.members[corpus][at], places - begins


def _repeats(samples: np.ndarray, corpus_U: np.ndarray, exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """How often an epoch reads a crop of each corpus, on average; each one's share of its audio: (corpora,)."""
    audio = np.bincount(corpus_U, weights=samples)
    shares = audio**exponent / (audio**exponent).sum()
    return shares * audio.sum() / audio, shares
