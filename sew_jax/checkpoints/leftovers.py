"""What interrupted saves leave in a workdir, which Orbax takes for no checkpoint and nobody else clears away."""

import contextlib
import shutil
from pathlib import Path

from sew_jax.errors import Unavailable
from sew_jax.storage import patient

_PATTERNS = ("checkpoints/*.orbax-checkpoint-tmp*", "best/checkpoints/*.orbax-checkpoint-tmp*", ".*.partial")
_State = list[tuple[str, int, int]]


class Leftovers:
    """Unfinished saves and files that lay in a workdir when a run began.

    Another process may still be at its last save then: what changes from here to `clear` is let alone.
    """

    def __init__(self, workdir: Path):
        self._found = _states(workdir)

    def clear(self) -> None:
        """Removes those in which nothing has changed; to be called once, when the run's own first save is due."""
        found, self._found = self._found, {}
        for path, state in found.items():
            with contextlib.suppress(OSError, Unavailable):  # the next start finds it again
                if _state(path) == state:
                    patient(_remove)(path)


@patient
def _states(workdir: Path) -> dict[Path, _State]:
    return {path: _state(path) for pattern in _PATTERNS for path in workdir.glob(pattern)}


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@patient
def _state(path: Path) -> _State:
    """Names, sizes and times of all that is in it; of a file, its own."""
    state = []
    for part in [path, *sorted(path.rglob("*"))]:
        with contextlib.suppress(FileNotFoundError):
            status = part.stat()
            state.append((str(part), status.st_size, status.st_mtime_ns))
    return state
