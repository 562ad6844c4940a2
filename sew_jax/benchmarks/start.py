"""How long a run takes to its first update: with an empty cache of compiled programs, and again."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sew_jax.console import say
from sew_jax.data.demo_corpus import ensure_demo_corpus
from sew_jax.errors import UserError

_COMPILED = re.compile(r"compiled (?P<programs>\d+) programs in .*?(, (?P<cached>\d+) from the cache|$)")


def measure(config: ConfigDict, workdir: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The part `start`."""
    del config, report
    ensure_demo_corpus()  # before, so that what is measured is compiling
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        return {"start": measure_start(Path(folder))}


def measure_start(workdir: Path, *more: str) -> dict[str, Any]:
    """Starts the demo twice with one new cache, and ends it after its first update; `more` are further flags.

    Returns:
      cold and warm: seconds to the first update, seconds of compiling, programs, and how many came from the cache;
      and how many times quicker the warm start is.

    Raises:
      UserError: the demo fails.
    """
    cache = workdir / "programs"
    report: dict[str, float] = {}
    for kind in ("cold", "warm"):
        report |= {f"{kind}_{key}": value for key, value in _first_update(workdir / kind, cache, more).items()}
        say(
            f"  {kind} start of the demo: first update after {report[f'{kind}_seconds']:.1f} s, of which "
            f"{report[f'{kind}_compile_seconds']:.1f} s compiling"
        )
    report["times_quicker"] = report["cold_seconds"] / report["warm_seconds"]
    say(f"  the warm start is {report['times_quicker']:.1f} times quicker")
    return report


def _first_update(workdir: Path, cache: Path, more: Sequence[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "sew_jax.main", "--config=configs/demo.py", "--config.log_every=1"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    begin, report, lines = time.monotonic(), {}, []
    with subprocess.Popen(
        [*command, *more, f"--workdir={workdir}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("compiling"):
                compiling = time.monotonic()
            elif found := _COMPILED.match(line.strip()):
                report["compile_seconds"] = time.monotonic() - compiling
                report["programs"], report["cached"] = int(found["programs"]), int(found["cached"] or 0)
            elif line.startswith("step 1/"):
                report["seconds"] = time.monotonic() - begin
                process.kill()
                return report
    raise UserError(f"benchmark: the demo did not reach its first update: {' '.join(lines[-3:])}")
