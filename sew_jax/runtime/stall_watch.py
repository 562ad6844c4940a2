"""Updates that do not come: what a process waits for is said while it waits, and in the end where its threads are."""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sew_jax.console import format_duration
from sew_jax.errors import Unavailable
from sew_jax.files import local_folder
from sew_jax.runtime.distributed import tell_end

_PATIENCE_S = 300.0
STACKS = "stalled.txt"


class StallWatch:
    """Says so from a thread of its own when no update has been finished for long, and what the process waits for.

    Args:
      speak: takes the sentence.
      patience: seconds until the first sentence; each further one comes after twice the time.
      limit: seconds after which `end` is called, with the last sentence.
      end: ends the process, whose other threads hang.
    """

    _HELP: Mapping[str, str] = {
        "audio": "is the storage of config.data reachable, and are the worker processes alive?",
        "the devices": "another process may be late (each says what it waits for), or a device hangs: "
        "see its driver's log",
        "a program": "it is being compiled, which takes minutes for a large model",
        "a checkpoint": "is the storage of the workdir reachable?",
    }

    def __init__(
        self,
        speak: Callable[[str], None],
        patience: float = _PATIENCE_S,
        limit: float = math.inf,
        end: Callable[[str], None] = lambda sentence: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._speak, self._patience, self._limit, self._end, self._clock = speak, patience, limit, end, clock
        self._what, self._ended = "the devices", threading.Event()
        self.progress()

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Inside, this is what the process waits for: a key of `_HELP`."""
        before, self._what = self._what, what
        try:
            yield
        finally:
            self._what = before

    def progress(self) -> None:
        """An update is finished, or a part of an evaluation."""
        self._since, self._due = self._clock(), self._patience

    def check(self) -> None:
        """Speaks where it is time to, and ends the process where it has been for too long."""
        idle, what = self._clock() - self._since, self._what
        sentence = f"no update was finished for {format_duration(idle)}: waiting for {what}"
        if idle > self._limit:
            self._end(sentence)
        elif idle > self._due:
            self._due *= 2
            self._speak(f"{sentence}; {self._HELP[what]}")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Checks now and then while inside."""
        self.progress()
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(min(self._patience, self._limit) / 10):
            self.check()


def end_stalled(sentence: str, folder: Path, process: int) -> None:
    """Ends this process as one whose storage or device does not answer, after the Python stacks of all its threads.

    They go to standard error and to `stalled.txt` in the folder (of further processes: `stalled-PROCESS.txt`). Nothing
    is waited for, since what hangs would hang this, too.
    """
    print(f"error: {sentence}; all threads of process {process} were at:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    writer = threading.Thread(target=_write_stacks, args=(folder, sentence, process), daemon=True)
    writer.start()  # the folder may be what hangs
    writer.join(10)
    print("error: it ends; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
    tell_end(Unavailable.status)
    os._exit(Unavailable.status)


def _write_stacks(folder: Path, sentence: str, process: int) -> None:
    stem, _, suffix = STACKS.partition(".")
    name = f"{stem}-{process}.{suffix}" if process else STACKS
    with (
        contextlib.suppress(Exception),  # whatever it is, the process is to end
        local_folder(folder) as place,
        (place / name).open("w", encoding="utf-8") as file,
    ):
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {sentence}", file=file, flush=True)
        faulthandler.dump_traceback(file, all_threads=True)
