"""`metrics.jsonl`: one JSON object for each update, none lost and none twice, whatever happens to the process.

`held_out.jsonl` is the same for held-out evaluations. All rows go to event files for TensorBoard beside them, too.
"""

import json
import os
from pathlib import Path
from typing import Any

from sew_jax.errors import UserError
from sew_jax.files import WORKDIR_HINT, write_whole, writing_to
from sew_jax.metrics.tensorboard import EventFile


class MetricsFile:
    """Appends rows; a resumed run first drops rows beyond the checkpoint it starts from.

    Args:
      path: the file; None writes nothing (hosts other than the first).
      step: the update that the run starts after; later rows are dropped.
      beside: the file of the updates, where these rows are of evaluations; it outlives this one, whose events go to
        its own.

    Its methods raise UserError where the disk is full or may not be written.
    """

    def __init__(self, path: Path | None, step: int, beside: "MetricsFile | None" = None):
        self._file, self._beside = None, beside
        if path is None:
            return
        if path.exists():
            kept = [line for line in path.read_bytes().splitlines(keepends=True) if _step(line) <= step]
            write_whole(path, b"".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = beside._events if beside else EventFile(path.parent, step)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        if self._file:
            with self._writing():
                self._file.write(json.dumps(row) + "\n")
                (self._events.write_held_out if self._beside else self._events.write)(row)

    def flush(self) -> None:
        """Others can read the rows so far."""
        if self._file:
            with self._writing():
                self._file.flush()
                self._events.flush()

    def sync(self) -> None:
        """Rows so far reach the disk; done before each checkpoint, so that none is missing after a resume."""
        if self._file:
            with self._writing():
                self._file.flush()
                os.fsync(self._file.fileno())
                self._events.flush()

    def close(self) -> None:
        if self._file:
            with self._writing():
                try:
                    self.sync()
                finally:
                    self._file.close()
                    if not self._beside:
                        self._events.close()

    def _writing(self):
        return writing_to(self._file.name, WORKDIR_HINT)


def _step(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut short


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All rows of a run."""
    return read_rows(Path(workdir) / "metrics.jsonl")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file. Raises UserError where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); is that the workdir of a run?") from error
    return [json.loads(line) for line in lines]
