"""Memory in pages of 2 MiB.

XLA's CPU programs take their work space from the system at each call and give it back, and each 4 KiB of it that is
touched is a fault of some microseconds: a fifth of a small model's update, a twentieth of base's inference.
"""

import os
import sys
from pathlib import Path

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"
_BEGUN = "SEW_JAX_BEGUN"  # number of a process that has begun anew


def begin_with_huge_pages() -> None:
    """Begins this program anew, under the same process number, where the kernel gives huge pages to who asks for them.

    glibc asks where this variable says so, which it reads before Python begins. One that the user has set stays.
    """
    begun = os.environ.pop(_BEGUN, "") == str(os.getpid())  # glibc may have kept the variable from us
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if begun or _TUNABLE in tunables or not (_is_main() and _must_ask()):
        return
    changed = {"GLIBC_TUNABLES": ":".join(filter(None, (tunables, f"{_TUNABLE}=1"))), _BEGUN: str(os.getpid())}
    try:
        os.execve(sys.executable, sys.orig_argv, os.environ | changed)
    except OSError:  # it is only slower
        return


def _is_main() -> bool:
    """Whether Python was asked for this program first, and not for a debugger or a notebook that runs it."""
    words = [word for word in sys.orig_argv[1:] if not word.startswith("-")]
    return bool(sys.executable and words and words[0] in ("sew_jax.main", sys.argv[0]))


def _must_ask() -> bool:
    try:
        return "[madvise]" in _ENABLED.read_text()
    except OSError:  # no Linux, or one that does not say
        return False
