"""Joins the processes of a job: by themselves on TPU slices and Slurm, by flags elsewhere; one machine needs none."""

import atexit
import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from sew_jax.errors import Unavailable, UserError

_HEARTBEAT_S = 30  # after which a silent process counts as lost; JAX then ends the others
_PATIENCE_S = 4

# What the child of `_last_words` runs: it sees the end of its input when the process has ended, however that came about
_WATCH = """
import sys
if not sys.stdin.buffer.read():
    print(sys.argv[1], file=sys.stderr, flush=True)
"""


_watchers: list[subprocess.Popen] = []  # the children of `_last_words`
_leaves = threading.Event()  # this process ends by itself
_sent_status: list[int] = []  # the status that it has told the others
_ENDED = "sew_jax/ended"  # key of the service where the processes found each other: who ends by itself, and how
_LOOK_S, _GRACE_S = 1.0, 1.5  # between two looks at it; for what a process may be about to say itself


def initialize(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Calls `jax.distributed.initialize` where the flags or the environment describe more than one process.

    Raises:
      UserError: the flags are not complete, or the processes do not find each other.
      Unavailable: those of a cluster do not find each other, since others may still wait for their machines.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if not missing:
        _check(given)
        _join(given)
    elif len(missing) < len(given):
        raise UserError(f"{' and '.join(missing)} not given; the flags of a job of several processes go together")
    elif in_cluster(os.environ):
        _join({})


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether JAX finds the other processes by itself: under `srun`, on TPU slices, or as its own variables say."""
    if int(environment.get("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_NODELIST" in environment:
        return True
    if environment.get("JAX_COORDINATOR_ADDRESS") or environment.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return True
    workers = environment.get("TPU_WORKER_HOSTNAMES")  # set by GKE; a TPU VM asks its metadata
    return "," in workers if workers else _on_tpu_vm()


def _on_tpu_vm() -> bool:
    has_device = any(Path("/dev", name).exists() for name in ("accel0", "vfio/0"))
    return has_device and importlib.util.find_spec("libtpu") is not None


def _check(given: dict[str, Any]) -> None:
    if ":" not in given["coordinator_address"]:
        raise UserError(f"--coordinator_address={given['coordinator_address']} has no port; write HOST:PORT")
    if not 0 <= given["process_id"] < given["num_processes"]:
        raise UserError(
            f"--process_id={given['process_id']} must lie from 0 to {given['num_processes'] - 1} "
            f"(--num_processes={given['num_processes']})"
        )


def _join(arguments: dict[str, Any]) -> None:
    advice = "start all of them within five minutes" + (", with the same --coordinator_address" if arguments else "")
    jax.config.update("jax_enable_preemption_service", False)  # until there are updates to stop after
    try:
        _last_words(f"error: this process has ended before it could join the others; {advice}")
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=_HEARTBEAT_S)
    except (RuntimeError, ValueError) as error:
        kind = UserError if arguments or isinstance(error, ValueError) else Unavailable
        raise kind(
            f"this process could not join the others ({' '.join(str(error).split())[:200]}); {advice}"
        ) from error
    finally:
        _dismiss_watchers()
    if jax.process_count() > 1:
        _last_words(
            f"error: process {jax.process_index()} of {jax.process_count()} ended before its work was done: "
            "it was killed, or another one was lost. Start all of them again with the same command: "
            "they go on from the last checkpoint"
        )
        _end_with_others()


def tell_end(status: int) -> None:
    """Tells the other processes that this one ends by itself with a status, which they then end with, too.

    An error of no status of its own (1) may come of the end of another one, whose status is then taken.
    """
    if status != 1:
        _dismiss()
    client = global_state.client
    if client is None or _sent_status:
        return
    try:
        client.key_value_set(_ENDED, f"{jax.process_index()} {status}")
    except Exception:  # another one was first, or the first process is gone
        with contextlib.suppress(Exception):
            status = int(client.key_value_try_get(_ENDED).split()[1]) if status == 1 else status
    _sent_status.append(status)
    if jax.process_index() == 0:  # the service ends with it, and what it was told
        time.sleep(_PATIENCE_S)


@contextlib.contextmanager
def telling_others() -> Iterator[None]:
    """Tells of an error inside before what is open around it is closed, which may wait for the other processes."""
    try:
        yield
    except Exception as error:
        tell_end(getattr(error, "status", 1))
        raise


def _end_with_others() -> None:
    """Has a thread look for what `tell_end` told, as the main one may wait for the process that has ended."""
    client, me = global_state.client, jax.process_index()

    def look() -> None:
        while not _leaves.wait(_LOOK_S):
            try:
                process, status = map(int, client.key_value_try_get(_ENDED).split())
            except Exception as error:  # JAX has one kind for all that its service says
                if "NOT_FOUND" in str(error):
                    continue
                return  # the service is gone: JAX ends this process
            if process == me or _leaves.wait(_GRACE_S):
                return
            print(f"error: process {process} has ended with status {status}, and so does this one", file=sys.stderr)
            _dismiss()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()

    def stop() -> None:
        _leaves.set()
        thread.join(2 * _LOOK_S)

    atexit.register(stop)  # before JAX closes the service, as it is registered later


def all_processes(fine: bool) -> bool:
    """Whether all processes of the job say so; each must ask."""
    return fine if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(fine))))


def of_first_process(value: str) -> str:
    """The text that the first process has, at all of them; each must ask."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(value.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text))))
    padded = np.zeros(size, np.uint8)
    padded[: len(text[:size])] = text[:size]
    return bytes(multihost_utils.broadcast_one_to_all(padded)).decode()


def whole(array: jax.Array | np.ndarray) -> np.ndarray:
    """An array that lies on the devices of all processes, at each of them; each must ask."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True), array.dtype)
    return np.asarray(array)


def on_host(arrays: tuple[jax.Array | np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Copies of arrays, of which each process may hold a share; each must ask."""
    return tuple(map(whole, arrays))


def texts_of_all(text: str) -> list[str]:
    """The texts of all processes, in their order; each must ask."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data)))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def same_everywhere(value: str) -> bool:
    """Whether all processes of the job have the same value; each must ask."""
    if jax.process_count() == 1:
        return True
    digests = multihost_utils.process_allgather(np.array(zlib.crc32(value.encode()), np.uint32))
    return bool(np.all(digests == digests[0]))


def _last_words(text: str) -> None:
    """Says `text` when this process dies without reaching its exit: JAX aborts it, and Python can say nothing."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCH, text], stdin=subprocess.PIPE, start_new_session=True
    )
    _watchers.append(child)
    atexit.register(_dismiss)


def _dismiss() -> None:
    """This process ends by itself, and has said what there is to say."""
    _leaves.set()
    _dismiss_watchers()


def _dismiss_watchers() -> None:
    while _watchers:
        _watchers.pop().communicate(b"done")


def abandon(error: BaseException) -> None:
    """This process is to end after an error without waiting for the others, which its silence ends.

    A UserError says all there is to say; any other may come of the loss of another process, and the last words
    follow it.
    """
    if isinstance(error, (UserError, Unavailable)):
        _dismiss()
    if jax.process_count() > 1:
        status = _sent_status[0] if _sent_status else getattr(error, "status", 1)
        atexit.register(_exit_at_once, status)  # the last to be registered runs first: before JAX waits for all


def _exit_at_once(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if status != 1:  # else it may be the loss of another process
        tell_end(status)
    os._exit(status)
