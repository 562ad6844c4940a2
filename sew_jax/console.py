"""What a user reads while something long runs: lines, durations, rates and the time that is left."""

import collections
import contextlib
import contextvars
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

_process = 0
_errors_alone = contextvars.ContextVar("_errors_alone", default=False)  # each thread has its own
_typed: contextvars.ContextVar[Sequence[str]] = contextvars.ContextVar("_typed", default=())


def speak_as(process: int) -> None:
    """Tells `say` the number of this process: the first one speaks for all."""
    global _process
    _process = process


def say(text: str = "", *, everywhere: bool = False) -> None:
    """Prints a line to the screen at once; `everywhere` also where this is not the first process of the job."""
    out = sys.stderr if _errors_alone.get() else sys.stdout
    if _process == 0:
        print(text, file=out, flush=True)
    elif everywhere:
        print(f"process {_process}: {text.strip()}", file=out, flush=True)


def listed(what: str, names: Iterable[str], most: int = 12) -> str:
    """`; WHAT: A, B and 3 more`, to stand at the end of a line; nothing without names."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"; {what}: {', '.join(names[:most])}{more}" if names else ""


@contextlib.contextmanager
def say_on_stderr() -> Iterator[None]:
    """Inside, and in this thread alone, `say` writes to standard error."""
    before = _errors_alone.set(True)
    try:
        yield
    finally:
        _errors_alone.reset(before)


@contextlib.contextmanager
def typed(arguments: Sequence[str]) -> Iterator[None]:
    """Inside, what runs is what a user typed: sew_jax.main with these arguments."""
    before = _typed.set(arguments)
    try:
        yield
    finally:
        _typed.reset(before)


def command_line(otherwise: str) -> str:
    """The command that runs this; `otherwise` where none does, but a program from Python."""
    return shlex.join(["python", "-m", "sew_jax.main", *_typed.get()]) if _typed.get() else otherwise


def format_duration(seconds: float) -> str:
    """Two units at most: `8.2 s`, `3 m 05 s`, `2 h 10 m`, `1 d 11 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if hours < 1:
        return f"{minutes} m {whole % 60:02d} s"
    if days < 1:
        return f"{hours} h {minutes % 60:02d} m"
    return f"{days} d {hours % 24:02d} h"


class Progress:
    """Rate and time left over a sliding window, without the time spent in pauses (checkpoints, evaluation)."""

    def __init__(self, total: int, start: int = 0, window: int = 50, clock: Callable[[], float] = time.monotonic):
        """`total` units in all, of which `start` are done; the window counts updates."""
        self._total, self._clock, self._paused = total, clock, 0.0
        self._marks = collections.deque([(clock(), start)], maxlen=window + 1)

    def update(self, done: int) -> None:
        """Notes that `done` units are done by now."""
        self._marks.append((self._clock() - self._paused, done))

    @property
    def rate(self) -> float:
        """Units a second; 0 before the first update."""
        (first_time, first), (last_time, last) = self._marks[0], self._marks[-1]
        return (last - first) / (last_time - first_time) if last_time > first_time else 0.0

    @property
    def left(self) -> str:
        """Time left, in words."""
        remaining = self._total - self._marks[-1][1]
        return format_duration(remaining / self.rate) if self.rate else "?"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begin
