"""Checks a config against the rules of its mode."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from sew_jax.checks.evaluation import EVALUATE, EXPORT, LM, SEARCH, SERVE, TRANSCRIBE
from sew_jax.checks.modes import Mode, Rules
from sew_jax.checks.others import BENCHMARK, DEMO, PLAN, PREPARE, STUDY
from sew_jax.checks.rules import NO_DEFAULT
from sew_jax.checks.training import FINETUNE, PRETRAIN
from sew_jax.errors import UserError

MODES = {
    "pretrain": PRETRAIN,
    "finetune": FINETUNE,
    "evaluate": EVALUATE,
    "search": SEARCH,
    "lm": LM,
    "transcribe": TRANSCRIBE,
    "serve": SERVE,
    "export": EXPORT,
    "prepare": PREPARE,
    "plan": PLAN,
    "benchmark": BENCHMARK,
    "demo": DEMO,
    "study": STUDY,
}


def check_config(config: ConfigDict) -> None:
    """Checks every key, then what must hold between keys; takes no time, and needs neither JAX nor data.

    Raises:
      UserError: with the key, its value and what it may be: the first problem in the order of the rules.
    """
    name = config.get("mode")
    if not isinstance(name, str) or name not in MODES:
        raise UserError(f"mode: {name!r} is unknown; choose one of {', '.join(MODES)}")
    for key, problem in _problems(config, MODES[name], ""):
        raise UserError(f"{key} {problem}" if problem.startswith("is ") else f"{key}: {problem}")


def _problems(config: ConfigDict, mode: Mode, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it), each key with the prefix."""
    skipped = mode.filled if prefix else ()
    yield from _key_problems(config, mode.keys, prefix, skipped)
    for together in mode.together:
        for key, problem in together(config):
            yield prefix + key, problem


def _key_problems(config: ConfigDict, rules: Rules, prefix: str, skipped: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name, rule in rules.items():
        key = prefix + name
        if name not in config:
            if isinstance(rule, (Mode, Mapping)) or not rule.optional:
                yield key, "is missing; the project's own config file of this mode names all keys"
        elif isinstance(rule, (Mode, Mapping)) and not isinstance(config[name], ConfigDict):
            yield key, f"{config[name]!r} must be a group of keys"
        elif isinstance(rule, Mode):
            yield from _problems(config[name], rule, f"{key}.")
        elif isinstance(rule, Mapping):
            yield from _key_problems(config[name], rule, f"{key}.", ())
        elif name not in skipped and (problem := rule.problem(config[name])):
            yield key, problem
    for name in config:
        if name not in rules:
            nearest = difflib.get_close_matches(name, rules, 1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"this mode has {', '.join(rules)}"
            yield prefix + name, f"is no key of this mode; {hint}"


def recorded_defaults(mode: str) -> dict[str, Any]:
    """For each key of a mode that may be missing in an old record, what a run without it was: flat, joined by dots."""
    return dict(_defaults(MODES[mode].keys, "")) if mode in MODES else {}


def _defaults(rules: Rules, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, rule in rules.items():
        if isinstance(rule, Mode):
            yield from _defaults(rule.keys, f"{prefix}{name}.")
        elif isinstance(rule, Mapping):
            yield from _defaults(rule, f"{prefix}{name}.")
        elif rule.default is not NO_DEFAULT:
            yield prefix + name, rule.default
