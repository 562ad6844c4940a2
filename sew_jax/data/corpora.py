"""What a path holds: which form a manifest or a folder has, its splits, and its utterances."""

import os
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from sew_jax.buckets import is_remote
from sew_jax.console import say
from sew_jax.data.audio_names import is_audio_name, is_left_behind, suffix_of
from sew_jax.data.delimited import COMMON_VOICE, DELIMITED, SUFFIXES, is_common_voice, is_table
from sew_jax.data.entries import Entry, mark_duplicates
from sew_jax.data.hf_datasets import PARQUET_FILES, SAVED, is_saved
from sew_jax.data.json_lines import JSON_LINES
from sew_jax.data.kaldi import KALDI, LIST, is_kaldi
from sew_jax.data.listing import folders_of, list_below, list_folder
from sew_jax.data.manifests import Form, list_form
from sew_jax.names import split_names
from sew_jax.storage import is_folder, names_in, patient

_SPLITS = ("train", "dev", "valid", "test", "eval")  # how folders that are splits begin
_FEW = 30  # folders that are looked into for what they are
_FILES = {".parquet": PARQUET_FILES, **dict.fromkeys(SUFFIXES, DELIMITED)}  # other suffixes: JSON lines
_PERHAPS_TABLES = (".txt", ".lst", ".list")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")  # of a folder of audio, as `datasets` has it


class Found(NamedTuple):
    """A form, and the file or folder that is read by it."""

    form: Form
    path: epath.Path


@patient
def find_form(path: epath.Path) -> Found | None:
    """What a manifest is, or a folder that is more than audio; None of a folder of audio."""
    if is_folder(path):
        return _folder_form(path)
    if path.name == LIST:
        return Found(KALDI, path.parent)
    suffix = suffix_of(path.name)
    is_delimited = suffix in _PERHAPS_TABLES and is_table(path)
    return Found(DELIMITED if is_delimited else _FILES.get(suffix, JSON_LINES), path)


def _folder_form(folder: epath.Path) -> Found | None:
    names = _names(folder)
    known = (
        (KALDI, is_kaldi(names)),
        (SAVED, is_saved(names)),
        (COMMON_VOICE, is_common_voice(names)),
        (PARQUET_FILES, any(name.endswith(".parquet") for name in names) or _parquet_below(folder, names)),
    )
    if form := next((form for form, is_one in known if is_one), None):
        return Found(form, folder)
    for name in _METADATA:
        if name in names and (name.endswith(".jsonl") or is_table(folder / name)):
            return find_form(folder / name)
    return None


def _names(folder: epath.Path) -> set[str]:
    return {name for name in names_in(folder) if not is_left_behind(name)}


def _parquet_below(folder: epath.Path, names: set[str]) -> bool:
    """Whether folders in a folder hold Parquet files, as the hub's `data` does."""
    below = [folder / name for name in sorted(names)[: _FEW + 1] if "." not in name]
    return len(names) <= _FEW and any(
        name.endswith(".parquet") for path in below if is_folder(path) for name in names_in(path)
    )


@patient
def list_root(path: epath.Path, split: str) -> list[Entry]:
    """The entries of a folder or a manifest of any form, of splits joined by commas (empty: of all).

    Raises:
      UserError: it has no such split, or nothing that can be used.
    """
    wanted = split_names(split)
    if found := find_form(path):
        return mark_duplicates(list_form(found.form, found.path, wanted))
    folders = wanted or folders_of(path)
    corpora = {name: find_form(path / name) for name in wanted or folders[:_FEW] if is_folder(path / name)}
    if not any(corpora.values()):
        return mark_duplicates(list_folder(path, split))
    corpora |= {name: find_form(path / name) for name in folders if name not in corpora and is_folder(path / name)}
    entries = []
    for name, found in corpora.items():
        entries += list_form(found.form, found.path, (), f"{name}/") if found else []
    listed = {_real(entry.path) for entry in entries}
    for name in folders:
        if not corpora.get(name):  # of audio alone, which a corpus beside it may name
            plain = list_folder(path, name) if wanted else list_below(path, path / name)
            entries += [entry for entry in plain if wanted or _real(entry.path) not in listed]
    if not wanted and (loose := sorted(filter(is_audio_name, _names(path)))):
        say(f"  ! audio beside the corpora of {path} is left aside: {len(loose)} files, such as {loose[0]}")
    return mark_duplicates(entries)


def _real(path: str) -> str:
    return path if is_remote(path) else os.path.realpath(path)


@patient
def list_splits(path: epath.Path, aside: Callable[[list[str]], None]) -> list[str]:
    """The splits to prepare: those of a corpus of some form; or folders named like splits; or one for all there is.

    Args:
      aside: is told which are not named like splits where others are.
    """
    found = find_form(path)
    names = (list(found.form.splits(found.path)) or ["train"]) if found else folders_of(path)
    named = [name for name in names if name.lower().startswith(_SPLITS)]
    if named and len(named) < len(names):
        aside(sorted(set(names) - set(named)))
    return named or (names if found else [""])
