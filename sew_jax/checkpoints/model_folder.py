"""A trained model in a small folder of our own: its weights, what they are, its symbols; nothing of training.

Such a folder is what `init_from` takes, as the workdir of a run is. Models that come with the package are such
folders, and are named without a path.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save_file

from sew_jax.buckets import as_path, is_remote
from sew_jax.data.labels import Labels
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.errors import UserError
from sew_jax.files import write_json
from sew_jax.models.parameters import path_name
from sew_jax.storage import exists, patient, raise_if_away

WEIGHTS = "model.safetensors"
_SHIPPED = Path(__file__).parents[1] / "shipped"


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(folder.name for folder in _SHIPPED.glob("*") if (folder / WEIGHTS).is_file())


def folder_of(init_from: str) -> Path:
    """The folder that `init_from` names: that of a shipped model, where there is none of this name here."""
    path = as_path(init_from)
    return _SHIPPED / init_from if not exists(path) and init_from in shipped_models() else path


def write_model(
    folder: Path, record: dict[str, Any], params: Any, symbols: Vocabulary | Labels | None, dtype: str = "float16"
) -> None:
    """Writes the folder.

    Args:
      record: what config.json of a run says, and `state`: which state of the run it is.
      dtype: float16 or float32, of the weights on disk.

    Raises:
      UserError: a weight is too large for the type.
    """
    tensors = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        with np.errstate(over="ignore"):
            tensors[path_name(path)] = np.ascontiguousarray(np.asarray(x).astype(dtype))
        if not np.isfinite(tensors[path_name(path)]).all():
            raise UserError(f"weights: {path_name(path)} does not fit {dtype}; write --config.weights=float32")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    write_json(folder / "config.json", record)
    if symbols:
        symbols.save(folder)


@patient
def read_weights(folder: Path) -> dict[str, Any]:
    """The parameter tree of a folder, float32.

    Raises:
      UserError: the file is damaged.
    """
    try:
        file = folder / WEIGHTS
        tensors = load(file.read_bytes()) if is_remote(file) else load_file(file)
    except (SafetensorError, OSError) as error:
        raise_if_away(error)
        raise UserError(f"init_from: {folder / WEIGHTS} cannot be read ({error})") from error
    return unflatten_dict({tuple(name.split("/")): x.astype(np.float32) for name, x in tensors.items()})
