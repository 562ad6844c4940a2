"""Plans of millions of utterances. Free of JAX and Grain, since the memory of its processes is measured."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sew_jax.data import records
from sew_jax.data.batch_plan import BatchPlan, choose_buckets, rows_per_bucket
from sew_jax.data.sources import Source, open_source
from sew_jax.rates import SAMPLE_RATE


def measure_plan(folder: Path, utterances: int) -> dict[str, Any]:
    """Opening and planning a prepared dataset of random lengths, in a process whose memory is nothing else's.

    Needs Linux.
    """
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
        "label": pa.nulls(utterances, pa.large_string()),
        "segments": pa.nulls(utterances, pa.large_string()),
        "speaker": [str(i // 10_000) for i in range(utterances)],
    }
    (folder / records.index_name("train")).write_bytes(
        records.index_bytes(pa.table(columns, schema=records.INDEX_SCHEMA))
    )
    (folder / records.INFO).write_text("{}")  # makes it a dataset


def _plan_table(folder: Path) -> dict[str, Any]:
    imports, begin = _peak_mb(), time.perf_counter()
    source, _ = open_source(str(folder), "train", min_samples=2 * SAMPLE_RATE, need_text=False, max_bad=0)
    plan = plan_batches(source, crop_seconds=15.6, batch_seconds=5600.0)
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


def plan_batches(source: Source, crop_seconds: float, batch_seconds: float) -> BatchPlan:
    samples = np.minimum(source.samples, round(crop_seconds * SAMPLE_RATE))
    rows = rows_per_bucket(choose_buckets(samples, 4), round(batch_seconds * SAMPLE_RATE), 1)
    return BatchPlan(samples, rows, seed=0, shuffle=True)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
