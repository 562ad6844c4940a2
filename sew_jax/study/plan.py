"""What a study runs: the models of its arms, the runs that make them, and what each run costs."""

import copy
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sew_jax.compression import Compression, Draw, parse_table, sandwich_draws, settings_table, uniform_draws
from sew_jax.data.batch_plan import BatchPlan, choose_buckets, rows_per_bucket
from sew_jax.data.sources import open_source
from sew_jax.files import WORKDIR_HINT, write_json, writing_to
from sew_jax.models.config import BackboneConfig
from sew_jax.models.cost import count_update_flop, typical_macs
from sew_jax.names import split_names
from sew_jax.rates import SAMPLE_RATE
from sew_jax.runtime.sharding import make_mesh
from sew_jax.training.held_out import AUTO
from sew_jax.training.resume import RECORD
from sew_jax.training.setup import open_task
from sew_jax.training.task import Task

ONE_SETTING = ("dedicated", "specialised")  # arms that have a model for each setting
ARCHITECTURE = "architecture"  # folder that describes the model without having trained it


class Model(NamedTuple):
    """What an arm trains for each seed: one model, or one for each setting."""

    arm: str
    table: tuple[Compression, ...]  # of fine-tuning
    source: str | None  # the model whose pre-training it starts from; None: random weights

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.table[0]}" if self.arm in ONE_SETTING else self.arm


class Stage(NamedTuple):
    """One run of a study."""

    key: str  # also its folder, but for a rate that is chosen by then
    kind: str  # pretrain, finetune, time or report
    model: Model | None
    seed: int
    rate: float | None  # of fine-tuning, where it is tried; None: the recipe's own, or the one chosen
    needs: tuple[str, ...]  # keys of the runs it waits for
    updates: int = 0
    flop: float = 0.0
    hours: float = 0.0  # of audio


class Plan(NamedTuple):
    table: list[Compression]
    settings: list[Compression]  # that arms are compared at
    seeds: list[int]
    rates: list[float]
    models: list[Model]
    stages: list[Stage]  # each after those it needs


class Work(NamedTuple):
    """What an update takes: of a training part, whatever the arm."""

    backbone: BackboneConfig
    samples: int  # of an utterance, on average
    seconds: float  # of audio in an update


def make_plan(config: ConfigDict, workdir: Path) -> Plan:
    """The plan of a study; opens its data, and describes the model in the workdir.

    Raises:
      UserError: config or data do not fit.
    """
    table = settings_table(**config.compression)
    settings = parse_table(config.settings) if config.settings else table
    arms = list(dict.fromkeys(split_names(config.arms)))
    seeds = list(dict.fromkeys(map(int, split_names(config.seeds))))
    rates = list(dict.fromkeys(map(float, split_names(config.rates))))
    for name in (config.dev_split, *split_names(config.split)):
        open_source(config.data, name, min_samples=1, need_text=True, max_bad=config.evaluate.input.max_bad)
    models = _models(arms, table, settings)
    works = _measure(config, table, workdir)
    return Plan(table, settings, seeds, rates, models, _stages(config, table, models, seeds, rates, works))


def training_config(config: ConfigDict, model: Model, kind: str, seed: int) -> ConfigDict:
    """The config of a model's run; what it starts from, its rate and its updates are left to the caller."""
    part = copy.deepcopy(config[kind])
    part.data = config.data if kind == "finetune" else config.pretrain_data or config.data
    part.mesh, part.seed, part.dtype = config.mesh, seed, config.dtype
    part.log_every, part.checkpoint_every = config.log_every, config.checkpoint_every
    part.compression = copy.deepcopy(config.compression)
    if model.arm in ONE_SETTING:
        part.compression.names = model.table[0].name
    listed = parse_table(part.eval.settings) if part.eval.settings else []
    part.eval.settings = ",".join(s.name for s in listed if s in model.table)
    part.sandwich.enabled = _several(model.arm)
    part.sandwich.distill = config.distill if model.arm == "distilled" else 0.0
    if kind == "finetune":
        part.from_scratch = model.source is None
        if part.eval.split == AUTO:
            part.eval.split = config.dev_split
    return part


def evaluation_config(config: ConfigDict) -> ConfigDict:
    """The config of what reads the evaluation's data."""
    part = copy.deepcopy(config.evaluate)
    part.data, part.mesh, part.split = config.data, config.mesh, config.split
    return part


def _several(arm: str) -> bool:
    return arm in ("sandwich", "distilled")


def _models(arms: Sequence[str], table: Sequence[Compression], settings: Sequence[Compression]) -> list[Model]:
    models = []
    for arm in arms:
        if arm in ONE_SETTING:
            names = [f"dedicated-{s}" if arm == "dedicated" else "stochastic" for s in settings]
            models += [Model(arm, (s,), name) for s, name in zip(settings, names, strict=True)]
        else:
            models.append(Model(arm, tuple(table), None if arm == "random" else arm))
    return models


def _measure(config: ConfigDict, table: Sequence[Compression], workdir: Path) -> dict[str, Work]:
    """Opens both trainings as they would begin, so that what does not fit is said before the first run."""
    whole = Model("stochastic", tuple(table), "stochastic")
    part = training_config(config, whole, "pretrain", 0)
    task = open_task(part)
    folder = workdir / ARCHITECTURE
    with writing_to(workdir, WORKDIR_HINT):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, {"config": part.to_dict(), "architecture": task.architecture})
    works = {"pretrain": _work(part, task)}
    part = training_config(config, whole, "finetune", 0)
    part.init_from = str(folder)
    return works | {"finetune": _work(part, open_task(part))}


def _work(config: ConfigDict, task: Task) -> Work:
    multiple = make_mesh(config.mesh.data, config.mesh.fsdp).size * config.accumulate
    buckets = choose_buckets(task.samples, config.input.buckets)
    rows = rows_per_bucket(buckets, round(config.input.batch_seconds * SAMPLE_RATE), multiple)
    plan = BatchPlan(
        task.samples,
        rows,
        0,
        shuffle=True,
        sizes=task.source.sizes,
        exponent=config.input.corpus_exponent,
        crops=task.crops,
    )
    architecture = json.loads(json.dumps(task.architecture["backbone"]))
    return Work(
        BackboneConfig(**architecture),
        round(float(np.average(task.samples, weights=task.crops))),
        plan.seconds_per_batch,
    )


def flop_of_update(work: Work, draws: Sequence[Draw]) -> float:
    """FLOP of an update on average over what it may draw, padding not counted.

    A frozen extractor counts as if it learnt, so that models from random weights, whose extractor does, get no fewer
    updates.
    """
    each = [count_update_flop(work.backbone, draw.setting, work.samples, draw.others) for draw in draws]
    return float(np.mean(each)) * work.seconds * SAMPLE_RATE / work.samples


def equal_updates(num_steps: int, reference: float, flop: float) -> int:
    """Updates of `flop` each that cost what `num_steps` updates of `reference` do."""
    return max(1, round(num_steps * reference / flop))


def _stages(
    config: ConfigDict,
    table: Sequence[Compression],
    models: Sequence[Model],
    seeds: Sequence[int],
    rates: Sequence[float],
    works: dict[str, Work],
) -> list[Stage]:
    def cost(model: Model, kind: str) -> dict[str, Any]:
        work = works[kind]
        macs = functools.partial(typical_macs, work.backbone)
        draws = sandwich_draws(table, macs) if _several(model.arm) else uniform_draws(model.table)
        flop, steps = flop_of_update(work, draws), config[kind].num_steps
        if config.equal == "flop":
            steps = equal_updates(steps, flop_of_update(work, uniform_draws(table)), flop)
        return {"updates": steps, "flop": steps * flop, "hours": steps * work.seconds / 3600}

    sources = {model.source: model for model in models if model.source == model.name}
    # a specialised model's, where that arm itself is not asked for
    if any(model.source == "stochastic" for model in models):
        sources["stochastic"] = Model("stochastic", tuple(table), "stochastic")
    stages = []
    for seed in seeds:
        for source in sources.values():
            stages.append(
                Stage(f"{source.name}/{seed}/pretrain", "pretrain", source, seed, None, (), **cost(source, "pretrain"))
            )
        for model in models:
            needs = (f"{model.source}/{seed}/pretrain",) if model.source else ()
            work = cost(model, "finetune")
            if not rates or seed == seeds[0]:
                for rate in rates or [None]:
                    stages.append(Stage(finetune_key(model, seed, rate), "finetune", model, seed, rate, needs, **work))
            else:
                tried = tuple(finetune_key(model, seeds[0], rate) for rate in rates)
                stages.append(
                    Stage(finetune_key(model, seed, None), "finetune", model, seed, None, needs + tried, **work)
                )
    scored = tuple(stage.key for stage in stages if stage.kind == "finetune")
    stages.append(Stage("time", "time", timed_model(models), seeds[0], None, scored))  # last, when nothing disturbs it
    return stages


def finetune_key(model: Model, seed: int, rate: float | None) -> str:
    """Of the stage, and the folder of its run."""
    return f"{model.name}/{seed}/finetune" + ("" if rate is None else f"-{rate:g}")


def timed_model(models: Sequence[Model]) -> Model:
    """The model whose programs are timed: one of the whole table if there is one; weights change no program."""
    return next((model for model in models if model.arm not in ONE_SETTING), models[0])
