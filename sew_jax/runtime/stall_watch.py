"""Updates that do not come: what a process waits for, said while it waits."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from sew_jax.console import format_duration

_PATIENCE_S = 300.0


class StallWatch:
    """Says so from a thread of its own when no update has been finished for long, and what the process waits for.

    Args:
      speak: takes the sentence.
      patience: seconds until the first sentence; each further one comes after twice the time.
    """

    _HELP: Mapping[str, str] = {
        "audio": "is the storage of config.data reachable, and are the worker processes alive?",
        "the devices": "another process may be late (each says what it waits for), or a device hangs: "
        "see its driver's log",
        "a checkpoint": "is the storage of the workdir reachable?",
    }

    def __init__(
        self, speak: Callable[[str], None], patience: float = _PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ):
        self._speak, self._patience, self._clock = speak, patience, clock
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
        """An update is finished."""
        self._since, self._due = self._clock(), self._patience

    def check(self) -> None:
        """Speaks where it is time to."""
        idle, what = self._clock() - self._since, self._what
        if idle > self._due:
            self._due *= 2
            self._speak(f"no update was finished for {format_duration(idle)}: waiting for {what}; {self._HELP[what]}")

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
        while not self._ended.wait(self._patience / 10):
            self.check()
