"""Files that are whole or not there, and what keeps them from being written."""

import errno
import json
import os
from pathlib import Path
from typing import Any

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENOTDIR)


def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file in one move, so that no reader and no crash meets half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of a value as JSON."""
    write_whole(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def disk_problem(error: BaseException | None) -> str:
    """What the system says where an error is of a disk that is full or may not be written, and of which file; else nothing.

    Libraries that write outside Python keep the system's words only.
    """
    while error:
        for number in _DISK_ERRORS:
            words = os.strerror(number)
            if getattr(error, "errno", None) == number or words in str(error):
                name = getattr(error, "filename", None)
                return words.lower() + (f": {name}" if name else "")
        error = error.__cause__ or error.__context__
    return ""
