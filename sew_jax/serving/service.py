"""Transcription for many at once: what is accepted, how long it may be, and a thread for each that is under way."""

import collections
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from sew_jax.compression import Compression
from sew_jax.data import audio
from sew_jax.data.audio import AudioError
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.incremental import Decoder
from sew_jax.errors import UserError
from sew_jax.rates import SAMPLE_RATE
from sew_jax.serving.batcher import Batcher
from sew_jax.serving.metrics import Metrics
from sew_jax.serving.requests import BadRequest, Served
from sew_jax.transcription.chunking import Chunking, cut
from sew_jax.transcription.recordings import Recording
from sew_jax.transcription.transcriber import Transcriber, blocks_of
from sew_jax.transcription.transcripts import Transcript

_AHEAD = 2  # chunks of a recording that wait at once: a long one must not hold up the others


class Service:
    """A model at some settings.

    Args:
      streaming: chunks of audio that comes as it is spoken.
      decoder: finds what is asked for in log-probabilities.
      queue: requests and streams that are accepted at once, those under way among them.
    """

    def __init__(
        self,
        served: Served,
        transcribers: Mapping[Compression, Transcriber],
        streaming: Mapping[Compression, Chunking],
        decoder: Callable[[BeamOptions | None], Decoder],
        queue: int,
    ):
        self.served, self.queue, self.metrics = served, queue, Metrics()
        self.closing = False  # nothing more is accepted
        self._transcribers, self._streaming, self._decoder = transcribers, streaming, decoder
        self._batcher = Batcher(transcribers, self.metrics.rows.observe)
        self._accepted, self._lock, self._recent = 0, threading.Lock(), 1.0  # seconds that a request took of late

    @contextlib.contextmanager
    def accepted(self) -> Iterator[None]:
        """A place in the queue, held inside.

        Raises:
          BadRequest: there is none.
        """
        with self._lock:
            if self.closing:
                raise BadRequest("the server is closing; ask another one", code="closing", status=503)
            if self._accepted >= self.queue:
                error = BadRequest(
                    f"{self.queue} requests are waiting already; try again later", code="queue_full", status=429
                )
                error.headers["Retry-After"] = str(min(max(math.ceil(self._recent), 1), 60))
                raise error
            self._accepted += 1
            self.metrics.accepted.set(self._accepted)
        begin = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._accepted -= 1
                self._recent += 0.1 * (time.monotonic() - begin - self._recent)
                self.metrics.accepted.set(self._accepted)

    def transcribe(self, data: bytes, setting: Compression, search: BeamOptions | None = None) -> Transcript:
        """What is said in a file.

        Args:
          search: None: the best path.

        Raises:
          BadRequest: it is no audio, damaged or too long; or a hot word cannot be spelt.
        """
        begin = time.monotonic()
        try:
            if not data:
                raise AudioError("is empty")
            recording = Recording("file", "file", data, audio.probe(data))
            self._check(recording.samples)
            chunking = self._transcribers[setting].chunking
            transcript = self._run(recording, blocks_of(recording), setting, search, chunking)
        except AudioError as error:
            raise BadRequest(f"file: it {error}", "file", "invalid_audio") from error
        self.metrics.seconds.labels(setting.name).observe(time.monotonic() - begin)
        return transcript

    def stream(
        self,
        blocks: Iterable[np.ndarray],
        setting: Compression,
        search: BeamOptions | None,
        on_partial: Callable[[str, float], None],
    ) -> Transcript:
        """What is said in int16 samples at 16 kHz that come bit by bit; is told the text so far, and seconds of it."""
        recording = Recording("stream", "stream", b"", 0)
        return self._run(recording, blocks, setting, search, self._streaming[setting], on_partial)

    def decoder(self, search: BeamOptions | None) -> Decoder:
        """What finds hypotheses.

        Raises:
          BadRequest: a hot word cannot be spelt.
        """
        try:
            return self._decoder(search)
        except UserError as error:  # all files were opened when the server began
            raise BadRequest(str(error), "hot_words") from error

    def close(self) -> None:
        """Ends when all that was accepted is done."""
        self._batcher.close()

    def _check(self, samples: int) -> None:
        if samples > self.served.max_seconds * SAMPLE_RATE:
            message = (
                f"file: it lasts {samples / SAMPLE_RATE:.0f} s, and this server takes {self.served.max_seconds:g} s; "
                "cut it into several"
            )
            raise BadRequest(message, "file", "audio_too_long", 413)

    def _run(
        self,
        recording: Recording,
        blocks: Iterable[np.ndarray],
        setting: Compression,
        search: BeamOptions | None,
        chunking: Chunking,
        on_partial: Callable[[str, float], None] | None = None,
    ) -> Transcript:
        transcriber, waiting = self._transcribers[setting], collections.deque()
        job, samples = transcriber.job(recording, chunking, self.decoder(search), search.nbest if search else 1), 0

        def take() -> None:
            chunk, result = waiting.popleft()
            job.add(chunk, result.result())
            if on_partial and not chunk.last:
                on_partial(job.partial().text, job.samples / SAMPLE_RATE)

        for chunk in cut(blocks, chunking):
            samples = chunk.begin + len(chunk.wave)
            if not on_partial:  # a header may promise less than there is
                self._check(samples)
            waiting.append((chunk, self._batcher.submit(setting, transcriber.bucket(chunk, chunking), chunk.wave)))
            while len(waiting) > (0 if on_partial else _AHEAD):
                take()
        while waiting:
            take()
        self.metrics.audio.labels(setting.name).inc(samples / SAMPLE_RATE)
        result = job.result
        assert not isinstance(result, AudioError)
        return Transcript(recording._replace(data=b"", samples=samples), setting, tuple(result))
