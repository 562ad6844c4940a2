"""Peak memory of what runs between `reset` and `peak`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Of a device or a process; `peak` gives bytes."""

    reset: Callable[[], object]
    peak: Callable[[], int]


def _resident_peak() -> int:
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


# What this process holds in main memory (Linux); "5" lets the peak begin anew from what it holds now
RESIDENT = Memory(lambda: Path("/proc/self/clear_refs").write_text("5"), _resident_peak)
