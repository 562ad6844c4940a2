"""Opens audio: one stream after another, each as libsndfile is to read it.

libsndfile takes a header at its word, reads the first stream alone, and says nothing of a file that was cut. Here the
container is looked at first, and a file that is not as it should be is given to libsndfile in pieces, or named.
"""

import io
import mmap
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from sew_jax.data.audio_names import HEADERLESS_SUFFIXES, suffix_of
from sew_jax.data.headers import sized_parts
from sew_jax.data.mpeg import header, id3_length, mpeg_parts
from sew_jax.data.ogg import ogg_parts
from sew_jax.data.problems import AudioError
from sew_jax.data.views import Bytes, Memory, Pieces, View


class Part(NamedTuple):
    """What libsndfile is to read, a path, a descriptor to close, or a file in memory; and its bytes."""

    source: str | int | io.IOBase
    size: int


def open_parts(data: str | bytes) -> Iterator[Part]:
    """What libsndfile is to read, in order: all of a file, or views of its streams with headers that are true.

    Where a name alone says what samples without a header are, it is kept from libsndfile: bytes would read otherwise.

    Raises:
      AudioError: there is no such file, it is empty, or it ends before what it promises.
    """
    if isinstance(data, bytes):
        if not data:
            raise AudioError("is empty")
        parts = _parts(data)
        yield from [Part(Memory(data), len(data))] if parts is None else _views(data, parts)
        return
    data = os.fspath(data)
    with _opened(data) as file:
        size = os.fstat(file.fileno()).st_size
        if _is_flac(os.pread(file.fileno(), 4, 0)):
            yield Part(data, size)
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            parts = _parts(mapped)
            if parts is not None:
                yield from _views(mapped, parts)
                return
            nameless = _is_mpeg(mapped) or suffix_of(data) in HEADERLESS_SUFFIXES
        yield Part(os.dup(file.fileno()) if nameless else data, size)


def _views(data: Bytes, parts: list[Pieces]) -> Iterator[Part]:
    for pieces in parts:
        view = View(data, pieces)
        yield Part(view, view.size)


def _opened(path: str) -> io.FileIO:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait for ever
            raise AudioError("is a folder" if stat.S_ISDIR(status.st_mode) else "is no regular file")
        if not status.st_size:
            raise AudioError("is empty")
        return open(path, "rb", buffering=0)
    except FileNotFoundError as error:
        raise AudioError("does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        raise AudioError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error


def _is_flac(head: bytes) -> bool:
    """FLAC tells its length, or that it is not known; libsndfile finds where it was cut."""
    return head == b"fLaC"


def _parts(data: Bytes) -> list[Pieces] | None:
    """The pieces of each stream; None where libsndfile reads the file rightly by itself. Raises AudioError."""
    if _is_flac(data[:4]):
        return None
    if data[:4] == b"OggS":
        return ogg_parts(data)
    return mpeg_parts(data) if _is_mpeg(data) else sized_parts(data)


def _is_mpeg(data: Bytes) -> bool:
    """Whether it is MP3. Of such a file's name libsndfile would ask a Mac's companion, ._NAME, first."""
    begin = id3_length(data[:10]) if data[:3] == b"ID3" else 0
    return header(data[begin : begin + 4]) is not None
