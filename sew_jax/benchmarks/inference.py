"""The part `inference`: waveforms to logits at each setting, for one utterance and for several at once."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sew_jax.benchmarks import ours, peer
from sew_jax.benchmarks.speed import Work, time_work
from sew_jax.compression import parse_table
from sew_jax.cost import count_macs
from sew_jax.data.audio import SAMPLE_RATE
from sew_jax.data.listing import split_names
from sew_jax.errors import UserError
from sew_jax.models.config import CTCHeadConfig, published
from sew_jax.progress import say


def measure(config: ConfigDict, workdir: Path, report: dict[str, Any]) -> dict[str, Any]:
    """A table for each size of `config.batch`.

    Raises:
      UserError: a process has died.
    """
    del report
    table, samples = parse_table(config.settings), round(config.seconds * SAMPLE_RATE)
    backbone = dataclasses.replace(
        published(config.size)[0], dtype=config.dtype, upsample_factors=tuple(s.squeeze for s in table)
    )
    their_config = None
    if config.peers:
        try:
            their_config = peer.peer_config(backbone, CTCHeadConfig())
        except UserError as error:
            say(f"  no peer: {error}")
    tables = []
    for batch in map(int, split_names(config.batch)):
        work = Work(
            title=f"inference of {config.size}, {batch} x {config.seconds:g} s, {config.dtype}",
            ours=ours.inference,
            arguments=(backbone, table, batch, samples),
            theirs=peer.inference if their_config else None,
            their_arguments=(their_config, config.dtype, batch, samples),
            macs={s.name: batch * count_macs(backbone, s, samples).total for s in table},
            flop_per_mac=2,
            audio_seconds=batch * config.seconds,
            peer_setting=peer.setting(backbone),
        )
        profiles = workdir / "profile" / f"inference_{batch}" if config.profile else None
        tables.append({"batch": batch} | time_work(work, config.rounds, profiles))
    return {"inference": tables}
