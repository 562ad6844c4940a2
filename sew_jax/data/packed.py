"""Audio inside tables: the bytes of a row of a Parquet file, or of an Arrow file as Hugging Face `datasets` saves it.

A path of such audio is `parquet:FILE#COLUMN#ROW` or `arrow:FILE#COLUMN#ROW`.
"""

import functools
import os
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from sew_jax.buckets import is_remote
from sew_jax.data.addresses import AddressError, open_address
from sew_jax.data.problems import AudioError
from sew_jax.files import is_below

PARQUET, ARROW = "parquet:", "arrow:"
# What says something of one file; other errors are of the storage that it lies in
OF_THE_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_GROUPS = 4  # row groups that are kept in memory: a row is read with its whole group
_READING = threading.Lock()


def is_packed(path: str) -> bool:
    """Whether a path names a row of a table."""
    return path.startswith((PARQUET, ARROW))


def file_of(path: str) -> str:
    """The file that holds what a path names: a table's, or the path itself."""
    return path.partition(":")[2].rsplit("#", 2)[0] if is_packed(path) else path


def row_path(scheme: str, file: str, column: str, row: int) -> str:
    """The path of a row's audio."""
    return f"{scheme}{file}#{column}#{row}"


def read_packed(path: str) -> bytes:
    """The bytes of the audio file in a row.

    Raises:
      AudioError: there is none, or it is damaged.
      OSError: its storage fails.
    """
    scheme, rest = path.split(":", 1)
    file, column, row = rest.rsplit("#", 2)
    try:
        values, at = (_from_parquet if f"{scheme}:" == PARQUET else _from_arrow)(file, column, int(row))
        value = values[at].as_py()
    except (OSError, pa.ArrowException) as error:
        if not _is_damage(error):
            raise
        raise AudioError(f"has a row that cannot be read ({' '.join(str(error).split())[:80]})") from error
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if not value:
        raise AudioError("has no audio in its row")
    return value if isinstance(value, bytes) else _beside(file, value)


def _is_damage(error: Exception) -> bool:
    """Whether an error is of the table. Arrow says that of damaged bytes, too, by an OSError, but without a number."""
    if isinstance(error, OSError) and not isinstance(error, OF_THE_FILE):
        return type(error) is OSError and error.errno is None
    return True


def _beside(table: str, name: str) -> bytes:
    """A file that a row names; a relative name may not lead out of the table's folder."""
    folder = os.path.dirname(table)
    path = name if is_remote(name) else os.path.join(folder, name)
    if not os.path.isabs(name) and not is_remote(path) and not is_below(path, folder):
        raise AudioError(f"leads out of {folder}; give its whole path")
    try:
        return open_address(path).read_bytes()
    except AddressError as error:
        raise AudioError(str(error)) from error
    except OF_THE_FILE as error:
        raise AudioError(f"cannot be read ({error.strerror or type(error).__name__}: {name})") from error


def open_parquet(file: str) -> pq.ParquetFile:
    """Raises OSError or pa.ArrowException."""
    return pq.ParquetFile(epath.Path(file).open("rb") if "://" in file else file)


def open_arrow(file: str) -> pa.Table:
    """Maps an Arrow file, as a stream or with random access, into memory. Raises OSError or pa.ArrowException."""
    return _arrow(file, _stamp(file))


def _stamp(file: str) -> tuple[int, int] | None:
    """What changes when a file does."""
    if "://" in file:
        return None
    stat = os.stat(file)
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _arrow(file: str, stamp: tuple[int, int] | None) -> pa.Table:
    del stamp
    mapped = pa.memory_map(file)
    try:
        table = pa.ipc.open_stream(mapped).read_all()
    except pa.ArrowInvalid:
        mapped.seek(0)
        table = pa.ipc.open_file(mapped).read_all()
    table.validate(full=True)  # offsets of a damaged file would lead out of it
    return table


def _from_arrow(file: str, column: str, row: int) -> tuple[Any, int]:
    return open_arrow(file)[column], row


def _from_parquet(file: str, column: str, row: int) -> tuple[Any, int]:
    with _READING:  # a file is not to be read by two threads, and a group not twice
        stamp = _stamp(file)
        ends = _group_ends(file, stamp)
        if row >= ends[-1]:
            raise pa.ArrowInvalid(f"there is no row {row}")
        group = int(np.searchsorted(ends, row, side="right"))
        return _group(file, stamp, column, group), row - int(ends[group - 1] if group else 0)


@functools.lru_cache(maxsize=256)
def _parquet(file: str, stamp: tuple[int, int] | None) -> pq.ParquetFile:
    del stamp
    return open_parquet(file)


@functools.lru_cache(maxsize=256)
def _group_ends(file: str, stamp: tuple[int, int] | None) -> np.ndarray:
    meta = _parquet(file, stamp).metadata
    return np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)])


@functools.lru_cache(maxsize=_GROUPS)
def _group(file: str, stamp: tuple[int, int] | None, column: str, group: int) -> Any:
    return _parquet(file, stamp).read_row_group(group, columns=[column])[column]
