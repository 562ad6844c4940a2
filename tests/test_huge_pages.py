"""Beginning anew where memory comes in huge pages only for who asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sew_jax import huge_pages

ENABLED = "/sys/kernel/mm/transparent_hugepage/enabled"
ASK = "always [madvise] never"
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
        monkeypatch.setattr(os, "execve", lambda *command: calls.append(command))
        huge_pages.begin_with_huge_pages()
        return calls[0] if calls else None

    return begin


def test_the_same_command_begins_anew_where_programs_must_ask(started):
    program, command, environment = started(ASK)
    assert (program, command) == (sys.executable, ["python", "-m", "sew_jax.main", "-h"])
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    beside = started(ASK, "glibc.malloc.check=1")[2]["GLIBC_TUNABLES"]
    assert beside == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    installed = ("/bin/sew-jax", "-h"), ("python", "/bin/sew-jax", "-h")
    assert started(ASK, "", *installed)[1] == list(installed[1])


def test_nothing_begins_anew_elsewhere(started):
    assert started("[always] madvise never") is None
    assert started("always madvise [never]") is None
    assert started(ASK, "glibc.malloc.hugetlb=0") is None


@pytest.mark.parametrize(
    ("argv", "orig"),
    [
        (
            ["/x/main.py", "-h"],
            ["python", "-m", "ipykernel_launcher", "-f", "kernel.json"],
        ),  # `%run -m ...`
        (["/x/main.py", "-h"], ["python", "-m", "pdb", "-m", "sew_jax.main", "-h"]),
        (["-", "-h"], ["python", "-", "-h"]),  # what came from there is gone
        (["-c", "-h"], ["python", "-c", "import sew_jax", "-h"]),
    ],
    ids=["notebook", "debugger", "standard input", "code"],
)
def test_what_runs_it_goes_on(argv, orig, started):
    assert started(ASK, argv=argv, orig=orig) is None


def test_it_begins_anew_once(started, monkeypatch):
    """Also where glibc has kept the variable from it, as from programs with another's rights."""
    monkeypatch.setenv("SEW_JAX_BEGUN", started(ASK)[2]["SEW_JAX_BEGUN"])
    assert started(ASK) is None
    assert "SEW_JAX_BEGUN" not in os.environ  # of its children
    assert started(ASK)


def test_no_linux_and_no_right_to_begin_programs(monkeypatch, tmp_path):
    monkeypatch.setattr(huge_pages, "_ENABLED", tmp_path / "absent")
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.setattr(sys, "orig_argv", ["python", sys.argv[0]])

    def refuse(*command):
        raise PermissionError

    monkeypatch.setattr(os, "execve", refuse)
    huge_pages.begin_with_huge_pages()
    assert os.environ["GLIBC_TUNABLES"] == ""
    (tmp_path / "absent").write_text(ASK)
    huge_pages.begin_with_huge_pages()
    assert os.environ["GLIBC_TUNABLES"] == ""


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
