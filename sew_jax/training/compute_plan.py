"""What a budget of computing buys: updates and epochs of each size, on which machine how long, at what energy."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sew_jax.checks.check import check_config
from sew_jax.compression import Compression, Draw, product_table, settings_table
from sew_jax.config_files import load_config
from sew_jax.console import say
from sew_jax.data.sources import open_source
from sew_jax.errors import UserError
from sew_jax.machines import MACHINES, Machine, machine_named, slice_named
from sew_jax.models.config import BackboneConfig, PretrainHeadConfig
from sew_jax.models.cost import typical_macs
from sew_jax.models.sizes import SIZES
from sew_jax.rates import SAMPLE_RATE
from sew_jax.tables import align_columns
from sew_jax.training.memory_plan import plan_memory
from sew_jax.training.spending import pretrain_flop
from sew_jax.training.task import draws_of, fields_of_table

LEAST_UPDATES = 1000  # of each row of a table; a table of more rows than that allows is too large
# Of the best size of a budget in Liu et al. 2024 (arXiv:2409.16295): 297,370 updates, where the 499,953 of another were
# 24.7 epochs
_EPOCHS = 15


class Plan(NamedTuple):
    """What a budget buys of a size.

    Attributes:
      table: settings to train.
      macs: of a second of audio, on average over the table.
      update_flop: of an update.
      updates: as many as the budget pays for.
      epochs: how often each hour of the data is read.
    """

    size: str
    table: list[Compression]
    macs: float
    update_flop: float
    updates: int
    epochs: float


def plan(config: ConfigDict, workdir: Path | None = None) -> None:
    """The mode `plan`: what a budget buys where the config has one, else what a model needs of memory.

    Args:
      workdir: of all modes; nothing is written.

    Raises:
      UserError: something in the config or the data does not fit.
    """
    if (objective := config.pretrain.get("objective", "contrastive")) != "contrastive":
        raise UserError(
            f"pretrain.objective: plan counts the contrastive task alone; leave {objective} out of its name"
        )
    if config.get("flop") or config.get("device_hours") or config.get("kwh"):
        plan_compute(config)
    else:
        plan_memory(config, workdir)


def plan_compute(config: ConfigDict) -> list[Plan]:
    """Says what the budget of a config of mode `plan` buys, and the flags of the size that fits the data best.

    Raises:
      UserError: the data cannot be opened, the machine's watts are not published, or the budget buys nothing.
    """
    check_config(config)
    where = slice_named(config.machine)
    if where:
        config = config.copy_and_resolve_references()
        config.machine, config.devices = where.machine.name, where.devices
    machine = machine_named(config.machine)
    flop = _budget(config, machine)
    hours, data = _hours(config)
    say(f"{flop:.3g} FLOP; data: {hours:.4g} h ({data})\n")
    plans = [_plan(name, _recipe(name, config), flop, hours) for name in SIZES]
    best = min(plans, key=lambda plan: abs(math.log(max(plan.epochs, 1e-9) / _EPOCHS)))
    if not best.updates:
        raise UserError(f"flop: {flop:.3g} buys no update of any size; raise the budget")
    say(_format_plans(plans, best))
    say(f"    (* nearest to {_EPOCHS} epochs, as the best size of a budget was in Liu et al. 2024: a hint, no law)\n")
    say(_format_machines(config, flop))
    say(
        f"    (at {config.utilization:.0%} of what the maker's data sheet promises, which is assumed: see utilization; "
        "energy at the rating)\n"
    )
    say(_flags(best))
    return plans


def _budget(config: ConfigDict, machine: Machine) -> float:
    if config.flop:
        return config.flop
    return machine.flop(config.device_hours or 1000 * config.kwh / _watts(machine), config.utilization)


def _watts(machine: Machine) -> float:
    if machine.watts is None:
        raise UserError(f"machine: the watts of {machine.name} are not published; give flop or device_hours, not kwh")
    return machine.watts


def _hours(config: ConfigDict) -> tuple[float, str]:
    """Of the data, and where that is known from."""
    if config.hours:
        return config.hours, "as hours says"
    pretrain = config.pretrain
    source, _ = open_source(
        pretrain.data,
        pretrain.split,
        min_samples=round(pretrain.input.min_seconds * SAMPLE_RATE),
        max_samples=round(pretrain.input.max_seconds * SAMPLE_RATE),
        need_text=False,
        max_bad=pretrain.input.max_bad,
    )
    return float(source.samples.sum()) / SAMPLE_RATE / 3600, source.name


def _recipe(name: str, config: ConfigDict) -> ConfigDict:
    return config.pretrain if name == config.size else load_config(f"pretrain.py:{name}")


def _plan(name: str, recipe: ConfigDict, flop: float, hours: float) -> Plan:
    """With the first table of which each row is updated often enough: the recipe's, its squeezes, the first of them."""
    whole = settings_table(**recipe.compression)
    squeezes = product_table(sorted({setting.squeeze for setting in whole}), (1,), (1,))
    plan = None
    for table in (whole, squeezes, squeezes[:1]):
        plan = _with_table(name, recipe, table, flop, hours)
        if plan.updates >= LEAST_UPDATES * len(table):
            break
    assert plan
    return plan


def _with_table(name: str, recipe: ConfigDict, table: list[Compression], flop: float, hours: float) -> Plan:
    backbone = BackboneConfig(**recipe.model, **fields_of_table(table), dtype=recipe.dtype)
    each = update_flop(recipe, backbone, table)
    updates = int(flop / each)
    macs = float(np.mean([typical_macs(backbone, setting) for setting in table])) / 10
    return Plan(name, table, macs, each, updates, updates * recipe.input.batch_seconds / 3600 / hours)


def update_flop(recipe: ConfigDict, backbone: BackboneConfig, table: list[Compression]) -> float:
    """FLOP of an update on average over what it may draw, its batch full of crops of the longest kind."""
    head, samples = PretrainHeadConfig(**recipe.head), round(recipe.input.crop_seconds * SAMPLE_RATE)
    draws = draws_of(recipe, table, backbone) if len(table) > 1 else [Draw(table[0])]
    each = [pretrain_flop(backbone, head, draw, samples, recipe.mask) for draw in draws]
    return float(np.mean(each)) * recipe.input.batch_seconds / recipe.input.crop_seconds


def _format_plans(plans: list[Plan], best: Plan) -> str:
    head = ("size", "MMAC a second of audio", "TFLOP an update", "updates", "epochs", "settings to train")
    lines = [
        (
            f"{plan.size}{' *' if plan is best else ''}",
            f"{plan.macs / 1e6:.0f}",
            f"{plan.update_flop / 1e12:.3g}",
            f"{plan.updates}",
            f"{plan.epochs:.3g}",
            f"{len(plan.table)}: {plan.table[0]} to {plan.table[-1]}" if len(plan.table) > 1 else f"{plan.table[0]}",
        )
        for plan in plans
    ]
    return align_columns(head, lines)


def _format_machines(config: ConfigDict, flop: float) -> str:
    head = (f"{config.devices} of", "hours", "kWh", "cost")
    lines = []
    for machine in MACHINES:
        device_hours = machine.hours(flop, config.utilization)
        kwh = "not published" if machine.watts is None else f"{device_hours * machine.watts / 1000:.3g}"
        known = config.price and machine.name == config.machine
        cost = f"{device_hours * config.price:.3g}" if known else "-"
        lines.append((machine.name, f"{device_hours / config.devices:.3g}", kwh, cost))
    return align_columns(head, lines)


def _flags(plan: Plan) -> str:
    names = ",".join(map(str, plan.table))
    return (
        f"--config=configs/pretrain.py:{plan.size} --config.num_steps={plan.updates} --config.compression.names={names}"
    )
