"""What a budget buys: the arithmetic, and FLOP as XLA counts them."""

import functools

import jax
import jax.numpy as jnp
import pytest

from configs import plan, pretrain
from sew_jax.compression import Compression, Draw
from sew_jax.errors import UserError
from sew_jax.machines import MACHINES, machine_named, machine_of
from sew_jax.models.config import BackboneConfig, PretrainHeadConfig
from sew_jax.models.cost import count_macs
from sew_jax.models.sizes import published
from sew_jax.training.compute_plan import LEAST_UPDATES, plan_compute
from sew_jax.training.pretraining import contrastive
from sew_jax.training.step import OfRun, make_gradients, new_state


def planned(size="demo", **options):
    config = plan.get_config(size)
    names = options.pop("names", "")
    crop = options.pop("crop_seconds", None)
    config.update({"hours": 10.0} | options)
    config.pretrain.compression.names = names
    if crop:
        config.pretrain.input.crop_seconds = crop
    return {each.size: each for each in plan_compute(config)}


@functools.cache
def xla_flop(seconds, setting):
    """Of an utterance's part of an update of the small model: what XLA counts of the program of its gradients."""
    recipe = pretrain.get_config("demo")
    backbone = BackboneConfig(**recipe.model, upsample_factors=(setting.squeeze,), dtype=recipe.dtype)
    learning = contrastive(recipe, backbone, PretrainHeadConfig(**recipe.head))
    state = jax.eval_shape(lambda key: new_state(learning.model.initialize(key), learning.optimizer), jax.random.key(0))
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    batch = {"wave": jax.ShapeDtypeStruct((1, round(seconds * 16_000)), jnp.int16), "length": one, "crop": one}
    of_run = OfRun(jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32))
    gradients = jax.jit(make_gradients(learning.micro_loss, accumulate=1), static_argnames="compression")
    return gradients.lower(state, batch, of_run, compression=Draw(setting)).cost_analysis()["flops"]


@pytest.mark.parametrize("flop", [1e12, 3e13, 1e15])
def test_a_budget_buys_what_xla_counts_within_5_percent(flop):
    seconds = 4.0  # short enough for attention in one piece: of a loop XLA counts one round alone
    mine = planned(flop=flop, names="s2q1k1", crop_seconds=seconds)["demo"]
    rows = pretrain.get_config("demo").input.batch_seconds / seconds
    assert mine.updates * rows * xla_flop(seconds, Compression(2)) == pytest.approx(flop, rel=0.05)
    assert mine.epochs == pytest.approx(mine.updates * 24.0 / 36_000)


def test_each_row_of_a_table_is_updated_often_enough():
    whole = planned(flop=1e15)["demo"]
    assert len(whole.table) == 8 and whole.updates >= 8 * LEAST_UPDATES
    squeezes = planned(flop=whole.update_flop * 7000)["demo"]
    assert [str(setting) for setting in squeezes.table] == ["s1q1k1", "s2q1k1", "s3q1k1", "s4q1k1"]
    one = planned(flop=whole.update_flop * 3000)["demo"]
    assert [str(setting) for setting in one.table] == ["s1q1k1"]


def test_budgets_in_other_units():
    machine = machine_named("l4")
    flop = 2 * 3600 * 121e12 * 0.5
    by_flop = planned(flop=flop)["base"].updates
    for budget in ({"device_hours": 2.0}, {"kwh": 2.0 * machine.watts / 1000}):
        assert planned(machine="l4", utilization=0.5, **budget)["base"].updates == pytest.approx(by_flop, abs=1)


def test_what_it_says(capsys):
    planned(flop=1e18, hours=960.0, machine="a100", price=2.0, devices=4)
    said = capsys.readouterr().out.splitlines()
    hours = 1e18 / (312e12 * 0.3) / 3600
    row = next(line.split() for line in said if line.split()[:1] == ["a100"])
    assert [float(cell) for cell in row[1:]] == pytest.approx([hours / 4, hours * 0.4, hours * 2], rel=0.005)
    assert {line.split()[0] for line in said if line.split()} >= {machine.name for machine in MACHINES}
    best = next(line.split() for line in said if line.split()[1:2] == ["*"])
    assert said[-1].startswith(f"--config=configs/pretrain.py:{best[0]} --config.num_steps={best[4]} ")


def test_what_cannot_be():
    with pytest.raises(UserError, match="device_hours: 1 and flop=1e"):
        planned(flop=1e15, device_hours=1.0)
    with pytest.raises(UserError, match="watts of v5e are not published"):
        planned(kwh=1.0, machine="v5e")
    with pytest.raises(UserError, match="buys no update"):
        planned(flop=1.0)


def test_slim_shapes_cost_one_budget():
    """Liu et al. trained each for as many updates as make the same FLOP; `small` has the parameters of slim_100."""
    spent = {}
    for size in ("slim_30", "slim_50", "slim_70", "slim_100", "slim_130", "slim_200", "small"):
        macs = count_macs(published(size)[0], Compression(), 250_000).total
        spent[size] = macs * pretrain.RECIPES[size].num_steps
    small = spent.pop("small")
    for size, cost in spent.items():
        assert cost == pytest.approx(spent["slim_100"], rel=0.01), size
    assert small == pytest.approx(0.95 * spent["slim_100"], rel=0.01)


def test_devices_by_the_names_that_jax_gives_them():
    kinds = {"NVIDIA H100 80GB HBM3": "h100", "TPU v5 lite": "v5e", "TPU v5": "v5p", "cpu": "cpu_core"}
    kinds |= {"NVIDIA A100-SXM4-40GB": "a100", "TPU v6 lite": "v6e"}
    assert {kind: machine_of(kind).name for kind in kinds} == kinds
    assert machine_of("some accelerator") is None
