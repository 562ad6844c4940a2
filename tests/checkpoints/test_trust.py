"""What a stranger gives cannot run code, nor name files out of its folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from etils import epath

from configs import prepare as prepare_config
from sew_jax.checkpoints.pretrained import open_pretrained
from sew_jax.data.corpora import list_root
from sew_jax.data.prepare import prepare
from sew_jax.data.sources import open_source
from sew_jax.errors import UserError
from sew_jax.training.train import train
from tests.runs import make_corpus, pretraining

ROOT = Path(__file__).parents[2]

# Loads a workdir and a Hugging Face folder; a global that is looked up while unpickling, or a process, ends it at once
LOAD = """
import os, sys
import jax, jax.numpy
from absl import logging
from sew_jax.checkpoints.pretrained import open_pretrained

def watch(event, arguments):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(3)

sys.addaudithook(watch)
for name in sys.argv[1:]:
    parameters = open_pretrained(name).load(jax.sharding.SingleDeviceSharding(jax.devices()[0]))[1]
    assert len(jax.tree.leaves(parameters)) > 10
assert "this" not in sys.modules
print("loaded")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("trust")
    config = pretraining(make_corpus(root / "corpus"))
    config.num_steps, config.compression.squeeze, config.mesh.data, config.mesh.fsdp = 1, (1,), -1, 1
    train(config, root / "run")
    return root / "run"


def test_loading_runs_no_code(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").rglob("*_METADATA"):  # Orbax notes the classes that wrote an item there
        path.write_text(path.read_text().replace("orbax.checkpoint", "this"))
    sources = [str(tmp_path / "run"), f"hf:{ROOT / 'tests/released/sew'}"]
    done = subprocess.run([sys.executable, "-c", LOAD, *sources], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "loaded" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["architecture"]["backbone"].update(hidden=1),
        lambda record: record["architecture"].pop("head"),
        lambda record: record["architecture"].update(backbone=7),
        lambda record: record["config"].pop("compression"),
        lambda record: record.update(config=[]),
    ],
)
def test_a_record_of_another_kind_is_one_line(run, tmp_path, change):
    record = json.loads((run / "config.json").read_text())
    change(record)
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"init_from: .*config\.json (does not describe a model|is not that of)"):
        open_pretrained(str(tmp_path))


def test_a_manifest_cannot_lead_out_of_its_folder_unseen(tmp_path):
    (tmp_path / "inside/deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for name in ("inside/a.wav", "inside/deep/b.wav", "outside/c.wav"):
        soundfile.write(tmp_path / name, np.zeros(16_000), 16_000)
    (tmp_path / "inside/link.wav").symlink_to(tmp_path / "outside/c.wav")
    (tmp_path / "inside/linked").symlink_to(tmp_path / "outside")
    (tmp_path / "inside/near.wav").symlink_to("deep/b.wav")
    names = ["a.wav", "deep/b.wav", "deep/../a.wav", "near.wav", str(tmp_path / "outside/c.wav")]
    names += ["../outside/c.wav", "deep/../../outside/c.wav", "link.wav", "linked/c.wav"]
    manifest = epath.Path(tmp_path / "inside/list.jsonl")
    manifest.write_text("".join(json.dumps({"audio": name, "id": str(i)}) + "\n" for i, name in enumerate(names)))
    problems = [entry.problem for entry in list_root(manifest, "train")]
    assert problems[:5] == [None] * 5
    assert all(problem and "leads out of" in problem and "whole path" in problem for problem in problems[5:])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    config = prepare_config.get_config()
    config.data, config.split, config.workers = str(make_corpus(root / "corpus")), "train", 1
    prepare(config, root / "data")
    return root / "data"


def first_audio(folder):
    source, _ = open_source(str(folder), "train", min_samples=1, need_text=False, max_bad=0)
    return source.audio(0)


@pytest.mark.parametrize("spelling", ["pythonClassName", "python_class_name", "python\\u0043lassName", "type"])
def test_no_class_is_loaded_that_a_dataset_names(prepared, tmp_path, monkeypatch, spelling):
    shutil.copytree(prepared, tmp_path / "data")
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a dataset was run')")
    monkeypatch.syspath_prepend(tmp_path)
    features = next((tmp_path / "data").rglob("features.json"))
    features.write_text(f'{{"{spelling}": "evil.Scalar", "content": {{}}}}')
    assert np.array_equal(first_audio(tmp_path / "data"), first_audio(prepared)) and "evil" not in sys.modules


def test_a_dataset_cannot_name_files_elsewhere(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    info = next((tmp_path / "data").rglob("dataset_info.json"))
    info.write_text(info.read_text().replace('"name": "speech"', '"name": "../../other/speech"'))
    with pytest.raises(UserError, match="names files out of its folder"):
        first_audio(tmp_path / "data")
