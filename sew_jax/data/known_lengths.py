"""Lengths of audio files as an earlier start read them from their headers, so that the next one reads none.

A file of the user's cache for each data root: a Parquet file of paths with their size, time and length. A length counts
while size and time are those of the file. Several processes may read and write it: it is replaced in one move, and what
one of them loses another start reads again.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sew_jax.buckets import is_remote
from sew_jax.console import say
from sew_jax.data.packed import file_of
from sew_jax.files import cache_folder, write_whole

UNKNOWN = -1
_FORM = b"1"  # another one where `audio.probe` counts otherwise, so that what it counted before is forgotten
_SCHEMA = pa.schema(
    {"path": pa.large_string(), "size": pa.int64(), "mtime_ns": pa.int64(), "samples": pa.int64()},
    metadata={"form": _FORM},
)
_MOST = 10_000_000  # files of one root, those of other splits among them
_EXPIRY = 30 * 24 * 3600  # seconds after which what nobody opened is removed
_NO_FILE = (-1, -1)


def stamp(path: str) -> tuple[int, int]:
    """(size, mtime_ns) of the file that holds what a path names; (-1, -1) of what is remote or not there."""
    if is_remote(path):
        return _NO_FILE
    try:
        stat = os.stat(file_of(path))
    except (OSError, ValueError):
        return _NO_FILE
    return stat.st_size, stat.st_mtime_ns


def recall(root: str, paths: Sequence[str], stamps: np.ndarray) -> np.ndarray:
    """Samples of files, `UNKNOWN` where none are known: (F,).

    Args:
      root: the data that the paths belong to.
      stamps: (F, 2), what `stamp` says of each.
    """
    found, table = np.full(len(paths), UNKNOWN), _read(_file(root))
    if table is None:
        return found
    at = pc.index_in(pa.array(paths, pa.large_string()), table["path"].combine_chunks()).fill_null(UNKNOWN).to_numpy()
    there = np.flatnonzero(at != UNKNOWN)
    rows = at[there]
    size, mtime = table["size"].to_numpy()[rows], table["mtime_ns"].to_numpy()[rows]
    same = (size == stamps[there, 0]) & (mtime == stamps[there, 1])
    found[there[same]] = table["samples"].to_numpy()[rows[same]]
    return found


def remember(root: str, paths: Sequence[str], stamps: np.ndarray, samples: np.ndarray) -> None:
    """Writes what `recall` gives from now on, and keeps what is known of other files of the root."""
    kept = (samples != UNKNOWN) & (stamps[:, 0] >= 0)
    columns = [pa.array(paths, pa.large_string()), *stamps.T, samples]
    table = pa.table([pa.array(column).filter(pa.array(kept)) for column in columns], schema=_SCHEMA)
    before = _read(_file(root))
    if before is not None:
        others = before.filter(pc.invert(pc.is_in(before["path"], table["path"].combine_chunks())))
        table = pa.concat_tables([table, others])[:_MOST]
    sink, file = pa.BufferOutputStream(), _file(root)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, sink.getvalue().to_pybytes())
    except OSError as error:
        say(f"  ! {file} cannot be written ({error.strerror or error}); lengths are read anew at each start until then")
        return
    for other in file.parent.glob("*.parquet"):
        if time.time() - other.stat().st_mtime > _EXPIRY:
            other.unlink(missing_ok=True)


def _file(root: str) -> Path:
    where = root if is_remote(root) else os.path.realpath(root)
    return cache_folder() / "lengths" / f"{hashlib.sha256(where.encode()).hexdigest()[:16]}.parquet"


def _read(file: Path) -> pa.Table | None:
    """The table of a root, whose month begins anew; a damaged one is removed."""
    try:
        data = file.read_bytes()
        os.utime(file)
    except OSError:  # as a rule there is none
        return None
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        say(f"  ! {file} is damaged ({' '.join(str(error).split())[:60]}) and removed; lengths are read anew")
        file.unlink(missing_ok=True)
        return None
    return table if table.schema.equals(_SCHEMA, check_metadata=True) else None
