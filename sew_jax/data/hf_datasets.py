"""Hugging Face `datasets`: Parquet files as the hub has them, and folders that `save_to_disk` wrote.

Audio is a struct of a file's bytes and its name, or a name alone. https://huggingface.co/docs/datasets/audio_dataset
"""

import collections
import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from etils import epath

from sew_jax.buckets import is_remote
from sew_jax.data.manifests import AUDIO_KEYS, ID_KEYS, SEGMENT_KEYS, Form, Row, pick, row_of
from sew_jax.data.packed import ARROW, PARQUET, open_arrow, open_parquet, row_path
from sew_jax.errors import UserError
from sew_jax.storage import is_folder, names_in, raise_if_away

_SUFFIX, _STATE = ".parquet", "state.json"
_NUMBERED = re.compile(r"(.+?)[-.](\d+)(-of-\d+)?(-[0-9a-f]+)?$")

_Table = tuple[Iterator[pa.RecordBatch], str]  # its rows without the audio's bytes, and the column of audio
_Opener = Callable[[epath.Path, bool], contextlib.AbstractContextManager[_Table]]  # or with what names rows alone


def is_saved(names: set[str]) -> bool:
    """Whether a folder that holds these names was written by `save_to_disk`."""
    return _STATE in names and "dataset_info.json" in names


def parquet_files(folder: epath.Path) -> list[epath.Path]:
    """The Parquet files of a folder and of the folders in it and in these, or of a file itself."""
    if not is_folder(folder):
        return [folder]
    found, folders = [], [folder]
    for _ in range(3):
        held = [path / name for path in folders for name in names_in(path) if not name.startswith(".")]
        found += [path for path in held if path.suffix == _SUFFIX]
        folders = [path for path in held if path.suffix != _SUFFIX and is_folder(path)]
    return sorted(found)


def _tables(root: epath.Path) -> list[tuple[epath.Path, str]]:
    """Parquet files and their splits: what a name says before a shard's number, or else the folder it lies in.

    Numbers are of shards where they say of how many, or count from 0 or 1 on; those of train-clean-100 are not. A lone
    file is `train`.
    """
    paths, numbers = parquet_files(root), collections.defaultdict(set)
    parts = {path: _NUMBERED.match(path.name.removesuffix(_SUFFIX)) for path in paths}
    for path, part in parts.items():
        if part:
            numbers[path.parent, part[1]].add(int(part[2]))
    made = []
    for path, part in parts.items():
        stem = path.name.removesuffix(_SUFFIX)
        found = numbers[path.parent, part[1]] if part else set()
        counted = any(found == set(range(first, first + len(found))) for first in (0, 1))
        if part and (part[3] or counted):
            split = part[1]
        elif path == root or (path.parent == root and stem.isdigit()):
            split = "train"
        else:
            split = path.parent.name if stem.isdigit() else stem
        made.append((path, split))
    return made


def _parquet_splits(root: epath.Path) -> list[str]:
    return sorted({split for _, split in _tables(root)})


def _parquet_rows(root: epath.Path, wanted: Sequence[str]) -> Iterator[Row]:
    yield from _rows([(p, split) for p, split in _tables(root) if not wanted or split in wanted], PARQUET, _parquet)


@contextlib.contextmanager
def _parquet(path: epath.Path, of_names: bool) -> Iterator[_Table]:
    with open_parquet(os.fspath(path)) as file:
        columns, audio = _columns(path, file.schema_arrow)
        if of_names:
            columns = [name for name in columns if name in (*ID_KEYS, audio, f"{audio}.path")]
        yield file.iter_batches(columns=columns), audio


def _rows(tables: Sequence[tuple[epath.Path, str]], scheme: str, open_table: _Opener) -> Iterator[Row]:
    """Rows of tables, each with its split, with an id's column or the audio's name where a split has none twice."""
    named = _names_of(tables, open_table)
    for path, split in tables:
        try:
            with open_table(path, False) as (batches, audio):
                yield from _table_rows(path, split, scheme, batches, audio, named[split])
        except (OSError, pa.ArrowException) as error:
            raise_if_away(error)
            yield Row(path.name, problem=f"cannot be read ({' '.join(str(error).split())[:80]})", split=split)


class _Named(NamedTuple):
    """What names the rows of a split: ids (behind the split's name, where others have them, too) or names of audio."""

    by_id: bool
    by_split: bool
    by_audio: bool


def _names_of(tables: Sequence[tuple[epath.Path, str]], open_table: _Opener) -> dict[str, _Named]:
    ids, names = collections.defaultdict(list), collections.defaultdict(list)
    for path, split in tables:
        try:
            with open_table(path, True) as (batches, audio):
                for values in (values for batch in batches for values in batch.to_pylist()):
                    names[split].append(_name(values.pop(audio, None)))
                    ids[split].append(pick(values, ID_KEYS))
        except (OSError, pa.ArrowException) as error:  # said when its rows are read
            raise_if_away(error)
    shared = not _are_names([i for split in ids.values() for i in split])
    return {split: _Named(_are_names(ids[split]), shared, _are_names(names[split])) for _, split in tables}


def _are_names(values: Sequence[Any]) -> bool:
    """Whether each is there, and no two are the same."""
    return None not in values and len(set(values)) == len(values)


def _name(audio: Any) -> str | None:
    """What a table calls the audio of a row."""
    name = audio.get("path") if isinstance(audio, dict) else audio
    return name if isinstance(name, str) and name else None


def _columns(path: epath.Path, schema: pa.Schema) -> tuple[list[str], str]:
    """Columns to read when rows are listed, the audio's bytes aside, and the name of the column of audio."""
    audio = next((key for key in AUDIO_KEYS if key in schema.names), None)
    if audio is None:
        raise UserError(f"data: {path} has no column of audio; its columns are {', '.join(schema.names)}")
    nested = [name for name in schema.names if pa.types.is_nested(schema.field(name).type)]
    plain = [name for name in schema.names if name != audio and (name in SEGMENT_KEYS or name not in nested)]
    plain = [name for name in plain if not _is_binary(schema.field(name).type)]
    kind = schema.field(audio).type
    if _is_decoded(kind):
        raise UserError(
            f"data: {path}: its column {audio} holds decoded samples, not audio files; write the dataset as it was "
            "before they were decoded, with audio as bytes or paths"
        )
    if pa.types.is_struct(kind):
        return [*plain, *([f"{audio}.path"] if kind.get_field_index("path") >= 0 else [])], audio
    return ([*plain] if _is_binary(kind) else [*plain, audio]), audio


def _is_decoded(kind: pa.DataType) -> bool:
    """Whether a column is arrays of numbers, alone or beside their rate."""
    names = {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or ("array" in names and "bytes" not in names)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _table_rows(
    path: epath.Path,
    split: str,
    scheme: str,
    batches: Iterator[pa.RecordBatch],
    audio: str,
    named: _Named,
) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            name = _name(values.pop(audio, None))
            columns = {key: value for key, value in values.items() if key not in AUDIO_KEYS}
            row = row_of(columns | {"audio": "x"}, f"{path.name}#{number}")
            stem = f"{path.name.rsplit('.', 1)[0]}-{number:06d}"
            if named.by_id and row.id:
                known_as = f"{split}/{row.id}" if named.by_split else row.id
            else:
                known_as = f"{split}/{os.path.splitext(name)[0] if named.by_audio and name else stem}"
            packed = row_path(scheme, os.fspath(path), audio, number)
            yield row._replace(audio=packed, packed=True, id=known_as, split=split)
            number += 1


def _saved_rows(folder: epath.Path, wanted: Sequence[str]) -> Iterator[Row]:
    del wanted
    if is_remote(os.fspath(folder)):
        raise UserError(f"data: {folder} is of save_to_disk, which is mapped into memory; copy it to this machine")
    split = _saved_splits(folder)[0]
    yield from _rows([(folder / name, split) for name in _saved_files(folder)], ARROW, _saved)


@contextlib.contextmanager
def _saved(path: epath.Path, of_names: bool) -> Iterator[_Table]:
    table = open_arrow(os.fspath(path))
    columns, audio = _columns(path, table.schema)
    kept = [c for c in columns if c != audio and "." not in c and (c in ID_KEYS or not of_names)]
    listed = table.select(kept)
    if f"{audio}.path" in columns or audio in columns:
        listed = listed.append_column(audio, _names(table[audio]))
    yield iter(listed.to_batches()), audio


def _names(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_struct(column.type):
        return column
    return pa.chunked_array([chunk.field("path") for chunk in column.chunks], pa.string())


def _saved_files(folder: epath.Path) -> list[str]:
    try:
        state = json.loads((folder / _STATE).read_text())
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_if_away(error)
        raise UserError(f"data: {folder / _STATE} cannot be read ({error!r}); save the dataset anew") from error
    if any(os.path.basename(name) != name for name in names):
        raise UserError(f"data: {folder / _STATE} names files out of its folder; save the dataset anew")
    return names


def _saved_splits(folder: epath.Path) -> list[str]:
    try:
        return [json.loads((folder / _STATE).read_text()).get("_split") or "train"]
    except (OSError, ValueError, AttributeError) as error:
        raise_if_away(error)
        return ["train"]


def _places(root: epath.Path) -> list[epath.Path]:
    return [root if is_folder(root) else root.parent]


PARQUET_FILES = Form(_parquet_splits, _parquet_rows, _places, "audio, text in its columns")
SAVED = Form(_saved_splits, _saved_rows, _places, "audio, text in its columns")
