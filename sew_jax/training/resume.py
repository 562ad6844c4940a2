"""Whether the run in a workdir can go on: what may have changed, what may not, and what the user allows to.

A key of the config, or a field of the model, that the record of an older run lacks has there the default that its rule
or its dataclass gives it, which is what the run was; so a key that joins later does not end older runs.
"""

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

from sew_jax.buckets import is_remote
from sew_jax.checkpoints.checkpointer import newest_record
from sew_jax.checks.check import recorded_defaults
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, head_type
from sew_jax.names import split_names
from sew_jax.runtime.distributed import same_everywhere
from sew_jax.storage import is_there, patient, raise_if_away

RECORD = (
    "config.json"  # for readers, and for runs that start from this one; what a run goes on from is in its checkpoints
)
# These change neither the model nor the data order
_FREE_KEYS = (
    "num_steps",
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_every",
    "stall_minutes",
    "eval",
    "mesh",
    "remat",
    "resume",
    "input.workers",
    "input.threads",
    "input.max_bad",
    "optim.max_skipped",
)


_NO_KEY = "no such key"


def earlier_record(workdir: Path) -> dict[str, Any] | None:
    """What the run in a workdir says of itself in its newest checkpoint; None where it has left none to go on from.

    Raises:
      UserError: it cannot be read, or not by all processes alike.
    """
    try:
        record = newest_record(workdir)
    except OSError as error:
        raise_if_away(error)
        raise UserError(f"workdir: {workdir} cannot be read ({error.strerror}); use another --workdir") from error
    if not same_everywhere(json.dumps(record, sort_keys=True)):
        raise UserError(
            f"workdir: the processes of this job see different checkpoints in {workdir}, "
            "which must lie on storage that all share"
        )
    if record is not None and not all(isinstance(record.get(key), dict) for key in ("config", "data", "rows")):
        raise UserError(f"workdir: {workdir} holds checkpoints of another kind of run; use another --workdir")
    return record


def wait_for_data(earlier: dict[str, Any], data: str) -> None:
    """Waits for the data that the earlier run had: at its first start they may be a mistake, now they are away.

    Raises:
      Unavailable: they stay away.
    """
    for root in split_names(data) if earlier["config"].get("data") == data else []:
        if root != "demo" and not is_remote(root):
            _wait_for(root)


@patient
def _wait_for(root: str) -> None:
    if not is_there(root):
        raise OSError(errno.ESTALE, "it is not there, or empty, as the place of a mount that is away", root)


def earlier_rows(earlier: dict[str, Any] | None, config: dict[str, Any]) -> dict[int, int] | None:
    """Utterances of each bucket's batches in the earlier run, where these stay the same whatever the devices now."""
    if not earlier:
        return None
    new = _flat(config)
    old = _filled(earlier["config"], new)
    if any(old.get(key) != new[key] for key in ("input.batch_seconds", "input.buckets")):
        return None
    return {int(bucket): rows for bucket, rows in earlier["rows"].items()}


def changes_since(workdir: Path, earlier: dict[str, Any] | None, record: dict[str, Any], allowed: str) -> list[str]:
    """In words, what is other than in the earlier run because `allowed` (keys joined by commas, or `data`) says so.

    Raises:
      UserError: something else has changed, or `allowed` holds what is no key.
    """
    new = _flat(record["config"])
    allow = [key.strip() for key in allowed.split(",") if key.strip()]
    old, changes = _filled(earlier["config"], new) if earlier else {}, []
    for key in allow:
        if not any(_covers(key, other) for other in (*old, *new)):
            raise UserError(f"resume: {key!r} is no key of the config; write for example --config.resume=optim.lr,data")
    if not earlier:
        return []
    for key in sorted(old.keys() | new.keys()):
        if any(_covers(free, key) for free in _FREE_KEYS) or old.get(key) == new.get(key):
            continue
        was, now = (f"{flat.get(key, _NO_KEY)!r}" for flat in (old, new))
        if not any(_covers(allowing, key) for allowing in allow):
            raise UserError(
                f"workdir: {workdir} holds a run with config.{key}={was}, this one has {now}; "
                f"use the same value to resume it, or another --workdir, or allow the change with --config.resume={key}"
            )
        changes.append(f"{key} was {was}, is {now}")
    if earlier["data"] != record["data"]:
        change = (
            f"{earlier['data'].get('utterances')} utterances then, {record['data']['utterances']} now, or other lengths"
        )
        if "data" not in allow:
            raise UserError(
                f"workdir: the data of {workdir} have changed ({change}); "
                "use another --workdir, or go on with these by --config.resume=data"
            )
        changes.append(f"data: {change}")
    if earlier["parameters"] != record["parameters"]:
        raise UserError(
            f"workdir: {workdir} holds a model of {earlier['parameters']} parameters, "
            f"this one has {record['parameters']}; use another --workdir"
        )
    if not changes and (other := _model_change(earlier, record)):
        raise UserError(
            f"workdir: the model that init_from gives is another than that of {workdir} ({other}); "
            "use another --workdir"
        )
    return changes


def _model_change(earlier: dict[str, Any], record: dict[str, Any]) -> str:
    """A difference of the models that the configs do not show, as where `init_from` names another checkpoint now."""
    old, new = (_flat_architecture(r) for r in (earlier, record))
    form = (".remat", ".loop_layers")
    keys = sorted(key for key in old.keys() | new.keys() if not key.endswith(form) and old.get(key) != new.get(key))
    return f"{keys[0]}={old.get(keys[0])!r} then, {new.get(keys[0])!r} now" if keys else ""


def _flat_architecture(record: dict[str, Any]) -> dict[str, Any]:
    fields = record["architecture"].get("head", ())
    parts = {"backbone": BackboneConfig} | ({} if fields is None else {"head": head_type(fields)})
    defaults = {name: json.loads(json.dumps(dataclasses.asdict(part()))) for name, part in parts.items()}
    return _flat(defaults) | _flat(record["architecture"])


def _filled(earlier: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """An earlier config, flat, with the keys of today's that it lacks."""
    defaults = {key: value for key, value in recorded_defaults(earlier.get("mode", "")).items() if key in new}
    return defaults | _flat(earlier)


def _covers(key: str, other: str) -> bool:
    return other == key or other.startswith(f"{key}.")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
