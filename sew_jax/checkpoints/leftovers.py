"""What interrupted saves leave in a workdir, which Orbax takes for no checkpoint and nobody else clears away."""

import contextlib
from pathlib import Path

from sew_jax.buckets import is_remote, look_again, remove, state_of
from sew_jax.checkpoints.checkpointer import BEST, is_whole

_PATTERNS = ("checkpoints/*.orbax-checkpoint-tmp*", f"{BEST}/checkpoints/*.orbax-checkpoint-tmp*", ".*.partial")
_STEPS = ("checkpoints/*", f"{BEST}/checkpoints/*")


class Leftovers:
    """Unfinished saves and files that lay in a workdir when a run began.

    Another process may still be at its last save then: what changes from here to `clear` is let alone.
    """

    def __init__(self, workdir: Path):
        self._found = {path: state_of(path) for path in _find(workdir)}

    def clear(self) -> None:
        """Removes those in which nothing has changed; to be called once, when the run's own first save is due."""
        found, self._found = self._found, {}
        for path, state in found.items():
            with contextlib.suppress(OSError):  # the next start finds it again
                if state_of(path) == state:
                    remove(path)


def _find(workdir: Path) -> list[Path]:
    if not is_remote(workdir):
        return [path for pattern in _PATTERNS for path in workdir.glob(pattern)]
    look_again(workdir)
    steps = [path for pattern in _STEPS for path in workdir.glob(pattern)]
    return [path for path in steps if path.name.isdigit() and not is_whole(path)]
