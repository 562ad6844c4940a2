"""Worker processes that never outlive the run that started them, however it ends."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator

_one = threading.Lock()


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Processes spawned inside do not import the main module again: a script needs no guard against its own rerun."""
    with _one:
        main = sys.modules["__main__"]
        kept = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
        main.__spec__ = None
        main.__dict__.pop("__file__", None)
        try:
            yield
        finally:
            main.__dict__.update(kept)


def end_with_parent_alone(*_) -> None:
    """Called in a worker that its parent still needs after a signal.

    One to the whole group, as Ctrl-C is, is left to the parent.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()


def die_with_parent(*_) -> None:
    """Called in a worker: it ends when its parent does, even by SIGKILL; what it shared is then freed by Python."""
    parent = multiprocessing.parent_process()

    def watch():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    if parent:
        threading.Thread(target=watch, daemon=True).start()
