"""Records by number, in files that lie on a disk or in a bucket; none is copied, and each is read when it is wanted."""

import errno
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import fsspec
import numpy as np
import pyarrow as pa

from sew_jax.buckets import is_remote
from sew_jax.data import riegeli
from sew_jax.data.problems import AudioError
from sew_jax.errors import UserError

_BUFFER = 32_768
_FOOTER, _FOOTER_RECORD = 131_072, 16  # bytes at a file's end, and for each record, that open it in one request
# What the library says of a disk and of Google's storage; all else that it says is of the bytes it read
_STORAGE = re.compile(r"\b(open|pread|read|fstat|lseek)\(\) failed|Permanent error|Retry policy exhausted")


class RecordFile(NamedTuple):
    """A file and how many records it holds."""

    path: str
    records: int


class Records(Protocol):
    """Bytes by row of an index."""

    def __getitem__(self, row: int) -> bytes:
        """Raises AudioError where a record is damaged, OSError where its file does not answer."""


def open_records(files: Sequence[RecordFile], index: pa.Table) -> Records:
    """The records of some files, one after another. Opens none of them yet.

    Args:
      index: its columns `offset` and `bytes` say where each record lies; needed where array_record cannot read.

    Raises:
      UserError: the index lacks these, or gs:// cannot be read for want of credentials.
    """
    if not is_remote(files[0].path):
        return LibraryRecords(files)
    if files[0].path.startswith("gs://"):
        _check_credentials()
        return LibraryRecords(files)
    if "offset" not in index.column_names:
        raise UserError(
            f"data: {os.path.dirname(files[0].path)} does not say where its records lie; run prepare again, "
            "or copy it to a disk"
        )
    return RangedRecords(files, index)


class LibraryRecords:
    """What array_record reads itself: files on a disk, and gs://, where a record is one request.

    A bucket that refuses or cuts is asked again by Google's client, with growing pauses, for more than 15 minutes.
    """

    def __init__(self, files: Sequence[RecordFile]):
        self._files, self._ends = files, np.cumsum([file.records for file in files])
        self._readers: list[Any] = [None] * len(files)

    def __getitem__(self, row: int) -> bytes:
        at = int(np.searchsorted(self._ends, row, side="right"))
        path, count = self._files[at]
        reader = self._readers[at]
        if reader is None or not reader.ok():  # one that failed while it opened says so for ever
            reader = self._readers[at] = _open(path, count)
        try:
            return reader.read([row - int(self._ends[at]) + count])[0]
        except RuntimeError as error:  # the one kind that the library knows
            message = " ".join(str(error).split())
            if _STORAGE.search(message):
                raise _storage_error(path, message) from error
            raise AudioError(f"has a record that cannot be read ({message[:80]})") from error


def _storage_error(path: str, message: str) -> OSError:
    """The kind of error that the library has put into words."""
    if "Retry policy exhausted" in message:
        return ConnectionError(f"{path} cannot be read: {message}")
    number = next((number for number in errno.errorcode if f"failed: {os.strerror(number)}" in message), None)
    return OSError(number, os.strerror(number), path) if number else OSError(f"{path} cannot be read: {message}")


def _open(path: str, count: int) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    footer = _FOOTER + _FOOTER_RECORD * count
    options = f"readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:{footer}"
    return ArrayRecordReader(path, options=options, file_reader_buffer_size=_BUFFER)


class RangedRecords:
    """Records of a store that fsspec reads, each by its range of bytes; how often it asks again is the store's own."""

    def __init__(self, files: Sequence[RecordFile], index: pa.Table):
        self._paths, self._ends = [file.path for file in files], np.cumsum([file.records for file in files])
        self._offset, self._bytes = index["offset"], index["bytes"]
        self._store, _ = fsspec.core.url_to_fs(self._paths[0])

    def __getitem__(self, row: int) -> bytes:
        path = self._paths[int(np.searchsorted(self._ends, row, side="right"))]
        offset, size = self._offset[row].as_py(), self._bytes[row].as_py()
        data = self._store.cat_file(path, start=offset, end=offset + size)
        if len(data) != size:
            raise ConnectionError(f"{path} gave {len(data)} of {size} bytes from {offset} on")
        try:
            return riegeli.record_of(data, offset)
        except ValueError as error:
            raise AudioError(f"has a record that {error}") from error


def _check_credentials() -> None:
    """array_record looks for credentials for minutes without a word. gcsfs, which listed the bucket, needs none."""
    if os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT"):
        return
    try:
        import google.auth
    except ImportError:  # comes with gcsfs
        return
    try:
        google.auth.default()
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise UserError(
            "data: gs:// is read with Google's application default credentials, and there are none; "
            "run gcloud auth application-default login, or copy the data to a disk"
        ) from error
