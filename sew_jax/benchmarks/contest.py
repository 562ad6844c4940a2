"""Contenders in processes of their own, timed in turn, so that a machine's better and worse minutes fall on each.

A process computes only while it is asked to; the others wait meanwhile.
"""

import itertools
import math
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from sew_jax.benchmarks.memory import RESIDENT, Memory
from sew_jax.console import say
from sew_jax.errors import UserError

_LEAST_SECONDS = 0.2  # that a measurement takes: what is quicker is repeated


class Bench(NamedTuple):
    """What a contender has built in its process.

    Args:
      cases: what can be run, by name; each returns when its result is there.
      facts: what is known of each case.
      about: what is known of the whole.
      memory: of what device the peak is taken.
      trace: writes a profile of what runs inside to a folder.
    """

    cases: dict[str, Callable[[], object]]
    facts: dict[str, dict[str, Any]]
    about: dict[str, Any]
    memory: Memory = RESIDENT
    trace: Callable[[str], AbstractContextManager] | None = None


class Run(NamedTuple):
    """A case once: seconds (the mean where it was repeated) and the peak of memory in bytes."""

    seconds: float
    peak_bytes: int


class Child:
    """A contender's process; a context, at whose end the process ends.

    Raises:
      UserError: it has died, whatever it was asked; with its last words.
    """

    def __init__(self, name: str, build: Callable[..., Bench], *arguments: Any):
        """Calls `build`, a function that a new process can import, with the arguments, and waits for it."""
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._words = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = context.Process(target=_serve, args=(theirs, self._words.name, build, arguments))
        self._process.start()
        theirs.close()
        try:
            self.cases, self.facts, self.about = self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, case: str, repeats: int = 1) -> Run:
        """Runs a case."""
        return self._ask("run", case, repeats)

    def trace(self, case: str, folder: Path) -> None:
        """Runs a case once more and writes its profile."""
        self._ask("trace", case, str(folder))

    def _ask(self, *question: Any) -> Any:
        try:
            self._connection.send(question)
        except OSError:
            raise self._failure() from None
        return self._answer()

    def _answer(self) -> Any:
        wait([self._connection, self._process.sentinel])
        try:
            if self._connection.poll():
                return self._connection.recv()
        except (EOFError, OSError):
            pass
        raise self._failure()

    def _failure(self) -> UserError:
        self._end()
        code = self._process.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else "failed"
        lines = Path(self._words.name).read_text(errors="replace").split("\n")
        words = " ".join([line.strip() for line in lines if line.strip()][-3:])[-500:]
        return UserError(f"benchmark: {self.name} {how}: {words or 'it said nothing (is there enough memory?)'}")

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._end()
        self._words.close()

    def _end(self) -> None:
        self._process.join(10)
        self._process.kill()
        self._process.join()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _serve(connection: Connection, words: str, build: Callable[..., Bench], arguments: Sequence[Any]) -> None:
    """The child's side: builds, then answers until the parent is gone. What it dies of goes to the file `words`."""
    with open(words, "w") as file:
        os.dup2(file.fileno(), 2)
    bench = build(*arguments)
    connection.send((list(bench.cases), bench.facts, bench.about))
    while True:
        try:
            kind, name, argument = connection.recv()
        except EOFError:
            return
        case = bench.cases[name]
        if kind == "trace":
            with bench.trace(argument):
                case()
            connection.send(None)
        else:
            connection.send(_timed(case, argument, bench.memory))


def _timed(case: Callable[[], object], repeats: int, memory: Memory) -> Run:
    memory.reset()
    begin = time.perf_counter()
    for _ in range(repeats):
        case()
    return Run((time.perf_counter() - begin) / repeats, memory.peak())


def take_turns(children: Sequence[Child], rounds: int) -> dict[tuple[str, str], list[Run]]:
    """Runs of each (child, case), one for each round, after a first one that is not counted.

    In a round the first case of each child comes first, then the second of each, and so on.

    Raises:
      UserError: a child has died.
    """
    columns = ([(child, case) for case in child.cases] for child in children)
    turns = [turn for turns in itertools.zip_longest(*columns) for turn in turns if turn]
    repeats = [max(math.ceil(_LEAST_SECONDS / child.run(case).seconds), 1) for child, case in turns]
    runs: dict[tuple[str, str], list[Run]] = {(child.name, case): [] for child, case in turns}
    for done in range(1, rounds + 1):
        for (child, case), times in zip(turns, repeats, strict=True):
            runs[child.name, case].append(child.run(case, times))
        say(f"    round {done}/{rounds}")
    return runs
