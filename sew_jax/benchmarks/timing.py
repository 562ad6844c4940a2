"""Tables of time: this project's settings in turn, beside the same work by transformers where that is installed."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from sew_jax.benchmarks.contest import Bench, Child, Run, take_turns
from sew_jax.compression import Compression
from sew_jax.console import say
from sew_jax.models.config import BackboneConfig, Dtype, PretrainHeadConfig
from sew_jax.models.sizes import published
from sew_jax.tables import align_columns
from sew_jax.training.task import fields_of_table


class Work(NamedTuple):
    """What is timed.

    Args:
      title: for the screen.
      ours: builds this project's cases, one for each setting.
      theirs: builds the peer's cases from the platform's name; None where there is no peer.
      flop: floating-point operations of one run at each setting's name; the first is the reference of speed-ups.
      audio_seconds: of one run.
      peer_setting: which of ours computes what the peer computes.
    """

    title: str
    ours: Callable[[], Bench]
    theirs: Callable[[str], Bench] | None
    flop: dict[str, float]
    audio_seconds: float
    peer_setting: str


def model_for(size: str, dtype: Dtype, table: Sequence[Compression]) -> tuple[BackboneConfig, PretrainHeadConfig]:
    """A published size with the up-samplers of a table."""
    backbone, head = published(size)
    return dataclasses.replace(backbone, dtype=dtype, **fields_of_table(table)), head


def time_work(work: Work, rounds: int, profiles: Path | None) -> dict[str, Any]:
    """Times all cases in turn, shows the tables and returns them; profiles of our cases go to the folder `profiles`.

    Raises:
      UserError: a process has died.
    """
    say(f"  {work.title}: building {len(work.flop)} settings")
    with ExitStack() as stack:
        ours = stack.enter_context(Child("sew_jax", work.ours))
        children = [ours]
        if work.theirs:
            say("    building the same in transformers")
            theirs = stack.enter_context(Child("transformers", work.theirs, ours.about["platform"]))
            children.append(theirs)
            for problem in theirs.about["problems"]:
                say(f"    ! {problem}")
        runs = take_turns(children, rounds)
        if profiles:
            for case in ours.cases:
                ours.trace(case, profiles / case)
            say(f"    profiles, for xprof and TensorBoard, are in {profiles}")
        table = [_row(work, name, runs, ours) for name in ours.cases]
        report = {"title": work.title, "rounds": rounds, **ours.about, "settings": table}
        say(_format_settings(table, ours.about))
        if work.theirs:
            report |= {"peer": theirs.about, "peer_cases": _compare(work, runs, theirs)}
            say(_format_peers(work, report["peer_cases"]))
    return report


def _row(work: Work, name: str, runs: dict[tuple[str, str], list[Run]], ours: Child) -> dict[str, Any]:
    first, own = next(iter(work.flop)), runs["sew_jax", name]
    seconds, gflop = spread([run.seconds for run in own]), work.flop[name] / 1e9
    speed_up = statistics.median(a.seconds / b.seconds for a, b in zip(runs["sew_jax", first], own, strict=True))
    promised = work.flop[first] / work.flop[name]
    return {
        "setting": name,
        "seconds": seconds,
        "times_real_time": work.audio_seconds / seconds["median"],
        "speed_up": speed_up,
        "promised_speed_up": promised,
        "kept": speed_up / promised,
        "gflop": gflop,
        "mfu": gflop / seconds["median"] / ours.about["peak_gflops"],
        "peak_mb": max(run.peak_bytes for run in own) / 2**20,
        **ours.facts[name],
    }


def _compare(work: Work, runs: dict[tuple[str, str], list[Run]], theirs: Child) -> list[dict[str, Any]]:
    own = runs.get(("sew_jax", work.peer_setting), [])
    rows = []
    for case in theirs.cases:
        their = runs["transformers", case]
        row = {
            "case": case,
            "seconds": spread([run.seconds for run in their]),
            "peak_mb": max(run.peak_bytes for run in their) / 2**20,
            **theirs.facts[case],
        }
        if own:
            row["ours_to_theirs"] = spread([a.seconds / b.seconds for a, b in zip(own, their, strict=True)])
        rows.append(row)
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and ends."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def show(of: dict[str, float]) -> str:
    """A `spread` for the screen."""
    return f"{of['median']:.3g} ({of['least']:.3g}-{of['most']:.3g})"


def _format_settings(table: list[dict[str, Any]], about: dict[str, Any]) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "setting": lambda row: row["setting"],
        "seconds (min-max)": lambda row: show(row["seconds"]),
        "x real time": lambda row: f"{row['times_real_time']:.1f}",
        "speed-up": lambda row: f"{row['speed_up']:.2f}",
        "promised": lambda row: f"{row['promised_speed_up']:.2f}",
        "kept": lambda row: f"{row['kept']:.2f}",
        "GFLOP": lambda row: f"{row['gflop']:.1f}",
        "XLA's GFLOP": lambda row: f"{row['xla_gflop']:.1f}",
        "MFU": lambda row: f"{row['mfu']:.2f}",
        "peak MB": lambda row: f"{row['peak_mb']:.0f}" if row["peak_mb"] else "",
        "XLA's MB": lambda row: f"{row['xla_mb']:.0f}",
        "compile s": lambda row: f"{row['compile_seconds']:.1f}",
    }
    lines = [tuple(show(row) for show in columns.values()) for row in table]
    return (
        f"{align_columns(tuple(columns), lines)}\n    (speed-up as its MACs promise, and the part of it that is kept; "
        f"MFU: of the {about['peak_gflops']:.0f} GFLOP/s that matrix products reach here)"
    )


def _format_peers(work: Work, rows: list[dict[str, Any]]) -> str:
    head = ("transformers", "seconds (min-max)", f"ours at {work.peer_setting} to it (min-max)", "peak MB")
    lines = [
        (
            row["case"],
            show(row["seconds"]),
            show(row["ours_to_theirs"]) if "ours_to_theirs" in row else "not in the table",
            f"{row['peak_mb']:.0f}",
        )
        for row in rows
    ]
    return align_columns(head, lines)
