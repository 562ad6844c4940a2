"""Work shared by processes that see one folder and never talk: who claims a piece first does it, the dead lose theirs.

The n-th claim of a piece is the file `PIECE.n`, made by an exclusive open, so that one process alone can make it.
Nothing is ever removed: whoever finds the newest claim's owner dead or finished tries to make the next one. An owner on
this machine is dead when its process is gone; one on another machine when its claim was not touched for a while by our
own clock, whatever its clock says.
"""

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sew_jax.files import write_whole
from sew_jax.storage import exists

_BEAT_S = 5.0
SILENCE_S = 180.0  # of another machine's claim, after which its owner counts as dead
_RELEASED = b'{"released": true}\n'


class Claim:
    """A piece of work that is ours until `release`, kept alive by a thread."""

    def __init__(self, path: Path, following: Path, beat: float, lost: Callable[[str], None]):
        self._path, self._following, self._lost = path, following, lost
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(beat,), daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Lets another process take the piece, unless its work is done by now."""
        self._ended.set()
        self._thread.join()
        write_whole(self._path, _RELEASED)

    def _keep(self, beat: float) -> None:
        while not self._ended.wait(beat):
            try:
                if self._following.exists():
                    self._lost(self._path.stem)
                    return
                os.utime(self._path)
            except OSError:  # storage that cannot be had at the moment; others wait longer than a beat
                continue


class Claims:
    """The claims of a folder, as this process sees them."""

    def __init__(
        self,
        folder: Path,
        *,
        beat: float = _BEAT_S,
        silence: float = SILENCE_S,
        lost: Callable[[str], None] | None = None,
        me: dict[str, str] | None = None,
    ):
        """`beat` and `silence` in seconds; `lost` is called, in a thread, when another process took our piece over."""
        self._folder, self._beat, self._silence, self._lost = folder, beat, silence, lost or _give_up
        self._me = me or _this_process()
        self._seen: dict[Path, tuple[int, float]] = {}  # claim of another machine -> its time stamp, and when we saw it
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, piece: str) -> Claim | None:
        """Claims a piece; None where another living process has it, or was faster."""
        number = self._newest(piece)
        if number and self._alive(self._path(piece, number)):
            return None
        path = self._path(piece, number + 1)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(self._me) + "\n")
        except FileExistsError:
            return None
        return Claim(path, self._path(piece, number + 2), self._beat, self._lost)

    def owner(self, piece: str) -> str:
        """Who has a piece, in words; empty where nobody does."""
        number = self._newest(piece)
        claim = _read(self._path(piece, number)) if number else {"released": True}
        return "" if "released" in claim else f"{claim.get('host', 'another machine')}, process {claim.get('pid', '?')}"

    def _path(self, piece: str, number: int) -> Path:
        return self._folder / f"{piece.replace('/', '.')}.{number}"

    def _newest(self, piece: str) -> int:
        number = 0
        while exists(self._path(piece, number + 1)):
            number += 1
        return number

    def _alive(self, path: Path) -> bool:
        claim = _read(path)
        if "released" in claim:
            return False
        if claim.get("machine") and claim["machine"] == self._me["machine"]:
            return _started(claim.get("pid", "")) == claim.get("started")
        stamp, now = path.stat().st_mtime_ns, time.monotonic()
        if self._seen.get(path, (None, 0.0))[0] != stamp:
            self._seen[path] = stamp, now
        return now - self._seen[path][1] < self._silence


def _read(path: Path) -> dict[str, str]:
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # its owner is about to write it, or died before
        return {}
    return claim if isinstance(claim, dict) else {}


def _this_process() -> dict[str, str]:
    pid = str(os.getpid())
    return {"host": platform.node(), "machine": _machine(), "pid": pid, "started": _started(pid)}


def _machine() -> str:
    """What processes that can see each other's numbers share; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: str) -> str:
    """When a process began, in ticks, so that a number used again is not taken for it; empty: it is gone."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]


def _give_up(piece: str) -> None:
    """Two processes must not write one run: this one was silent, and another one goes on with it."""
    print(
        f"error: this process was silent for so long that another one has taken {piece} over; start it again to help",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
