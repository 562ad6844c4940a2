"""`starts.jsonl`: a row for each start of a run, so that it can be told later what has computed which updates."""

import contextlib
import json
import time
from pathlib import Path

import jax

from sew_jax.files import WORKDIR_HINT, writing_to
from sew_jax.line_files import LineFile, read_lines
from sew_jax.runtime.versions import versions

FILE = "starts.jsonl"


def note_start(workdir: Path, update: int) -> list[str]:
    """Adds a row, in the first process; returns in words what is of another version than at the start before."""
    now, path = versions(), workdir / FILE
    row = {"time": round(time.time(), 3), "update": update, **now}
    row |= {"devices": jax.device_count(), "processes": jax.process_count()}
    with writing_to(workdir, WORKDIR_HINT):
        before = _last(path) if update else {}
        if jax.process_index() == 0:
            LineFile(path).append(json.dumps(row).encode() + b"\n")
    return [f"{name} was {before[name]}, is {now[name]}" for name in now if before.get(name, now[name]) != now[name]]


def _last(path: Path) -> dict[str, str]:
    """The newest row that is whole."""
    with contextlib.suppress(FileNotFoundError):
        for line in reversed(read_lines(path)):
            with contextlib.suppress(ValueError):  # a kill cut it short
                return json.loads(line)
    return {}
