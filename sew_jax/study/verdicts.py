"""Arms of a study compared on the same utterances, and a verdict on each of the paper's three claims."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sew_jax.metrics.bootstrap import relative_difference

# first - second, in the order of the page
PAIRS = (
    ("stochastic", "dedicated"),
    ("specialised", "dedicated"),
    ("sandwich", "dedicated"),
    ("distilled", "dedicated"),
    ("sandwich", "stochastic"),
    ("distilled", "stochastic"),
    ("stochastic", "random"),
)
BOUND_A = 0.05  # relative, that a stochastic model may lose to a dedicated one


class Scores(NamedTuple):
    """An arm at a setting, on a split: S seeds, U utterances."""

    errors_SxU: np.ndarray
    character_errors_SxU: np.ndarray
    words_U: np.ndarray
    characters_U: np.ndarray
    seeds: list[int]
    rates: list[float]
    cost: dict[str, Any]  # of each seed: updates of both trainings, FLOP of both

    @property
    def wer_S(self) -> np.ndarray:
        return self.errors_SxU.sum(1) / max(self.words_U.sum(), 1)

    @property
    def cer_S(self) -> np.ndarray:
        return self.character_errors_SxU.sum(1) / max(self.characters_U.sum(), 1)


Table = dict[tuple[str, str, str], Scores]  # by (arm, split, setting)


class Comparison(NamedTuple):
    """WER of `first` less that of `second`, relative to the latter, with its 95 % interval; fractions."""

    first: str  # an arm, or of one arm a setting
    second: str
    split: str
    setting: str
    difference: float
    low: float
    high: float


class Verdict(NamedTuple):
    claim: str
    text: str
    split: str
    verdict: str  # holds, does not hold, not decided or not tested
    numbers: str


def compare_arms(table: Table, split: str, settings: Sequence[str]) -> list[Comparison]:
    """All pairs of arms that were run, at each setting."""
    found = []
    for first, second in PAIRS:
        for setting in settings:
            one, other = table.get((first, split, setting)), table.get((second, split, setting))
            if one and other:
                found.append(
                    Comparison(first, second, split, setting, *relative_difference(one.errors_SxU, other.errors_SxU))
                )
    return found


def compare_settings(table: Table, split: str, order: Sequence[str]) -> list[Comparison]:
    """Of the stochastic arm: each setting with the next faster one; `order` is from the fastest on."""
    if ("stochastic", split, order[0]) not in table:
        return []
    errors = {setting: table["stochastic", split, setting].errors_SxU for setting in order}
    return [
        Comparison(slower, faster, split, slower, *relative_difference(errors[slower], errors[faster]))
        for faster, slower in itertools.pairwise(order)
    ]


def verdict_a(comparisons: Sequence[Comparison], split: str) -> Verdict:
    """Whether one stochastic model does as well as a dedicated one at each setting."""
    text = f"One stochastic model loses at most {BOUND_A:.0%} of WER, relative, to a dedicated one at every setting"
    return _against_dedicated("A", text, comparisons, split, "stochastic", BOUND_A)


def verdict_b(comparisons: Sequence[Comparison], split: str) -> Verdict:
    """Whether specialised models do no worse than dedicated ones."""
    text = "The stochastic pre-training, fine-tuned at one setting, is at or below a dedicated model at every setting"
    return _against_dedicated("B", text, comparisons, split, "specialised", 0.0)


def _against_dedicated(
    claim: str, text: str, comparisons: Sequence[Comparison], split: str, arm: str, bound: float
) -> Verdict:
    mine = [c for c in comparisons if (c.first, c.second) == (arm, "dedicated")]
    if not mine:
        return Verdict(claim, text, split, "not tested", f"it takes the arms {arm} and dedicated")
    numbers = "; ".join(f"{c.setting} {spell(c)}" for c in mine)
    return Verdict(claim, text, split, judge(mine, bound), numbers)


def verdict_c(steps: Sequence[Comparison], split: str) -> Verdict:
    """Whether more time buys fewer errors."""
    text = "WER falls as time grows: each setting makes fewer errors than the next faster one"
    if not steps:
        return Verdict("C", text, split, "not tested", "it takes the arm stochastic and two settings")
    numbers = "; ".join(f"{c.first} against {c.second} {spell(c)}" for c in steps)
    return Verdict("C", text, split, judge(steps, 0.0), numbers)


def judge(comparisons: Sequence[Comparison], bound: float) -> str:
    """`holds` where all intervals end at or below the bound, `does not hold` where one begins above it."""
    if any(c.low > bound for c in comparisons):
        return "does not hold"
    return "holds" if all(c.high <= bound for c in comparisons) else "not decided"


def spell(comparison: Comparison) -> str:
    """`+3.1 % (-1.0 to +7.2)`."""

    def percent(value: float) -> str:
        return f"{100 * value:+.1f}" if math.isfinite(value) else "\N{INFINITY}"

    return f"{percent(comparison.difference)} % ({percent(comparison.low)} to {percent(comparison.high)})"
