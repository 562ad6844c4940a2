"""Folders of our own: the weights come back as they were, nothing of this machine goes out, `init_from` takes them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file

import sew_jax
from configs import export as export_config
from sew_jax.checkpoints import model_folder
from sew_jax.checkpoints.model_folder import WEIGHTS, read_weights, write_model
from sew_jax.checkpoints.pretrained import open_pretrained
from sew_jax.errors import UserError
from sew_jax.evaluation.outputs import write_tradeoff
from sew_jax.export.export import export
from sew_jax.training.setup import open_task
from tests.evaluation.test_tradeoff import point
from tests.runs import begin_finetuned, finetuning

SAME = "backbone", "head", "trained", "temperature"  # of a model and of the folder that it was written to


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    begin_finetuned(root)
    return root


def exported(runs, to, name="finetune", **changes):
    config = export_config.get_config()
    config.init_from, config.format = str(runs / name), "sew_jax"
    config.update(changes)
    export(config, to)
    return to


def parameters(init_from):
    _, params = open_pretrained(str(init_from)).load(SingleDeviceSharding(jax.devices()[0]))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}


@pytest.mark.parametrize("name", ["finetune", "pretrain"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_weights_come_back(runs, tmp_path, name, dtype):
    before, after = parameters(runs / name), parameters(exported(runs, tmp_path / "model", name, weights=dtype))
    assert before.keys() == after.keys()
    for path, x in before.items():
        np.testing.assert_array_equal(after[path], x.astype(dtype).astype(np.float32))
    assert {str(x.dtype) for x in load_file(tmp_path / "model" / WEIGHTS).values()} == {dtype}
    was, now = (open_pretrained(str(folder)) for folder in (runs / name, tmp_path / "model"))
    assert [getattr(was, x) for x in SAME] == [getattr(now, x) for x in SAME]


def test_a_folder_transcribes_and_a_budget_picks_from_what_it_reached(runs, tmp_path):
    table = tmp_path / "evaluate"
    table.mkdir()
    write_tradeoff([point("s1q1k1"), point("s2q1k1", 0.1234, 1.0)], table)
    folder = exported(runs, tmp_path / "model", weights="float32", tradeoff=str(table))
    wave = (np.random.default_rng(0).normal(size=15_000) * 3000).astype(np.int16)
    before, after = sew_jax.load(runs / "finetune"), sew_jax.load(folder)
    assert before.settings == after.settings
    np.testing.assert_array_equal(after.log_probs(wave), before.log_probs(wave))
    assert str(after.transcribe(wave, budget=0.6).setting) == "s2q1k1"
    assert "12.34%" in (folder / "README.md").read_text()


def test_no_path_of_this_machine_is_in_it(runs, tmp_path):
    folder = exported(runs, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())["config"]
    assert (config["data"], config["init_from"]) == ("corpus", "pretrain")
    assert str(runs) not in (folder / "config.json").read_text() + (folder / "README.md").read_text()


def test_training_starts_from_it(runs, tmp_path):
    folder = exported(runs, tmp_path / "model", "pretrain", weights="float32")
    trees = []
    for init_from in (runs / "pretrain", folder):
        task = open_task(finetuning(runs / "corpus", init_from))
        fresh = task.init(jax.random.key(0))["params"]
        trees.append(task.warm_start(fresh, SingleDeviceSharding(jax.devices()[0])))
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_a_shipped_model_is_named_without_a_path(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "_SHIPPED", tmp_path)
    exported(runs, tmp_path / "small")
    monkeypatch.chdir(tmp_path / "small")  # where no folder has this name
    assert parameters("small").keys() == parameters(runs / "finetune").keys()
    with pytest.raises(UserError, match=r"tiny/config\.json does not exist.*comes with sew_jax \(small\)"):
        open_pretrained("tiny")
    (tmp_path / "small/small").mkdir()  # a folder of the user's own goes first
    with pytest.raises(UserError, match=r"small/config\.json does not exist"):
        open_pretrained("small")


def test_a_weight_that_half_precision_cannot_hold(tmp_path):
    with pytest.raises(UserError, match=r"a/kernel does not fit float16; write --config\.weights=float32"):
        write_model(tmp_path, {}, {"a": {"kernel": np.array([1e6], np.float32)}}, None)


def test_a_damaged_file_is_named(runs, tmp_path):
    folder = exported(runs, tmp_path / "model")
    whole = (folder / WEIGHTS).read_bytes()
    for length in (0, 5, len(whole) // 2):
        (folder / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
            read_weights(folder)


def test_the_model_that_comes_with_the_package_hears_what_a_stranger_says():
    """A speaker that it was not trained on, at each setting; small, and with its data's licences on its card."""
    folder = model_folder.folder_of("digits")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6
    card = (folder / "README.md").read_text("utf-8")
    assert "license: cc-by-sa-4.0" in card and all(
        name in card for name in ("Free Spoken Digit", "LibriSpeech", "dc_tts")
    )
    model = sew_jax.load("digits")
    clip = Path(__file__).parents[1] / "digits/906-1-0096.flac"
    for setting in model.settings:
        assert model.transcribe(clip, setting=setting).text == "ZERO TWO SEVEN FOUR"
    fast = model.transcribe(clip, budget="0.4")
    assert str(fast.setting) == "s4q2k2" and fast.text == "ZERO TWO SEVEN FOUR"
