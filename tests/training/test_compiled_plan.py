"""Plans by the compiler's word: which way is asked about next, and one program compiled by libtpu where it is there."""

import importlib.util
from types import SimpleNamespace

import jax.numpy as jnp
import optax
import pytest

from configs import plan
from sew_jax.compression import Compression, Draw, settings_table
from sew_jax.errors import UserError
from sew_jax.machines import MACHINES, slice_named
from sew_jax.models.config import BackboneConfig
from sew_jax.training import compiled_plan, compiled_way, memory_plan
from sew_jax.training.compiled_plan import Compiled, Way, compile_gradients
from sew_jax.training.compiled_way import Estimates
from sew_jax.training.losses import Term

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


def test_all_programs_of_the_longest_crops(capsys, monkeypatch):
    asked = []
    planned(capsys, monkeypatch, a_compiler(asked, lambda way: GIB), programs="all")
    table = settings_table(**plan.get_config("demo").pretrain.compression)
    assert sorted(draw for _, draw in asked) == sorted(map(str, table))


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


def loss_of_one_product(params, batch_stats, batch, key, progress, draw):
    y = batch["wave"][:, :512].astype(jnp.float32) @ params["kernel"]
    loss = Term(jnp.square(y).sum(), jnp.ones(()))
    return loss, ({"loss": loss}, batch_stats)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_libtpu_is_asked(monkeypatch):
    """Of a model that compiles in a second: its weight is split over the chips, its gradient summed."""
    model = SimpleNamespace(initialize=lambda key: {"params": {"kernel": jnp.zeros((512, 256))}})
    learning = SimpleNamespace(model=model, optimizer=optax.adam(1.0), micro_loss=loss_of_one_product)
    monkeypatch.setattr(compiled_plan, "contrastive", lambda *_: learning)
    pretrain, where = plan.get_config("demo").pretrain, slice_named("v5e-4")
    backbone, draw = BackboneConfig(), Draw(Compression())
    said = {
        fsdp: compile_gradients(pretrain, backbone, where, Way(fsdp, "none", 1), draw, rows=2, samples=16_000)
        for fsdp in (1, 4)
    }
    weights = 4 * 4 * 512 * 256  # float32: itself, two moments, its gradient
    assert said[1].needs > weights > said[4].needs - said[4].work > weights / 4
    assert said[1].flop == pytest.approx(2 * 2 * 2 * 512 * 256, rel=0.2)  # two products of two rows
    assert sum(said[1].collectives.values()) and set(said[1].collectives) == {"all-reduce"}
    assert said[4].collectives and all(one.cpu_seconds > 0 for one in said.values())
