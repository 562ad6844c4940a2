"""A budget of time or of errors, and the point of a trade-off that fits it best."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from sew_jax.buckets import as_path
from sew_jax.checkpoints.model_folder import folder_of
from sew_jax.compression import Compression
from sew_jax.console import say
from sew_jax.errors import UserError
from sew_jax.evaluation.tradeoff import Point, read_tradeoff

_BUDGET = re.compile(r"(?:(rtf|wer)=)?(\d+\.?\d*|\.\d+)(%?)")


def chosen_setting(
    setting: str,
    budget: str,
    tradeoff: str | os.PathLike,
    default: Compression | None = None,
    *,
    init_from: str = "",
) -> Compression:
    """The setting that `setting` names, or that `budget` picks from a table.

    Args:
      tradeoff: workdir of an evaluation, or its tradeoff.json; empty: the table in the folder of `init_from`, or in the
        one above, where the demo leaves it.
      default: where neither is given; None means s1q1k1.

    Raises:
      UserError: both are given, one is not understood, there is no table, or no point fits the budget.
    """
    if setting and budget:
        raise UserError(f"setting={setting} and budget={budget} are both given; one picks the setting")
    if not budget:
        return Compression.parse(setting) if setting else default or Compression()
    point = choose(read_tradeoff(as_path(tradeoff) if tradeoff else _table_of(init_from)), budget)
    time = f"{point.relative_time:.2f} of s1q1k1's time and rtf={point.rtf:.3g}"
    say(f"  budget    {budget}: {point.setting}, WER {point.wer:.2%} at {time}")
    return Compression.parse(point.setting)


def _table_of(init_from: str) -> Path:
    folder = folder_of(init_from)
    for place in (folder, folder.parent) if init_from and folder.is_dir() else ():
        if (place / "tradeoff.json").is_file():
            return place
    raise UserError("budget: it needs a table; name the workdir of an evaluation of this model by tradeoff")


def choose(points: Sequence[Point], budget: str) -> Point:
    """The point that makes the fewest errors in a time, or the fastest one that makes at most so many.

    Of a setting's points the first one with greedy decoding counts, which is that of the first split.

    Args:
      budget: `0.5` (of the time of s1q1k1), `rtf=0.05` (seconds for a second of audio), `wer=0.12` or `wer=12%`.

    Raises:
      UserError: it spells none of these, or no point fits; the message says which is nearest.
    """
    match = _BUDGET.fullmatch(budget.strip())
    if not match:
        raise UserError(
            f"budget: {budget!r} is not understood; write 0.5 (of the time of s1q1k1), rtf=0.05 (of real time) or "
            "wer=12%"
        )
    kind, bound = match[1], float(match[2]) / (100 if match[3] else 1)
    if kind == "wer" and bound > 1:
        raise UserError(
            f"budget: {budget} is more than every word; write wer={match[2]}% or a fraction such as wer=0.12"
        )
    greedy: dict[str, Point] = {}
    for point in points:
        if point.decoder == "greedy":
            greedy.setdefault(point.setting, point)
    if not greedy:
        raise UserError("budget: the table has no point with greedy decoding; run configs/evaluate.py again")
    measure, other, name = {
        None: ("relative_time", "wer", "time relative to s1q1k1"),
        "rtf": ("rtf", "wer", "real-time factor"),
        "wer": ("wer", "relative_time", "WER"),
    }[kind]
    fitting = [point for point in greedy.values() if getattr(point, measure) <= bound]
    if fitting:
        return min(fitting, key=lambda point: (getattr(point, other), getattr(point, measure)))
    nearest = min(greedy.values(), key=lambda point: getattr(point, measure))
    best = "most accurate" if kind == "wer" else "fastest"
    raise UserError(
        f"budget: no setting has a {name} of {bound:g} or less; the {best} point is {nearest.setting} "
        f"at {getattr(nearest, measure):.3g}"
    )
