"""Plans by the compiler's word: which way is asked about next, and one program compiled by libtpu where it is there."""

import importlib.util

import pytest

from configs import plan
from sew_jax.errors import UserError
from sew_jax.machines import MACHINES, slice_named
from sew_jax.training import compiled_way, memory_plan
from sew_jax.training.compiled_plan import Compiled, Way
from sew_jax.training.compiled_way import Estimates

GIB = 2**30
NEEDS = {"none": (3 * GIB, 0), "dots": (2 * GIB, GIB // 2), "layers": (GIB // 2, GIB)}  # of an utterance


def planned(capsys, monkeypatch, compile_gradients, **options):
    """What a plan of the demo's model says, with another compiler."""
    config = plan.get_config("demo")
    config.update({"machine": "v5e-16"} | options)
    config.pretrain.input.batch_seconds = 16 * 6 * config.pretrain.input.crop_seconds  # six rows a device
    monkeypatch.setattr(compiled_way, "compile_gradients", compile_gradients)
    monkeypatch.setattr(memory_plan, "can_compile", lambda where: bool(where.topology))
    monkeypatch.setattr(memory_plan, "_needs", lambda *_: NEEDS)
    memory_plan.plan_memory(config)
    return capsys.readouterr().out.splitlines()


def a_compiler(asked, needs):
    """Of programs that need `needs(way)` bytes; None: too many to say."""

    def compile_gradients(pretrain, backbone, where, way, draw, rows, samples):
        assert (where.topology, rows) == ("v5e:4x4", 6)
        asked.append((way, str(draw)))
        return Compiled(needs(way), 5, 2e12, 3e9, {"all-reduce": 4}, 7.0)

    return compile_gradients


def test_slices_by_their_makers_names():
    assert slice_named("a100") is None
    found = {name: slice_named(name)[1:] for name in ("v5e-16", "v6e-8", "v5p-8", "h100x8")}
    assert found == {"v5e-16": (16, "v5e:4x4"), "v6e-8": (8, "v6e:2x4"), "v5p-8": (4, "v5p:2x2x1"), "h100x8": (8, "")}
    for name in ("v5e-5", "v5p-7", "v9-4", "h100"):
        if name not in {machine.name for machine in MACHINES}:
            with pytest.raises(ValueError, match="choose one of"):
                slice_named(name)
    config = plan.get_config("demo")
    config.machine = "v5e-5"
    with pytest.raises(UserError, match="v5e-5 is no slice"):
        memory_plan.plan_memory(config)


def test_what_fits_at_once_is_taken(capsys, monkeypatch):
    asked = []
    said = planned(capsys, monkeypatch, a_compiler(asked, lambda way: GIB))
    assert [way for way, _ in asked] == [Way(1, "none", 1)] * 3
    assert asked[0][1] == "s1q1k1" and len({draw for _, draw in asked}) == 3
    assert said[0].endswith("16 devices of 16 GiB")
    assert said[-1] == "--config.mesh.fsdp=1 --config.remat=none --config.accumulate=1"
    row = next(line.split() for line in said if "s1q1k1" in line and "all-reduce" in line)
    assert row[:5] == ["1", "none", "1", "s1q1k1", "1.00"] and row[-4:] == ["3", "4", "all-reduce", "7"]


@pytest.mark.parametrize("refused", [None, 40 * GIB])
def test_the_next_way_where_it_does_not_fit(capsys, monkeypatch, refused):
    """Without computing more: in micro-batches that divide the rows."""
    asked = []
    needs = lambda way: refused if way.accumulate < 3 else GIB  # noqa: E731
    said = planned(capsys, monkeypatch, a_compiler(asked, needs), programs="largest")
    ways = [way for way, _ in asked]
    assert ways[-1].accumulate >= 3 and 6 % ways[-1].accumulate == 0 and len(set(ways)) == len(ways)
    assert all(way.remat == "none" for way in ways)
    assert (
        said[-1] == f"--config.mesh.fsdp={ways[-1].fsdp} --config.remat=none --config.accumulate={ways[-1].accumulate}"
    )


def test_nothing_fits(capsys, monkeypatch):
    asked = []
    said = planned(capsys, monkeypatch, a_compiler(asked, lambda way: None), programs="largest")
    assert said[-1].startswith("nothing fits") and len(asked) > 2


def test_estimates_grow_into_other_ways():
    estimates = Estimates(10 * GIB, 6, {1: 2 * GIB}, {"none": (2 * GIB, 0), "layers": (GIB, GIB // 2)})
    assert estimates.best(0.5) == Way(1, "none", 1)
    assert estimates.best(1.0) == Way(1, "none", 2)
    assert estimates.best(4.5) == Way(1, "layers", 6)
    assert estimates.best(8.0) is None


def test_slices_of_gpus_are_estimated(capsys, monkeypatch):
    asked = []
    said = planned(capsys, monkeypatch, a_compiler(asked, lambda way: GIB), machine="h100x8")
    assert not asked and said[0].endswith("8 devices of 80 GiB")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_libtpu_is_asked(capsys):
    config = plan.get_config("demo")
    config.update({"machine": "v5e-4", "programs": "largest"})
    config.pretrain.compression.names = "s1q1k1"
    small = {"layers": 1, "width": 32, "heads": 1, "ffn_width": 32, "pos_kernel": 3, "pos_groups": 1, "conv_width": 8}
    config.pretrain.model.update(small)
    config.pretrain.input.update({"crop_seconds": 0.6, "batch_seconds": 2.4, "min_seconds": 0.5})
    memory_plan.plan_memory(config)
    said = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in said if "all-reduce" in line)
    assert row[:4] == ["1", "none", "1", "s1q1k1"] and 0 < float(row[4]) < 1
    assert said[-1] == "--config.mesh.fsdp=1 --config.remat=none --config.accumulate=1"
