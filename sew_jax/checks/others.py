"""Keys of the modes that make data, plan, measure, or run several others in one go."""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from sew_jax.checks.evaluation import EVALUATE
from sew_jax.checks.modes import (
    BATCH_SECONDS,
    COMPRESSION,
    DATA,
    DTYPE,
    MESH,
    SEED,
    Mode,
    Rules,
    choice,
    lengths_are_in_order,
    mode,
    one_axis_is_the_rest,
    some_of,
)
from sew_jax.checks.rules import Flag, Number, Parsed, Settings, Text, Workers, at_least, positive, whole
from sew_jax.checks.training import FINETUNE, PRETRAIN, needs_an_architecture
from sew_jax.compression import parse_table, settings_table
from sew_jax.engines.run_times import ALL_PRECISIONS, RUNTIMES
from sew_jax.errors import UserError
from sew_jax.machines import slice_named
from sew_jax.models.sizes import SIZES, published
from sew_jax.names import split_names

PARTS = ("inference", "runtimes", "training", "overhead", "input", "start")  # of a benchmark
ARMS = ("stochastic", "dedicated", "specialised", "random", "sandwich", "distilled")  # of a study
_SEVERAL = ("sandwich", "distilled")  # arms that compute several settings an update
_LEAST_TRAINED_S = 0.3  # a masked span


def _numbers(kind: type, low: float, high: float) -> Callable[[str], None]:
    def parse(text: str) -> None:
        try:
            numbers = [kind(part) for part in split_names(text)]
        except ValueError as error:
            raise ValueError(f"{text!r} is no list of numbers; join them by commas") from error
        if not numbers or not all(low <= number <= high for number in numbers):
            raise ValueError(f"{text!r} must be numbers of at least {low:g}, joined by commas")

    return parse


def _dataset_name(text: str) -> None:
    if not re.fullmatch("[a-z][a-z0-9_]*", text):
        raise ValueError(f"{text!r} must be lower-case letters, digits and _, as TFDS wants it")


def _settings_fit_the_size(config: ConfigDict) -> Iterator[tuple[str, str]]:
    backbone, _ = published(config.size)
    for key in ("settings", "train_settings"):
        for setting in parse_table(config[key]):
            try:
                backbone.check_setting(setting)
            except UserError as error:
                yield key, str(error)


def _updates_are_plain(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """What the timed update would not do, as it is one of contrastive pre-training at one setting."""
    recipe = config.recipe
    plain = {"objective": "contrastive", "remat": "none", "accumulate": 1}
    others = {f"recipe.{key}": recipe[key] for key, value in plain.items() if recipe[key] != value}
    others |= {"recipe.sandwich.enabled": True} if recipe.sandwich.enabled else {}
    for key, value in others.items() if "training" in split_names(config.parts) else ():
        yield key, f"{value} is not what `training` times: one contrastive update of one setting, without it"


def _settings_are_of_the_table(config: ConfigDict) -> Iterator[tuple[str, str]]:
    table = settings_table(**config.compression)
    for setting in parse_table(config.settings) if config.settings else ():
        if setting not in table:
            yield "settings", f"{setting} is not in the table ({' '.join(map(str, table))}); see compression"


def _arms_have_settings(config: ConfigDict) -> Iterator[tuple[str, str]]:
    for arm in split_names(config.arms):
        if arm in _SEVERAL and len(settings_table(**config.compression)) < 2:
            yield "arms", f"{arm} takes a table of several settings; see compression"


def _dev_is_apart(config: ConfigDict) -> Iterator[tuple[str, str]]:
    for name in split_names(config.dev_split):
        for key, splits, use in (
            ("split", config.split, "report on"),
            ("finetune.split", config.finetune.split, "train on"),
        ):
            if not split_names(splits):
                yield key, f"it takes in all of the data, also dev_split={name}; name the splits to {use}"
            elif name in split_names(splits):
                yield "dev_split", f"{name!r} is also a split to {use}, which would flatter what is chosen by it"


def _a_size_is_known(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if None in config.pretrain.model.values():
        yield "pretrain.model", "name a size, such as configs/plan.py:large; `inherit` has none of its own"


def _one_budget_is_given(config: ConfigDict) -> Iterator[tuple[str, str]]:
    given = [key for key in ("flop", "device_hours", "kwh") if config[key]]
    if len(given) > 1:
        yield given[1], f"{config[given[1]]:g} and {given[0]}={config[given[0]]:g} are both given; one is the budget"


# its own words where no size is named
_SIZED = dataclasses.replace(PRETRAIN, together=tuple(t for t in PRETRAIN.together if t is not needs_an_architecture))


def _pieces_are_long_enough(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Of what `prepare` cuts: two pieces of the least length must have room in the longest."""
    least = max(2 * config.min_seconds, 1.0)
    if config.cut_seconds < least:
        yield "cut_seconds", f"{config.cut_seconds} must be at least {least:g}: a second, and twice min_seconds"


PREPARE = Mode(
    keys={
        "mode": mode("prepare"),
        "data": DATA,
        "split": Text(),
        "name": Parsed("name the dataset", _dataset_name),
        "transcripts": choice("auto", "required", "optional"),
        "min_seconds": at_least(0, "of an utterance"),
        "cut_seconds": positive("of a piece"),
        "max_seconds": positive("of an utterance"),
        "workers": Workers(),
    },
    together=(lengths_are_in_order, _pieces_are_long_enough),
)
PLAN = Mode(
    keys={
        "mode": mode("plan"),
        "pretrain": _SIZED,
        "devices": whole(1, ""),
        "memory_gib": positive("of each device"),
        "size": Text(),
        "flop": at_least(0, "0: none"),
        "device_hours": at_least(0, "0: none"),
        "kwh": at_least(0, "0: none"),
        "machine": Parsed("name a device or a slice, such as v5e-16", slice_named),
        "programs": choice("none", "largest", "three", "all"),
        "utilization": Number("a part of the promised speed", 0, 1, above=True),
        "price": at_least(0, "of a device hour; 0: none is said"),
        "hours": at_least(0, "of audio; 0: those of pretrain.data"),
    },
    together=(_a_size_is_known, _one_budget_is_given),
)
BENCHMARK = Mode(
    keys={
        "mode": mode("benchmark"),
        "parts": Parsed(f"choose of {', '.join(PARTS)}", some_of(PARTS)),
        "rounds": whole(1, "in which all takes turns"),
        "size": choice(*SIZES),
        "dtype": DTYPE,
        "peers": Flag(),
        "profile": Flag(),
        "runtimes": Parsed("name run times, joined by commas", some_of(RUNTIMES), default="jax"),
        "dtypes": Parsed("", some_of(ALL_PRECISIONS), default="float32"),
        "settings": Settings(empty=False),
        "batch": Parsed("write sizes of at least 1, such as 1,4", _numbers(int, 1, 10**6)),
        "seconds": at_least(0.1, "of an utterance"),
        "train_settings": Settings(empty=False),
        "train_batch": whole(1, "utterances"),
        "train_seconds": at_least(_LEAST_TRAINED_S, "of an utterance; less holds no masked span"),
        "recipe": PRETRAIN,
        "step_seconds": at_least(0.001, "of an update"),
        "data": DATA,
        "split": Text(),
        "utterances": whole(1, "of the synthetic dataset"),
        "batches": whole(1, "while memory is watched"),
        "read_seconds": positive("of each way of reading"),
        "batch_seconds": BATCH_SECONDS,
        "prepare": PREPARE,
    },
    together=(_settings_fit_the_size, _updates_are_plain),
)
_SHARED: Rules = {
    "data": DATA,
    "dtype": DTYPE,
    "log_every": whole(1, "updates"),
    "checkpoint_every": whole(1, "updates"),
    "mesh": MESH,
    "compression": COMPRESSION,
    "pretrain": PRETRAIN,
    "finetune": FINETUNE,
    "evaluate": EVALUATE,
}
DEMO = Mode(keys={"mode": mode("demo"), **_SHARED, "seed": SEED}, together=(one_axis_is_the_rest,))
STUDY = Mode(
    keys={
        "mode": mode("study"),
        **_SHARED,
        "pretrain_data": Text(),
        "split": Text(hint="name the splits of data to report on"),
        "dev_split": Text(hint="name a split of data to choose by, which is neither trained nor reported on"),
        "arms": Parsed(f"choose of {', '.join(ARMS)}", some_of(ARMS)),
        "settings": Settings(),
        "seeds": Parsed("name at least one number", _numbers(int, 0, SEED.high)),
        "equal": choice("updates", "flop"),
        "rates": Parsed("name at least one rate", _numbers(float, 0, sys.float_info.max), empty=True),
        "distill": Number("of the divergence from the largest setting", 0),
    },
    together=(_arms_have_settings, _settings_are_of_the_table, _dev_is_apart, one_axis_is_the_rest),
)
