"""Many clips through one model at one setting: batches of chunks by length, hypotheses in the order of the clips.

What is held does not grow with the length of a clip: chunks of a batch for each bucket, two batches under way, of each clip
under way a segment of log-probabilities, and words.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sew_jax.compression import Compression
from sew_jax.data import audio
from sew_jax.data.audio import AudioError
from sew_jax.decoding.greedy import Hypothesis
from sew_jax.decoding.incremental import Decoder, SegmentDecoder
from sew_jax.decoding.recognizer import FineTuned, log_probs
from sew_jax.runtime.programs import compile_table
from sew_jax.runtime.sharding import batch_sharding, place_batch
from sew_jax.transcription.chunking import Chunk, Chunking, Joiner, bucket_grid, cut
from sew_jax.transcription.recordings import Clip


class _Recording:
    """A clip under way."""

    def __init__(self, clip: Clip, decoder: SegmentDecoder):
        self.clip, self.samples = clip, 0  # samples heard so far
        self.result: Hypothesis | AudioError | None = None  # None: not done yet
        self._joiner, self._decoder = Joiner(), decoder

    def add(self, chunk: Chunk, log_prob_TxV: np.ndarray) -> None:
        """Takes what the model says of the next chunk."""
        self.samples = chunk.begin + len(chunk.wave)
        if self.result is not None:  # damaged further on
            return
        self._decoder.add(self._joiner.add(chunk, log_prob_TxV))
        if chunk.last:
            self.result = self._decoder.finish()


class Listener:
    """A model at one setting, with programs for the chunks of some clips.

    Args:
      decode: of a segment's log-probabilities.
      batch_samples: audio of a batch; no batch has more rows than the clips fill.
    """

    def __init__(
        self, tuned: FineTuned, setting: Compression, chunking: Chunking, decode: Decoder, clips: Sequence[Clip],
        batch_samples: int, mesh: Mesh,
    ):  # fmt: skip
        self.setting, self._chunking = setting, chunking
        self._params, self._sharding = tuned.params, batch_sharding(mesh)
        self._decoder = functools.partial(SegmentDecoder, decode, tuned.vocabulary, chunking.frames)
        self._clips = clips
        grid = bucket_grid(chunking.length)
        chunks: collections.Counter[int] = collections.Counter()
        for clip in clips:
            count = chunking.count(clip.samples)
            chunks[_bucket(grid, clip.samples if count == 1 else chunking.length)] += count
        self._rows = {}  # bucket -> rows of a batch, ascending
        for bucket, count in sorted(chunks.items()):
            wanted = min(count, max(batch_samples // bucket, 1))
            self._rows[bucket] = -(-wanted // mesh.size) * mesh.size

        def shapes(key: tuple[Compression, int]):
            rows = self._rows[key[1]]
            wave = jax.ShapeDtypeStruct((rows, key[1]), jnp.int16, sharding=self._sharding)
            return self._params, {
                "wave": wave,
                "length": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=self._sharding),
            }

        jitted = jax.jit(functools.partial(log_probs, tuned.model), static_argnames="compression")
        programs = compile_table(jitted, [(setting, bucket) for bucket in self._rows], shapes, "transcription")
        self._programs = {bucket: program for (_, bucket), program in programs.items()}

    def hear(self, tell: Callable[[int], None]) -> Iterator[tuple[Clip, Hypothesis | AudioError]]:
        """What was said in each clip, in order, or why that cannot be known.

        Args:
          tell: is called after each batch with the samples heard so far, those of all clips together.
        """
        recordings, heard = collections.deque(), 0  # under way, or waiting for one before them
        for members, outputs in self._computed(recordings):
            log_prob_BxTxV, frames_B = jax.device_get(outputs)
            for row, (recording, chunk) in enumerate(members):
                heard -= recording.samples
                recording.add(chunk, log_prob_BxTxV[row, : frames_B[row]])
                heard += recording.samples
            tell(heard)
            while recordings and recordings[0].result is not None:
                recording = recordings.popleft()
                yield recording.clip, recording.result
        for recording in recordings:  # damaged from the first chunk on
            yield recording.clip, recording.result

    def _computed(self, recordings: collections.deque) -> Iterator:
        """Each batch with what the program makes of it, one batch late: the device computes while audio is read and decoded."""
        pending = None
        for bucket, members in self._batches(recordings):
            wave, length = np.zeros((self._rows[bucket], bucket), np.int16), np.zeros(self._rows[bucket], np.int32)
            for row, (_, chunk) in enumerate(members):
                wave[row, : len(chunk.wave)], length[row] = chunk.wave, len(chunk.wave)
            outputs = self._programs[bucket](
                self._params, place_batch({"wave": wave, "length": length}, self._sharding)
            )
            if pending:
                yield pending
            pending = members, outputs
        if pending:
            yield pending

    def _batches(self, recordings: collections.deque) -> Iterator[tuple[int, list[tuple[_Recording, Chunk]]]]:
        """Chunks of one bucket at a time, a clip's in order; begins a recording for each clip."""
        waiting = {bucket: [] for bucket in self._rows}
        for clip in self._clips:
            recording = _Recording(clip, self._decoder())
            recordings.append(recording)
            try:
                for chunk in cut(audio.blocks(clip.data), self._chunking):
                    whole = chunk.last and not chunk.begin
                    bucket = _bucket(list(self._rows), len(chunk.wave) if whole else self._chunking.length)
                    waiting[bucket].append((recording, chunk))
                    if len(waiting[bucket]) == self._rows[bucket]:
                        yield bucket, waiting[bucket]
                        waiting[bucket] = []
            except AudioError as error:
                recording.result = error
        for bucket, members in waiting.items():
            if members:
                yield bucket, members


def _bucket(lengths: Sequence[int], samples: int) -> int:
    """The shortest of ascending lengths that holds so many samples."""
    return next(length for length in lengths if length >= samples)
