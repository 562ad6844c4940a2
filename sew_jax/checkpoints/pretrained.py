"""What a run starts from: the workdir of another run, or a released checkpoint, behind one interface."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax.traverse_util import unflatten_dict
from jax.sharding import Sharding

from sew_jax.checkpoints.checkpointer import BEST, load_params, newest_record
from sew_jax.checkpoints.hf_folder import open_released
from sew_jax.checkpoints.hf_weights import flat_shapes, parameter_shapes
from sew_jax.checkpoints.model_folder import WEIGHTS, folder_of, read_weights, shipped_models
from sew_jax.compression import Compression, parse_table, settings_table
from sew_jax.data.labels import FrameLabels, Labels
from sew_jax.data.vocabulary import VOCABULARY_FILE, Vocabulary
from sew_jax.errors import UserError
from sew_jax.metrics.measure import ACCURACY, WER
from sew_jax.models.config import (
    LABEL_HEADS,
    BackboneConfig,
    CTCHeadConfig,
    FrameHeadConfig,
    Head,
    PretrainHeadConfig,
    head_type,
)
from sew_jax.models.quantizer import Temperature
from sew_jax.storage import is_file

HUGGING_FACE = "hf:"
_HEADS = ("quantizer/", "project_")  # of the contrastive task
_LARGE = 24  # layers of the smallest model that was trained as large ones are


class Pretrained(NamedTuple):
    """A trained model, its parameters not read yet."""

    name: str  # as `init_from` gave it
    backbone: BackboneConfig
    head: Head | None
    vocabulary: Vocabulary | None  # of a CTC head
    trained: list[Compression]  # settings that it was trained at
    load: Callable[[Sharding], tuple[str, Any]]  # placement -> (which state of it, parameters)
    shapes: Callable[[], Any]  # what `load` gives, by shapes alone
    record: dict[str, Any] | None = None  # what a run's config.json says: its config, its data
    no_text: str = ""  # why what there is of a CTC head gives no text; else empty
    left_behind: tuple[str, ...] = ()  # modules of a released checkpoint that have no place here
    lacks: tuple[str, ...] = ()  # parameters of its architecture that a released checkpoint does not have
    revision: str = ""  # of a checkpoint by name: the hub's commit, where it is known
    labels: Labels | None = None  # of a classifier
    temperature: float | None = None  # of Gumbel's at the end of its pre-training; None: it has no codebook

    def recorded(self) -> dict[str, Any]:
        """All but the parameters, as JSON: what a run keeps of its origin, so that it goes on without it."""
        return {
            "name": self.name,
            "revision": self.revision,
            "backbone": dataclasses.asdict(self.backbone),
            "head": self.head and dataclasses.asdict(self.head),
            "writes_text": isinstance(self.head, CTCHeadConfig),
            "vocabulary": self.vocabulary and self.vocabulary.recorded(),
            "trained": ",".join(map(str, self.trained)),
            "labels": self.labels and list(self.labels.names),
            "no_text": self.no_text,
            "lacks": list(self.lacks),
            "temperature": self.temperature,
        }


def open_origin(init_from: str, earlier: dict[str, Any] | None) -> Pretrained:
    """What a run starts from; of a run that goes on, what its own record (None: it has none) says of that.

    Raises:
      UserError: as `open_pretrained`, where there is nothing in the record.
    """
    kept = (earlier or {}).get("origin")
    if not kept or kept["name"] != init_from:
        return open_pretrained(init_from)
    backbone, lacks = BackboneConfig(**kept["backbone"]), set(kept["lacks"])
    head = head_type(kept["head"])(**kept["head"]) if kept["head"] else None
    names = tuple(kept.get("labels") or ())  # earlier runs say nothing of them
    labels = _of_head(head, backbone, Labels(names)) if names else None
    return Pretrained(
        name=init_from,
        backbone=backbone,
        head=head,
        vocabulary=Vocabulary.of_record(kept["vocabulary"]) if kept["vocabulary"] else None,
        trained=parse_table(kept["trained"]),
        load=lambda sharding: open_pretrained(init_from).load(sharding),  # it has weights of its own
        shapes=lambda: unflatten_dict(
            {k: x for k, x in flat_shapes(backbone, head).items() if k not in lacks}, sep="/"
        ),
        no_text=kept["no_text"],
        lacks=tuple(kept["lacks"]),
        revision=kept["revision"],
        labels=labels,
        temperature=kept.get("temperature"),
    )


def open_pretrained(init_from: str) -> Pretrained:
    """The model that `init_from` names: a workdir, an exported folder, a shipped model, or `hf:` and a folder or name.

    Raises:
      UserError: it names none, or its files do not fit each other.
    """
    if not init_from:
        raise UserError("init_from is empty; set --config.init_from to the workdir of a run, or to hf:PATH")
    if init_from.startswith(HUGGING_FACE):
        return _hugging_face(init_from)
    return _workdir(init_from)


def _workdir(name: str) -> Pretrained:
    workdir = folder_of(name)
    record = _read_record(workdir)
    architecture = record["architecture"]

    def load(sharding: Sharding) -> tuple[str, Any]:
        if is_file(workdir / WEIGHTS):
            return record.get("state", "exported"), jax.device_put(read_weights(workdir), sharding)
        if best := newest_record(workdir / BEST):
            step, params = load_params(workdir / BEST, sharding)
            measure = ACCURACY if labels else WER
            reached = f"{measure.of(best['wer']):.1%}"
            return f"update {step}, the best by {measure.name} on {best['split']} ({reached})", params
        step, params = load_params(workdir, sharding)
        return f"update {step}", params

    try:
        backbone = BackboneConfig(**architecture["backbone"])
        fields = architecture["head"]
        head = head_type(fields)(**fields) if fields else None
        trained = settings_table(**record["config"]["compression"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"init_from: {workdir}/config.json does not describe a model ({error}); was it edited?"
        ) from error
    vocabulary = Vocabulary.load(workdir / VOCABULARY_FILE) if isinstance(head, CTCHeadConfig) else None
    labels = _of_head(head, backbone, Labels.load(workdir)) if isinstance(head, LABEL_HEADS) else None
    shapes = functools.partial(parameter_shapes, backbone, head)
    schedule = temperature_schedule(record) if isinstance(head, PretrainHeadConfig) else None
    ended = float(Temperature(**schedule).at(1.0)) if schedule else None
    return Pretrained(name, backbone, head, vocabulary, trained, load, shapes, record, labels=labels, temperature=ended)


def _of_head(head: Head | None, backbone: BackboneConfig, labels: Labels) -> Labels:
    """Names as what has them: utterances or frames."""
    return FrameLabels(labels.names, backbone.frame_samples) if isinstance(head, FrameHeadConfig) else labels


def temperature_schedule(record: dict[str, Any]) -> dict[str, float] | None:
    """Fields of Gumbel's `Temperature` over a run, what it took from its origin filled in; None: it has none."""
    given = record["config"].get("temperature")
    inherited = (record.get("origin") or {}).get("temperature")
    return {key: inherited if x is None else x for key, x in given.items()} if given else None


def _hugging_face(name: str) -> Pretrained:
    released = open_released(name.removeprefix(HUGGING_FACE))
    architecture = released.architecture
    lacks = sorted(flat_shapes(architecture.backbone, architecture.head).keys() - released.sources)
    temperature = None
    if isinstance(architecture.head, PretrainHeadConfig) and not any(x.startswith(_HEADS) for x in lacks):
        # no released file says: fairseq's schedules end at 0.5 for base, at 0.1 for large and XLS-R
        temperature = 0.5 if architecture.backbone.layers < _LARGE else 0.1

    def load(sharding: Sharding) -> tuple[str, Any]:
        return released.family, jax.device_put(released.parameters(), sharding)

    return Pretrained(
        name=name,
        backbone=architecture.backbone,
        head=architecture.head,
        vocabulary=released.vocabulary,
        labels=released.labels and _of_head(architecture.head, architecture.backbone, released.labels),
        trained=[Compression(architecture.squeeze)],
        temperature=temperature,
        load=load,
        shapes=released.shapes,
        no_text=released.no_text,
        left_behind=tuple(released.left_behind),
        lacks=tuple(lacks),
        revision=found[1] if (found := re.search(r"/snapshots/([0-9a-f]{40})(/|$)", released.name)) else "",
    )


def _read_record(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        shipped = ", ".join(shipped_models())
        hint = f", or a model that comes with sew_jax ({shipped})" if shipped else ""
        raise UserError(
            f"init_from: {path} does not exist; give the workdir of a pretrain or finetune run, or hf:PATH{hint}"
        ) from error
    except ValueError as error:
        raise UserError(f"init_from: {path} is not JSON ({error}); was it edited?") from error
    if not isinstance(record, dict) or not all(isinstance(record.get(k), dict) for k in ("architecture", "config")):
        raise UserError(
            f"init_from: {path} is not that of a pretrain or finetune run; "
            f"write hf:{workdir} if it is a Hugging Face folder"
        )
    return record
