"""Beam search in several processes. Free of JAX, since worker processes import it."""

import concurrent.futures
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from sew_jax.console import Progress, say
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding.beam import Beam, BeamOptions
from sew_jax.decoding.greedy import Hypothesis
from sew_jax.decoding.lexicon import open_lexicon
from sew_jax.errors import UserError
from sew_jax.processes import die_with_parent

_SCREEN = 5.0  # seconds between lines of progress


class BeamPool:
    """Beam search in several processes, each of which loads the n-gram; a KenLM binary is shared, an ARPA is not.

    Args:
      workers: processes; -1: as many as cores; 0 or 1: this one.

    Raises:
      UserError: as Beam; what is wrong with an n-gram beyond its vocabulary is found when decoding begins.
    """

    def __init__(self, vocabulary: Vocabulary, options: BeamOptions, workers: int):
        self.options, self._executor = options, None
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
        """The hypotheses of each utterance, in order.

        Args:
          log_probs: (frames, symbols) of each.
          options: others than those of the pool, with the same `lm` and `lexicon`.
          quiet: says nothing of its progress.
        """
        options = options or self.options
        results: list = [None] * len(log_probs)
        progress, shown = Progress(len(log_probs)), time.monotonic()
        for done, (i, hypotheses) in enumerate(self._run(log_probs, options), 1):
            results[i] = hypotheses
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
        longest_first = sorted(range(len(log_probs)), key=lambda i: -len(log_probs[i]))
        try:
            futures = {self._executor.submit(_decode, log_probs[i], options): i for i in longest_first}
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "beam: a worker process was killed, as happens where memory ends; fewer workers need less, "
                "and a KenLM binary is loaded once for all of them"
            ) from error


_arguments, _beam = None, None  # of a worker


def _begin(*arguments) -> None:
    global _arguments
    die_with_parent()
    _arguments = arguments


def _decode(log_prob_TxV: np.ndarray, options: BeamOptions) -> list[Hypothesis]:
    global _beam
    _beam = _beam or Beam(*_arguments)  # here: what it raises reaches the parent
    return _beam.with_options(options)(log_prob_TxV)
