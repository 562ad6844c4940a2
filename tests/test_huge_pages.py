"""Beginning anew where memory comes in huge pages only for who asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sew_jax import huge_pages

ENABLED = "/sys/kernel/mm/transparent_hugepage/enabled"
SCRIPT = """
import sys
from pathlib import Path
from sew_jax.huge_pages import begin_with_huge_pages
begin_with_huge_pages()
print(b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in Path("/proc/self/environ").read_bytes().split(bytes(1)), sys.argv[1:])
"""


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Called with the kernel's word, an environment and a command: what is begun instead, or None."""

    def begin(kernel: str, tunables: str = "", argv=("/x/main.py", "-h"), orig=("python", "-m", "sew_jax.main", "-h")):
        calls: list = []
        (tmp_path / "enabled").write_text(kernel)
        monkeypatch.setattr(huge_pages, "_ENABLED", tmp_path / "enabled")
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
        monkeypatch.setattr(sys, "argv", list(argv))
        monkeypatch.setattr(sys, "orig_argv", list(orig))
        monkeypatch.setattr(os, "execv", lambda *command: calls.append((*command, os.environ["GLIBC_TUNABLES"])))
        huge_pages.begin_with_huge_pages()
        return calls[0] if calls else None

    return begin


def test_the_same_command_begins_anew_where_programs_must_ask(started):
    command = ["python", "-m", "sew_jax.main", "-h"]
    assert started("always [madvise] never") == (sys.executable, command, "glibc.malloc.hugetlb=1")
    assert started("always [madvise] never", "glibc.malloc.check=1")[2] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    installed = ("/bin/sew-jax", "-h"), ("python", "/bin/sew-jax", "-h")
    assert started("always [madvise] never", "", *installed)[1] == list(installed[1])


def test_nothing_begins_anew_elsewhere(started):
    assert started("[always] madvise never") is None
    assert started("always madvise [never]") is None
    assert started("always [madvise] never", "glibc.malloc.hugetlb=0") is None
    kernel = ("python", "-m", "ipykernel_launcher", "-f", "kernel.json")  # `%run -m sew_jax.main -h`
    assert started("always [madvise] never", orig=kernel) is None


def test_no_linux_and_no_right_to_begin_programs(monkeypatch, tmp_path):
    monkeypatch.setattr(huge_pages, "_ENABLED", tmp_path / "absent")
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.setattr(sys, "orig_argv", ["python", sys.argv[0]])

    def refuse(*command):
        raise PermissionError

    monkeypatch.setattr(os, "execv", refuse)
    huge_pages.begin_with_huge_pages()
    assert os.environ["GLIBC_TUNABLES"] == ""
    (tmp_path / "absent").write_text("always [madvise] never")
    huge_pages.begin_with_huge_pages()


@pytest.mark.skipif(
    not os.path.exists(ENABLED) or "[madvise]" not in Path(ENABLED).read_text(), reason="this kernel need not be asked"
)
def test_a_real_process(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = str(Path(huge_pages.__file__).parents[1])
    command = [sys.executable, str(tmp_path / "script.py"), "a b", ""]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == "True ['a b', '']\n"
