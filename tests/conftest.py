"""The suite runs on CPU with 8 virtual devices, whatever the machine has."""

import atexit
import ctypes
import gc
import logging
import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

from sew_jax.models.platforms import compiled_for

# One cache of compiled programs for the whole session: workers and child processes of the tests share it
if "SEW_JAX_TEST_PROGRAMS" not in os.environ:
    os.environ["SEW_JAX_TEST_PROGRAMS"] = tempfile.mkdtemp(prefix="sew_jax_programs_")
    atexit.register(shutil.rmtree, os.environ["SEW_JAX_TEST_PROGRAMS"], ignore_errors=True)

# Tests run for seconds and compiling is most of it. What the environment says holds for child processes.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["SEW_JAX_TEST_PROGRAMS"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=0"  # no process of a test begins anew for huge pages
os.environ["JAX_PLATFORMS"] = "cpu"  # with libtpu installed, JAX would look for a TPU first
jax.config.update("jax_disable_most_optimizations", True)
# one LLVM module for each program: an eighth of compiling
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # halves compile time; later versions know one kind of emitters alone
    os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} --xla_cpu_use_fusion_emitters=false"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", os.environ["SEW_JAX_TEST_PROGRAMS"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
compiled_for("cpu").__enter__()  # as runs have it


# Looking for garbage among the modules' own objects, which tracing sets off all the time, is a tenth of the suite
gc.freeze()
gc.set_threshold(100_000, 20, 50)

_FULL = 2**30  # bytes: a worker that holds more gives back what it does not use
_MORE = 2**28  # bytes: growth after which looking for such memory again, half a second, is worth it
_kept = 0  # bytes that the last look left

logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # Orbax leaves tasks behind after errors, which tests provoke


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """With `-n auto`: one more than cores, since tests wait for processes that they start."""
    return (os.cpu_count() or 1) + 1


# Files that take longest, in this order: one that a worker begins last is waited for alone
_LONG = "train processes released study validation held_out step freezing sandwich main notebook api readme fault_loop"
_RANK = {f"test_{name}": rank for rank, name in enumerate(_LONG.split())}


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would begin with the files that have the most tests


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: _RANK.get(item.path.stem, len(_RANK)))
    for item in items:
        for platform in ("gpu", "tpu"):
            if item.get_closest_marker(platform):
                item.add_marker(pytest.mark.skip(reason=f"needs a {platform.upper()}; run it there by hand"))


@pytest.fixture(autouse=True)
def freed_memory_goes_back():
    """What compiling has freed: the allocator would keep it, some hundred MiB a training."""
    yield
    if _resident_bytes() > max(_FULL, _kept + _MORE):
        _give_back()


@pytest.fixture(autouse=True, scope="module")
def programs_end_with_their_file():
    """Programs of one file are of no use to another; those on disk are."""
    yield
    if _resident_bytes() > _FULL:
        jax.clear_caches()
        _give_back()


def _resident_bytes() -> int:
    """0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _give_back() -> None:
    global _kept
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    _kept = _resident_bytes()
