"""Tensors on disk, by name: safetensors or torch's pickles, in one file or in shards; read as float32.

Only a pickle needs torch. It is read with `weights_only=True`, by a torch in which that keeps its promise.
"""

import argparse
import contextlib
import importlib.util
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from sew_jax.data.text_files import read_text
from sew_jax.errors import UserError
from sew_jax.storage import is_file, raise_if_away

# In the order in which transformers looks for them
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
HUB_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")  # of which a repository may hold both
_SAFE_TORCH = (
    2,
    10,
)  # weights_only ran code before 2.6 (CVE-2025-32434), wrote out of bounds before 2.10 (-2026-24747)
_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
# What fairseq stores beside weights: options (older ones) and, of HuBERT, label dictionaries; both are read as values
_PLAIN: list[Any] = [argparse.Namespace, (argparse.Namespace, "fairseq.data.dictionary.Dictionary")]
_NESTED = ("state_dict", "model_state_dict", "model")  # where trainers put a state dict into a file of their own


class Header(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_float(self) -> bool:
        """Whether its values are the weights; those of other types are quantised, with scales elsewhere."""
        return self.dtype in _TYPES.values()


class TensorFiles(NamedTuple):
    """Tensors by name, and what reads those of the given names, as float32."""

    headers: Mapping[str, Header]
    read: Callable[[Iterable[str]], dict[str, np.ndarray]]


def open_tensors(folder: Path) -> TensorFiles:
    """The tensors of a folder as `save_pretrained` writes it.

    Raises:
      UserError: there are none, or a file is missing or damaged.
    """
    name = next((name for name in _FILES if is_file(folder / name)), None)
    if not name:
        raise UserError(f"init_from: {folder} has no weights: none of {', '.join(_FILES)}")
    files = _shards(folder / name) if name.endswith(".json") else [folder / name]
    parts = [open_tensor_file(file) for file in files]

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        wanted = set(names)
        tensors: dict[str, np.ndarray] = {}
        for part in parts:
            tensors |= part.read(wanted & part.headers.keys())
        return tensors

    return TensorFiles({name: header for part in parts for name, header in part.headers.items()}, read)


def open_tensor_file(path: Path) -> TensorFiles:
    """The tensors of one file.

    Raises:
      UserError: it is missing or damaged.
    """
    return _open_pickle(path) if path.suffix == ".bin" else _open_safetensors(path)


def torch_tensors(tensors: Mapping[Any, Any]) -> TensorFiles:
    """Those of torch's tensors that a mapping holds; whatever else is in it is passed over."""
    import torch

    kept = {str(name): x for name, x in tensors.items() if isinstance(x, torch.Tensor)}
    headers = {name: Header(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for name, x in kept.items()}
    return TensorFiles(headers, lambda names: {name: kept[name].detach().float().numpy() for name in names})


def load_pickle(path: Path) -> Any:
    """What a torch file holds, read by torch without running anything.

    Raises:
      UserError: torch is missing or too old, or the file is missing, damaged or holds more than plain values.
    """
    if not is_file(path):
        raise UserError(f"init_from: there is no file {path}")
    instead = "or save the weights as safetensors"
    wanted = ".".join(map(str, _SAFE_TORCH))
    if not importlib.util.find_spec("torch"):
        raise UserError(f"init_from: {path} is a pickle of torch's; install torch {wanted} or newer, {instead}")
    import torch

    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _SAFE_TORCH:
        raise UserError(
            f"init_from: {path} is a pickle, which may attack torch {torch.__version__} (CVE-2025-32434, "
            f"CVE-2026-24747); install torch {wanted} or newer, {instead}"
        )
    try:
        with torch.serialization.safe_globals(_PLAIN):
            # the older of torch's two formats cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever torch says of a file that is damaged or holds more than tensors
        raise_if_away(error)
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"init_from: {path} cannot be read ({reason})") from error


def _shards(index: Path) -> list[Path]:
    try:
        files = set(json.loads(read_text(index))["weight_map"].values())
        # names alone: an index leads nowhere out of its folder
        return [index.with_name(Path(file).name) for file in sorted(files)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"init_from: {index} cannot be read ({reason}); it must map tensors to files") from error


def _open_pickle(path: Path) -> TensorFiles:
    def load() -> TensorFiles:
        loaded = load_pickle(path)
        if not isinstance(loaded, Mapping):
            raise UserError(f"init_from: {path} holds no tensors by name, but a {type(loaded).__name__}")
        return torch_tensors(next((loaded[k] for k in _NESTED if isinstance(loaded.get(k), Mapping)), loaded))

    # not kept: a run holds what it has opened for as long as it lasts
    return TensorFiles(load().headers, lambda names: load().read(names) if names else {})


def _open_safetensors(path: Path) -> TensorFiles:
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        headers = {
            name: Header(tuple(part.get_shape()), _TYPES.get(part.get_dtype(), part.get_dtype()))
            for name, part in slices.items()
        }

    def read(names: Iterable[str]) -> dict[str, np.ndarray]:
        with _opened(path) as file:
            return {name: np.asarray(file.get_tensor(name), np.float32) for name in names}

    return TensorFiles(headers, read)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        # as JAX arrays: numpy knows no bfloat16
        with safe_open(path, framework="flax") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise_if_away(error)
        raise UserError(f"init_from: {path} cannot be read ({error}); was its download cut off?") from error
