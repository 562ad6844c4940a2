"""The program table: one XLA executable for each setting and bucket, compiled by threads.

Executables are called directly, so a shape or setting outside the table is an error and never a silent compilation.
"""

import concurrent.futures
import contextlib
import contextvars
import grp
import os
import pwd
import stat
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.experimental.compilation_cache import compilation_cache

from sew_jax.buckets import is_remote
from sew_jax.compression import Compression, Draw
from sew_jax.console import format_duration, say
from sew_jax.files import WORKDIR_HINT, cache_folder, writing_to
from sew_jax.models.platforms import compiled_for_own_devices
from sew_jax.rates import SAMPLE_RATE
from sew_jax.runtime.agreement import at_all_processes
from sew_jax.runtime.distributed import all_processes
from sew_jax.storage import patient

_Setting = TypeVar("_Setting", Compression, Draw)  # of a program: one, or those of an update
_OPTIONS: dict[str, Any] = {
    # LLVM's second level takes a third longer to compile, and what it compiles was no faster (demo)
    "cpu": {"xla_backend_optimization_level": 1},
    # XLA would compile and time its own kernels beside cuBLAS's for each product: minutes, and base was no faster
    "gpu": {"xla_gpu_enable_triton_gemm": False},
}
_ASK_S = 5.0  # between two looks at a program that is waited for
_cached = threading.local()  # `count`: programs that a thread has got from the cache of earlier runs


def _note(event: str, **_) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _cached.count = getattr(_cached, "count", 0) + 1


jax.monitoring.register_event_listener(_note)


def share_programs(workdir: Path) -> None:
    """Keeps the programs of a job of several processes in its workdir; where JAX's own variable names no other place.

    JAX has the first process alone write what was compiled, and all read it, under keys that are the same for all: in
    a cache of each host's own the others would find nothing. Programs are machine code, so a folder that other users
    could write to is not used, and neither is a bucket, which does not tell who may.
    """
    usual = jax.config.jax_compilation_cache_dir == str(cache_folder() / "xla")  # type: ignore[attr-defined]
    if jax.process_count() == 1 or not all_processes(usual):
        return
    if is_remote(workdir):
        say(
            "  ! compiled programs are kept for process 0 alone, as a bucket does not tell who may write to it; "
            "JAX_COMPILATION_CACHE_DIR names a place that all processes share"
        )
        return
    folder = workdir / "programs"

    def make() -> None:
        if jax.process_index() == 0:
            with writing_to(workdir, WORKDIR_HINT):
                patient(folder.mkdir)(mode=0o700, exist_ok=True)

    at_all_processes(make)
    if all_processes(at_all_processes(lambda: belongs_to_us_alone(folder))):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()  # else the folder of the first program that was compiled stays
    else:
        say(
            f"  ! {folder} or a folder above it can be written by other users: compiled programs are kept for process "
            "0 alone; chmod go-w it, or name a place that all processes share as JAX_COMPILATION_CACHE_DIR"
        )


@patient
def belongs_to_us_alone(folder: Path) -> bool:
    """Whether no other user but root can write to a folder, or put another one in its place."""
    folder = folder.resolve()
    return all(_safe(path.stat(), path == folder) for path in (folder, *folder.parents))


def _safe(status: os.stat_result, leaf: bool) -> bool:
    others = stat.S_IWOTH if _is_our_own(status.st_gid) else stat.S_IWOTH | stat.S_IWGRP
    guarded = not status.st_mode & others or (not leaf and bool(status.st_mode & stat.S_ISVTX))
    return guarded and status.st_uid in ({os.geteuid()} if leaf else {os.geteuid(), 0})


def _is_our_own(group: int) -> bool:
    """Whether a group is the user's alone, as pam_umask has it: the user's first, and of the user's name."""
    try:
        user = pwd.getpwuid(os.geteuid())
        return group == user.pw_gid and grp.getgrgid(group).gr_name == user.pw_name
    except KeyError:  # in containers users and groups may have no names
        return False


def compile_one(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The executable of a lowered program."""
    quick = jax.config.read("jax_disable_most_optimizations")  # as tests have it; no option may undo that
    return lowered.compile(None if quick else _OPTIONS.get(jax.default_backend()))


class Compiling:
    """The programs `jitted(*arguments(key), compression=setting)` of a table, which threads have begun to compile.

    XLA compiles outside the interpreter lock, so threads help even though tracing does not overlap. Each that is done
    is a line.

    Args:
      jitted: a jitted function with the static argument `compression`.
      keys: (setting, bucket in samples), in the order in which they are begun.
      arguments: from a key to the shapes of its other arguments.
      what: name of the programs in the progress lines.
      after: a table whose programs are begun before these, by the same threads.
    """

    def __init__(
        self,
        jitted: Any,
        keys: Iterable[tuple[_Setting, int]],
        arguments: Callable[[tuple[_Setting, int]], tuple[Any, ...]],
        what: str,
        after: "Compiling | None" = None,
    ):
        keys = list(dict.fromkeys(keys))
        self._begin, self._hits, self._done, self._lock = time.monotonic(), 0, 0, threading.Lock()
        say(f"compiling {len(keys)} {what} programs (settings x buckets)")

        def timed(key: tuple[_Setting, int]):
            start, before = time.monotonic(), getattr(_cached, "count", 0)
            with compiled_for_own_devices():
                program = compile_one(jitted.lower(*arguments(key), compression=key[0]))
            self._say_done(key, program, time.monotonic() - start, getattr(_cached, "count", 0) - before)
            return program

        threads = max(1, min(8, os.cpu_count() or 1))
        self._pool = after._pool if after else concurrent.futures.ThreadPoolExecutor(threads)
        # lines go where those of this thread go
        self._futures = {key: self._pool.submit(contextvars.copy_context().run, timed, key) for key in keys}

    def __len__(self) -> int:
        """Programs of the table."""
        return len(self._futures)

    def program(self, key: tuple[_Setting, int], progress: Callable[[], None] = lambda: None) -> Any:
        """A key's executable; calls `progress` now and then where it is not ready yet."""
        future = self._futures[key]
        while not concurrent.futures.wait([future], _ASK_S).done:
            progress()
        return future.result()

    def finish(self) -> dict[tuple[Any, int], Any]:
        """Waits for all: key -> executable."""
        return {key: self.program(key) for key in self._futures}

    def close(self) -> None:
        """Waits for those that are being compiled, which nothing can interrupt; no other is begun."""
        self._pool.shutdown(cancel_futures=True)

    def _say_done(self, key: tuple[_Setting, int], program: jax.stages.Compiled, seconds: float, hits: int) -> None:
        with self._lock:
            self._done, self._hits = self._done + 1, self._hits + hits
            done, count, spent = self._done, len(self._futures), time.monotonic() - self._begin
            left = f", {format_duration(spent / done * (count - done))} left" if done < count else ""
            say(f"  {done}/{count} {key[0]} {key[1] / SAMPLE_RATE:.1f} s: {seconds:.1f} s, {_describe(program)}{left}")
            if done == count:
                kept = f", {self._hits} from the cache of earlier runs" if self._hits else ""
                say(f"compiled {done} programs in {format_duration(spent)}{kept}")


def compile_table(
    jitted: Any,
    keys: Iterable[tuple[_Setting, int]],
    arguments: Callable[[tuple[_Setting, int]], tuple[Any, ...]],
    what: str,
) -> dict[tuple[_Setting, int], Any]:
    """Compiles a table of programs, see `Compiling`, the longest bucket first: key -> executable."""
    keys = sorted(set(keys), key=lambda key: (-key[1], key[0].name))
    with contextlib.closing(Compiling(jitted, keys, arguments, what)) as compiling:
        return compiling.finish()


def _describe(program: jax.stages.Compiled) -> str:
    cost, memory = program.cost_analysis() or {}, program.memory_analysis()
    flops = f"{cost.get('flops', 0.0) / 1e9:.2f} GFLOP"
    return flops if memory is None else f"{flops}, {memory.temp_size_in_bytes / 2**20:.0f} MiB of work space"
