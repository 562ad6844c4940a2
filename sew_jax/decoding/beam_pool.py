"""Beam search in several processes. Free of JAX, since worker processes import it."""

import concurrent.futures
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from sew_jax.console import Progress, say
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding.beam import Beam
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.greedy import Hypothesis
from sew_jax.decoding.lexicon import open_lexicon
from sew_jax.errors import UserError
from sew_jax.processes import die_with_parent, without_main

_SCREEN = 5.0  # seconds between lines of progress
_SHARED = 2**28  # bytes of log-probabilities that processes share at once
_FLOAT = np.dtype(np.float32).itemsize
_IN_MEMORY = "/dev/shm"  # where a file takes no disk


class BeamPool:
    """Beam search in several processes, each of which loads the n-gram; a KenLM binary is shared, an ARPA is not.

    Args:
      workers: processes; -1: as many as cores; 0 or 1: this one.

    Raises:
      UserError: as Beam; what is wrong with an n-gram beyond its vocabulary is found when decoding begins.
    """

    def __init__(self, vocabulary: Vocabulary, options: BeamOptions, workers: int):
        self.options, self._vocabulary, self._executor = options, vocabulary, None
        lexicon = open_lexicon(vocabulary, options.lm, options.lexicon, options.hot_words)
        say(f"  beam      {options.beam}, n-gram {options.lm or 'none'}, lexicon {lexicon}")
        workers = workers if workers >= 0 else os.cpu_count() or 1
        if workers > 1:  # processes, as flashlight holds Python's lock; spawned, as a fork would copy JAX's threads
            self._executor = concurrent.futures.ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), _begin, (vocabulary, options, lexicon)
            )
        else:
            self._beam = Beam(vocabulary, options, lexicon)

    def __enter__(self) -> "BeamPool":
        return self

    def __exit__(self, *_) -> None:
        if self._executor:
            self._executor.shutdown(cancel_futures=True)

    def decode(
        self, log_probs: Sequence[np.ndarray], options: BeamOptions | None = None, *, quiet: bool = False
    ) -> list[list[Hypothesis]]:
        """The hypotheses of each utterance, in order, with texts as errors are counted on.

        Args:
          log_probs: (frames, symbols) of each.
          options: others than those of the pool, with the same `lm`, `lexicon` and `hot_words`.
          quiet: says nothing of its progress.
        """
        options = options or self.options
        results: list = [None] * len(log_probs)
        progress, shown = Progress(len(log_probs)), time.monotonic()
        for done, (i, hypotheses) in enumerate(self._run(log_probs, options), 1):
            results[i] = [h._replace(text=self._vocabulary.normalize(h.text)) for h in hypotheses]
            progress.update(done)
            if not quiet and time.monotonic() - shown > _SCREEN:
                shown = time.monotonic()
                say(f"  beam {done}/{len(log_probs)} utterances | {progress.rate:.1f}/s | eta {progress.left}")
        return results

    def _run(self, log_probs, options) -> Iterator[tuple[int, list[Hypothesis]]]:
        if not self._executor:
            beam = self._beam.with_options(options)
            yield from ((i, beam(log_prob)) for i, log_prob in enumerate(log_probs))
            return
        try:
            for part in _parts(log_probs):
                with _shared(sum(log_probs[i].size for i in part) * _FLOAT) as file:
                    futures = {}
                    for i in part:
                        at = file.tell()
                        file.write(np.ascontiguousarray(log_probs[i], np.float32).data)
                        file.flush()
                        with without_main():
                            future = self._executor.submit(_decode, file.name, at, log_probs[i].shape, options)
                        futures[future] = i
                    for future in concurrent.futures.as_completed(futures):
                        yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "beam: a worker process was killed, as happens where memory ends; fewer workers need less, "
                "and a KenLM binary is loaded once for all of them"
            ) from error


def _parts(log_probs: Sequence[np.ndarray]) -> Iterator[list[int]]:
    """The longest first, so that none is waited for alone in the end; as many at a time as may be shared."""
    part, size = [], 0
    for i in sorted(range(len(log_probs)), key=lambda i: -len(log_probs[i])):
        part.append(i)
        size += log_probs[i].size * _FLOAT
        if size > _SHARED:
            yield part
            part, size = [], 0
    if part:
        yield part


def _shared(size: int):
    """A file for so many bytes that other processes map: in memory, where there is room."""
    room = os.path.isdir(_IN_MEMORY) and shutil.disk_usage(_IN_MEMORY).free > 2 * size
    return tempfile.NamedTemporaryFile(prefix="sew_jax_", dir=_IN_MEMORY if room else None)


_arguments, _beam = None, None  # of a worker


def _begin(*arguments) -> None:
    global _arguments
    die_with_parent()
    _arguments = arguments


def _decode(path: str, begin: int, shape: tuple[int, int], options: BeamOptions) -> list[Hypothesis]:
    global _beam
    # an empty file cannot be mapped
    log_prob_TxV = np.memmap(path, np.float32, "r", begin, shape) if shape[0] else np.zeros(shape, np.float32)
    _beam = _beam or Beam(*_arguments)  # here: what it raises reaches the parent
    return _beam.with_options(options)(log_prob_TxV)
