"""Manifests as tables of text: CSV and TSV with a header, as Common Voice and `datasets` have them; LJSpeech's table
without one; wav2vec 2.0's list of files below a folder.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from sew_jax.data.manifests import AUDIO_KEYS, Form, Row, row_of
from sew_jax.data.text_files import decode_lines, is_text

SUFFIXES = (".tsv", ".csv", ".psv")
_NO_AUDIO = f"has no audio; its header must name one of {', '.join(AUDIO_KEYS)}"
_FOLDERS = ("clips", "wavs", "wav", "audio")  # where such tables keep audio, beside them
_NO_SPLITS = ("validated", "invalidated", "other", "reported", "unvalidated_sentences", "clip_durations")
_GUESSES = ("", ".wav", ".flac", ".mp3")  # suffixes that a table leaves out


def is_table(path: epath.Path) -> bool:
    """Whether the first line of a file names columns of audio, or it is one of the tables without a header."""
    if not path.exists():
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
    for row in rows:
        if row.audio and suffix is None:
            suffix = _left_out(path, row.audio)
        row = row._replace(audio=row.audio + suffix) if row.audio and suffix else row
        yield row._replace(split=split) if split else row


def _with_header(path: epath.Path, lines: list[str], delimiter: str) -> Iterator[Row]:
    # tables parted by tabs quote nothing: a quotation mark is one that was said
    quoting: Any = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
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
        row = row_of({key.strip(): value for key, value in values.items() if key}, where)
        yield row if row.audio else row._replace(problem=_NO_AUDIO)


def _of_fairseq(path: epath.Path, lines: list[str]) -> Iterator[Row]:
    """The first line is a folder, the others `FILE<tab>FRAMES`; words are in `.wrd` beside it, in the same order."""
    folder = lines[0].strip()
    beside = path.with_suffix(".wrd")
    texts = decode_lines(beside.read_bytes()) if beside.exists() else []
    number = 0
    for line_number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        where = f"{path.name}:{line_number}"
        text = texts[number] if number < len(texts) else None
        number += 1
        name, _, frames = line.partition("\t")
        if not name or not frames.strip().isdigit() or not is_text(line):
            yield Row(where, problem="is not FILE, a tab, and its frames")
            continue
        yield Row(where, audio=os.path.join(folder, name), id=os.path.splitext(name)[0], text=text)


def _of_ljspeech(path: epath.Path, lines: list[str]) -> Iterator[Row]:
    """Lines `FILE|TEXT`, or `ID|TEXT|TEXT WITHOUT NUMERALS`, of which the last counts."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.split("|")
        if len(fields) < 2 or not fields[0].strip() or not is_text(line):
            yield Row(f"{path.name}:{number}", problem="is not FILE|TEXT")
            continue
        yield Row(f"{path.name}:{number}", audio=fields[0].strip(), text=fields[2 if len(fields) == 3 else 1])


def _left_out(path: epath.Path, name: str) -> str:
    """The suffix that names lack, if they lack one and a file is there with it."""
    if os.path.isabs(name) or os.path.splitext(name)[1].lower() in (".wav", ".flac", ".mp3", ".opus", ".ogg"):
        return ""
    found = (s for s in _GUESSES for place in _places(path) if (place / f"{name}{s}").exists())
    return next(found, "")


def _is_header(fields: Sequence[str]) -> bool:
    return bool(({field.strip() for field in fields} & {*AUDIO_KEYS}) - {"source"})


def _delimiter(line: str) -> str:
    return max("\t,;|", key=line.count)


def _fields(line: str) -> list[str]:
    return [field.strip().strip('"') for field in line.split(_delimiter(line))]


def _places(path: epath.Path) -> list[epath.Path]:
    return [path.parent, *(path.parent / name for name in _FOLDERS if (path.parent / name).is_dir())]


def _splits(path: epath.Path) -> list[str]:
    return sorted({row.split for row in _rows(path, ()) if row.audio})


def _voice_splits(folder: epath.Path) -> list[str]:
    found = [path.name.removesuffix(".tsv") for path in folder.glob("*.tsv") if not path.name.startswith("._")]
    return sorted(name for name in found if name not in _NO_SPLITS) or sorted(found)


def _voice_rows(folder: epath.Path, wanted: Sequence[str]) -> Iterator[Row]:
    for split in wanted or _voice_splits(folder):
        if (folder / f"{split}.tsv").exists():
            yield from _rows(folder / f"{split}.tsv", (), split)


_EXAMPLE = "path, sentence under a header of these names"
DELIMITED = Form(_splits, _rows, _places, _EXAMPLE)
COMMON_VOICE = Form(_voice_splits, _voice_rows, lambda folder: _places(folder / "x.tsv"), _EXAMPLE)
