"""The part `training`: updates of pre-training, with gradients, Adam and all that is drawn for them."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sew_jax.benchmarks import ours, peer
from sew_jax.benchmarks.speed import Work, time_work
from sew_jax.compression import parse_table
from sew_jax.cost import count_macs
from sew_jax.data.audio import SAMPLE_RATE
from sew_jax.errors import UserError
from sew_jax.models.config import published
from sew_jax.progress import say


def measure(config: ConfigDict, workdir: Path, report: dict[str, Any]) -> dict[str, Any]:
    """One table; the peer, where there is one, has the same shape, dropout and layer-drop.

    Raises:
      UserError: a process has died.
    """
    del report
    table, batch, samples = (
        parse_table(config.train_settings),
        config.train_batch,
        round(config.train_seconds * SAMPLE_RATE),
    )
    backbone, head = published(config.size)
    backbone = dataclasses.replace(backbone, dtype=config.dtype, upsample_factors=tuple(s.squeeze for s in table))
    their_config = None
    if config.peers:
        try:
            if backbone.frontend == "compact":
                raise UserError("transformers does not pre-train SEW")
            their_config = peer.peer_config(backbone, head)
        except UserError as error:
            say(f"  no peer: {error}")
    work = Work(
        title=f"updates of {config.size}, {batch} x {config.train_seconds:g} s, {config.dtype}",
        ours=ours.training,
        arguments=(backbone, head, config.recipe, table, batch, samples),
        theirs=peer.training if their_config else None,
        their_arguments=(their_config, config.dtype, batch, samples),
        macs={s.name: batch * count_macs(backbone, s, samples).total for s in table},
        flop_per_mac=6,
        audio_seconds=batch * config.train_seconds,
        peer_setting=peer.setting(backbone),
    )
    profiles = workdir / "profile" / "training" if config.profile else None
    return {"training": {"batch": batch} | time_work(work, config.rounds, profiles)}
