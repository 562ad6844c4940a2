"""How fast this machine computes, reads and starts: the parts that `config.parts` names, one after the other."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sew_jax.compression import parse_table
from sew_jax.console import format_duration, say
from sew_jax.data.listing import split_names
from sew_jax.errors import UserError
from sew_jax.files import WORKDIR_HINT, write_json, writing_to
from sew_jax.models.sizes import published

_PARTS = ("inference", "training", "overhead", "input", "start")


def benchmark(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes benchmark.json and returns it.

    Raises:
      UserError: config or data do not fit, or something that was measured failed.
    """
    begin = time.monotonic()
    parts = split_names(config.parts)
    _check(config, parts)
    say(f"sew_jax benchmark: {', '.join(parts)}")
    with writing_to(workdir, WORKDIR_HINT):
        workdir.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"cores": os.cpu_count()}
    for part in parts:
        report |= _part(part)(config, workdir, report)
    write_json(workdir / "benchmark.json", report)
    say(f"done in {format_duration(time.monotonic() - begin)}: benchmark.json is in {workdir}")
    return report


def _part(name: str) -> Callable[[ConfigDict, Path, dict[str, Any]], dict[str, Any]]:
    """How a part is measured; imported here, since some keep JAX out of this process."""
    if name == "inference":
        from sew_jax.benchmarks.inference_speed import measure
    elif name == "training":
        from sew_jax.benchmarks.training_speed import measure
    elif name == "overhead":
        from sew_jax.benchmarks.overhead import measure
    elif name == "input":
        from sew_jax.benchmarks.input import measure
    else:
        from sew_jax.benchmarks.start import measure
    return measure


def _check(config: ConfigDict, parts: list[str]) -> None:
    """Before the first part, since a part may take long."""
    if unknown := [part for part in parts if part not in _PARTS]:
        raise UserError(f"parts: {unknown[0]!r} is unknown; choose from {', '.join(_PARTS)}")
    backbone, _ = published(config.size)
    for key in ("settings", "train_settings"):
        if not config[key].strip():
            raise UserError(f"{key}: no names given; write for example --config.{key}=s1q1k1,s2q1k1")
        for setting in parse_table(config[key]):
            setting.layer_pools(backbone.layers)
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype: {config.dtype!r} is unknown; choose float32 or bfloat16")
    if not all(name.isdecimal() and int(name) for name in split_names(config.batch) or [""]):
        raise UserError(f"batch: {config.batch!r} must be sizes of at least 1, such as --config.batch=1,4")
    for key in ("rounds", "train_batch"):
        if config[key] < 1:
            raise UserError(f"{key}: {config[key]} must be at least 1")
    for key, least in (("seconds", 0.1), ("train_seconds", 0.3), ("step_seconds", 0.001)):  # 0.3 s: a masked span
        if config[key] < least:
            raise UserError(f"{key}: {config[key]} must be at least {least}")
