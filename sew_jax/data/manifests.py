"""Manifests and corpora of every form as one list of utterances; what their forms share is here, once.

A form says how its files are rows; here rows become entries: splits, names that may not lead out, segments, ids.
"""

import functools
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from sew_jax.buckets import is_remote
from sew_jax.data import audio
from sew_jax.data.addresses import AddressError, find_name, open_address
from sew_jax.data.entries import TOLERANCE, Entry
from sew_jax.data.problems import AudioError
from sew_jax.data.segments import Segment, write_problem, write_segments
from sew_jax.data.text_files import is_text
from sew_jax.errors import UserError
from sew_jax.files import is_below
from sew_jax.rates import SAMPLE_RATE
from sew_jax.storage import exists

# What people call the same thing, in JSON lines, tables with a header, and datasets: the first that is there counts.
AUDIO_KEYS = (
    *("audio", "audio_filepath", "audio_path", "audio_file", "wav_filename", "wav_path", "file_name", "filename"),
    *("path", "file", "wav", "source"),
)
TEXT_KEYS = (
    *("text", "sentence", "transcription", "transcript", "normalized_text", "normalized_transcription", "txt"),
    *("target", "words", "wrd"),
)
LABEL_KEYS, SEGMENT_KEYS = ("label",), ("segments",)
SPEAKER_KEYS = ("speaker", "speaker_id", "client_id", "spk_id", "spk", "user_id")
ID_KEYS = ("id", "utt_id", "utterance_id", "key")
LOOKS = 20  # at names, of which the first that is a file's tells where all of them begin, and what they lack
BEGIN_KEYS, END_KEYS = ("start", "start_time", "begin", "begin_time"), ("end", "end_time")


class Row(NamedTuple):
    """An utterance as a form has it."""

    where: str  # names it where it has no id: FILE:LINE
    audio: str = ""  # as it is written
    id: str | None = None
    text: str | None = None
    label: str | None = None
    segments: str | None = None  # as `write_segments` or `write_problem` has them
    speaker: str = ""
    split: str = "train"
    offset: Any = None  # seconds; None: there is no segment
    duration: Any = None  # seconds, of the segment or else of the file
    channel: int | None = None
    problem: str | None = None
    packed: bool = False  # `audio` is a row of a table
    span: tuple[float, float] | None = None  # seconds: a part of the file, or where all of it was cut from


class Form(NamedTuple):
    """How a file or a folder is read.

    Attributes:
      splits: the splits it holds, by name.
      rows: its rows of some splits (none named: of all).
      places: where relative names may begin; the first is the folder that an id is relative to.
      example: what a row must look like, for a message.
    """

    splits: Callable[[epath.Path], Sequence[str]]
    rows: Callable[[epath.Path, Sequence[str]], Iterable[Row]]
    places: Callable[[epath.Path], Sequence[epath.Path]]
    example: str


def pick(row: dict[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first key that is there and not null."""
    return next((row[key] for key in keys if row.get(key) is not None), None)


def row_of(row: dict[str, Any], where: str) -> Row:
    """The row that a JSON object or a line of a table with a header makes."""
    audio = pick(row, AUDIO_KEYS)
    if isinstance(audio, dict):  # as `datasets` writes it
        audio = audio.get("path")
    if not isinstance(audio, str) or not audio:
        return Row(where, problem='is not a JSON object with "audio"')
    text, name = pick(row, TEXT_KEYS), pick(row, ID_KEYS)
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = None if text != text else str(text)  # NaN is how tables without a text come out of pandas
    return Row(
        where,
        audio=audio,
        id=None if name is None else str(name),
        text=text,
        label=_label(pick(row, LABEL_KEYS)),
        segments=_segments(pick(row, SEGMENT_KEYS)),
        speaker=str(pick(row, SPEAKER_KEYS) or ""),
        split=str(row.get("split") or "train"),
        offset=row.get("offset"),
        duration=row.get("duration"),
        channel=row.get("channel"),
        span=_span(row) if row.get("offset") in (None, "") else None,
    )


def _label(value: Any) -> str | None:
    """A label as a text: words one space apart, or a whole number or a truth as JSON writes it; of others none."""
    if isinstance(value, int):
        value = json.dumps(value)
    return (printable(" ".join(value.split())) or None) if isinstance(value, str) else None


def _segments(value: Any) -> str | None:
    """Stretches with labels in their one form, or what is wrong with one of them; None where there are none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return write_problem(f"has segments {value[:40]!r}, which are no JSON")
    if value is None:
        return None
    if not isinstance(value, list):
        return write_problem(f"has segments {str(value)[:40]!r}, which are no list")
    found = []
    for number, part in enumerate(value, 1):
        if not isinstance(part, dict):
            return write_problem(f'has segment {number} {str(part)[:40]!r}, which has no "start", "end" and "label"')
        try:
            start, end = (_seconds(pick(part, keys), keys[0]) for keys in (BEGIN_KEYS, END_KEYS))
        except ValueError as error:
            return write_problem(f"has segment {number}, which {error}")
        label = _label(pick(part, LABEL_KEYS))
        if not label or end < start:
            why = "ends before it begins" if label else 'has no "label"'
            return write_problem(f"has segment {number}, which {why}")
        found.append(Segment(start, end, label.replace(" ", "_")))
    return write_segments(found)


def _span(row: dict[str, Any]) -> tuple[float, float] | None:
    """Begin and end in seconds, where a row has both as numbers, or one and `duration`."""
    begin, end, length = pick(row, BEGIN_KEYS), pick(row, END_KEYS), row.get("duration")
    try:
        first = float(begin)
        last = first + float(length) if end is None else float(end)
    except (TypeError, ValueError, OverflowError):
        return None
    return (first, last) if math.isfinite(first) and math.isfinite(last) and last != 0 else None


def list_form(form: Form, path: epath.Path, wanted: Sequence[str], prefix: str = "") -> list[Entry]:
    """The entries of some splits (none named: of all).

    A relative name may not lead out of its folder, by `..` or by links; what lies elsewhere is named by its whole path.

    Args:
      prefix: stands before ids that rows do not have.

    Raises:
      UserError: no row belongs to the splits, or none is usable.
    """
    entries: list[Entry] = []
    seen: set[str] = set()
    base = first = None
    looks = 0
    for row in form.rows(path, wanted):
        seen.add(row.split)
        if row.problem and not row.audio:
            entries.append(Entry(printable(row.id or row.where), os.fspath(path), problem=row.problem))
            continue
        if wanted and row.split not in wanted:
            continue
        if first is None:
            places = form.places(path)
            first = _Base(places[0], places[0])
        if base is None and looks < LOOKS and not _is_whole(row):
            looks += 1
            base = (place := _place(places, row.audio)) and _Base(place, places[0])
        entries.append(_entry(row, base or first, prefix))
    if missing := [name for name in wanted if name not in seen]:
        splits = {*form.splits(path)} | seen
        if missing := [name for name in missing if name not in splits]:
            raise UserError(
                f"data: {path} has no split {','.join(missing)}; it has: {', '.join(sorted(splits)) or 'none'}; "
                "set --config.split (empty: all)"
            )
    if not any(not entry.problem for entry in entries):
        example = f"; the first: {entries[0].id} {entries[0].problem}" if entries else ""
        raise UserError(f"data: {path} has no line of the form {form.example}{example}")
    return entries


class _Base:
    """The folder that relative names begin at, and the one that ids are relative to."""

    def __init__(self, place: epath.Path, home: epath.Path):
        self.place, self.name = place, os.fspath(place)
        self.homes = (os.path.join(self.name, ""), os.path.join(os.fspath(home), ""))
        self.inside = functools.cache(lambda folder: is_remote(folder) or is_below(folder, self.name))
        self.length = functools.cache(_length)


def _entry(row: Row, base: _Base, prefix: str) -> Entry:
    if not row.packed:
        row = row._replace(audio=find_name(base.name, row.audio))
    path = row.audio if _is_whole(row) else os.path.join(base.name, row.audio)
    problem = row.problem or _outside(row, base)
    if row.span and not row.packed and not problem:
        row = _with_span(row, row.span, base.length(path))
    if not isinstance(row.text, str | None):
        problem = f"has text {str(row.text)[:40]!r}, which is none"
    elif row.text and not is_text(row.text):
        problem = "its transcript is not UTF-8"
    if problem:
        known_as = row.id or (row.where if row.problem else prefix + _default_id(row.audio, base, None, None, None))
        return Entry(printable(known_as), printable(path), problem=problem)
    try:
        begin, samples, seconds = _segment(row.offset, row.duration)
        channel = _channel(row.channel, row.packed)
    except ValueError as error:
        return Entry(printable(row.id or row.where), printable(path), problem=str(error))
    name = row.id
    if name is None:
        name = prefix + _default_id(row.audio, base, begin, samples, channel)
    return Entry(
        id=printable(name),
        path=path,
        text=None if row.text is None else " ".join(row.text.split()),
        label=row.label,
        segments=row.segments,
        speaker=printable(row.speaker),
        samples=samples,
        begin=begin,
        channel=channel,
        seconds=seconds,
    )


def _length(path: str) -> float | None:
    """Seconds of a file of this machine; None where it cannot be read, which is said later."""
    try:
        return None if is_remote(path) else audio.probe(path) / SAMPLE_RATE
    except AudioError:
        return None


def _with_span(row: Row, span: tuple[float, float], length: float | None) -> Row:
    """A row as a part of its file; a file as long as the part was cut out of a longer one, where it lay there."""
    begin, end = span
    if length is not None and abs(length - (end - begin)) <= TOLERANCE:
        return row
    return row._replace(offset=begin, duration=end - begin)


def _default_id(audio: str, base: _Base, begin: int | None, samples: int | None, channel: int | None) -> str:
    """The file's path below the manifest's folder without its suffix, and what part of the file it is."""
    for home in base.homes:
        audio = audio.removeprefix(home)
    name = os.path.splitext(audio)[0]
    if begin is not None:
        end = "end" if samples is None else f"{(begin + samples) / SAMPLE_RATE:.3f}"
        name += f"-{begin / SAMPLE_RATE:.3f}-{end}"
    return name if channel is None else f"{name}-c{channel}"


def _segment(offset: Any, duration: Any) -> tuple[int | None, int | None, float | None]:
    """(first sample, samples, seconds of the whole file), each None where it is not said. Raises ValueError."""
    start = None if offset in (None, "") else _seconds(offset, "offset")
    length = None if duration in (None, "") else _seconds(duration, "duration")
    if length == 0:
        raise ValueError("has a duration of 0 s")
    if start is None:
        return None, None, length
    begin = round(start * SAMPLE_RATE)
    return begin, None if length is None else round((start + length) * SAMPLE_RATE) - begin, None


def _seconds(value: Any, key: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if isinstance(value, bool) or not 0 <= seconds < 1e8:
        raise ValueError(f"has {key} {str(value)[:40]!r}, which is no number of seconds")
    return seconds


def _channel(value: Any, packed: bool) -> int | None:
    """Columns of datasets' tables may be of any channels, such as those that show videos."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if value in (None, "") or (packed and isinstance(value, str)):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"has channel {str(value)[:40]!r}; the first is 0")
    return value


def _is_whole(row: Row) -> bool:
    return row.packed or is_remote(row.audio) or os.path.isabs(row.audio)


def _place(places: Sequence[epath.Path], name: str) -> epath.Path | None:
    """The first of some folders that holds a file."""
    if len(places) == 1:
        return places[0]
    try:
        return next((p for p in places if exists(p / find_name(os.fspath(p), name))), None)
    except (OSError, ValueError):  # no name of a file
        return None


def working_folder() -> epath.Path:
    """Kaldi and lhotse write names that begin where their recipes are run."""
    return epath.Path(Path.cwd())


def _outside(row: Row, base: _Base) -> str | None:
    """The problem of a relative name that leads out of its folder."""
    file = row.audio
    if not is_text(file):
        return "has a file name that is no text"
    if is_remote(file) and not row.packed:
        try:
            open_address(file)
        except AddressError as error:
            return str(error)
    if _is_whole(row):
        return None
    whole = os.path.join(base.name, file)
    if is_remote(whole):
        away = os.path.normpath(file).split("/")[0] == ".."
    else:
        inside = base.inside
        away = not inside(os.path.dirname(whole)) or (os.path.islink(whole) and not inside(os.path.realpath(whole)))
    return f"leads out of {base.name}; give its whole path" if away else None


def printable(name: str) -> str:
    """A name with what is no text in it spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()
