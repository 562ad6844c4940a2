"""Peak memory of what runs between `reset` and `peak`."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Of a device or a process; `peak` gives bytes."""

    reset: Callable[[], object]
    peak: Callable[[], int]


def _reset_resident() -> None:
    ctypes.CDLL(None).malloc_trim(0)  # what compiling has freed would count as held
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew from what is held now


def _resident_peak() -> int:
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


UNKNOWN = Memory(int, int)  # 0: devices tell the peak of a whole process alone, which cannot be set back
RESIDENT = Memory(_reset_resident, _resident_peak)  # what this process holds in main memory (Linux with glibc)
