"""The part `training`: updates of pre-training, with gradients, Adam and all that is drawn for them."""

import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sew_jax.benchmarks import ours, peer
from sew_jax.benchmarks.timing import Work, model_for, time_work
from sew_jax.compression import Draw, parse_table
from sew_jax.rates import SAMPLE_RATE
from sew_jax.training.spending import pretrain_flop


def measure(config: ConfigDict, workdir: Path, report: dict[str, Any]) -> dict[str, Any]:
    """One table; the peer, where there is one, has the same shape, dropout and layer-drop.

    Raises:
      UserError: a process has died.
    """
    table, batch = parse_table(config.train_settings), config.train_batch
    samples = round(config.train_seconds * SAMPLE_RATE)
    backbone, head = model_for(config.size, config.dtype, table)
    peak = report["inference"][0]["peak_gflops"] if "inference" in report else None  # of the same device and dtype
    theirs = peer.peer_config(backbone, head) if config.peers else None
    work = Work(
        title=f"updates of {config.size}, {batch} x {config.train_seconds:g} s, {config.dtype}",
        ours=functools.partial(ours.training, backbone, head, config.recipe, table, batch, samples, peak),
        theirs=functools.partial(peer.training, theirs, config.dtype, batch, samples) if theirs else None,
        flop={s.name: batch * pretrain_flop(backbone, head, Draw(s), samples, config.recipe.mask) for s in table},
        audio_seconds=batch * config.train_seconds,
        peer_setting=peer.setting(backbone),
    )
    profiles = workdir / "profile" / "training" if config.profile else None
    return {"training": {"batch": batch} | time_work(work, config.rounds, profiles)}
