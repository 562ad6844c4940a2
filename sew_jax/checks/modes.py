"""A mode's keys: a tree of rules that mirrors its config, and what must hold between several of them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Union

from ml_collections import ConfigDict

from sew_jax.checks.rules import (
    Choice,
    CountOrShare,
    Factors,
    MeshAxis,
    Parsed,
    Rule,
    Settings,
    Text,
    choice_of,
    positive,
    whole,
)
from sew_jax.compression import settings_table
from sew_jax.models.config import BackboneConfig
from sew_jax.names import split_names

Rules = Mapping[str, Union[Rule, "Rules", "Mode"]]
Together = Callable[[ConfigDict], Iterator[tuple[str, str]]]  # config -> (key, what is wrong with it)


@dataclasses.dataclass(frozen=True)
class Mode:
    """The keys of a mode.

    Args:
      keys: rules; a mode in their place is a config within the config.
      together: what must hold between keys that are each as they may be; none is asked where one is not.
      filled: keys that are filled in before the config is used, where it lies within another one.
    """

    keys: Rules
    together: tuple[Together, ...] = ()
    filled: tuple[str, ...] = ()


def mode(name: str) -> Rule:
    """The key that names the mode."""
    return Choice("", (name,))


DATA = Text(hint="name a folder of audio, a manifest or a prepared dataset, or write demo")
INIT_FROM = Text(hint="set --config.init_from to the workdir of a run, or to hf:PATH")
LANGUAGE = Text(default="")
DTYPE = choice_of(BackboneConfig, "dtype")
REMAT = choice_of(BackboneConfig, "remat")
DTYPE_OR_TRAINED = Choice("empty: as in training", (*DTYPE.allowed, ""))
MESH: Rules = {"data": MeshAxis(), "fsdp": MeshAxis()}
COMPRESSION: Rules = {
    "squeeze": Factors(),
    "query_pool": Factors(per_layer=True),
    "kv_pool": Factors(per_layer=True),
    "names": Settings(),
}
TEXT_NORMALIZERS = ("none", "upper", "lower", "basic")


def some_of(allowed: Sequence[str]) -> Callable[[str], None]:
    """What refuses a text that is not some of these, joined by commas."""

    def parse(text: str) -> None:
        for name in split_names(text) or [text]:
            if name not in allowed:
                raise ValueError(f"{name!r} is unknown; choose of {', '.join(allowed)}, joined by commas")

    return parse


TEXT_NORMALIZER = Parsed("", some_of(TEXT_NORMALIZERS), empty=True, default="")
SEED = whole(0, "", 2**32 - 1)  # a key of JAX takes its lower 32 bits alone
BUCKETS = whole(1, "lengths to which audio is padded")
BATCH_SECONDS = positive("seconds of audio")
MAX_BAD = CountOrShare("damaged utterances that may be skipped; below 1: their share")
READERS: Rules = {
    "max_bad": MAX_BAD,
    "workers": whole(0, "processes that read audio; 0: threads do"),
    "threads": whole(1, "threads that read audio"),
}


def one_axis_is_the_rest(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Of a mesh."""
    if config.mesh.data == config.mesh.fsdp == -1:
        yield "mesh.fsdp", "-1 and mesh.data=-1 are both all the rest; give one of them a number of devices"


def lengths_are_in_order(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Of the shortest and the longest utterance."""
    part, prefix = (config.input, "input.") if "input" in config else (config, "")
    if part.min_seconds >= part.max_seconds:
        yield f"{prefix}max_seconds", f"{part.max_seconds} must be above {prefix}min_seconds={part.min_seconds}"


def layers_have_factors(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Of the settings of a table, one for each layer where a setting says what each layer does."""
    layers = config.model.layers if "layers" in config.model else None
    for setting in settings_table(**config.compression) if layers else ():
        parts = {"query_pool": setting.query_pool, "kv_pool": setting.kv_pool, "merge": setting.merge}
        for name, factor in parts.items():
            if isinstance(factor, tuple) and len(factor) != layers:
                key, what = "names" if config.compression.names else name, "shares" if name == "merge" else "factors"
                yield f"compression.{key}", f"{setting} has {len(factor)} {what} for model.layers={layers}"


def defaults_of(owner: type, rules: Mapping[str, Rule]) -> Rules:
    """The rules of a dataclass's fields, with its own defaults: a checkpoint without the field is what these say."""
    fields = {field.name: field.default for field in dataclasses.fields(owner)}
    return {name: dataclasses.replace(rule, default=fields[name]) for name, rule in rules.items()}


def choice(*allowed: str, **options: Any) -> Choice:
    """One of these."""
    return Choice("", allowed, **options)


def a_language_is_of_a_released_checkpoint(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Runs have the one that they were tuned on."""
    if config.get("language") and not config.init_from.startswith("hf:"):
        yield "language", f"{config.language!r} is for checkpoints of many languages; init_from must be hf:PATH"
