"""Folders under gs:// and s3:// beside those of a disk: what differs between them, for all that write to a workdir.

An object appears whole or not at all and cannot grow; folders are but names; nothing can be renamed in one move.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from etils import epath
from etils.epath import backend

from sew_jax.errors import UserError
from sew_jax.storage import is_folder, names_in, patient

_EXTRAS = {"gs": "gcs", "s3": "s3"}  # of pyproject.toml
_State = list[tuple[str, int, str]]


def is_remote(path: os.PathLike | str) -> bool:
    """Whether a path names an object store rather than a file of this machine."""
    return "://" in os.fspath(path)


def as_path(name: os.PathLike | str) -> Path:
    """The path that a user names: of this machine, or in a bucket.

    Raises:
      UserError: nothing is read from addresses of that kind.
    """
    if not is_remote(name):
        return Path(name)
    try:
        return epath.Path(name)  # type: ignore[return-value]
    except KeyError as error:
        raise UserError(f"{name}: addresses begin with gs:// or s3://; or name a local folder") from error


def file_system(path: os.PathLike | str) -> Any:
    """fsspec's file system of a remote path, the one that `epath` uses.

    Raises:
      UserError: its package is not installed.
    """
    try:
        return backend.fsspec_backend.fs(path)
    except ImportError as error:
        extra = _EXTRAS.get(os.fspath(path).partition("://")[0], "gcs")
        raise UserError(f"{path} cannot be reached ({error}); pip install 'sew_jax[{extra}]'") from error


@patient
def check_bucket(path: Path, key: str) -> None:
    """Raises UserError where a path is remote and its bucket is not there: libraries would try to make one."""
    if not is_remote(path):
        return
    bucket = os.fspath(path).partition("://")[2].partition("/")[0]
    if not bucket or not file_system(path).exists(bucket):
        raise UserError(f"{key}: {path}: there is no bucket {bucket!r} that this account may read; make it first")


@patient
def make_folder(path: Path) -> None:
    """Makes a folder and those above it; in a bucket a file's name makes them."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def look_again(path: Path) -> None:
    """Lets the next look at a remote folder see what others have written there meanwhile."""
    if is_remote(path):
        file_system(path).invalidate_cache()


def children(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none.

    That a bucket does not answer is an error: fsspec's `isdir` would say that there is no such folder.
    """
    if not is_remote(folder):
        return [folder / name for name in names_in(folder)] if is_folder(folder) else []
    look_again(folder)
    try:
        names = file_system(folder).ls(os.fspath(folder), detail=False)
    except FileNotFoundError:
        return []
    return [folder / name.rstrip("/").rpartition("/")[2] for name in names]


@patient
def state_of(path: Path) -> _State:
    """Names, sizes and times (in a bucket: generations) of all that is in a folder; of a file, its own."""
    if is_remote(path):
        look_again(path)
        found = file_system(path).find(os.fspath(path), detail=True)
        return sorted((name, about["size"], _version(about)) for name, about in found.items())
    state = []
    for part in [path, *sorted(path.rglob("*"))]:
        try:
            status = part.stat()
        except FileNotFoundError:
            continue
        state.append((str(part), status.st_size, str(status.st_mtime_ns)))
    return state


def _version(about: dict[str, Any]) -> str:
    return str(next((about[key] for key in ("generation", "ETag", "mtime", "created") if about.get(key)), ""))


@patient
def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it."""
    if is_remote(path):
        look_again(path)
        if (files := file_system(path)).exists(os.fspath(path)):
            files.rm(os.fspath(path), recursive=True)
        return
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if is_folder(path) else path.unlink()


@patient
def move_folder(source: Path, target: Path) -> None:
    """Gives a folder another name; in a bucket its objects are copied there one by one, and then removed."""
    if not is_remote(source):
        os.replace(source, target)
        return
    files, begin = file_system(source), os.fspath(source)
    look_again(source)
    for name in files.find(begin):
        inside = name.partition(begin.partition("://")[2])[2]
        files.cp_file(name, os.fspath(target) + inside)
    remove(source)
