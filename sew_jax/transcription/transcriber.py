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
from sew_jax.rates import FRAME_SAMPLES
from sew_jax.runtime.sharding import batch_sharding, place_batch
from sew_jax.transcription.chunking import Chunk, Chunking, ChunkMerger, bucket_of, cut
from sew_jax.transcription.recordings import Recording

Result = list[Hypothesis] | AudioError  # the best one first


class Transcriber:
    """A model at one setting.

    Args:
      decode: of a segment's log-probabilities.
      rows: bucket in samples -> chunks of a batch; a program is compiled for each that is not there yet.
      nbest: hypotheses of a recording.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        setting: Compression,
        chunking: Chunking,
        decode: Decoder,
        rows: Mapping[int, int],
        nbest: int = 1,
    ):
        self.setting, self.chunking, self.rows = setting, chunking, dict(sorted(rows.items()))
        self._recognizer, self._decode, self._nbest = recognizer, decode, nbest
        recognizer.compile(log_probs, [setting], self.rows, "transcription")

    def transcribe(
        self, recordings: Sequence[Recording], on_batch: Callable[[int], None] = lambda samples: None
    ) -> Iterator[tuple[Recording, Result]]:
        """What was said in each recording, in order, or why that cannot be known.

        Args:
          on_batch: is called after each batch with the samples done so far, those of all recordings together.
        """
        jobs: collections.deque[Job] = collections.deque()  # under way, or waiting for one before them
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

    def job(
        self,
        recording: Recording,
        chunking: Chunking | None = None,
        decode: Decoder | None = None,
        nbest: int | None = None,
    ) -> "Job":
        """What takes the outputs of a recording's chunks; what is given takes the place of what holds for all."""
        chunking = chunking or self.chunking
        decoder = SegmentDecoder(
            decode or self._decode, self._recognizer.vocabulary, chunking.frames, nbest or self._nbest
        )
        return Job(recording, decoder, chunking.frame)

    def run(self, bucket: int, waves: Sequence[np.ndarray]) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities (rows, T, V) and frames (rows,) of at most so many waves as the bucket has rows.

        It returns before the devices are done.
        """
        wave, length = np.zeros((self.rows[bucket], bucket), np.int16), np.zeros(self.rows[bucket], np.int32)
        for row, samples in enumerate(waves):
            wave[row, : len(samples)], length[row] = samples, len(samples)
        batch = place_batch({"wave": wave, "length": length}, batch_sharding(self._recognizer.mesh))
        return self._recognizer.run(log_probs, self.setting, batch)

    def _computed(self, recordings: Sequence[Recording], jobs: collections.deque["Job"]) -> Iterator:
        """Each batch with its outputs, one batch late: the device computes while audio is read and decoded."""
        pending = None
        for bucket, members in self._batches(recordings, jobs):
            outputs = self.run(bucket, [chunk.wave for _, chunk in members])
            if pending:
                yield pending
            pending = members, outputs
        if pending:
            yield pending

    def _batches(
        self, recordings: Sequence[Recording], jobs: collections.deque["Job"]
    ) -> Iterator[tuple[int, list[tuple["Job", Chunk]]]]:
        """Chunks of one bucket at a time, a recording's in order; begins a job for each recording."""
        waiting: dict[int, list[tuple[Job, Chunk]]] = {bucket: [] for bucket in self.rows}
        for recording in recordings:
            job = self.job(recording)
            jobs.append(job)
            try:
                for chunk in cut(blocks_of(recording), self.chunking):
                    bucket = self.bucket(chunk, self.chunking)
                    waiting[bucket].append((job, chunk))
                    if len(waiting[bucket]) == self.rows[bucket]:
                        yield bucket, waiting[bucket]
                        waiting[bucket] = []
            except AudioError as error:
                job.result = error
        for bucket, members in waiting.items():
            if members:
                yield bucket, members

    def bucket(self, chunk: Chunk, chunking: Chunking) -> int:
        """The shortest that holds a chunk; those of a recording of several share one."""
        samples = len(chunk.wave) if chunk.last and not chunk.begin else chunking.length
        return next(bucket for bucket in self.rows if bucket >= samples)


class Job:
    """A recording under way, by a model whose frames have so many samples."""

    def __init__(self, recording: Recording, decoder: SegmentDecoder, frame: int):
        self.recording, self.samples = recording, 0  # samples done so far
        self.result: Result | None = None  # None: not done yet
        self._merger, self._decoder, self._frame = ChunkMerger(frame), decoder, frame

    def partial(self) -> Hypothesis:
        """What was said in the chunks so far, as it seems now."""
        return self._decoder.partial()

    def add(self, chunk: Chunk, log_prob_TxV: np.ndarray) -> None:
        """Takes what the model says of the next chunk."""
        self.samples = chunk.begin + len(chunk.wave)
        if self.result is not None:  # damaged further on
            return
        self._decoder.add(self._merger.add(chunk, log_prob_TxV))
        if chunk.last:
            self.result = [on_20_ms_frames(said, self._frame) for said in self._decoder.finish()]


def on_20_ms_frames(hypothesis: Hypothesis, frame: int) -> Hypothesis:
    """With words on frames of 20 ms, as all that shows their times expects, from frames of `frame` samples."""
    times = frame // FRAME_SAMPLES
    words = (word._replace(begin=word.begin * times, end=word.end * times) for word in hypothesis.words)
    return hypothesis._replace(words=tuple(words))


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


def blocks_of(recording: Recording) -> Iterator[np.ndarray]:
    """Its int16 samples at 16 kHz. Raises AudioError where they end in a fault."""
    if isinstance(recording.data, np.ndarray):
        return iter([recording.data])
    return audio.blocks(recording.data)
