"""A budget of time or of errors, and the point of a trade-off that fits it best."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sew_jax.buckets import as_path
from sew_jax.checkpoints.model_folder import folder_of
from sew_jax.compression import Compression
from sew_jax.console import say
from sew_jax.decoding.engine_recognizer import default_dtype
from sew_jax.decoding.recognizer import Recognizer
from sew_jax.engines.run_times import RUNTIMES, Engine, missing_packages
from sew_jax.errors import UserError
from sew_jax.evaluation.tradeoff import Point, read_tradeoff, why_withheld
from sew_jax.metrics.measure import WER
from sew_jax.storage import is_file, is_folder

_BUDGET = re.compile(r"(?:(rtf|wer|accuracy)=)?(\d+\.?\d*|\.\d+)(%?)")


class Choice(NamedTuple):
    """A setting, and what computes it: None where nothing says."""

    setting: Compression
    engine: Engine | None


def chosen(
    setting: str,
    budget: str,
    tradeoff: str | os.PathLike,
    default: Compression | None = None,
    *,
    init_from: str = "",
    runtimes: Sequence[str] = RUNTIMES,
    dtype: str = "",
    settings: Sequence[Compression] = (),
) -> Choice:
    """The setting that `setting` names, or the point that `budget` picks from a table.

    Args:
      tradeoff: workdir of an evaluation, or its tradeoff.json; empty: the table in the folder of `init_from`, or in the
        one above, where the demo leaves it.
      default: where neither is given; None means s1q1k1.
      runtimes: points of these count.
      dtype: points in this precision count, and where there are none nothing is picked: those in another would promise
        what nobody has measured; empty: in any.
      settings: points of these count; empty: of any.

    Raises:
      UserError: both are given, one is not understood, there is no table, or no point fits the budget.
    """
    if setting and budget:
        raise UserError(f"setting={setting} and budget={budget} are both given; one picks the setting")
    if not budget:
        return Choice(Compression.parse(setting) if setting else default or Compression(), None)
    where = as_path(tradeoff) if tradeoff else _table_of(init_from)
    measured = read_tradeoff(where)
    points = [
        point
        for point in measured
        if point.runtime in runtimes
        and dtype in ("", point.dtype)
        and (not settings or Compression.parse(point.setting) in settings)
    ]
    if not dtype and missing_packages("openvino", "int8") == ["nncf"]:  # whoever names int8 is told to install it
        points = [p for p in points if p.engine != ("openvino", "int8")]
    if not points:
        has = ", ".join(dict.fromkeys(str(p.engine) for p in measured))
        lacking = f"{' or '.join(runtimes)}{dtype and f' in {dtype}'}"
        if settings:
            lacking += f" at {', '.join(map(str, settings))}"
        raise UserError(
            f"budget: {where} has points of {has}, none of {lacking}; run configs/evaluate.py with --config.runtimes, "
            "--config.dtypes and --config.settings that name them"
        )
    point = choose(_offered(points, measured), budget)
    reached = f"{point.measure.name} {point.measure.of(point.wer):.2%}"
    time = f"{point.relative_time:.2f} of s1q1k1's time and rtf={point.rtf:.3g}"
    say(f"  budget    {budget}: {point.setting} by {point.engine}, {reached} at {time}")
    return Choice(Compression.parse(point.setting), point.engine)


def _offered(points: Sequence[Point], measured: Sequence[Point]) -> list[Point]:
    """Those of `points` that may be picked; says which may not, and why."""
    reasons = [why_withheld(point, measured) for point in points]
    for point, reason in zip(points, reasons, strict=True):
        if reason:
            say(f"  budget    not offered: {point.setting} by {point.engine}, {reason}")
    offered = [point for point, reason in zip(points, reasons, strict=True) if not reason]
    if not offered:
        raise UserError(
            f"budget: no point may be picked, since {reasons[0]} at {points[0].setting}; run configs/evaluate.py with "
            "--config.dtypes=bfloat16,int8, and name a setting where 8 bits change too much"
        )
    return offered


def engine_for(recognizer: Recognizer, choice: Choice, runtime: str, dtype: str) -> Engine:
    """What computes: what a budget has picked, else what is named, else JAX; in the model's precision, else the first.

    Args:
      recognizer: the model in JAX.
      runtime, dtype: empty: not named.
    """
    runtime = runtime or RUNTIMES[0]
    return choice.engine or Engine(runtime, dtype or default_dtype(recognizer, runtime))


def chosen_setting(
    setting: str,
    budget: str,
    tradeoff: str | os.PathLike,
    default: Compression | None = None,
    *,
    init_from: str = "",
    runtimes: Sequence[str] = ("jax",),
    dtype: str = "",
    settings: Sequence[Compression] = (),
) -> Compression:
    """The setting of what is `chosen`, for what is computed by one of these run times in any case."""
    choice = chosen(
        setting, budget, tradeoff, default, init_from=init_from, runtimes=runtimes, dtype=dtype, settings=settings
    )
    return choice.setting


def installed(runtime: str) -> Sequence[str]:
    """The run times that a budget may pick from: the one that is named, else those that are installed."""
    return [runtime] if runtime else [name for name in RUNTIMES if not missing_packages(name)]


def _table_of(init_from: str) -> Path:
    folder = folder_of(init_from)
    for place in (folder, folder.parent) if init_from and is_folder(folder) else ():
        if is_file(place / "tradeoff.json"):
            return place
    raise UserError("budget: it needs a table; name the workdir of an evaluation of this model by tradeoff")


def choose(points: Sequence[Point], budget: str) -> Point:
    """The point that makes the fewest errors in a time, or the fastest one that is so good.

    Of the points of a setting, run time and precision the first one with greedy decoding counts, which is that of the
    first split.

    Args:
      budget: `0.5` (of the time of s1q1k1), `rtf=0.05` (seconds for a second of audio), `wer=0.12` or `wer=12%`;
        of labels `accuracy=0.9` or `accuracy=90%`, which is the least.

    Raises:
      UserError: it spells none of these, or no point fits; the message says which is nearest.
    """
    match = _BUDGET.fullmatch(budget.strip())
    if not match:
        raise UserError(
            f"budget: {budget!r} is not understood; write 0.5 (of the time of s1q1k1), rtf=0.05 (of real time) or "
            "wer=12% (of labels accuracy=90%)"
        )
    kind, bound = match[1], float(match[2]) / (100 if match[3] else 1)
    measured = points[0].measure if points else WER
    if kind in ("wer", "accuracy") and kind != measured.name.lower():
        example = "wer=12%" if measured.is_error else "accuracy=90%"
        raise UserError(f"budget: {budget} does not fit the table, which has {measured.title}; write {example}")
    if kind in ("wer", "accuracy") and bound > 1:
        what = "word" if kind == "wer" else "label"
        raise UserError(
            f"budget: {budget} is more than every {what}; write {kind}={match[2]}% or a fraction such as {kind}=0.12"
        )
    greedy: dict[tuple[str, Engine], Point] = {}
    for point in points:
        if point.decoder == "greedy":
            greedy.setdefault((point.setting, point.engine), point)
    if not greedy:
        raise UserError("budget: the table has no point with greedy decoding; run configs/evaluate.py again")
    measure, other, name, best = {
        None: ("relative_time", "wer", "a time relative to s1q1k1", "fastest"),
        "rtf": ("rtf", "wer", "a real-time factor", "fastest"),
        "wer": ("wer", "relative_time", "a WER", "most accurate"),
        "accuracy": ("accuracy", "relative_time", "an accuracy", "most accurate"),
    }[kind]
    sign, side = (-1, "more") if kind == "accuracy" else (1, "less")
    fitting = [point for point in greedy.values() if sign * getattr(point, measure) <= sign * bound]
    if fitting:
        return min(fitting, key=lambda point: (getattr(point, other), sign * getattr(point, measure)))
    nearest = min(greedy.values(), key=lambda point: sign * getattr(point, measure))
    raise UserError(
        f"budget: no setting has {name} of {bound:g} or {side}; the {best} point is {nearest.setting} "
        f"at {getattr(nearest, measure):.3g}"
    )
