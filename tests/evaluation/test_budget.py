"""Which row of a trade-off table a budget picks, against a search by hand."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict

from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.evaluation.budget import choose, chosen_setting
from sew_jax.evaluation.tradeoff import write_tradeoff
from tests.evaluation.test_tradeoff import row

ROWS = [row(), row("s2q1k1", 0.12, 1.0), row("s3q1k1", 0.12, 0.9), row("s4q1k1", 0.2, 0.8)]


def config(**given):
    return ConfigDict({"setting": "", "budget": "", "tradeoff": "", **given})


def test_no_row_that_fits_is_better():
    random = np.random.default_rng(0)
    for _ in range(100):
        rows = [row(f"s{i + 1}q1k1", *random.integers(1, 8, 2) / 4) for i in range(5)]
        bound = random.integers(1, 8) / 4
        for budget, measure, other in (
            (f"{bound}", "relative_time", "wer"),
            (f"{100 * bound}%", "relative_time", "wer"),
            (f"rtf={bound / 50}", "rtf", "wer"),
            (f"wer={100 * bound}%", "wer", "relative_time"),
        ):
            limit = bound / 50 if measure == "rtf" else bound
            if measure == "wer" and bound > 1:
                continue
            fitting = [r for r in rows if getattr(r, measure) <= limit]
            if not fitting:
                with pytest.raises(UserError, match="no setting has a"):
                    choose(rows, budget)
                continue
            picked = choose(rows, budget)
            assert picked in fitting and getattr(picked, other) == min(getattr(r, other) for r in fitting)
            equals = [r for r in fitting if getattr(r, other) == getattr(picked, other)]
            assert getattr(picked, measure) == min(getattr(r, measure) for r in equals)


def test_greedy_rows_of_the_first_split_count():
    better = dataclasses.replace(row("s4q1k1", 0.01, 0.1), decoder="lm")
    other_split = row("s4q1k1", 0.01, 0.1)
    assert choose([better, *ROWS, other_split], "0.4") == ROWS[3]


def test_an_impossible_budget_says_what_is_possible():
    with pytest.raises(UserError, match=r"fastest row is s4q1k1 at 0\.4"):
        choose(ROWS, "0.1")
    with pytest.raises(UserError, match=r"fastest row is s4q1k1 at 0\.008"):
        choose(ROWS, "rtf=0.001")
    with pytest.raises(UserError, match=r"most accurate row is s1q1k1 at 0\.1"):
        choose(ROWS, "wer=5%")


@pytest.mark.parametrize("budget", ["fast", "wer=12", "0.5x", "-1", "mac=3", "wer="])
def test_what_is_no_budget_is_a_clear_error(budget):
    with pytest.raises(UserError, match="budget: "):
        choose(ROWS, budget)


def test_a_setting_or_a_budget(tmp_path):
    write_tradeoff(ROWS, tmp_path)
    assert chosen_setting(config()) == Compression()
    assert chosen_setting(config(), Compression(2)) == Compression(2)
    assert chosen_setting(config(setting="s2q1k2")) == Compression(2, 1, 2)
    for path in (tmp_path, tmp_path / "tradeoff.json"):
        assert chosen_setting(config(budget="0.5", tradeoff=str(path))) == Compression(3)
    with pytest.raises(UserError, match="both given"):
        chosen_setting(config(setting="s1q1k1", budget="0.5"))
    with pytest.raises(UserError, match="needs a table"):
        chosen_setting(config(budget="0.5"))
    with pytest.raises(UserError, match=r"run configs/evaluate\.py first"):
        chosen_setting(config(budget="0.5", tradeoff=str(tmp_path / "nowhere")))
