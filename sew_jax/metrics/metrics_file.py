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
from sew_jax.storage import exists, patient


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
        lines = patient(path.read_bytes)().splitlines(keepends=True) if exists(path) else []
        kept = b"".join(line for line in lines if _step(line) <= step)
        write_whole(path, kept)
        self._size, self._waiting = len(kept), b""
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

    @patient
    def _append(self, to_disk: bool = False) -> None:
        """Opened anew each time, as a handle does not outlive its mount; half of a write is written over."""
        with self._path.open("r+b") as file:
            file.seek(self._size)
            file.truncate()
            file.write(self._waiting)
            file.flush()
            if to_disk:
                os.fsync(file.fileno())
        self._size, self._waiting = self._size + len(self._waiting), b""

    def _writing(self):
        return writing_to(self._path, WORKDIR_HINT)


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
        lines = patient(path.read_text)(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); is that the workdir of a run?") from error
    return [json.loads(line) for line in lines]
