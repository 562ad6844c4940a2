"""The one way in which text that people wrote is read: manifests, transcripts, lexica, vocabularies, text of n-grams.

UTF-8 with or without a byte order mark, UTF-16 with one; lines end as on Unix, Windows or an old Mac.
"""

import codecs
import contextlib
import os
from collections.abc import Iterator
from typing import TextIO

from sew_jax.buckets import as_path
from sew_jax.storage import patient

_KINDS = "UTF-8, or UTF-16 with a byte order mark"


class TextError(ValueError):
    """Bytes that are no text; the message says why, without the file's name."""


def encoding_of(head: bytes) -> str:
    """Python's name of the encoding of a text that begins like this (4 bytes are enough).

    Raises:
      TextError: it is UTF-32.
    """
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise TextError(f"is UTF-32; it must be {_KINDS}")
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def decode(content: bytes) -> str:
    r"""A file's text, lines ended by \n.

    Raises:
      TextError: it is in none of the encodings.
    """
    try:
        text = content.decode(encoding_of(content[:4]))
    except UnicodeDecodeError as error:
        raise TextError(f"is not {_KINDS}") from error
    if "\0" in text:
        raise TextError(f"holds zero bytes, as UTF-16 without a byte order mark does; it must be {_KINDS}")
    return _unix(text)


def decode_lines(content: bytes) -> list[str]:
    """The lines of a file, without their ends. One bad line costs one line: it is none to `is_text`."""
    try:
        return decode(content).split("\n")
    except TextError:
        return _unix(content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")).split("\n")


def is_text(line: str) -> bool:
    """Whether a line of `decode_lines` was text."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in line


@patient
def read_text(path: str | os.PathLike) -> str:
    """A file's text. Raises OSError and TextError."""
    with as_path(path).open("rb") as file:
        return decode(file.read())


@contextlib.contextmanager
def open_lines(path: str | os.PathLike) -> Iterator[TextIO]:
    """Opens a local text of any size, to be read line by line. Raises OSError, and ValueError where it is no text."""
    with open(path, "rb") as file:
        encoding = encoding_of(file.read(4))
    with open(path, encoding=encoding) as lines:
        yield lines


def split_id(line: str) -> tuple[str, str]:
    """(id, what follows) of a line, parted by any white space. An empty line has the empty id."""
    name, *rest = line.split(None, 1) or [""]
    return name, rest[0].strip() if rest else ""


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
