"""How fast input is: reading against plain decoding, memory over many batches, plans of millions."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sew_jax.benchmarks.plain_decoding import measure_plain
from sew_jax.benchmarks.planning import measure_plan, plan_batches
from sew_jax.console import say
from sew_jax.data.corpora import list_root
from sew_jax.data.pipeline import Batches, read_ahead
from sew_jax.data.prepare import prepare
from sew_jax.data.sources import open_source, root_path
from sew_jax.rates import SAMPLE_RATE


def measure(config: ConfigDict, workdir: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The part `input`; `config.data` is a folder or manifest of audio files. Needs Linux.

    Raises:
      UserError: data and config do not fit.
    """
    del report
    plan = measure_plan(workdir / "many", config.utterances)
    say(
        f"  plan of {plan['utterances']} utterances: ready in {plan['seconds']:.2f} s; the process peaks at "
        f"{plan['peak_mb']:.0f} MB, {plan['imports_mb']:.0f} MB of it before; the slowest of 100 batches took "
        f"{1000 * plan['slowest_batch']:.1f} ms"
    )
    config.prepare.data, config.prepare.split = config.data, config.split
    prepare(config.prepare, workdir / "prepared")
    prepared = str(workdir / "prepared")
    return {
        "plan": plan,
        "reading": _measure_reading(config, prepared),
        "memory": _measure_memory(config, prepared),
    }


def _measure_reading(config: ConfigDict, prepared: str) -> list[dict[str, Any]]:
    """Hours of audio a second: files decoded by soundfile, one process and two; then batches of files and of records.

    All ways take turns, `config.rounds` times, so that a machine's better and worse minutes fall on each.
    """
    paths = [entry.path for entry in list_root(root_path(config.data), config.split) if not entry.problem]
    ways: list[dict[str, Any]] = [{"data": "soundfile", "workers": processes, "threads": 1} for processes in (1, 2)]
    for data in ("files", "records"):
        for workers, threads in ((0, 1), (0, 2), (1, 1), (2, 1)):
            ways.append({"data": data, "workers": workers, "threads": threads})

    def measure(way: dict[str, Any]) -> dict[str, float]:
        if way["data"] == "soundfile":
            return measure_plain(paths, config.read_seconds, way["workers"])
        return _measure_batches(
            config, config.data if way["data"] == "files" else prepared, way["workers"], way["threads"]
        )

    say(
        f"  reading {len(paths)} files, {len(ways)} ways in turn, {config.rounds} rounds of {config.read_seconds:.0f} "
        "s each; hours of audio a second, and times what soundfile.read does in as many processes (median of the "
        "rounds, least to most)"
    )
    rounds = []
    for count in range(1, config.rounds + 1):
        rounds.append([measure(way) for way in ways])
        say(f"    round {count}/{config.rounds}")
    for number, way in enumerate(ways):
        plain = max(way["workers"], way["threads"]) - 1  # two processes share what one has for itself
        for key in ("hours_per_s", "hours_per_core_s"):
            ratios = [results[number][key] / results[plain][key] for results in rounds]
            way[key] = float(np.median([results[number][key] for results in rounds]))
            way[f"relative_{key}"] = [min(ratios), float(np.median(ratios)), max(ratios)]
        readers = "processes" if way["data"] == "soundfile" else f"workers, {way['threads']} threads"
        time_ratio, core_ratio = (
            f"{median:.2f} ({least:.2f}-{most:.2f})"
            for least, median, most in (way["relative_hours_per_s"], way["relative_hours_per_core_s"])
        )
        say(
            f"    {way['data']:9} {way['workers']} {readers:19} {way['hours_per_s']:.3f} h/s, {time_ratio}; "
            f"for a second of CPU time {core_ratio}"
        )
    return ways


def open_batches(data: str, split: str, batch_seconds: float, stop: int = 10**9) -> Batches:
    """Batches of so much audio, up to number `stop`."""
    source, _ = open_source(data, split, min_samples=1, need_text=False, max_bad=10**9)
    plan = plan_batches(source, crop_seconds=60.0, batch_seconds=batch_seconds)  # nothing is cropped: all is decoded
    return Batches(source, plan, seed=0, vocabulary=None, start=0, stop=stop)


def _measure_batches(config: ConfigDict, data: str, workers: int, threads: int) -> dict[str, float]:
    samples, batches = 0, open_batches(data, config.split, config.batch_seconds)
    with read_ahead(batches, workers=workers, threads=threads) as stream:
        for _ in range(8 * max(workers, 1)):  # what starting takes is not reading
            next(stream)
        begin, cpu = time.perf_counter(), _cpu_seconds()
        while time.perf_counter() - begin < config.read_seconds:
            samples += int(next(stream).arrays["length"].sum())
        spent, cpu = time.perf_counter() - begin, _cpu_seconds() - cpu
    return {"hours_per_s": samples / SAMPLE_RATE / 3600 / spent, "hours_per_core_s": samples / SAMPLE_RATE / 3600 / cpu}


def _cpu_seconds() -> float:
    """CPU time of this process and its children so far (Linux), also of those that have ended meanwhile."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in _processes()]
    times = os.times()
    ended = times.children_user + times.children_system
    return ended + sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def _processes() -> list[int]:
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]


def _measure_memory(config: ConfigDict, data: str) -> list[dict[str, Any]]:
    """Memory of all processes while many batches are read by two workers."""
    marks = sorted({config.batches // 100, config.batches // 10, config.batches // 2, config.batches} - {0})
    rows, batches = [], open_batches(data, config.split, config.batch_seconds, config.batches)
    with read_ahead(batches, workers=2, threads=1) as stream:
        for count, _ in enumerate(stream, 1):
            if count in marks:
                rows.append({"batches": count, "mb": _resident_mb()})
                say(f"  memory after {count} batches, this process and 2 workers: {rows[-1]['mb']:.0f} MB")
    return rows


def _resident_mb() -> float:
    """Memory of this process and its children, what they share counted once (Linux)."""
    total = 0
    for pid in _processes():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
