"""Files as bytes that can be sliced, and views of their pieces as files."""

import contextlib
import io
import mmap
import os
from collections.abc import Sequence

_HEAD = 4096  # bytes, in which most headers are


class OnDisk:
    """An open file whose slices are read when they are asked for: cheaper than a map where few are."""

    def __init__(self, descriptor: int, size: int):
        self._descriptor, self._size = descriptor, size
        self._head = os.pread(descriptor, _HEAD, 0)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        if stop <= len(self._head):
            return self._head[start:stop]
        return os.pread(self._descriptor, max(stop - start, 0), start)


Bytes = bytes | mmap.mmap
Sliced = Bytes | OnDisk
Pieces = Sequence[bytes | tuple[int, int]]  # bytes of their own, or spans (begin, end) of a file


class Memory(io.BytesIO):
    """A file in memory. Where a damaged header sends libsndfile out of it, the position stays: errors go nowhere."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with contextlib.suppress(ValueError, OverflowError):
            return super().seek(offset, whence)
        return self.tell()


class View(io.RawIOBase):
    """Pieces of `data` one after another, as a file to read; spans are not copied."""

    def __init__(self, data: Sliced, pieces: Pieces):
        self._pieces: list[tuple[int, Sliced, int, int]] = []  # where each begins in the view, and in what
        self._at = self.size = 0
        for piece in pieces:
            source, first, last = (piece, 0, len(piece)) if isinstance(piece, bytes) else (data, *piece)
            self._pieces.append((self.size, source, first, last))
            self.size += last - first

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer) -> int:
        done = 0
        for start, source, first, last in self._pieces:
            begin = first + self._at - start
            count = min(len(buffer) - done, last - begin)
            if begin >= first and count > 0:
                buffer[done : done + count] = source[begin : begin + count]
                done, self._at = done + count, self._at + count
        return done
