"""The one file that knows Orbax: whole checkpoints or none, saved in the background, checked to the bit when read."""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from sew_jax.buckets import as_path, children, is_remote, make_folder, move_folder
from sew_jax.checkpoints.checksums import checksums, differences
from sew_jax.checkpoints.quiet import errors_alone
from sew_jax.console import say
from sew_jax.errors import Unavailable, UserError
from sew_jax.files import WORKDIR_HINT, writing_to
from sew_jax.runtime.distributed import all_processes, same_everywhere
from sew_jax.storage import believed, patient

COMMIT = "commit_success.txt"  # Orbax writes it last, in a bucket
BEST = "best"  # folder of a workdir: the checkpoint with the least word error rate on what is held out
_T = TypeVar("_T")
_SMALLEST_SLICE = 2**20  # bytes of a copied array that a device writes: more and smaller ones hold the loop for longer
_PAUSES_S = (0, 1, 4, 10, 20, 40)  # network file systems remember for up to a minute what a folder held


class Restored(NamedTuple):
    """A state from the disk, and the newer checkpoints that could not be used: (update, reason)."""

    step: int
    state: Any  # as `like`
    damaged: list[tuple[int, str]]


class Checkpoints:
    """Checkpoints of a workdir, each of three items: parameters, the rest of the state, and JSON about the run.

    A state is a dataclass of arrays with a field `params`.

    The JSON holds a checksum of each array, since Orbax does not notice a changed bit in what it reads. All methods
    but `latest` raise UserError where the disk is full or may not be written, and Unavailable where it does not answer.
    """

    def __init__(self, workdir: Path, keep: int | None = 2, keep_every: int = 0):
        """Keeps some of the checkpoints under `workdir`/checkpoints.

        In a bucket, which cannot rename a folder in one move, Orbax ends a checkpoint by a file `commit_success.txt`:
        a step without it is none.

        Args:
          keep: the newest ones; None: all but what `discard` takes away.
          keep_every: beside them, for ever, those after so many updates each; 0: none.
        """
        self._workdir = _absolute(workdir)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, enable_async_checkpointing=True
        )
        handlers = {"params": _array_handler(), "train": _array_handler(), "meta": ocp.JsonCheckpointHandler()}
        with self._writing():
            self._manager = ocp.CheckpointManager(_folder(workdir), options=options, item_handlers=handlers)

    def _writing(self):
        return writing_to(self._workdir, WORKDIR_HINT)

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, and of one that is being saved."""
        return sorted(self._manager.all_steps())

    def discard(self, steps: Iterable[int]) -> None:
        """Removes checkpoints, none of which is being saved."""
        with self._writing():
            for step in steps:
                self._manager.delete(step)

    def prepare(self, state: Any) -> None:
        """Compiles what the first save would wait for."""
        checksums(_items(state))

    def save(self, state: Any, step: int, meta: dict[str, Any]) -> None:
        """Copies the state and writes it in the background; returns at once unless the last save still runs."""
        with self._writing():
            self._begin(state, step, meta)

    def _begin(self, state: Any, step: int, meta: dict[str, Any]) -> None:
        items = _items(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.PyTreeSave(items["params"]),
                train=ocp.args.PyTreeSave(items["train"]),
                meta=ocp.args.JsonSave(meta | {"checksums": checksums(items)}),
            ),
            force=True,  # an error, rather than nothing, where it cannot be
        )

    def save_at_last(self, state: Any, step: int, meta: dict[str, Any]) -> None:
        """After a save that failed for its storage: as `save`, again and again, until it is written."""

        @patient
        def save() -> None:
            self._manager.reload()  # forgets the one that failed
            if step not in self._manager.all_steps():
                self._begin(state, step, meta)
                self._manager.wait_until_finished()

        with self._writing():
            save()

    def check(self) -> None:
        """Raises what went wrong with a save in the background."""
        with self._writing():
            self._manager.check_for_errors()

    def restore(self, like: Any) -> Restored | None:
        """The newest state that is whole, placed like `like` (shapes with shardings); None without a checkpoint.

        Damaged ones newer than it are moved to `workdir`/damaged, out of the way of the updates to come.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        items = _items(like)
        newest = _newest_whole(
            self._workdir, lambda step: _read(self._workdir, step, items), f"workdir: {self._workdir}"
        )
        if newest is None:
            return None
        step, values, damaged = newest
        if damaged:
            with self._writing():
                self._put_aside([step for step, _ in damaged])
        return Restored(step, like.replace(params=values["params"], **values["train"]), damaged)

    def _put_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            aside = self._workdir / "damaged"
            make_folder(aside)
            for step in steps:
                names = (f"{step}.{number}" if number else str(step) for number in itertools.count())
                free = next(name for name in names if not (aside / name).exists())
                move_folder(_folder(self._workdir) / str(step), aside / free)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are out of the way")
        _steps(self._workdir)  # once all processes see it
        self._manager.reload()

    def wait(self) -> None:
        """Waits for the last save; raises what went wrong with it."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._writing():
            self._manager.close()


def load_params(workdir: Path, sharding: Sharding) -> tuple[int, Any]:
    """Step and parameters of the newest checkpoint that is whole, whatever their tree, each placed by `sharding`.

    Raises:
      UserError: the workdir holds no checkpoint, or none that can be read.
    """
    check_place(workdir, "init_from")
    if not patient(children)(_folder(workdir)):
        raise UserError(
            f"init_from: {workdir} holds no checkpoints; give the workdir of a finished pretrain or finetune run"
        )

    def read(step: int) -> dict[str, Any]:
        with errors_alone(), ocp.StandardCheckpointer() as checkpointer:  # the shapes; reading is done as for a run
            saved = dict(checkpointer.metadata(_folder(workdir) / str(step) / "params").item_metadata)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved)
        return _read(workdir, step, {"params": like})

    newest = _newest_whole(workdir, read, f"init_from: {workdir}")
    if newest is None:
        raise UserError(f"init_from: {workdir} holds no whole checkpoint; let its run save one first")
    step, values, damaged = newest
    for newer, reason in damaged:
        say(f"  ! {workdir}: the checkpoint of update {newer} is damaged ({reason}); that of update {step} is used")
    return step, values["params"]


def newest_record(workdir: Path) -> dict[str, Any] | None:
    """The JSON of the newest checkpoint in which it can be read; None where there is none."""
    for step in _steps(workdir):
        with contextlib.suppress(OSError, ValueError):
            return _meta(workdir, step)
    return None


def check_place(workdir: Path, key: str) -> None:
    """Raises UserError where Orbax writes no checkpoints: TensorStore's driver for s3:// is not within its reach."""
    if is_remote(workdir) and not str(workdir).startswith("gs://"):
        raise UserError(
            f"{key}: {workdir}: checkpoints can lie on a disk or under gs:// alone (Orbax {ocp.__version__}); "
            "name a folder there, or mount the bucket"
        )


def _absolute(workdir: Path) -> Path:
    return as_path(workdir) if is_remote(workdir) else Path(workdir).absolute()


def _folder(workdir: Path) -> Path:
    return _absolute(workdir) / "checkpoints"


def _array_handler() -> ocp.PyTreeCheckpointHandler:
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SMALLEST_SLICE)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _items(state: Any) -> dict[str, Any]:
    rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "params"}
    return {"params": state.params, "train": rest}


def _steps(workdir: Path) -> list[int]:
    """Steps of the finished checkpoints, newest first, as all processes see them.

    Raises:
      UserError: they see different ones.
    """
    for pause in _PAUSES_S:
        time.sleep(pause)
        steps = _listed(workdir)
        if same_everywhere(repr(steps)):
            return steps
    raise UserError(
        f"workdir: the processes of this job see different checkpoints in {workdir} (this one: {steps or 'none'}); "
        "--workdir must lie on storage that all of them share"
    )


@patient
def _listed(workdir: Path) -> list[int]:
    """Steps of the finished checkpoints, newest first, as this process sees them."""
    found = [x for x in children(_folder(workdir)) if x.name.isdigit() and is_whole(x)]
    return sorted((int(x.name) for x in found), reverse=True)


def is_whole(step: Path) -> bool:
    """Whether a folder named by a step is a checkpoint, rather than what an interrupted save has left in a bucket."""
    return not is_remote(step) or (step / COMMIT).exists()


def _newest_whole(
    workdir: Path, read: Callable[[int], dict[str, Any]], whose: str
) -> tuple[int, dict[str, Any], list[tuple[int, str]]] | None:
    """(step, what `read` gives of it, (step, reason) of each newer one that is damaged); None without any step.

    `read` must not wait for other processes: what one of them cannot read, none of them uses.
    """
    for _ in range(3):  # another process may just change them
        steps, damaged = _steps(workdir), []
        for step in steps:
            value, reason = _try_twice(believed(read, _folder(workdir) / str(step)), step, whose)
            if all_processes(not reason):
                meta = value.pop("meta")
                wrong = differences(value, meta)  # sums over all devices: all processes take part
                reason = f"{wrong[0]} differs from what was saved" if wrong else ""
                if all_processes(not reason):
                    return step, value, damaged
            damaged.append((step, reason or "another process could not read it"))
        if steps == _steps(workdir):  # else a run that goes on has replaced them meanwhile
            break
    if damaged:
        reasons = "; ".join(f"update {step}: {reason}" for step, reason in damaged)
        raise UserError(
            f"{whose} holds no checkpoint that can be read ({reasons}); "
            "bring one back from a copy, or begin in another workdir"
        )
    return None


def _try_twice(read: Callable[[int], _T], step: int, whose: str) -> tuple[_T | None, str]:
    """(what `read` gives, why it gives nothing)."""
    try:
        return patient(read, doubtful=Exception)(step), ""
    except (MemoryError, jax.errors.JaxRuntimeError):  # nothing is wrong with the files
        raise
    except Exception as error:  # Orbax and TensorStore have errors of many kinds
        reason = " ".join(str(error.__cause__ if isinstance(error, Unavailable) else error).split())[:160]
        unreachable = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        what = f"{whose}: the checkpoint of update {step} cannot be read"
        if isinstance(error, Unavailable):
            raise Unavailable(f"{what} at the moment ({reason}); nothing was changed") from error
        if unreachable or "PERMISSION_DENIED" in reason:
            raise UserError(f"{what} ({reason}); nothing was changed, mend that and start again") from error
        return None, reason or type(error).__name__


def _read(workdir: Path, step: int, like: dict[str, Any]) -> dict[str, Any]:
    """Some items of a checkpoint, placed like `like`, and its JSON as `meta`.

    By this process alone, where Orbax's manager would have all wait for each other.
    """
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="read"
    )
    values = {"meta": _meta(workdir, step)}
    for item, shapes in like.items():
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            values[item] = checkpointer.restore(
                _folder(workdir) / str(step) / item, args=ocp.args.StandardRestore(shapes)
            )
    return values


@patient
def _meta(workdir: Path, step: int) -> dict[str, Any]:
    """The JSON of a checkpoint, where Orbax's handler of JSON puts it."""
    meta = json.loads((_folder(workdir) / str(step) / "meta" / "metadata").read_text(encoding="utf-8"))
    if not isinstance(meta, dict) or not isinstance(meta.get("checksums"), dict):
        raise ValueError("it has no checksums")
    return meta
