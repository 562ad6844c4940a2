"""`metrics.jsonl`: one JSON object for each update, none lost and none twice, whatever happens to the process.

`held_out.jsonl` is the same for held-out evaluations. All rows go to event files for TensorBoard beside them, too.
"""

import json
from pathlib import Path
from typing import Any

from sew_jax.buckets import as_path
from sew_jax.errors import UserError
from sew_jax.files import WORKDIR_HINT, writing_to
from sew_jax.line_files import LineFile, read_lines
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
        self._path, self._beside = path, beside
        if path is None:
            return
        self._lines, self._waiting = LineFile(path, keep=lambda line: _step(line) <= step), b""
        self._events = beside._events if beside else EventFile(path.parent, step)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        if self._path:
            with self._writing():
                self._waiting += json.dumps(row).encode() + b"\n"
                (self._events.write_held_out if self._beside else self._events.write)(row)

    def flush(self) -> None:
        """Others can read the rows so far."""
        if self._path:
            with self._writing():
                self._append()
                self._events.flush()

    def sync(self) -> None:
        """Rows so far reach the disk; done before each checkpoint, so that none is missing after a resume."""
        if self._path:
            with self._writing():
                self._append(to_disk=True)
                self._events.flush()

    def close(self) -> None:
        if self._path:
            with self._writing():
                try:
                    self.sync()
                finally:
                    if not self._beside:
                        self._events.close()

    def _append(self, to_disk: bool = False) -> None:
        self._lines.append(self._waiting, to_disk)
        self._waiting = b""

    def _writing(self):
        return writing_to(self._path, WORKDIR_HINT)


def _step(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut short


def read_metrics(workdir: Path | str) -> list[dict[str, Any]]:
    """All rows of a run."""
    return read_rows(as_path(workdir) / "metrics.jsonl")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file. Raises UserError where there is none."""
    try:
        lines = read_lines(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); is that the workdir of a run?") from error
    return [json.loads(line) for line in lines]
