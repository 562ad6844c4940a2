"""What the libraries that checkpoints are read with say, where it is not for users."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import absl.logging


@contextlib.contextmanager
def errors_alone() -> Iterator[None]:
    """Orbax warns of a file that lies beside a checkpoint's parts and not in each."""
    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity(min(before, absl.logging.ERROR))
    try:
        yield
    finally:
        absl.logging.set_verbosity(before)


def quiet_orbax() -> None:
    """Leaves it to callers to say what went wrong: Orbax logs it for each of its threads, gcsfs for each call."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    for name in ("asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine '.*' was never awaited", category=RuntimeWarning)
    usual = sys.unraisablehook

    def hook(unraisable) -> None:
        # after an error that Orbax has reported: TensorStore's, and what its own other reads come to
        code = getattr(unraisable.object, "cr_code", None)
        abandoned = code is not None and "orbax" in Path(code.co_filename).parts
        if str(unraisable.exc_value) != "Event loop is closed" and not abandoned:
            usual(unraisable)

    sys.unraisablehook = hook
