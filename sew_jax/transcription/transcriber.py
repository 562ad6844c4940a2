"""Many recordings through one model at one setting: batches of chunks by length, hypotheses in the recordings' order.

What is held does not grow with the length of a recording: chunks of a batch for each bucket, two batches under way,
of each recording under way a segment of log-probabilities, and words.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from sew_jax.compression import Compression
from sew_jax.data import audio
from sew_jax.data.audio import AudioError
from sew_jax.decoding.greedy import Hypothesis
from sew_jax.decoding.incremental import Decoder, SegmentDecoder
from sew_jax.decoding.recognizer import Recognizer, log_probs
from sew_jax.runtime.sharding import batch_sharding, place_batch
from sew_jax.transcription.chunking import Chunk, Chunking, ChunkMerger, bucket_of, cut
from sew_jax.transcription.recordings import Recording

Result = Hypothesis | AudioError


class Transcriber:
    """A model at one setting.

    Args:
      decode: of a segment's log-probabilities.
      rows: bucket in samples -> chunks of a batch; a program is compiled for each that is not there yet.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        setting: Compression,
        chunking: Chunking,
        decode: Decoder,
        rows: Mapping[int, int],
    ):
        self.setting = setting
        self._recognizer, self._chunking, self._decode = recognizer, chunking, decode
        self._rows = dict(sorted(rows.items()))
        recognizer.compile(log_probs, [setting], self._rows, "transcription")

    def transcribe(
        self, recordings: Sequence[Recording], on_batch: Callable[[int], None] = lambda samples: None
    ) -> Iterator[tuple[Recording, Result]]:
        """What was said in each recording, in order, or why that cannot be known.

        Args:
          on_batch: is called after each batch with the samples done so far, those of all recordings together.
        """
        jobs: collections.deque[_Job] = collections.deque()  # under way, or waiting for one before them
        done = 0
        for members, outputs in self._computed(recordings, jobs):
            log_prob_BxTxV, frames_B = jax.device_get(outputs)
            for row, (job, chunk) in enumerate(members):
                done -= job.samples
                job.add(chunk, log_prob_BxTxV[row, : frames_B[row]])
                done += job.samples
            on_batch(done)
            while jobs and jobs[0].result is not None:
                job = jobs.popleft()
                yield job.recording, job.result
        for job in jobs:  # damaged from the first chunk on
            yield job.recording, job.result

    def _computed(self, recordings: Sequence[Recording], jobs: collections.deque["_Job"]) -> Iterator:
        """Each batch with its outputs, one batch late: the device computes while audio is read and decoded."""
        pending, sharding = None, batch_sharding(self._recognizer.mesh)
        for bucket, members in self._batches(recordings, jobs):
            wave, length = np.zeros((self._rows[bucket], bucket), np.int16), np.zeros(self._rows[bucket], np.int32)
            for row, (_, chunk) in enumerate(members):
                wave[row, : len(chunk.wave)], length[row] = chunk.wave, len(chunk.wave)
            batch = place_batch({"wave": wave, "length": length}, sharding)
            outputs = self._recognizer.run(log_probs, self.setting, batch)
            if pending:
                yield pending
            pending = members, outputs
        if pending:
            yield pending

    def _batches(
        self, recordings: Sequence[Recording], jobs: collections.deque["_Job"]
    ) -> Iterator[tuple[int, list[tuple["_Job", Chunk]]]]:
        """Chunks of one bucket at a time, a recording's in order; begins a job for each recording."""
        waiting: dict[int, list[tuple[_Job, Chunk]]] = {bucket: [] for bucket in self._rows}
        for recording in recordings:
            decoder = SegmentDecoder(self._decode, self._recognizer.vocabulary, self._chunking.frames)
            job = _Job(recording, decoder)
            jobs.append(job)
            try:
                for chunk in cut(_blocks(recording), self._chunking):
                    whole = chunk.last and not chunk.begin
                    bucket = self._bucket(len(chunk.wave) if whole else self._chunking.length)
                    waiting[bucket].append((job, chunk))
                    if len(waiting[bucket]) == self._rows[bucket]:
                        yield bucket, waiting[bucket]
                        waiting[bucket] = []
            except AudioError as error:
                job.result = error
        for bucket, members in waiting.items():
            if members:
                yield bucket, members

    def _bucket(self, samples: int) -> int:
        return next(bucket for bucket in self._rows if bucket >= samples)


class _Job:
    """A recording under way."""

    def __init__(self, recording: Recording, decoder: SegmentDecoder):
        self.recording, self.samples = recording, 0  # samples done so far
        self.result: Result | None = None  # None: not done yet
        self._merger, self._decoder = ChunkMerger(), decoder

    def add(self, chunk: Chunk, log_prob_TxV: np.ndarray) -> None:
        """Takes what the model says of the next chunk."""
        self.samples = chunk.begin + len(chunk.wave)
        if self.result is not None:  # damaged further on
            return
        self._decoder.add(self._merger.add(chunk, log_prob_TxV))
        if chunk.last:
            self.result = self._decoder.finish()


def count_chunks(recordings: Sequence[Recording], chunking: Chunking) -> dict[int, int]:
    """Bucket -> chunks of the recordings, shortest first."""
    chunks: collections.Counter[int] = collections.Counter()
    for recording in recordings:
        count = chunking.count(recording.samples)
        longest = recording.samples if count == 1 else chunking.length
        chunks[bucket_of(longest, chunking.length)] += count
    return dict(sorted(chunks.items()))


def rows_for(chunks: Mapping[int, int], batch_samples: int, devices: int) -> dict[int, int]:
    """Bucket -> chunks of a batch: about so much audio, no more than there is, a multiple of the devices."""
    wanted = {bucket: min(count, max(batch_samples // bucket, 1)) for bucket, count in chunks.items()}
    return {bucket: -(-count // devices) * devices for bucket, count in wanted.items()}


def _blocks(recording: Recording) -> Iterator[np.ndarray]:
    if isinstance(recording.data, np.ndarray):
        return iter([recording.data])
    return audio.blocks(recording.data)
