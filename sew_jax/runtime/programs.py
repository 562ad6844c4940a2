"""The program table: one XLA executable for each setting and bucket, compiled before the first step.

Executables are called directly, so a shape or setting outside the table is an error and never a silent compilation.
"""

import concurrent.futures
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax

from sew_jax.compression import Compression, Draw
from sew_jax.console import format_duration, say
from sew_jax.rates import SAMPLE_RATE

_Setting = TypeVar("_Setting", Compression, Draw)  # of a program: one, or those of an update
# LLVM's second level takes a third longer to compile, and what it compiles was no faster (demo)
_OPTIONS: dict[str, Any] = {"cpu": {"xla_backend_optimization_level": 1}}
_cache_hits: list[str] = []  # one entry for each program that came from the cache of earlier runs


def _note(event: str, **_) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _cache_hits.append(event)


jax.monitoring.register_event_listener(_note)


def compile_one(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The executable of a lowered program."""
    quick = jax.config.read("jax_disable_most_optimizations")  # as tests have it; no option may undo that
    return lowered.compile(None if quick else _OPTIONS.get(jax.default_backend()))


def compile_table(
    jitted: Any,
    keys: Iterable[tuple[_Setting, int]],
    arguments: Callable[[tuple[_Setting, int]], tuple[Any, ...]],
    what: str,
) -> dict[tuple[_Setting, int], Any]:
    """Compiles `jitted(*arguments(key), compression=setting)` for each key, longest bucket first, a line for each.

    Args:
      jitted: a jitted function with the static argument `compression`.
      keys: (setting, bucket in samples).
      arguments: from a key to the shapes of its other arguments.
      what: name of the program in the progress lines.

    Returns:
      key -> executable.
    """
    keys = sorted(set(keys), key=lambda key: (-key[1], key[0].name))
    begin, done, hits = time.monotonic(), {}, len(_cache_hits)
    say(f"compiling {len(keys)} {what} programs (settings x buckets), longest bucket first")

    def timed(key: tuple[_Setting, int]):
        start = time.monotonic()
        return key, compile_one(jitted.lower(*arguments(key), compression=key[0])), time.monotonic() - start

    # XLA compiles outside the interpreter lock, so threads help even though tracing does not overlap
    with concurrent.futures.ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool:
        for future in concurrent.futures.as_completed([pool.submit(timed, key) for key in keys]):
            key, program, seconds = future.result()
            done[key] = program
            left = (time.monotonic() - begin) / len(done) * (len(keys) - len(done))
            say(
                f"  {len(done)}/{len(keys)} {key[0]} {key[1] / SAMPLE_RATE:.1f} s: {seconds:.1f} s, "
                f"{_describe(program)}, {format_duration(left)} left"
            )
    cached = len(_cache_hits) - hits
    kept = f", {cached} from the cache of earlier runs" if cached else ""
    say(f"compiled {len(done)} programs in {format_duration(time.monotonic() - begin)}{kept}")
    return done


def _describe(program: jax.stages.Compiled) -> str:
    cost, memory = program.cost_analysis() or {}, program.memory_analysis()
    flops = f"{cost.get('flops', 0.0) / 1e9:.2f} GFLOP"
    return flops if memory is None else f"{flops}, {memory.temp_size_in_bytes / 2**20:.0f} MiB of work space"
