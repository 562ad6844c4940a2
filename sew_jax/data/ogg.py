"""Ogg by its pages (RFC 3533): whether the last is there, and where another file was joined on."""

from sew_jax.data.problems import AudioError
from sew_jax.data.views import Bytes, Pieces

_FIRST, _LAST = 2, 4  # flags of a page: of its stream the first, the last


def ogg_parts(data: Bytes) -> list[Pieces] | None:
    """The pieces of each of several files in one; None where it is one.

    Raises:
      AudioError: a file was cut: its last page is missing, or not whole.
    """
    begins: list[int] = []
    at, heading, ended = 0, False, True  # heading: only first pages so far, as of sound beside pictures
    while 0 <= (at := data.find(b"OggS", at)):
        lengths = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
        after = at + 27 + len(lengths) + sum(lengths)
        if at + 27 > len(data) or len(lengths) < data[at + 26] or after > len(data):
            ended = False
            break
        flags = data[at + 5]
        if flags & _FIRST and not heading:
            if not ended:
                break
            begins.append(at)
        heading, ended = bool(flags & _FIRST), bool(flags & _LAST)
        at = after
    if not ended:
        raise AudioError("is truncated: the page that ends its stream is missing")
    spans = zip(begins, [*begins[1:], len(data)], strict=True)
    return [[span] for span in spans] if len(begins) > 1 else None
