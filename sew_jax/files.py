"""Files that are whole or not there, what keeps them from being written, and the folder of what is kept."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sew_jax.buckets import file_system, is_remote
from sew_jax.errors import Unavailable, UserError
from sew_jax.storage import is_away, patient, refusal, unavailable

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENOTDIR)
FOLDER_HINT = "mend that or name another --workdir"
WORKDIR_HINT = f"{FOLDER_HINT}. What was saved is as it was: the same command goes on from its newest checkpoint"


def cache_folder() -> Path:
    """`$SEW_JAX_CACHE`, else `$XDG_CACHE_HOME/sew_jax`, else `~/.cache/sew_jax`."""
    if own := os.environ.get("SEW_JAX_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sew_jax"


def is_below(path: str, root: str) -> bool:
    """Whether a path lies below a folder, links followed."""
    return os.path.join(os.path.realpath(path), "").startswith(os.path.join(os.path.realpath(root), ""))


@patient
def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file in one move, so that no reader and no crash meets half of it; objects of a bucket are so."""
    if is_remote(path):
        file_system(path).pipe_file(os.fspath(path), data)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of a value as JSON."""
    write_whole(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


@contextlib.contextmanager
def local_folder(folder: Path) -> Iterator[Path]:
    """A folder of this machine for what libraries write by a file's name; at the end a remote one has all of it."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sew_jax_") as scratch:
        yield Path(scratch)
        for path in sorted(Path(scratch).rglob("*")):
            if path.is_file():
                write_whole(folder / path.relative_to(scratch).as_posix(), path.read_bytes())


@contextlib.contextmanager
def writing_to(folder: os.PathLike | str, hint: str) -> Iterator[None]:
    """Turns what the system says of a disk that is full, may not be written or does not answer into one line.

    Only for blocks that write: libraries that do so outside Python keep the system's words alone.

    Raises:
      UserError: it is full or may not be written; with the `hint`.
      Unavailable: it does not answer.
    """
    try:
        yield
    except (UserError, Unavailable):
        raise
    except Exception as error:
        problem = _disk_problem(error) or refusal(error)
        if not problem and is_away(error):
            raise unavailable(error) from error
        if not problem:
            raise
        raise UserError(f"{folder} cannot be written ({problem}); {hint}") from error


def _disk_problem(error: BaseException | None) -> str:
    while error:
        for number in _DISK_ERRORS:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                name = getattr(error, "filename", None)
                return os.strerror(number).lower() + (f": {name}" if name else "")
        error = error.__cause__
    return ""
