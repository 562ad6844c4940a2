"""Opens audio: one stream after another, each as libsndfile is to read it.

libsndfile takes a header at its word, reads the first stream alone, and says nothing of a file that was cut. Here the
container is looked at first, and a file that is not as it should be is given to libsndfile in pieces, or named.
"""

import functools
import io
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sew_jax.data.headers import sized_parts
from sew_jax.data.mpeg import is_mpeg, mpeg_parts
from sew_jax.data.ogg import ogg_parts
from sew_jax.data.problems import AudioError
from sew_jax.data.views import Memory, OnDisk, Sliced, View

Source = str | int | io.IOBase  # a path, a descriptor to close, or a file in memory


class Part(NamedTuple):
    """What libsndfile is to read, and its bytes."""

    source: Source
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
        yield from _parts(data, lambda: Memory(data))
        return
    path = os.fspath(data)
    descriptor, size = _opened(path)
    try:
        on_disk = OnDisk(descriptor, size)
        # without its name: by that, libsndfile asks a Mac's companion (._NAME) what an MP3 is, and soundfile takes .raw
        # for audio without a header; but SD2 is two files
        whole = (lambda: path) if path.lower().endswith(".sd2") else functools.partial(os.dup, descriptor)
        if is_mpeg(on_disk) or _is_ogg(on_disk):  # which are looked through from end to end
            with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
                yield from _parts(mapped, whole)
        else:
            yield from _parts(on_disk, whole)
    finally:
        os.close(descriptor)


def _opened(path: str) -> tuple[int, int]:
    """A file's descriptor and its bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe could keep one waiting
        status = _status(descriptor)
    except FileNotFoundError as error:
        raise AudioError("does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        raise AudioError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    if stat.S_ISREG(status.st_mode) and status.st_size:
        return descriptor, status.st_size
    os.close(descriptor)
    if stat.S_ISREG(status.st_mode):
        raise AudioError("is empty")
    raise AudioError("is a folder" if stat.S_ISDIR(status.st_mode) else "is no regular file")


def _status(descriptor: int) -> os.stat_result:
    try:
        return os.fstat(descriptor)
    except OSError:
        os.close(descriptor)
        raise


def _parts(data: Sliced, whole: Callable[[], Source]) -> Iterator[Part]:
    """Views of streams, or the `whole` where libsndfile reads it rightly by itself. Raises AudioError."""
    if isinstance(data, OnDisk) or not (_is_ogg(data) or is_mpeg(data)):
        parts = None if _is_flac(data) else sized_parts(data)
    else:
        parts = ogg_parts(data) if _is_ogg(data) else mpeg_parts(data)
    if parts is None:
        yield Part(whole(), len(data))
        return
    for pieces in parts:
        view = View(data, pieces)
        yield Part(view, view.size)


def _is_flac(data: Sliced) -> bool:
    """FLAC tells its length, or that it is not known; libsndfile finds where it was cut."""
    return data[:4] == b"fLaC"


def _is_ogg(data: Sliced) -> bool:
    return data[:4] == b"OggS"
