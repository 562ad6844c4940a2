"""Manifests as tables of text: CSV and TSV with a header, as Common Voice and `datasets` have them; LJSpeech's table
without one; wav2vec 2.0's list of files below a folder.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from sew_jax.data.manifests import (
    AUDIO_KEYS,
    BEGIN_KEYS,
    END_KEYS,
    ID_KEYS,
    LABEL_KEYS,
    LOOKS,
    SEGMENT_KEYS,
    SPEAKER_KEYS,
    TEXT_KEYS,
    Form,
    Row,
    row_of,
)
from sew_jax.data.text_files import decode_lines, is_text
from sew_jax.errors import UserError
from sew_jax.storage import exists, is_folder, names_in

SUFFIXES = (".tsv", ".csv", ".psv")
_NO_AUDIO = f"has no audio; its header must name one of {', '.join(AUDIO_KEYS)}"
_FOLDERS = ("clips", "wavs", "wav", "audio")  # where such tables keep audio, beside them
_NO_SPLITS = ("validated", "invalidated", "other", "reported")
_GUESSES = ("", ".wav", ".flac", ".mp3")  # suffixes that a table leaves out
_KEYS = {*AUDIO_KEYS, *TEXT_KEYS, *LABEL_KEYS, *SEGMENT_KEYS, *SPEAKER_KEYS, *ID_KEYS, *BEGIN_KEYS, *END_KEYS}
_KEYS |= {"split", "offset", "duration"}


def is_table(path: epath.Path) -> bool:
    """Whether the first line of a file names columns of audio, or it is one of the tables without a header."""
    if not exists(path):
        return False
    with path.open("rb") as file:
        head = decode_lines(file.read(65536))[0]
    return _is_header(_fields(head)) or "|" in head


def is_common_voice(names: set[str]) -> bool:
    """Whether a folder that holds these names is one of Common Voice's, of one language."""
    return "clips" in names and any(name.endswith(".tsv") for name in names)


def _rows(path: epath.Path, wanted: Sequence[str], split: str = "") -> Iterator[Row]:
    del wanted
    lines = decode_lines(path.read_bytes())
    first = next((line for line in lines if line), "")
    if _is_header(_fields(first)):
        rows = _with_header(path, lines, _delimiter(first))
    elif re.fullmatch(r"[^\t]+", first) and len(lines) > 1 and re.fullmatch(r"[^\t]+\t\d+", lines[1]):
        rows = _of_fairseq(path, lines)
    elif "|" in first:
        rows = _of_ljspeech(path, lines)
    else:
        yield Row(f"{path.name}:1", problem=_NO_AUDIO)
        return
    suffix: str | None = None
    looks = 0
    for row in rows:
        if row.audio and suffix is None and looks < LOOKS:
            suffix, looks = _left_out(path, row.audio), looks + 1
        row = row._replace(audio=row.audio + suffix) if row.audio and suffix else row
        yield row._replace(split=split) if split else row


def _with_header(path: epath.Path, lines: list[str], delimiter: str) -> Iterator[Row]:
    # tables parted by tabs or bars quote nothing: a quotation mark is one that was said; unless the header has some
    is_bare = delimiter in "\t|" and '"' not in next((line for line in lines if line), "")
    quoting: Any = csv.QUOTE_NONE if is_bare else csv.QUOTE_MINIMAL
    reader = csv.DictReader((f"{line}\n" for line in lines), delimiter=delimiter, quoting=quoting, restkey="")
    while True:
        where = f"{path.name}:{max(reader.line_num, 1) + 1}"
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(where, problem=f"is no line of a table ({error})")
            continue
        if not all(is_text(value) for value in values.values() if isinstance(value, str)):
            yield Row(where, problem="is not UTF-8")
            continue
        if isinstance(values.get(""), list):
            yield Row(where, problem="has more fields than the header")
            continue
        row = row_of({_key(key): _unquoted(value) if is_bare else value for key, value in values.items() if key}, where)
        yield row if row.audio else row._replace(problem=_NO_AUDIO)


def _key(name: str) -> str:
    """A column's name as this project writes it; that of another column as it is."""
    name = name.strip()
    return name if name in _KEYS or name.lower() not in _KEYS else name.lower()


def _unquoted(value: str | None) -> str | None:
    """A field that was quoted for the quotation marks in it, each of which was doubled."""
    inner = (value or "")[1:-1]
    is_quoted = value and value[0] == value[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else value


def _of_fairseq(path: epath.Path, lines: list[str]) -> Iterator[Row]:
    """The first line is a folder, the others `FILE<tab>FRAMES`; words are in `.wrd` beside it, in the same order."""
    folder = lines[0].strip()
    files = sum(1 for line in lines[1:] if line.strip())
    texts, number = _beside_fairseq(path, files), 0
    for line_number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        where = f"{path.name}:{line_number}"
        text = texts[number] if texts else None
        number += 1
        name, _, frames = line.partition("\t")
        if not name or not frames.strip().isdigit() or not is_text(line):
            yield Row(where, problem="is not FILE, a tab, and its frames")
            continue
        yield Row(where, audio=os.path.join(folder, name), id=os.path.splitext(name)[0], text=text)


def _beside_fairseq(path: epath.Path, files: int) -> list[str]:
    """Words of each file from `.wrd`, or from `.ltr`, where letters stand apart and a bar ends a word; or none.

    Raises:
      UserError: there are more lines, or fewer, than files.
    """
    beside = next((p for p in map(path.with_suffix, (".wrd", ".ltr")) if exists(p)), None)
    if beside is None:
        return []
    texts = decode_lines(beside.read_bytes())
    texts = texts if texts[-1] else texts[:-1]
    if len(texts) != files:
        raise UserError(
            f"data: {beside} has {len(texts)} lines, and {path.name} lists {files} files, in the same order"
        )
    return texts if beside.suffix == ".wrd" else [text.replace(" ", "").replace("|", " ") for text in texts]


def _of_ljspeech(path: epath.Path, lines: list[str]) -> Iterator[Row]:
    """Lines `FILE|TEXT`, `ID|TEXT|TEXT WITHOUT NUMERALS` or `FILE|SPEAKER|LANGUAGE|TEXT`: the last field counts."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.split("|")
        if not 2 <= len(fields) <= 4 or not fields[0].strip() or not is_text(line):
            yield Row(f"{path.name}:{number}", problem="is not FILE|TEXT, nor FILE|SPEAKER|LANGUAGE|TEXT")
            continue
        yield Row(f"{path.name}:{number}", audio=fields[0].strip(), text=fields[-1])


def _left_out(path: epath.Path, name: str) -> str | None:
    """The suffix that names lack: none, or that with which a file is there; None where there is no such file."""
    if os.path.isabs(name) or os.path.splitext(name)[1].lower() in (".wav", ".flac", ".mp3", ".opus", ".ogg"):
        return ""
    try:
        return next(s for s in _GUESSES for place in _places(path) if exists(place / f"{name}{s}"))
    except (StopIteration, OSError, ValueError):  # there is none, or it is no name of a file
        return None


def _is_header(fields: Sequence[str]) -> bool:
    return bool(({_key(field) for field in fields} & {*AUDIO_KEYS}) - {"source"})


def _delimiter(line: str) -> str:
    return max("\t,;|", key=line.count)


def _fields(line: str) -> list[str]:
    return [field.strip().strip('"') for field in line.split(_delimiter(line))]


def _places(path: epath.Path) -> list[epath.Path]:
    return [path.parent, *(path.parent / name for name in _FOLDERS if is_folder(path.parent / name))]


def _splits(path: epath.Path) -> list[str]:
    return sorted({row.split for row in _rows(path, ()) if row.audio})


def _voice_splits(folder: epath.Path) -> list[str]:
    tables = [name for name in names_in(folder) if name.endswith(".tsv") and not name.startswith("._")]
    found = [name.removesuffix(".tsv") for name in tables if is_table(folder / name)]  # others list sentences, lengths
    return sorted(name for name in found if name not in _NO_SPLITS) or sorted(found)


def _voice_rows(folder: epath.Path, wanted: Sequence[str]) -> Iterator[Row]:
    for split in wanted or _voice_splits(folder):
        if exists(folder / f"{split}.tsv"):
            yield from _rows(folder / f"{split}.tsv", (), split)


_EXAMPLE = "path, sentence under a header of these names"
DELIMITED = Form(_splits, _rows, _places, _EXAMPLE)
COMMON_VOICE = Form(_voice_splits, _voice_rows, lambda folder: _places(folder / "x.tsv"), _EXAMPLE)
