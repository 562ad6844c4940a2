"""Files in memory or mapped into it, and views of their pieces."""

import contextlib
import io
import mmap
import os
from collections.abc import Sequence

Bytes = bytes | mmap.mmap
Pieces = Sequence[bytes | tuple[int, int]]  # bytes of their own, or spans (begin, end) of a file


class Memory(io.BytesIO):
    """A file in memory. Where a damaged header sends libsndfile out of it, the position stays: errors go nowhere."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with contextlib.suppress(ValueError, OverflowError):
            return super().seek(offset, whence)
        return self.tell()


class View(io.RawIOBase):
    """Pieces of `data` one after another, as a file to read; spans are not copied."""

    def __init__(self, data: Bytes, pieces: Pieces):
        self._pieces: list[tuple[int, Bytes, int, int]] = []  # where each begins in the view, and in what
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
