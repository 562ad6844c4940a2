"""The part `runtimes`: inference at each setting by each run time in each precision, beside transformers, in turn."""

import dataclasses
import functools
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sew_jax.benchmarks import peer
from sew_jax.benchmarks.contest import Bench, Child, Run, take_turns
from sew_jax.benchmarks.timing import model_for, show, spread
from sew_jax.compression import Compression, parse_table
from sew_jax.console import say
from sew_jax.engines.run_times import PRECISIONS, Engine, missing_packages, open_session
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, precision_fields
from sew_jax.names import split_names
from sew_jax.rates import SAMPLE_RATE
from sew_jax.tables import align_columns


def measure(config: ConfigDict, workdir: Path, report: dict[str, Any]) -> dict[str, Any]:
    """A table for each size of `config.batch`; a run time that is not installed is left out.

    Raises:
      UserError: a process has died.
    """
    del workdir, report
    tables = [_measure(config, batch) for batch in map(int, split_names(config.batch))]
    return {"runtimes": tables}


def _measure(config: ConfigDict, batch: int) -> dict[str, Any]:
    table, samples = parse_table(config.settings), round(config.seconds * SAMPLE_RATE)
    backbone, _ = model_for(config.size, "float32", table)
    theirs = peer.peer_config(backbone, CTCHeadConfig()) if config.peers else None
    title = f"run times, {config.size}, {batch} x {config.seconds:g} s"
    say(f"  {title}: building")
    with ExitStack() as stack:
        children = []
        for dtype in [name for name in split_names(config.dtypes) if name in ("float32", "bfloat16") and theirs]:
            build = functools.partial(peer.inference, theirs, dtype, batch, samples, "cpu")
            children.append(stack.enter_context(Child(f"transformers {dtype}", build)))
        for engine in _engines(config):
            children.append(stack.enter_context(Child(str(engine), _builder(engine, backbone, table, batch, samples))))
            say(f"    {engine} is ready")
        runs = take_turns(children, config.rounds)
    rows = _rows(runs, table[0].name)
    say(f"  {title}:\n{_format(rows, table[0].name)}")
    return {"title": title, "batch": batch, "rounds": config.rounds, "rows": rows}


def _engines(config: ConfigDict) -> list[Engine]:
    engines = []
    for runtime in split_names(config.runtimes):
        for engine in (Engine(runtime, name) for name in split_names(config.dtypes) if name in PRECISIONS[runtime]):
            if missing := missing_packages(*engine):
                say(f"    ! {engine} is left out: {' and '.join(missing)} not installed")
            else:
                engines.append(engine)
    return engines


def _builder(
    engine: Engine, backbone: BackboneConfig, table: list[Compression], batch: int, samples: int
) -> Callable[[], Bench]:
    if engine.runtime != "jax":
        return functools.partial(inference, engine, backbone, table, batch, samples)
    backbone = dataclasses.replace(backbone, **precision_fields(engine.dtype))
    return functools.partial(_by_jax, backbone, table, batch, samples)


def _by_jax(backbone: BackboneConfig, table: list[Compression], batch: int, samples: int) -> Bench:
    """For a child process, on the CPU as the others."""
    import jax

    from sew_jax.benchmarks import ours

    jax.config.update("jax_platforms", "cpu")
    return ours.inference(backbone, table, batch, samples, 1.0)


def inference(engine: Engine, backbone: BackboneConfig, table: list[Compression], batch: int, samples: int) -> Bench:
    """Waveforms (batch, samples) to log-probabilities, once for each setting; for a child process."""
    import jax

    from sew_jax.engines.files import write_graphs
    from sew_jax.models.ctc import CTCModel

    jax.config.update("jax_platforms", "cpu")
    model = CTCModel(backbone, CTCHeadConfig())
    params = jax.jit(model.initialize)(jax.random.key(0))["params"]
    with tempfile.TemporaryDirectory(prefix="sew_jax_") as folder:
        paths = write_graphs(Path(folder), model, params, table, engine.weights, {})
        sessions = {setting.name: open_session(path, engine) for setting, path in paths.items()}
    wave_BxN = np.random.default_rng(0).normal(size=(batch, samples)).astype(np.float32)
    length_B = np.full(batch, samples)
    cases: dict[str, Callable[[], object]] = {
        name: functools.partial(session, wave_BxN, length_B) for name, session in sessions.items()
    }
    return Bench(cases, {name: {} for name in cases}, {"problems": []})


def _rows(runs: dict[tuple[str, str], list[Run]], first: str) -> list[dict[str, Any]]:
    """Each case, with its time to the first case's and to that of the quickest at the first setting, in each round."""
    seconds = {key: [run.seconds for run in own] for key, own in runs.items()}
    reference = next(iter(seconds.values()))
    at_first = [own for (_, case), own in seconds.items() if case == first]
    quickest = min(at_first, key=statistics.median)
    return [
        {
            "engine": engine,
            "case": case,
            "seconds": spread(own),
            "to_first": spread([a / b for a, b in zip(own, reference, strict=True)]),
            "to_quickest": spread([a / b for a, b in zip(own, quickest, strict=True)]),
            "peak_mb": max(run.peak_bytes for run in runs[engine, case]) / 2**20,
        }
        for (engine, case), own in seconds.items()
    ]


def _format(rows: list[dict[str, Any]], first: str) -> str:
    lines = [
        (
            row["engine"],
            row["case"],
            show(row["seconds"]),
            show(row["to_first"]),
            show(row["to_quickest"]),
            f"{row['peak_mb']:.0f}",
        )
        for row in rows
    ]
    reference = f"to {rows[0]['engine']} {rows[0]['case']}"
    return align_columns(("by", "case", "seconds (min-max)", reference, f"to the quickest {first}", "peak MB"), lines)
