"""What a run starts from: the workdir of another run, or a released checkpoint, behind one interface."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Sharding

from sew_jax.checkpoints.checkpointer import BEST, load_params, newest_record
from sew_jax.checkpoints.hf_folder import open_released
from sew_jax.checkpoints.hf_weights import parameter_shapes
from sew_jax.checkpoints.model_folder import WEIGHTS, folder_of, read_weights, shipped_models
from sew_jax.compression import Compression, settings_table
from sew_jax.data.vocabulary import VOCABULARY_FILE, Vocabulary
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig

HUGGING_FACE = "hf:"


class Pretrained(NamedTuple):
    """A trained model, its parameters not read yet."""

    name: str  # as `init_from` gave it
    backbone: BackboneConfig
    head: PretrainHeadConfig | CTCHeadConfig | None
    vocabulary: Vocabulary | None  # of a CTC head
    trained: list[Compression]  # settings that it was trained at
    load: Callable[[Sharding], tuple[str, Any]]  # placement -> (which state of it, parameters)
    shapes: Callable[[], Any]  # what `load` gives, by shapes alone
    record: dict[str, Any] | None = None  # what a run's config.json says: its config, its data
    no_text: str = ""  # why what there is of a CTC head gives no text; else empty
    left_behind: tuple[str, ...] = ()  # modules of a released checkpoint that have no place here


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
    architecture, has_text = record["architecture"], record["config"].get("mode") == "finetune"

    def load(sharding: Sharding) -> tuple[str, Any]:
        if (workdir / WEIGHTS).is_file():
            return record.get("state", "exported"), jax.device_put(read_weights(workdir), sharding)
        if best := newest_record(workdir / BEST):
            step, params = load_params(workdir / BEST, sharding)
            return f"update {step}, the best by WER on {best['split']} ({best['wer']:.1%})", params
        step, params = load_params(workdir, sharding)
        return f"update {step}", params

    try:
        backbone = BackboneConfig(**architecture["backbone"])
        head = (CTCHeadConfig if has_text else PretrainHeadConfig)(**architecture["head"])
        trained = settings_table(**record["config"]["compression"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"init_from: {workdir}/config.json does not describe a model ({error}); was it edited?"
        ) from error
    vocabulary = Vocabulary.load(workdir / VOCABULARY_FILE) if has_text else None
    return Pretrained(name, backbone, head, vocabulary, trained, load, lambda: parameter_shapes(backbone, head), record)


def _hugging_face(name: str) -> Pretrained:
    released = open_released(name.removeprefix(HUGGING_FACE))

    def load(sharding: Sharding) -> tuple[str, Any]:
        return released.family, jax.device_put(released.parameters(), sharding)

    return Pretrained(
        name=name,
        backbone=released.architecture.backbone,
        head=released.architecture.head,
        vocabulary=released.vocabulary,
        trained=[Compression(released.architecture.squeeze)],
        load=load,
        shapes=released.shapes,
        no_text=released.no_text,
        left_behind=tuple(released.left_behind),
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
