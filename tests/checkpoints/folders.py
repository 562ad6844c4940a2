"""Released folders under other names, classes, storages and types."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from safetensors.numpy import load_file

from sew_jax.checkpoints.hf_folder import open_released

RELEASED = Path(__file__).parents[1] / "released"


def write(folder, tensors, *, source, architectures, storage="one", dtype="float32", **config):
    """A folder with these tensors and this class, its other files those of a released one."""
    shutil.copytree(RELEASED / source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config | {"architectures": architectures}))
    names, parts = sorted(tensors), {"": sorted(tensors)}
    if "shards" in storage:
        parts = {"-00001-of-00002": names[::2], "-00002-of-00002": names[1::2]}
    stem, end = ("pytorch_model", "bin") if "torch" in storage else ("model", "safetensors")
    for part, members in parts.items():
        _save(folder / f"{stem}{part}.{end}", {name: tensors[name].astype(jnp.dtype(dtype)) for name in members})
    if len(parts) > 1:
        index = {name: f"{stem}{part}.{end}" for part, members in parts.items() for name in members}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def _save(path, tensors):
    if path.suffix == ".safetensors":
        safetensors.flax.save_file({name: jnp.asarray(x) for name, x in tensors.items()}, path)
        return
    torch = pytest.importorskip("torch")
    as_torch = {n: torch.tensor(np.asarray(x, np.float32)).to(getattr(torch, str(x.dtype))) for n, x in tensors.items()}
    torch.save(as_torch, path)


def ctc_folder(folder, change=lambda tensors: None, source="wav2vec2_ctc", architectures=("Wav2Vec2ForCTC",), **config):
    """A released CTC model, its tensors changed in place."""
    tensors = load_file(RELEASED / source / "model.safetensors")
    change(tensors)
    return write(folder, tensors, source=source, architectures=list(architectures), **config)


def same_as_released(folder, source):
    """The opened folder, whose model, symbols and parameters are the released one's."""
    ours, theirs = open_released(str(folder)), open_released(str(RELEASED / source))
    jax.tree.map(np.testing.assert_array_equal, ours.parameters(), theirs.parameters())
    assert ours.architecture == theirs.architecture and ours.vocabulary == theirs.vocabulary
    return ours
