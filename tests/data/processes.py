"""Processes that a test has started."""

import time
from pathlib import Path


def assert_all_end(session):
    """All processes of a session (a child started with `start_new_session`) end within some seconds."""
    deadline = time.monotonic() + 20
    while alive := commands_of(session):
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def commands_of(session):
    """Command lines of the processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((path.parent / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue
    return found
