"""Utterances that cannot be used: named, counted, and bounded, in one place for every mode."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sew_jax.console import say
from sew_jax.errors import UserError
from sew_jax.files import WORKDIR_HINT, writing_to
from sew_jax.line_files import LineFile


class AudioError(Exception):
    """A file that holds no usable speech; the message says why, without the file's name."""


class Problem(NamedTuple):
    """An utterance that was left out, and why."""

    id: str
    reason: str


def check_damaged(damaged: Sequence[Problem], data: str, max_bad: float, utterances: int) -> None:
    """Raises UserError where too many of the utterances of `data` are damaged; it names the first three.

    Args:
      max_bad: how many may be; below 1, which share of them.
    """
    if len(damaged) > (max_bad * utterances if max_bad < 1 else max_bad):
        listed = "; ".join(f"{problem.id} {problem.reason}" for problem in damaged[:3])
        raise UserError(
            f"data: {len(damaged)} utterances of {data}, which has {utterances}, are damaged (first: {listed}); "
            f"mend or remove them, or raise --config.input.max_bad={max_bad:g}"
        )


class DamagedAudio:
    """Names audio that fails to decode while training, once each, up to a bound; adds it to the workdir's list."""

    def __init__(self, data: str, max_bad: float, utterances: int, workdir: Path | None):
        """`max_bad` and `utterances` are as in `check_damaged`; `workdir` is None in a process that writes no files."""
        self._data, self._max_bad, self._utterances, self._workdir = data, max_bad, utterances, workdir
        self._seen: dict[str, Problem] = {}

    def add(self, problems: Iterable[Problem]) -> None:
        """Raises UserError past the bound."""
        for problem in problems:
            if problem.id not in self._seen:
                self._seen[problem.id] = problem
                if self._workdir:
                    write_problems(self._workdir, [problem], afresh=False)
                say(f"  ! {problem.id} {problem.reason}; it is skipped ({len(self._seen)} so far)")
        check_damaged(list(self._seen.values()), self._data, self._max_bad, self._utterances)


def write_problems(workdir: Path, problems: Iterable[Problem], afresh: bool = True) -> None:
    """Writes what was left out, or adds to it. Raises UserError where the disk is full."""
    lines = [json.dumps(problem._asdict(), ensure_ascii=False) + "\n" for problem in problems]
    with writing_to(workdir, WORKDIR_HINT):
        LineFile(workdir / "left_out.jsonl", keep=lambda line: not afresh).append("".join(lines).encode())
