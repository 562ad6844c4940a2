"""The files of a Hugging Face folder: config.json, tensors (one file or shards), preprocessor and tokenizer.

Nothing is unpickled, save `pytorch_model.bin` where torch is installed, and that with `weights_only=True`.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sew_jax.checkpoints import fairseq
from sew_jax.checkpoints.hf_config import Architecture, read_architecture, write_architecture
from sew_jax.checkpoints.hf_weights import (
    MASK_EMBEDDING,
    from_hugging_face,
    parameter_names,
    parameter_shapes,
    to_hugging_face,
)
from sew_jax.data.vocabulary import VOCABULARY_FILE, Vocabulary
from sew_jax.errors import UserError
from sew_jax.files import write_json
from sew_jax.models.config import CTCHeadConfig
from sew_jax.rates import SAMPLE_RATE

_CONFIG, _PREPROCESSOR, _TENSORS = "config.json", "preprocessor_config.json", "model.safetensors"
_PROCESSOR = "processor_config.json"
_INDEX, _PICKLE = "model.safetensors.index.json", "pytorch_model.bin"
_HUB_FILES = ["*.json", "*.safetensors", _PICKLE]


class Released(NamedTuple):
    """A checkpoint in Hugging Face's form; its tensors are read when `parameters` is called."""

    name: str
    family: str
    architecture: Architecture
    vocabulary: Vocabulary | None  # with a CTC head
    tensors: Callable[[], Mapping[str, np.ndarray]]
    names: Callable[[], Iterable[str]]  # of the tensors

    def shapes(self) -> dict[str, Any]:
        """The tree of `parameters`, by shapes alone.

        Raises:
          UserError: a file is missing or damaged.
        """
        tree = parameter_shapes(self.architecture.backbone, self.architecture.head)
        if parameter_names(self.family, self.architecture)[MASK_EMBEDDING][0] not in self.names():
            del tree["backbone"]["mask_embedding"]
        return tree

    def parameters(self) -> dict[str, Any]:
        """Our parameter tree, float32 numpy.

        Raises:
          UserError: a file is missing or damaged, or tensors and configuration do not match.
        """
        return from_hugging_face(self.family, self.architecture, self.tensors(), self.name)


def open_released(name: str) -> Released:
    """The checkpoint in a folder, of a name on the hub, or in a file of fairseq's (`.pt`).

    Raises:
      UserError: there is none, or one that we cannot compute exactly.
    """
    if Path(name).suffix == ".pt":
        return _open_fairseq(Path(name).expanduser())
    path = _locate(name)
    config = _read_json(path / _CONFIG)
    preprocessor = _read_preprocessor(path)
    rate = preprocessor.get("sampling_rate") or SAMPLE_RATE
    if rate != SAMPLE_RATE:
        raise UserError(f"{path}: its audio is at {rate} Hz; only {SAMPLE_RATE} Hz can be loaded")
    architecture = read_architecture(config, preprocessor.get("do_normalize") is not False, str(path))
    vocabulary = None
    if isinstance(architecture.head, CTCHeadConfig):
        vocabulary = _read_vocabulary(path, architecture.head.symbols)
        head = dataclasses.replace(architecture.head, blank=vocabulary.blank)
        architecture = architecture._replace(head=head)
    return Released(
        str(path),
        config["model_type"],
        architecture,
        vocabulary,
        lambda: _read_tensors(path),
        lambda: _tensor_names(path),
    )


def _open_fairseq(path: Path) -> Released:
    config, normalize, tensors = fairseq.to_hugging_face(_load_pickle(path), str(path))
    architecture, vocabulary = read_architecture(config, normalize, str(path)), None
    if isinstance(architecture.head, CTCHeadConfig):
        vocabulary = fairseq.read_dictionary(path.with_name("dict.ltr.txt"), architecture.head.symbols)
    return Released(
        str(path), config["model_type"], architecture, vocabulary, lambda: _to_numpy(tensors), lambda: tensors
    )


def write_folder(
    path: Path, family: str, architecture: Architecture, params: dict[str, Any], vocabulary: Vocabulary | None
) -> None:
    """Writes a folder that transformers loads: the inverse of `open_released`.

    Raises:
      UserError: the architecture of that family cannot express the model.
    """
    path.mkdir(parents=True, exist_ok=True)
    config = write_architecture(family, architecture)
    tensors = to_hugging_face(family, architecture, params)
    partial = path / f".{_TENSORS}.partial"
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, partial, metadata={"format": "pt"})
    partial.replace(path / _TENSORS)
    write_json(path / _PREPROCESSOR, _preprocessor(architecture))
    if vocabulary:
        vocabulary.save(path)
    write_json(path / _CONFIG, config)


def _preprocessor(architecture: Architecture) -> dict[str, Any]:
    backbone = architecture.backbone
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": backbone.normalize_wave,
        # group norm averages over padding too, so those models are run without a mask
        "return_attention_mask": backbone.conv_norm == "layer",
    }


def _locate(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / _CONFIG).is_file():
            raise UserError(f"init_from: {path} has no {_CONFIG}; give a folder as `save_pretrained` writes it")
        return path
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"init_from: {name} is no folder; give a folder with {_CONFIG}, or a name on the hub")
    if not importlib.util.find_spec("huggingface_hub"):
        raise UserError(f"init_from: there is no folder {name}; to load a name from the hub, install huggingface_hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # whatever network or hub say
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"init_from: {name} is neither a folder nor to be had from the hub ({reason})") from error


def _read_preprocessor(path: Path) -> dict[str, Any]:
    """The feature extractor's options; transformers 5 keeps them in the processor's file."""
    if (path / _PREPROCESSOR).is_file():
        return _read_json(path / _PREPROCESSOR)
    processor = _read_json(path / _PROCESSOR) if (path / _PROCESSOR).is_file() else {}
    return processor.get("feature_extractor") or {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"init_from: {path} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"init_from: {path} is no JSON object")
    return value


def _read_vocabulary(path: Path, symbols: int) -> Vocabulary:
    vocabulary = Vocabulary.load(path / VOCABULARY_FILE, most=symbols)
    if len(vocabulary) > symbols:
        raise UserError(f"init_from: {path}/{VOCABULARY_FILE} names {len(vocabulary)} symbols, the head has {symbols}")
    return vocabulary.padded(symbols)


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file in _tensor_files(path):
        if file.name == _PICKLE:
            return _to_numpy(_load_pickle(file))
        with _opened(file) as opened:
            tensors |= {name: np.asarray(opened.get_tensor(name), np.float32) for name in opened.keys()}  # noqa: SIM118
    return tensors


def _tensor_names(path: Path) -> set[str]:
    """Names of what `_read_tensors` would give, by the files' headers; a torch file is read for it."""
    names: set[str] = set()
    for file in _tensor_files(path):
        if file.name == _PICKLE:
            return set(_load_pickle(file))
        with _opened(file) as opened:
            names |= set(opened.keys())
    return names


def _tensor_files(path: Path) -> list[Path]:
    if (path / _INDEX).is_file():
        return [
            path / Path(name).name for name in sorted(set(_read_json(path / _INDEX).get("weight_map", {}).values()))
        ]
    for name in (_TENSORS, _PICKLE):
        if (path / name).is_file():
            return [path / name]
    raise UserError(f"init_from: {path} has neither {_TENSORS} nor {_INDEX}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        # as JAX arrays: numpy knows no bfloat16
        with safe_open(path, framework="flax") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"init_from: {path} cannot be read ({error}); was its download cut off?") from error


def _load_pickle(path: Path) -> Mapping[str, Any]:
    """What a torch file holds, read by torch without running anything."""
    if not path.is_file():
        raise UserError(f"init_from: there is no file {path}")
    if not importlib.util.find_spec("torch"):
        raise UserError(f"init_from: {path} is a torch file; install torch to read it, or save it as safetensors")
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # how older fairseq wrote its options
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch says of a file that is damaged or holds more than tensors
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"init_from: {path} cannot be read ({reason})") from error


def _to_numpy(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in tensors.items() if hasattr(tensor, "float")}
