"""Pickles of torch's: which torch may read them, and what trainers write into them."""

import re
import sys

import pytest
from safetensors.numpy import load_file

from sew_jax.checkpoints.hf_folder import open_released
from sew_jax.errors import UserError
from tests.checkpoints.folders import RELEASED, ctc_folder, same_as_released
from tests.checkpoints.test_fairseq import Touch


@pytest.fixture
def folder(tmp_path):
    """A model whose weights lie in `pytorch_model.bin`, which holds no pickle."""
    folder = ctc_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu121", "2.9.1"])
def test_a_torch_that_is_not_safe_is_not_used(version, folder, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(f"__version__ = {version!r}\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(UserError, match=rf"attack torch {re.escape(version)} .* install torch 2\.10 or newer, or"):
            open_released(str(folder))
    finally:
        sys.modules.pop("torch", None)


def test_without_torch_the_mend_is_named(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle .* install torch 2\.10 or newer, or save"):
        open_released(str(folder))


@pytest.mark.transformers
def test_what_trainers_write(folder, tmp_path):
    """Parameters that want gradients, the older of torch's formats, a state dict in a larger file, other values."""
    torch = pytest.importorskip("torch")
    tensors = {n: torch.tensor(x) for n, x in load_file(RELEASED / "wav2vec2_ctc" / "model.safetensors").items()}
    learned = {name: torch.nn.Parameter(x) for name, x in tensors.items()}
    files = [learned, {"state_dict": tensors, "epoch": 3}, {"model": tensors, "lr": [0.1]}, tensors | {"steps": 7}]
    for number, content in enumerate(files):
        torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=number % 2 == 0)
        assert same_as_released(folder, "wav2vec2_ctc").left_behind == []
    torch.save([1, 2], folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no tensors by name, but a list"):
        open_released(str(folder))
    torch.save(tensors | {"extra": Touch(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read"):
        open_released(str(folder))
    assert not (tmp_path / "ran").exists()
