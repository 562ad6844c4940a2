"""Chunks of many requests in batches of one setting and bucket: one thread drives the devices."""

import collections
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from sew_jax.compression import Compression
from sew_jax.transcription.transcriber import Transcriber

_Key = tuple[Compression, int]  # setting, bucket


class _Waiting(NamedTuple):
    number: int  # in the order of their coming
    wave: np.ndarray
    result: "Future[np.ndarray]"


class Batcher:
    """Computes what waits, the oldest chunk first, with all others that fit into its batch.

    Args:
      transcribers: for each setting.
      on_batch: is told the chunks of each batch.
    """

    def __init__(self, transcribers: Mapping[Compression, Transcriber], on_batch: Callable[[int], None]):
        self._transcribers, self._on_batch = transcribers, on_batch
        self._waiting: dict[_Key, collections.deque[_Waiting]] = {}
        self._count, self._closing, self._changed = 0, False, threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batcher")
        self._thread.start()

    def submit(self, setting: Compression, bucket: int, wave: np.ndarray) -> "Future[np.ndarray]":
        """The log-probabilities of a chunk, (T, V) float32, as soon as they are there."""
        result: Future[np.ndarray] = Future()
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            self._count += 1
            queue = self._waiting.setdefault((setting, bucket), collections.deque())
            queue.append(_Waiting(self._count, wave, result))
            self._changed.notify()
        return result

    def close(self) -> None:
        """Ends when all that waits is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        """Launches a batch before it takes the outputs of the last: the device computes while they are handed out."""
        pending = None
        while True:
            batch = self._next(wait=pending is None)
            if batch is None and pending is None:
                return
            launched = batch and self._launch(*batch)
            if pending:
                self._hand_out(*pending)
            pending = launched

    def _next(self, wait: bool) -> tuple[_Key, list[_Waiting]] | None:
        """The batch of the oldest chunk; None where nothing waits and nothing will come, or shall be waited for."""
        with self._changed:
            while wait and not self._closing and not self._waiting:
                self._changed.wait()
            if not self._waiting:
                return None
            key = min(self._waiting, key=lambda key: self._waiting[key][0].number)
            queue, (setting, bucket) = self._waiting[key], key
            members = [queue.popleft() for _ in range(min(len(queue), self._transcribers[setting].rows[bucket]))]
            if not queue:
                del self._waiting[key]
            return key, members

    def _launch(self, key: _Key, members: list[_Waiting]) -> tuple[list[_Waiting], Any] | None:
        setting, bucket = key
        self._on_batch(len(members))
        try:
            return members, self._transcribers[setting].run(bucket, [member.wave for member in members])
        except Exception as error:
            _fail(members, error)
            return None

    @staticmethod
    def _hand_out(members: list[_Waiting], outputs: Any) -> None:
        try:
            log_prob_BxTxV, frames_B = jax.device_get(outputs)
        except Exception as error:  # what devices say of a launch comes with its outputs
            _fail(members, error)
            return
        for row, member in enumerate(members):
            member.result.set_result(log_prob_BxTxV[row, : frames_B[row]])


def _fail(members: list[_Waiting], error: Exception) -> None:
    for member in members:
        member.result.set_exception(error)
