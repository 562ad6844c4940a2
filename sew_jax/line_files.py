"""Files that grow by lines, as `metrics.jsonl`: none is lost and none is there twice, whatever happens to the process.

In a bucket, whose objects cannot grow, `metrics.jsonl` is `metrics/000001.jsonl`, `metrics/000002.jsonl`, ...: the last
of them is written whole each time, until it is full.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from sew_jax.buckets import children, is_remote, remove
from sew_jax.files import write_whole
from sew_jax.storage import exists, patient

PART = 2**20  # bytes after which the next part begins


class LineFile:
    """Takes lines, after those that a file holds already.

    Args:
      path: the file.
      keep: whether a line of it (bytes, with its end) stays; one that a kill cut short never does.
    """

    def __init__(self, path: Path, keep: Callable[[bytes], bool] = lambda line: True):
        self._path = path
        self._number, self._tail, self._size = 1, b"", 0
        if is_remote(path):
            self._open_parts(keep)
        else:
            kept = _kept(_read(path) if exists(path) else b"", keep)
            write_whole(path, kept)
            self._size = len(kept)

    def _open_parts(self, keep: Callable[[bytes], bool]) -> None:
        parts = _parts(self._path)
        for part in parts:
            data = _read(part)
            kept = _kept(data, keep)
            if not kept:
                remove(part)
                continue
            if kept != data:
                write_whole(part, kept)
            self._number, self._tail = int(part.stem), kept
        if not self._tail:
            write_whole(_part(self._path, 1), b"")

    @patient(seen_before=True)
    def append(self, data: bytes, to_disk: bool = False) -> None:
        """Adds whole lines.

        On a disk opened anew each time, as a handle does not outlive its mount; half of a write is written over.
        """
        if is_remote(self._path):
            if data:
                number, tail = (self._number, self._tail) if len(self._tail) < PART else (self._number + 1, b"")
                write_whole(_part(self._path, number), tail + data)
                self._number, self._tail = number, tail + data
            return
        with self._path.open("r+b") as file:
            file.seek(self._size)
            file.truncate()
            file.write(data)
            file.flush()
            if to_disk:
                os.fsync(file.fileno())
        self._size += len(data)


def read_lines(path: Path) -> list[bytes]:
    """All lines of such a file. Raises FileNotFoundError where there is none."""
    if not is_remote(path):
        return _read(path).splitlines(keepends=True)
    if not (parts := _parts(path)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return [line for part in parts for line in _read(part).splitlines(keepends=True)]


def _kept(data: bytes, keep: Callable[[bytes], bool]) -> bytes:
    return b"".join(line for line in data.splitlines(keepends=True) if line.endswith(b"\n") and keep(line))


def _part(path: Path, number: int) -> Path:
    return path.with_suffix("") / f"{number:06d}{path.suffix}"


@patient
def _parts(path: Path) -> list[Path]:
    return sorted(part for part in children(path.with_suffix("")) if part.stem.isdigit())


@patient
def _read(part: Path) -> bytes:
    return part.read_bytes()
