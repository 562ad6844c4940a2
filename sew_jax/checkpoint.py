"""The one file that knows Orbax: whole checkpoints or none, saved in the background."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from sew_jax.errors import UserError
from sew_jax.state import TrainState

_ITEMS = ("params", "train", "meta")


class Checkpoints:
    """Checkpoints of a workdir, each of three items: parameters, the rest of the state, and JSON about the run."""

    def __init__(self, workdir: Path, keep: int = 2):
        """Keeps the newest `keep` checkpoints under `workdir`/checkpoints."""
        self.path = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.path, options=options, item_names=_ITEMS)

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, meta: dict[str, Any]) -> None:
        """Copies the state and writes it in the background; returns at once unless the last save still runs."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                train=ocp.args.StandardSave(_rest(state)),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON that was saved with a step."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The whole state, placed like `like` (shapes with shardings)."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(like.params), train=ocp.args.StandardRestore(_rest(like))
            ),
        )
        return TrainState(params=restored.params, **restored.train)

    def close(self) -> None:
        """Waits for the last save."""
        self._manager.wait_until_finished()
        self._manager.close()


def _rest(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "batch_stats": state.batch_stats}


def load_params(workdir: Path, sharding: Sharding) -> tuple[int, Any]:
    """The newest checkpoint's step and parameters, whatever their tree, each placed by `sharding`.

    Raises:
      UserError: the workdir holds no checkpoint.
    """
    if not (Path(workdir) / "checkpoints").is_dir():
        raise UserError(
            f"init_from: {workdir} holds no checkpoints; give the workdir of a finished pretrain or finetune run"
        )
    checkpoints = Checkpoints(workdir)
    try:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f"init_from: {workdir} holds no whole checkpoint; let its run save one first")
        path = checkpoints.path / str(step) / "params"
    finally:
        checkpoints.close()
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), dict(saved))
        return step, checkpointer.restore(path, like)
