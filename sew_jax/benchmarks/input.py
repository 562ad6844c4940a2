"""How fast input is: reading against plain decoding, memory over many batches, plans of millions."""

import itertools
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
from ml_collections import ConfigDict

from sew_jax.console import say
from sew_jax.data import records
from sew_jax.data.batch_plan import BatchPlan, choose_buckets, rows_per_bucket
from sew_jax.data.corpora import list_root
from sew_jax.data.pipeline import Batches, read_ahead
from sew_jax.data.prepare import prepare
from sew_jax.data.sources import Source, open_source, root_path
from sew_jax.rates import SAMPLE_RATE


def measure(config: ConfigDict, workdir: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The part `input`; `config.data` is a folder or manifest of audio files. Needs Linux.

    Raises:
      UserError: data and config do not fit.
    """
    del report
    plan = _measure_plan(workdir / "many", config.utterances)
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


def _measure_plan(folder: Path, utterances: int) -> dict[str, Any]:
    """Opening and planning a prepared dataset of random lengths, in a process whose memory is nothing else's."""
    _in_process(_write_table, folder, utterances)
    return _in_process(_plan_table, folder)


def _in_process(function: Callable[..., Any], *arguments) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _write_table(folder: Path, utterances: int) -> None:
    """The table of a prepared dataset; its records are not needed."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    samples = (random.gamma(6.0, 2.0, utterances).clip(1, 35) * SAMPLE_RATE).astype(np.int64)
    text = "WHAT IS SAID IN AN UTTERANCE OF A DOZEN SECONDS IS ABOUT SO LONG AS THIS SENTENCE " * 2
    columns = {
        "id": [f"{i // 10_000}-{i // 100 % 100}-{i:08d}" for i in range(utterances)],
        "samples": samples,
        "text": pa.repeat(pa.scalar(text, pa.large_string()), utterances),
        "speaker": [str(i // 10_000) for i in range(utterances)],
    }
    (folder / records.index_name("train")).write_bytes(
        records.index_bytes(pa.table(columns, schema=records.INDEX_SCHEMA))
    )
    (folder / records.INFO).write_text("{}")  # makes it a dataset


def _plan_table(folder: Path) -> dict[str, Any]:
    imports, begin = _peak_mb(), time.perf_counter()
    source, _ = open_source(str(folder), "train", min_samples=2 * SAMPLE_RATE, need_text=False, max_bad=0)
    plan = _plan(source, crop_seconds=15.6, batch_seconds=5600.0)
    source.fingerprint()
    seconds, took = time.perf_counter() - begin, []
    for i in np.random.default_rng(0).integers(10**9, size=100):
        begin = time.perf_counter()
        plan[int(i)]
        took.append(time.perf_counter() - begin)
    return {
        "utterances": len(source),
        "seconds": seconds,
        "imports_mb": imports,
        "peak_mb": _peak_mb(),
        "median_batch": float(np.median(took)),
        "slowest_batch": max(took),
    }


def _plan(source: Source, crop_seconds: float, batch_seconds: float) -> BatchPlan:
    samples = np.minimum(source.samples, round(crop_seconds * SAMPLE_RATE))
    rows = rows_per_bucket(choose_buckets(samples, 4), round(batch_seconds * SAMPLE_RATE), 1)
    return BatchPlan(samples, rows, seed=0, shuffle=True)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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
            return _measure_plain(paths, config.read_seconds, way["workers"])
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


def _measure_plain(paths: list[str], seconds: float, processes: int) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(_decode, [(paths, 0.1)] * processes, chunksize=1)  # starts them
        hours, spent, cpu = zip(*pool.starmap(_decode, [(paths, seconds)] * processes, chunksize=1), strict=True)
    return {"hours_per_s": sum(hours) / max(spent), "hours_per_core_s": sum(hours) / sum(cpu)}


def _decode(paths: list[str], seconds: float) -> tuple[float, float, float]:
    """(hours of audio decoded, seconds, seconds of CPU time)."""
    audio_seconds, begin, cpu = 0.0, time.perf_counter(), time.process_time()
    for path in itertools.cycle(paths):
        wave, rate = soundfile.read(path, dtype="float32")
        audio_seconds += len(wave) / rate
        if time.perf_counter() - begin > seconds:
            break
    return audio_seconds / 3600, time.perf_counter() - begin, time.process_time() - cpu


def open_batches(data: str, split: str, batch_seconds: float, stop: int = 10**9) -> Batches:
    """Batches of so much audio, up to number `stop`."""
    source, _ = open_source(data, split, min_samples=1, need_text=False, max_bad=10**9)
    plan = _plan(source, crop_seconds=60.0, batch_seconds=batch_seconds)  # nothing is cropped: all is decoded
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
    """CPU time of this process and its children so far (Linux)."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in _processes()]
    return sum(int(user) + int(system) for *_, user, system in (f[:13] for f in fields)) / os.sysconf("SC_CLK_TCK")


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
