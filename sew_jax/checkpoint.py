"""The one file that knows Orbax: whole checkpoints or none, saved in the background, checked bit for bit when they are read."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from sew_jax.errors import UserError
from sew_jax.optim import path_name
from sew_jax.progress import say
from sew_jax.state import TrainState

_ITEMS = ("params", "train", "meta")
_T = TypeVar("_T")


class _Damaged(Exception):
    """A checkpoint that cannot be read, or holds other bits than were saved."""


class Restored(NamedTuple):
    """A state from the disk, and the newer checkpoints that could not be used: (update, reason)."""

    step: int
    state: TrainState
    damaged: list[tuple[int, str]]


class Checkpoints:
    """Checkpoints of a workdir, each of three items: parameters, the rest of the state, and JSON about the run.

    The JSON holds a checksum of each array, since Orbax does not notice a changed bit in what it reads.
    """

    def __init__(self, workdir: Path, keep: int = 2):
        """Keeps the newest `keep` checkpoints under `workdir`/checkpoints."""
        self._workdir = Path(workdir).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(_folder(workdir), options=options, item_names=_ITEMS)

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, meta: dict[str, Any]) -> None:
        """Copies the state and writes it in the background; returns at once unless the last save still runs."""
        items = _items(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(items["params"]),
                train=ocp.args.StandardSave(items["train"]),
                meta=ocp.args.JsonSave(meta | {"checksums": _checksums(items)}),
            ),
        )

    def check(self) -> None:
        """Raises what went wrong with a save in the background."""
        self._manager.check_for_errors()

    def restore(self, like: TrainState) -> Restored | None:
        """The newest state that is whole, placed like `like` (shapes with shardings); None where there is no checkpoint.

        Damaged ones newer than it are moved to `workdir`/damaged, out of the way of the updates to come.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """

        def read(step: int) -> TrainState:
            items = _items(like)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(items["params"]),
                    train=ocp.args.StandardRestore(items["train"]),
                    meta=ocp.args.JsonRestore(),
                ),
            )
            _verify({"params": restored.params, "train": restored.train}, restored.meta)
            return TrainState(params=restored.params, **restored.train)

        found = _newest_whole(self._manager.all_steps(), read, f"workdir: {self._workdir}")
        if found is None:
            return None
        restored = Restored(*found)
        if restored.damaged:
            self._put_aside([step for step, _ in restored.damaged])
        return restored

    def _put_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            aside = self._workdir / "damaged"
            aside.mkdir(exist_ok=True)
            for step in steps:
                before = sum(path.name.split(".")[0] == str(step) for path in aside.iterdir())
                os.replace(_folder(self._workdir) / str(step), aside / (f"{step}.{before}" if before else str(step)))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are out of the way")
        self._manager.reload()

    def wait(self) -> None:
        """Waits for the last save; raises what went wrong with it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def load_params(workdir: Path, sharding: Sharding) -> tuple[int, Any]:
    """Step and parameters of the newest checkpoint that is whole, whatever their tree, each placed by `sharding`.

    Raises:
      UserError: the workdir holds no checkpoint, or none that can be read.
    """
    folder = _folder(workdir)
    if not folder.is_dir():
        raise UserError(
            f"init_from: {workdir} holds no checkpoints; give the workdir of a finished pretrain or finetune run"
        )

    def read(step: int) -> Any:
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        with ocp.StandardCheckpointer() as checkpointer:
            saved = checkpointer.metadata(folder / str(step) / "params").item_metadata
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), dict(saved))
            params = checkpointer.restore(folder / str(step) / "params", like)
        _verify({"params": params}, meta)
        return params

    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(folder, options=options, item_names=_ITEMS) as manager:
        found = _newest_whole(manager.all_steps(), read, f"init_from: {workdir}")
    if found is None:
        raise UserError(f"init_from: {workdir} holds no whole checkpoint; let its run save one first")
    step, params, damaged = found
    for newer, reason in damaged:
        say(f"  ! {workdir}: the checkpoint of update {newer} is damaged ({reason}); that of update {step} is used")
    return step, params


def quiet_orbax() -> None:
    """Leaves it to this file's callers to say what went wrong: Orbax logs it once for each of its threads and tasks."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    usual = sys.unraisablehook

    def hook(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # TensorStore's, after an error that Orbax has reported
            usual(unraisable)

    sys.unraisablehook = hook


def _folder(workdir: Path) -> Path:
    return Path(workdir).absolute() / "checkpoints"


def _items(state: TrainState) -> dict[str, Any]:
    rest = {"step": state.step, "opt_state": state.opt_state, "batch_stats": state.batch_stats}
    return {"params": state.params, "train": rest}


def _newest_whole(
    steps: list[int], read: Callable[[int], _T], whose: str
) -> tuple[int, _T, list[tuple[int, str]]] | None:
    """(step, what `read` gives of it, (step, reason) of each newer one that is damaged); None without any step."""
    damaged = []
    for step in sorted(steps, reverse=True):
        value, reason = None, ""
        try:
            value = read(step)
        except (MemoryError, jax.errors.JaxRuntimeError):  # nothing is wrong with the files
            raise
        except Exception as error:  # Orbax and TensorStore have errors of many kinds
            reason = " ".join(str(error).split())[:160] or type(error).__name__
        if _all_processes(not reason):
            return step, value, damaged
        damaged.append((step, reason or "another process could not read it"))
    if damaged:
        told = "; ".join(f"update {step}: {reason}" for step, reason in damaged)
        raise UserError(
            f"{whose} holds no checkpoint that can be read ({told}); bring one back from a copy, or begin in another workdir"
        )
    return None


def _all_processes(fine: bool) -> bool:
    if jax.process_count() == 1:
        return fine
    return bool(np.all(multihost_utils.process_allgather(np.array(fine))))


def _verify(items: dict[str, Any], meta: dict[str, Any]) -> None:
    saved = meta.get("checksums", {})
    wrong = [name for name, value in _checksums(items).items() if saved.get(name) != value]
    if wrong:
        raise _Damaged(f"{wrong[0]} differs from what was saved" if saved else "it has no checksums")


def _checksums(items: dict[str, Any]) -> dict[str, int]:
    """For each array the sum of its bits, which neither the mesh nor the order of adding changes."""
    leaves = jax.tree_util.tree_leaves_with_path(items)
    sums = jax.device_get(_bit_sums([x for _, x in leaves]))
    return {path_name(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


@jax.jit
def _bit_sums(arrays: list[jax.Array]) -> list[jax.Array]:
    def total(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        return bits.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return [total(x) for x in arrays]
