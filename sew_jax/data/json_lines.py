"""Manifests of JSON lines, plain or gzipped: this project's, NeMo's, WeNet's, FunASR's and the like, and lhotse's."""

import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence

from etils import epath

from sew_jax.data import lhotse
from sew_jax.data.manifests import AUDIO_KEYS, Form, Row, row_of, working_folder
from sew_jax.data.text_files import decode_lines, is_text
from sew_jax.errors import UserError

_NO_OBJECT = 'is not a JSON object with "audio"'


def _rows(path: epath.Path, wanted: Sequence[str]) -> Iterator[Row]:
    del wanted  # rows say of themselves which split they are of
    rows, before = read_objects(path), []
    for row in rows:  # up to the first object, which tells whose manifest it is
        before.append(row)
        if isinstance(row[1], dict):
            break
    objects = itertools.chain(before, rows)
    is_lhotse = bool(before) and lhotse.is_object(before[-1][1])
    yield from lhotse.rows(path, objects, read_objects) if is_lhotse else _plain(path, objects)


def _plain(path: epath.Path, rows: Iterable[tuple[int, dict | str]]) -> Iterator[Row]:
    for number, row in rows:
        where = f"{path.name}:{number}"
        yield Row(where, problem=row) if isinstance(row, str) else row_of(row, where)


def read_objects(path: epath.Path) -> Iterator[tuple[int, dict | str]]:
    """(line, JSON object, or what is wrong with that line) of a file, which may be one array or object of them, too.

    Raises:
      UserError: it is gzipped, and damaged.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"data: {path} is gzipped and damaged ({error})") from error
    lines = decode_lines(content)
    if lines[0].lstrip().startswith("["):
        yield from _array("\n".join(lines))
        return
    if named := _one_object("\n".join(lines)):
        yield from named
        return
    yield from ((number, _object(line)) for number, line in enumerate(lines, 1) if line.strip())


def _array(text: str) -> list[tuple[int, dict | str]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return [(1, "is not JSON")]
    return [(n, row if isinstance(row, dict) else _NO_OBJECT) for n, row in enumerate(rows, 1)]


def _one_object(text: str) -> list[tuple[int, dict | str]]:
    """The rows of one object: by their ids, as SpeechBrain has them, or in the only list of objects that is in it."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):  # the first line ends, and others follow
        return []
    if not isinstance(whole, dict) or not whole.keys().isdisjoint(AUDIO_KEYS) or lhotse.is_object(whole):
        return []
    if all(isinstance(row, dict) for row in whole.values()):
        return [(n, {"id": name} | row) for n, (name, row) in enumerate(whole.items(), 1)]
    lists = [rows for rows in whole.values() if isinstance(rows, list) and all(isinstance(row, dict) for row in rows)]
    return list(enumerate(lists[0], 1)) if len(lists) == 1 else []


def _object(line: str) -> dict | str:
    if not is_text(line):
        return "is not UTF-8"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return _NO_OBJECT
    return row if isinstance(row, dict) else _NO_OBJECT


def _splits(path: epath.Path) -> list[str]:
    return sorted({row.split for row in _rows(path, ()) if row.audio})


def _places(path: epath.Path) -> list[epath.Path]:
    """Only lhotse's names may begin elsewhere, where its recipe is run."""
    lhotses = any(kind in path.name for kind in ("cuts", "supervisions", "recordings"))
    return [path.parent, working_folder()] if lhotses else [path.parent]


JSON_LINES = Form(_splits, _rows, _places, '{"audio": PATH, "text": WORDS}')
