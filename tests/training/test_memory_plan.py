"""The memory plan: what it says follows from the shapes."""

import re

import pytest

from configs import plan
from sew_jax.errors import UserError
from sew_jax.training.memory_plan import plan_memory


def lines(capsys, **options):
    config = plan.get_config("demo")
    config.update(options)
    plan_memory(config)
    return capsys.readouterr().out.splitlines()


def test_its_numbers(capsys):
    said = lines(capsys, devices=4, memory_gib=0.05)
    millions = float(said[0].split()[0])
    assert millions == pytest.approx(1.04, abs=0.05)
    rows = [line.split() for line in said if re.match(r"\s+\d+\s", line)]
    assert [int(row[0]) for row in rows] == [1, 2, 4]
    for fsdp, state, gradients, *_ in rows:  # float32: parameters and two moments
        assert float(state) == pytest.approx(12 * millions * 1e6 / 2**30 / int(fsdp), abs=0.006)
        assert float(gradients) == pytest.approx(float(state) / 3, abs=0.006)
    kept = [float(line.split("keeps")[1].split()[0]) for line in said if "keeps" in line]
    assert kept == sorted(kept, reverse=True) and len(kept) == 3
    assert re.fullmatch(r"--config\.mesh\.fsdp=\d --config\.remat=\w+ --config\.accumulate=\d+", said[-1])


def test_what_cannot_be(capsys):
    assert lines(capsys, memory_gib=1e-4)[-1].startswith("nothing fits")
    with pytest.raises(UserError, match="devices: 0"):
        lines(capsys, devices=0)
    with pytest.raises(UserError, match="name a size"):
        plan_memory(plan.get_config("inherit"))
