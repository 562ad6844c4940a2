"""`starts.jsonl`: a row for each start of a run, so that it can be told later what has computed which updates."""

import json
import time
from pathlib import Path

import jax

from sew_jax.files import WORKDIR_HINT, write_whole, writing_to
from sew_jax.runtime.versions import versions
from sew_jax.storage import exists, patient

FILE = "starts.jsonl"


def note_start(workdir: Path, update: int) -> list[str]:
    """Adds a row, in the first process; returns in words what is of another version than at the start before."""
    now, path = versions(), workdir / FILE
    row = {"time": round(time.time(), 3), "update": update, **now}
    row |= {"devices": jax.device_count(), "processes": jax.process_count()}
    with writing_to(workdir, WORKDIR_HINT):
        data = _read(path)
        if jax.process_index() == 0:
            write_whole(path, data + json.dumps(row).encode() + b"\n")
    before = _last(data) if update else {}
    return [f"{name} was {before[name]}, is {now[name]}" for name in now if before.get(name, now[name]) != now[name]]


@patient
def _read(path: Path) -> bytes:
    return path.read_bytes() if exists(path) else b""


def _last(data: bytes) -> dict[str, str]:
    """The newest row that is whole."""
    for line in reversed(data.splitlines()):
        try:
            return json.loads(line)
        except ValueError:  # a kill cut it short, where it was added to the file
            continue
    return {}
