"""Containers whose header says how many bytes of audio follow, and files that have fewer, or were never told."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from sew_jax.data.problems import AudioError
from sew_jax.data.views import Pieces, Sliced

_NEVER_TOLD = 0x7FFF0000  # programs that write to a pipe leave a size of a little less than 2 GiB, or of up to 4
_CHUNKS_END = 4096  # bytes behind the audio; fewer may be anything
_W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_NIST_FIELDS = (b"sample_count", b"channel_count", b"sample_n_bytes")


class _Audio(NamedTuple):
    """Where audio begins and its size as the header has it, `size_at` in `size_bytes` of `order`."""

    begin: int
    size: int
    order: str = "<"
    size_at: int = 0
    size_bytes: int = 0  # 0: the size is not written as such, but follows from what is
    extra: int = 0  # what the number written counts beside the audio
    followed: bool = False  # chunks come after, up to the end


class _Chunk(NamedTuple):
    name: bytes
    begin: int  # of what it holds
    size: int  # of that


def sized_parts(data: Sliced) -> list[Pieces] | None:
    """The pieces of each of several files in one, or of one with its size put right; None where all is as it should be.

    Raises:
      AudioError: there are fewer bytes of audio than the header promises.
    """
    parts: list[Pieces] = []
    begin, size = 0, len(data)
    while audio := _find(data, begin):
        there = size - audio.begin
        if there >= 2**32 and data[begin : begin + 3] == b"RIF":  # its size was written modulo 4 GiB
            raise AudioError("is longer than the 4 GiB that WAV can say; make it W64, RF64 or FLAC")
        if there <= 0 and _NEVER_TOLD <= audio.size + audio.extra:
            raise AudioError("holds no audio")
        if _is_untold(audio, there, audio.begin - begin):  # all that follows is audio
            number = min(there + audio.extra, 256**audio.size_bytes - 1)
            true = number.to_bytes(audio.size_bytes, "little" if audio.order == "<" else "big")
            parts.append([(begin, audio.size_at), true, (audio.size_at + audio.size_bytes, size)])
            return parts
        if audio.size > there:
            raise AudioError(f"is truncated: {max(there, 0)} of {audio.size} bytes of audio are there")
        end = _riff_end(data, begin)
        if not audio.begin + audio.size <= end < size or data[end : end + 4] != data[begin : begin + 4]:
            if data[begin : begin + 3] == b"RIF":
                _check_rest(data, audio)
            break
        parts.append([(begin, end)])  # another file follows
        begin = end
    return [*parts, [(begin, size)]] if parts else None


def _check_rest(data: Sliced, audio: _Audio) -> None:
    """Raises AudioError where audio goes on behind what a header promises, as where a recorder never wrote the last."""
    end = audio.begin + audio.size
    rest = len(data) - end
    if rest < _CHUNKS_END:
        return
    is_chunk = any(
        data[at : at + 4].isascii() and data[at : at + 4].decode("latin-1").isprintable() for at in (end, end + 1)
    )
    if not is_chunk and data[end : end + _CHUNKS_END].strip(b"\0"):
        raise AudioError(
            f"holds {rest} bytes more than the {audio.size} of audio that its header promises, and no chunk begins "
            "there; mend the header: sox --ignore-length IN OUT"
        )


def _is_untold(audio: _Audio, there: int, head: int) -> bool:
    """Whether the size is one that stands for none, or that was never filled in, or counts the `head` before, too."""
    if not audio.size_bytes or there <= 0 or audio.followed:
        return False
    written = audio.size + audio.extra
    if written - there in (head, head - 8):
        return True
    return audio.size <= 0 or (audio.size > there and (_NEVER_TOLD <= written < 2**32 or written >= 2**62))


def _riff_end(data: Sliced, begin: int) -> int:
    """Where a RIFF file in `data` ends by its header; nowhere, if it is of another kind."""
    if data[begin : begin + 4] not in (b"RIFF", b"RIFX"):
        return len(data)
    size = struct.unpack("<I" if data[begin + 3 : begin + 4] == b"F" else ">I", data[begin + 4 : begin + 8])[0]
    return begin + 8 + size + size % 2


def _find(data: Sliced, begin: int) -> _Audio | None:
    """The audio of a file in `data`; None where its container is of no kind that says a size."""
    try:
        return _find_audio(data, begin)
    except (struct.error, ValueError):  # too short for its own header: libsndfile will say so
        return None


def _find_audio(data: Sliced, begin: int) -> _Audio | None:
    kind = data[begin : begin + 4]
    if kind in (b"RIFF", b"RIFX"):
        return _of_chunk(data, begin + 12, "<" if kind == b"RIFF" else ">", 4, {b"data": 0})
    if kind == b"RF64":
        return _of_rf64(data, begin)
    if kind == b"FORM":  # AIFF, whose audio begins after an offset and a block size; 8SVX
        return _of_chunk(data, begin + 12, ">", 4, {b"SSND": 8, b"BODY": 0})
    if kind == b"caff":  # whose audio begins after a count of edits
        return _of_chunk(data, begin + 8, ">", 8, {b"data": 4})
    if data[begin : begin + 16] == _W64:
        return _of_w64(data, begin)
    if kind in (b".snd", b"dns."):
        order = ">" if kind == b".snd" else "<"
        at, size = struct.unpack(order + "II", data[begin + 4 : begin + 12])
        return _Audio(begin + at, size, order, begin + 8, 4)
    if data[begin : begin + 8] == b"NIST_1A\n":
        return _of_nist(data, begin)
    if kind == b"2BIT":  # AVR
        stereo, bits = struct.unpack(">HH", data[begin + 12 : begin + 16])
        (frames,) = struct.unpack(">I", data[begin + 26 : begin + 30])
        return _Audio(begin + 128, frames * (2 if stereo else 1) * (bits // 8))
    if data[begin : begin + 20] == b"Creative Voice File\x1a":
        return _of_voc(data, begin)
    if data[begin : begin + 16] == b"ALawSoundFile**\0":
        return _Audio(begin + 32, struct.unpack(">I", data[begin + 18 : begin + 22])[0])
    return None


def _chunks(data: Sliced, at: int, order: str, size_bytes: int) -> Iterator[_Chunk]:
    """The chunks of a file from `at` on: a name of four letters, a size, and what it holds."""
    number = order + ("I" if size_bytes == 4 else "Q")
    while at + 4 + size_bytes <= len(data):
        (size,) = struct.unpack(number, data[at + 4 : at + 4 + size_bytes])
        chunk = _Chunk(data[at : at + 4], at + 4 + size_bytes, size)
        yield chunk
        at = chunk.begin + size + (size % 2 if size_bytes == 4 else 0)


def _of_chunk(data: Sliced, at: int, order: str, size_bytes: int, audio: dict[bytes, int]) -> _Audio | None:
    """The chunk that holds audio; `audio` says how much of it comes before."""
    for chunk in _chunks(data, at, order, size_bytes):
        if chunk.name in audio:
            extra = audio[chunk.name]
            begin, size_at = chunk.begin + extra, chunk.begin - size_bytes
            followed = chunk.size == extra and _ends_well(data, begin, order, size_bytes)
            return _Audio(begin, chunk.size - extra, order, size_at, size_bytes, extra, followed)
    return None


def _ends_well(data: Sliced, at: int, order: str, size_bytes: int) -> bool:
    """Whether chunks from `at` on end where the file does."""
    end = None
    for chunk in _chunks(data, at, order, size_bytes):
        end = chunk.begin + chunk.size
    return end is not None and end <= len(data) <= end + 1


def _of_rf64(data: Sliced, begin: int) -> _Audio | None:
    size_at = None  # where the size of 64 bits is
    for chunk in _chunks(data, begin + 12, "<", 4):
        if chunk.name == b"ds64":
            size_at = chunk.begin + 8
        if chunk.name == b"data":
            if chunk.size != 2**32 - 1 or size_at is None:
                return _Audio(chunk.begin, chunk.size, "<", chunk.begin - 4, 4)
            return _Audio(chunk.begin, struct.unpack("<Q", data[size_at : size_at + 8])[0], "<", size_at, 8)
    return None


def _of_w64(data: Sliced, begin: int) -> _Audio | None:
    at = begin + 40
    while at + 24 <= len(data):
        (size,) = struct.unpack("<Q", data[at + 16 : at + 24])  # of the whole chunk
        if data[at : at + 4] == b"data":
            return _Audio(at + 24, size - 24, "<", at + 16, 8, 24)
        at += max(-(-size // 8) * 8, 24)
    return None


def _of_voc(data: Sliced, begin: int) -> _Audio | None:
    """VOC's blocks have a kind of one byte and a size of three; kinds 1 and 9 hold sound."""
    at = begin + struct.unpack("<H", data[begin + 20 : begin + 22])[0]
    while at + 4 <= len(data) and data[at : at + 1] != b"\0":
        size = int.from_bytes(data[at + 1 : at + 4], "little")
        if data[at : at + 1] in (b"\1", b"\x09"):
            return _Audio(at + 4, size)
        at += 4 + size
    return None


def _of_nist(data: Sliced, begin: int) -> _Audio | None:
    """NIST's header of lines, `sample_count -i 16000`, is as long as its second line says."""
    head = int(data[begin + 8 : begin + 16])
    lines = [line.split() for line in data[begin : begin + head].split(b"\n")]
    if any(line[:1] == [b"sample_coding"] and b"shorten" in line[-1] for line in lines):
        raise AudioError("is compressed by shorten; unpack it: sph2pipe -f wav IN OUT")
    values = {line[0]: int(line[2]) for line in lines if len(line) == 3 and line[0] in _NIST_FIELDS}
    if any(name not in values for name in _NIST_FIELDS):
        return None
    size = 1
    for name in _NIST_FIELDS:
        size *= values[name]
    return _Audio(begin + head, size)
