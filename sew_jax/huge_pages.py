"""Memory in pages of 2 MiB.

XLA's CPU programs take their work space from the system at each call and give it back, and each 4 KiB of it that is
touched is a fault of some microseconds: a fifth of a small model's update, a twentieth of base's inference.
"""

import os
import sys
from pathlib import Path

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"


def begin_with_huge_pages() -> None:
    """Begins this program anew, under the same process number, where the kernel gives huge pages to who asks for them.

    glibc asks where this variable says so, which it reads before Python begins. One that the user has set stays.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    ours = {"sew_jax.main", sys.argv[0]} & set(sys.orig_argv)  # and no notebook's that runs the module
    if not ours or _TUNABLE in tunables or not _must_ask():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))
    try:
        os.execv(sys.executable, sys.orig_argv)
    except OSError:  # it is only slower
        return


def _must_ask() -> bool:
    try:
        return "[madvise]" in _ENABLED.read_text()
    except OSError:  # no Linux, or one that does not say
        return False
