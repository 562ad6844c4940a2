"""How fast this machine computes, reads and starts: the parts that `config.parts` names, one after the other."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sew_jax.checks.check import check_config
from sew_jax.console import format_duration, say
from sew_jax.files import FOLDER_HINT, write_json, writing_to
from sew_jax.names import split_names


def benchmark(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes benchmark.json and returns it.

    Raises:
      UserError: config or data do not fit, or something that was measured failed.
    """
    check_config(config)
    begin = time.monotonic()
    parts = split_names(config.parts)
    say(f"sew_jax benchmark: {', '.join(parts)}")
    with writing_to(workdir, FOLDER_HINT):
        workdir.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"cores": os.cpu_count()}
    for part in parts:
        report |= _part(part)(config, workdir, report)
    with writing_to(workdir, FOLDER_HINT):
        write_json(workdir / "benchmark.json", report)
    say(f"done in {format_duration(time.monotonic() - begin)}: benchmark.json is in {workdir}")
    return report


def _part(name: str) -> Callable[[ConfigDict, Path, dict[str, Any]], dict[str, Any]]:
    """How a part is measured; imported here, since some keep JAX out of this process."""
    if name == "inference":
        from sew_jax.benchmarks.inference_speed import measure
    elif name == "runtimes":
        from sew_jax.benchmarks.run_times import measure
    elif name == "training":
        from sew_jax.benchmarks.training_speed import measure
    elif name == "overhead":
        from sew_jax.benchmarks.overhead import measure
    elif name == "input":
        from sew_jax.benchmarks.input import measure
    else:
        from sew_jax.benchmarks.start import measure
    return measure
