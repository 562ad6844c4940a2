"""The command line many times: a process a command, forked where the imports that all need are done.

What is imported before is no part of sew_jax but its checks, and no JAX, which does not outlive a fork. `sew_jax.main`
itself is loaded anew in each process, as `python -m sew_jax.main` does.
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Commands:
    """A context: `run` gives what a command leaves. Its commands come one after the other."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_):
        self._process.communicate()

    def run(self, *arguments, folder):
        """What `subprocess.run` returns of `python -m sew_jax.main ARGUMENTS`; its output passes through `folder`."""
        outputs = [folder / "stdout", folder / "stderr"]
        print(json.dumps([list(arguments), *map(str, outputs)]), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, *(path.read_text("utf-8") for path in outputs))


def serve():
    """The server's side: a line of JSON for a command, its exit status in return."""
    import ml_collections.config_flags  # noqa: F401

    import sew_jax.checks.check  # noqa: F401

    assert "jax" not in sys.modules
    for line in sys.stdin:
        arguments, *outputs = json.loads(line)
        child = os.fork()
        if not child:
            _become(arguments, outputs)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(arguments, outputs):
    """The child's side: ends as the command does."""
    for number, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv[1:] = arguments
    runpy.run_module("sew_jax.main", run_name="__main__", alter_sys=True)
