"""Planned batches as arrays, read ahead through Grain. Free of JAX, since worker processes import it.

Element k of the pipeline is batch start + k: position is a number, and neither workers nor hosts change what a batch
holds.
"""

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from grain._src.python.dataset.transformations import process_prefetch

from sew_jax.data.audio import AudioError, change_speed
from sew_jax.data.batch_plan import BatchPlan
from sew_jax.data.labels import FrameLabels, Labels
from sew_jax.data.problems import Problem
from sew_jax.data.sources import Source
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.hashing import uniform_int
from sew_jax.processes import end_with_parent_alone

# Before it ends, a worker waits until its last batches are read, which nobody does once a run is over: Grain kills it
# after 25 s, and knows no option for it.
_LEAVE_S = 0.5


class Share(NamedTuple):
    """The rows of a batch that a host holds: its `blocks`, in order, of the batch in `of` equal ones."""

    blocks: tuple[int, ...] = (0,)
    of: int = 1

    def rows(self, batch: np.ndarray) -> np.ndarray:
        """These rows of an array that has all rows of a batch."""
        return batch.reshape(self.of, -1, *batch.shape[1:])[list(self.blocks)].reshape(-1, *batch.shape[1:])


WHOLE = Share()


class Batch(NamedTuple):
    """This host's rows: `wave` (B, N) int16, `length` (B,) samples, `crop` (B,), which names what a row takes among all
    that an epoch could, and, with a vocabulary, `labels` (B, U) and `label_length` (B,). Filler rows have length 0 and
    crop -1; those that could not be read have length 0 alone. Where there is no transcript, `label_length` is -1.
    """

    arrays: dict[str, np.ndarray]
    number: int
    epoch: int
    bucket: int
    ids: tuple[str, ...]  # of the global batch
    problems: tuple[Problem, ...]  # utterances of this host that could not be read; their rows are filler


class Batches:
    """Batch i by random access.

    Args:
      seed: of the crops and speeds.
      vocabulary: spells transcripts, or labels; None makes batches without either.
      symbols_U: with a vocabulary, the symbols of each transcript, counted.
      speed: each reading is played at a pace drawn from 1 - speed to 1 + speed; 0 leaves it as it is.
      share: the rows that this host reads.
    """

    def __init__(
        self,
        source: Source,
        plan: BatchPlan,
        *,
        seed: int,
        vocabulary: Vocabulary | Labels | None,
        symbols_U: np.ndarray | None = None,
        start: int,
        stop: int,
        speed: float = 0.0,
        share: Share = WHOLE,
    ):
        self._source, self._plan, self._seed, self._vocabulary = source, plan, seed, vocabulary
        self._start, self._stop, self._speed, self._share = start, stop, speed, share
        self._first_crop = np.cumsum(plan.crops) - plan.crops  # of each utterance, among all
        self._label_slots = {} if symbols_U is None else label_slots(symbols_U, plan)

    def __len__(self) -> int:
        return max(self._stop - self._start, 0)

    def __getitem__(self, k: int) -> Batch:
        planned = self._plan[self._start + k]
        bucket, mine, crops = planned.bucket, self._share.rows(planned.utterances), self._share.rows(planned.crops)
        count = len(mine)
        wave, length = np.zeros((count, bucket), np.int16), np.zeros(count, np.int32)
        crop_number = np.where(mine < 0, -1, self._first_crop[mine] + crops).astype(np.int32)
        arrays: dict[str, np.ndarray] = {"wave": wave, "length": length, "crop": crop_number}
        if self._vocabulary:
            arrays["labels"] = np.zeros((count, self._label_slots[bucket]), np.int32)
            arrays["label_length"] = np.zeros(count, np.int32)
        problems = []
        for row, (utterance, crop) in enumerate(zip(mine.tolist(), crops.tolist(), strict=True)):
            if utterance < 0:
                continue
            pace = self._pace(utterance, planned.epoch)
            try:
                speech = self._read(utterance, crop, bucket, planned.epoch, pace)
            except AudioError as error:
                problems.append(Problem(self._source.id(utterance), str(error)))
                continue
            wave[row, : len(speech)], length[row] = speech, len(speech)
            if self._vocabulary:
                text = self._source.text(utterance)
                labels = self._symbols(text or "", len(speech), pace)
                arrays["labels"][row, : len(labels)] = labels
                arrays["label_length"][row] = -1 if text is None else len(labels)
        ids = tuple(self._source.id(int(u)) for u in planned.utterances if u >= 0)
        return Batch(arrays, planned.number, planned.epoch, bucket, ids, tuple(problems))

    def _read(self, utterance: int, crop: int, bucket: int, epoch: int, pace: float) -> np.ndarray:
        """What an epoch takes of an utterance: int16, at most as long as the bucket. Raises AudioError.

        Where it takes several crops, these begin at equal distances, in each epoch at others.
        """
        wanted = math.ceil(bucket * pace)
        begins = max(int(self._source.samples[utterance]) - wanted, 0) + 1  # where a crop could begin
        begin = (crop * begins + uniform_int(begins, self._seed, epoch, utterance, "crop")) // int(
            self._plan.crops[utterance]
        )
        speech = self._source.audio(utterance, begin, wanted)
        return change_speed(speech, pace)[:bucket] if self._speed else speech

    def _pace(self, utterance: int, epoch: int) -> float:
        """How fast an epoch plays an utterance."""
        if not self._speed:
            return 1.0
        return 1 + self._speed * (uniform_int(2001, self._seed, epoch, utterance, "speed") / 1000 - 1)

    def _symbols(self, text: str, samples: int, pace: float) -> list[int] | np.ndarray:
        if isinstance(self._vocabulary, FrameLabels):
            return self._vocabulary.read(text, samples // self._vocabulary.frame_samples, pace)
        assert self._vocabulary
        return self._vocabulary.encode(text)


def label_slots(symbols_U: np.ndarray, plan: BatchPlan) -> dict[int, int]:
    """Static label length of each bucket: the symbols of its longest transcript, on a grid of 16."""
    longest = {bucket: max(int(symbols_U[plan.members(bucket)].max()), 1) for bucket in plan.buckets}
    return {bucket: -(-symbols // 16) * 16 for bucket, symbols in longest.items()}


@contextlib.contextmanager
def read_ahead(batches: Batches, *, workers: int, threads: int, buffer: int = 8) -> Iterator[Iterator[Batch]]:
    """Iterates over `batches` in order, read by threads of this process or by worker processes; closed on exit."""
    dataset = grain.MapDataset.source(batches).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    )
    if workers:
        if not flags.FLAGS.is_parsed():  # in a notebook; Grain reads its own flags before it starts workers
            flags.FLAGS.mark_as_parsed()
        # through pipes: shared memory would outlive a run that is killed
        private = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, private).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=end_with_parent_alone,
        )
        process_prefetch._PROCESS_KILL_TIMEOUT_S = _LEAVE_S
    iterator = iter(dataset)
    try:
        yield iterator
    finally:
        iterator.close()
