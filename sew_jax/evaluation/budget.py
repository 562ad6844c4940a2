"""A budget of time or of errors, and the row of a trade-off table that fits it best."""

import re
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from sew_jax.compression import Compression
from sew_jax.console import say
from sew_jax.errors import UserError
from sew_jax.evaluation.tradeoff import Row, read_tradeoff

_BUDGET = re.compile(r"(?:(rtf|wer)=)?(\d+\.?\d*|\.\d+)(%?)")


def chosen_setting(config: ConfigDict, default: Compression | None = None) -> Compression:
    """The setting that `config.setting` names, or that `config.budget` picks from the table in `config.tradeoff`.

    Args:
      default: where neither is given; None means s1q1k1.

    Raises:
      UserError: both are given, one is not understood, or no row fits the budget.
    """
    if config.setting and config.budget:
        raise UserError(f"setting={config.setting} and budget={config.budget} are both given; one picks the setting")
    if not config.budget:
        return Compression.parse(config.setting) if config.setting else default or Compression()
    if not config.tradeoff:
        raise UserError("budget: it needs a table; set --config.tradeoff to the workdir of configs/evaluate.py")
    path = Path(config.tradeoff)
    row = choose(read_tradeoff(path.parent if path.name == "tradeoff.json" else path), config.budget)
    say(
        f"  budget    {config.budget}: {row.setting}, WER {row.wer:.2%} at {row.relative_time:.2f} of s1q1k1's time and rtf={row.rtf:.3g}"
    )
    return Compression.parse(row.setting)


def choose(rows: Sequence[Row], budget: str) -> Row:
    """The row that makes the fewest errors in a time, or the fastest one that makes at most so many.

    Of a setting's rows the first one with greedy decoding counts, which is that of the first split.

    Args:
      budget: `0.5` (of the time of s1q1k1), `rtf=0.05` (seconds for a second of audio), `wer=0.12` or `wer=12%`.

    Raises:
      UserError: it spells none of these, or no row fits; the message says which is nearest.
    """
    match = _BUDGET.fullmatch(budget.strip())
    if not match:
        raise UserError(
            f"budget: {budget!r} is not understood; write 0.5 (of the time of s1q1k1), rtf=0.05 (of real time) or wer=12%"
        )
    kind, bound = match[1], float(match[2]) / (100 if match[3] else 1)
    if kind == "wer" and bound > 1:
        raise UserError(
            f"budget: {budget} is more than every word; write wer={match[2]}% or a fraction such as wer=0.12"
        )
    greedy: dict[str, Row] = {}
    for row in rows:
        if row.decoder == "greedy":
            greedy.setdefault(row.setting, row)
    if not greedy:
        raise UserError("budget: the table has no row with greedy decoding; run configs/evaluate.py again")
    measure, other, name = {
        None: ("relative_time", "wer", "time relative to s1q1k1"),
        "rtf": ("rtf", "wer", "real-time factor"),
        "wer": ("wer", "relative_time", "WER"),
    }[kind]
    fitting = [row for row in greedy.values() if getattr(row, measure) <= bound]
    if fitting:
        return min(fitting, key=lambda row: (getattr(row, other), getattr(row, measure)))
    nearest = min(greedy.values(), key=lambda row: getattr(row, measure))
    best = "most accurate" if kind == "wer" else "fastest"
    raise UserError(
        f"budget: no setting has a {name} of {bound:g} or less; the {best} row is {nearest.setting} at {getattr(nearest, measure):.3g}"
    )
