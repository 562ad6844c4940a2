"""What interrupted saves leave in a workdir, which Orbax takes for no checkpoint and nobody else clears away."""

from pathlib import Path

from sew_jax.buckets import children, is_remote, remove, state_of
from sew_jax.checkpoints.checkpointer import BEST, is_whole
from sew_jax.storage import is_away, patient

_PATTERNS = ("checkpoints/*.orbax-checkpoint-tmp*", f"{BEST}/checkpoints/*.orbax-checkpoint-tmp*", ".*.partial")


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
            try:
                if state_of(path) == state:
                    remove(path)
            except Exception as error:
                if not isinstance(error, OSError) and not is_away(error):
                    raise  # else the next start finds it again


@patient
def _find(workdir: Path) -> list[Path]:
    if not is_remote(workdir):
        return [path for pattern in _PATTERNS for path in workdir.glob(pattern)]
    steps = [*children(workdir / "checkpoints"), *children(workdir / BEST / "checkpoints")]
    return [path for path in steps if path.name.isdigit() and not is_whole(path)]
