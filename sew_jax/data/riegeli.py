"""Where records lie in an ArrayRecord file, and one record of the bytes that lie there.

ArrayRecord's own reader opens disks and gs:// alone; with this one range of a file on any store is a record. A file is
blocks of 64 KiB, each begun by a header of 24 bytes, and in what remains of them chunks, each begun by a header of 40;
with `group_size:1` a chunk is one record, compressed by zstd. Source: riegeli_records_file_format.md of google/riegeli.
"""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa

_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 65_536, 24, 40
_RECORDS, _ZSTD = ord("r"), b"z"


class Place(NamedTuple):
    """The range of bytes of a file in which a record lies."""

    offset: int
    bytes: int


def find_records(path: Path, count: int) -> list[Place]:
    """Where the first `count` records of a file on this machine lie. Raises ValueError where it has fewer."""
    found: list[Place] = []
    begin, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while len(found) < count:
            if begin >= size:
                raise ValueError(f"{path} has {len(found)} of {count} records")
            header = _read(file, begin, _CHUNK_HEADER)
            data_bytes, kind = struct.unpack_from("<Q", header, 8)[0], header[24]
            end = _end(begin, _CHUNK_HEADER + data_bytes)
            if kind == _RECORDS:
                found.append(Place(begin, end - begin))
            begin = end
    return found


def record_of(data: bytes, offset: int) -> bytes:
    """The record in `data`, which lies at `offset` of its file. Raises ValueError where it is damaged."""
    chunk, at = bytearray(), 0
    while at < len(data):
        at += _BLOCK_HEADER if (offset + at) % _BLOCK == 0 else 0
        stop = at + _BLOCK - (offset + at) % _BLOCK
        chunk += data[at:stop]
        at = stop
    body = bytes(chunk[_CHUNK_HEADER:])
    if body[:1] != _ZSTD:
        raise ValueError("is no record of one chunk")
    try:
        sizes_bytes, at = _varint(body, 1)  # the size of each record of the chunk: there is one
        record_bytes, at = _varint(body, at + sizes_bytes)
        return pa.Codec("zstd").decompress(body[at:], record_bytes, asbytes=True)
    except (IndexError, OSError, pa.ArrowException) as error:
        raise ValueError("is damaged") from error


def _read(file: BinaryIO, begin: int, count: int) -> bytes:
    """`count` bytes of chunks from `begin` on, without the headers of blocks."""
    begin += _BLOCK_HEADER if begin % _BLOCK == 0 else 0
    file.seek(begin)
    left = _BLOCK - begin % _BLOCK
    first = file.read(min(count, left))
    return first if count <= left else first + _read(file, begin + left, count - left)


def _end(begin: int, count: int) -> int:
    """Where a chunk of `count` bytes ends that begins at `begin`."""
    room = _BLOCK - _BLOCK_HEADER
    blocks, rest = divmod(max(begin % _BLOCK - _BLOCK_HEADER, 0) + count, room)
    return begin - begin % _BLOCK + blocks * _BLOCK + (rest + _BLOCK_HEADER if rest else 0)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
