"""The part `inference`: waveforms to logits at each setting, for one utterance and for several at once."""

import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sew_jax.benchmarks import ours, peer
from sew_jax.benchmarks.timing import Work, model_for, time_work
from sew_jax.compression import parse_table
from sew_jax.models.config import CTCHeadConfig
from sew_jax.models.cost import count_macs
from sew_jax.names import split_names
from sew_jax.rates import SAMPLE_RATE


def measure(config: ConfigDict, workdir: Path, report: dict[str, Any]) -> dict[str, Any]:
    """A table for each size of `config.batch`.

    Raises:
      UserError: a process has died.
    """
    del report
    table, samples = parse_table(config.settings), round(config.seconds * SAMPLE_RATE)
    backbone, _ = model_for(config.size, config.dtype, table)
    theirs = peer.peer_config(backbone, CTCHeadConfig()) if config.peers else None
    tables: list[dict[str, Any]] = []
    for batch in map(int, split_names(config.batch)):
        peak = tables[0]["peak_gflops"] if tables else None  # one for all, as it takes seconds
        work = Work(
            title=f"inference of {config.size}, {batch} x {config.seconds:g} s, {config.dtype}",
            ours=functools.partial(ours.inference, backbone, table, batch, samples, peak),
            theirs=functools.partial(peer.inference, theirs, config.dtype, batch, samples) if theirs else None,
            flop={s.name: 2 * batch * count_macs(backbone, s, samples).total for s in table},
            audio_seconds=batch * config.seconds,
            peer_setting=peer.setting(backbone),
        )
        profiles = workdir / "profile" / f"inference_{batch}" if config.profile else None
        tables.append({"batch": batch} | time_work(work, config.rounds, profiles))
    return {"inference": tables}
