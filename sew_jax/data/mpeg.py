"""MP3 as its frames tell it: how many there are, and where another file was joined on.

libmpg123 believes the count in a file's first frame (Xing, Info), and without one guesses it from the size; libsndfile
then reads no further. Here all frames' headers are walked, and each stream gets a first frame that tells its length.
Headers are those of ISO/IEC 11172-3 and 13818-3.
"""

import functools
import struct
from typing import NamedTuple

from sew_jax.data.problems import AudioError
from sew_jax.data.views import Bytes, Pieces, Sliced

_RATES = (44_100, 48_000, 32_000)
_KBITS = {  # by MPEG-1 or not, and layer
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


_SEARCHED = 8192  # bytes in which a stream that was cut out of a longer one begins
_IN_A_ROW = 3  # frames that are no accident
# How other files begin, in which frames may be
_OTHERS = frozenset((b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff", b"riff", b".snd", b"dns.", b"NIST", b"fLaC", b"OggS"))


class Header(NamedTuple):
    """What a frame's four bytes say: its length in bytes, and what all frames of a stream share."""

    length: int
    kind: tuple[bool, int, int]  # MPEG-1 or not, layer, rate in Hz
    mono: bool


class _Stream(NamedTuple):
    """Frames of sound from `sound` to `end`, so many; `begin`: of a Xing frame before, that promises `said` of them."""

    layer: int
    begin: int
    sound: int
    end: int
    frames: int
    said: int | None


@functools.cache
def header(word: bytes) -> Header | None:
    """A frame's header, None where the bytes are none; free-format streams count as none."""
    if len(word) < 4 or word[0] != 0xFF or word[1] & 0xE0 != 0xE0:
        return None
    version, layer, index, rate = word[1] >> 3 & 3, 4 - (word[1] >> 1 & 3), word[2] >> 4, word[2] >> 2 & 3
    if version == 1 or layer == 4 or index in (0, 15) or rate == 3:
        return None
    first = version == 3
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits, padding = 1000 * _KBITS[first, layer][index - 1], word[2] >> 1 & 1
    if layer == 1:
        length = (12 * bits // hertz + padding) * 4
    else:
        length = (144 if first or layer == 2 else 72) * bits // hertz + padding
    return Header(length, (first, layer, hertz), word[3] >> 6 == 3)


def is_mpeg(data: Sliced) -> bool:
    """Whether frames begin after the tags, or soon: what was recorded of a broadcast begins anywhere."""
    at, end = 0, len(data)
    while (after := _skip_tag(data, at, end)) is not None:
        at = after
    if header(data[at : at + 4]):
        return True
    if data[at : at + 4] in _OTHERS or data[at + 4 : at + 8] == b"ftyp":
        return False
    start = data[at : at + _SEARCHED]
    place = start.find(b"\xff")
    while place >= 0 and not _begin_here(data, at + place):
        place = start.find(b"\xff", place + 1)
    return place >= 0


def _begin_here(data: Sliced, at: int) -> bool:
    """Whether frames of a kind follow one another from here on."""
    first = head = header(data[at : at + 4])
    for _ in range(_IN_A_ROW - 1):
        if head is None or first is None or head.kind != first.kind:
            return False
        at += head.length
        head = header(data[at : at + 4])
    return head is not None and first is not None and head.kind == first.kind


def mpeg_parts(data: Bytes) -> list[Pieces] | None:
    """The pieces of each stream; None where libsndfile reads the file rightly by itself.

    Raises:
      AudioError: there are fewer frames than the first promises.
    """
    streams, whole = _streams(data)
    for stream in streams:
        missing = 0 if stream.said is None else stream.said - stream.frames
        if missing > 1 or (missing == 1 and not whole):  # some programs count the Xing frame, too
            raise AudioError(f"is truncated: {stream.frames} of {stream.said} frames are there")
    stated = [stream.said == stream.frames or stream.layer != 3 for stream in streams]  # a Xing frame is of layer 3
    if not streams or (stated == [True] and streams[0].begin in (0, _plain_tag(data))):
        return None
    return [
        [(stream.begin, stream.end)] if says else [_count_frame(data, stream), (stream.sound, stream.end)]
        for stream, says in zip(streams, stated, strict=True)
    ]


def _streams(data: Bytes) -> tuple[list[_Stream], bool]:
    """All streams, and whether the last frame is whole."""
    found: list[_Stream] = []
    at, end, whole = 0, len(data), True
    begin = sound = frames = 0
    said: int | None = None
    kind = (False, 0, 0)  # none yet

    while at + 4 <= end:
        head = header(data[at : at + 4])
        full = said is not None and frames >= said  # all that was promised is there: what follows is another's
        if head is None or at + head.length > end:
            whole = head is None
            after = _skip_tag(data, at, end) or _next_frame(data, at + 1, end)
            if after is None:
                break
            whole = True
            if full:
                found.append(_Stream(kind[1], begin, sound, at, frames, said))
                frames, said = 0, None
            if not frames and said is None:
                begin = sound = after
            at = after
            continue
        stated = _stated_frames(data, at, head)
        if stated is not None or full or (frames and head.kind != kind):
            if frames:
                found.append(_Stream(kind[1], begin, sound, at, frames, said))
            begin = sound = at
            frames, said = 0, None
        kind = head.kind
        at += head.length
        if stated is None:
            frames += 1
        else:  # a frame without sound
            sound, said = at, stated or None
    if frames:
        found.append(_Stream(kind[1], begin, sound, min(at, end), frames, said))
    return found, whole


def _stated_frames(data: Bytes, at: int, head: Header) -> int | None:
    """How many frames the first frame of a stream promises, 0 where it does not say; None: it is no such frame."""
    if head.kind[1] != 3:
        return None
    side = at + 4 + ((17 if head.mono else 32) if head.kind[0] else (9 if head.mono else 17))
    name = data[side : side + 4]
    if name in (b"Xing", b"Info"):
        flags, frames = struct.unpack(">II", data[side + 4 : side + 12])
        return frames if flags & 1 else 0
    return 0 if data[at + 36 : at + 40] == b"VBRI" else None


def _count_frame(data: Bytes, stream: _Stream) -> bytes:
    """A Xing frame that promises what the stream holds."""
    word = bytearray(data[stream.sound : stream.sound + 4])
    word[1] |= 1  # no checksum
    word[2] = (word[2] & 0x0D) | 0x80  # a bit rate whose frame has the room
    head = header(bytes(word))
    assert head is not None
    side = 4 + ((17 if head.mono else 32) if head.kind[0] else (9 if head.mono else 17))
    content = bytes(word).ljust(side, b"\0") + struct.pack(">4sII", b"Xing", 1, stream.frames)
    return content.ljust(head.length, b"\0")


def _skip_tag(data: Sliced, at: int, end: int) -> int | None:
    """Where a tag (ID3, APE) that begins here ends."""
    if data[at : at + 3] == b"ID3":
        head = data[at : at + 10]
        footer = 10 if len(head) > 5 and head[5] & 0x10 else 0
        return min(at + _id3_length(head) + footer, end)
    if data[at : at + 3] == b"TAG":
        return min(at + 128, end)
    if data[at : at + 8] == b"APETAGEX":
        return min(at + 32 + int.from_bytes(data[at + 12 : at + 16], "little"), end)
    return None


def _plain_tag(data: Bytes) -> int:
    """Bytes of a tag that libsndfile passes over."""
    return _id3_length(data[:10]) if data[:3] == b"ID3" else 0


def _id3_length(head: bytes) -> int:
    """Bytes of the ID3v2 tag that begins so, less its footer."""
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _next_frame(data: Bytes, at: int, end: int) -> int | None:
    """The next place where two frames of a kind, or a frame and the end, follow one another; or a tag."""
    while 0 <= (at := data.find(b"\xff", at, end)):
        head = header(data[at : at + 4])
        if head is not None:
            after = header(data[at + head.length : at + head.length + 4])
            if at + head.length == end or (after is not None and after.kind == head.kind):
                return at
        at += 1
    return None
