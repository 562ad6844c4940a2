"""Wherever a corpus lies, training sees the same samples and has the same losses."""

import json

import numpy as np
import pytest
import soundfile

from configs.prepare import get_config
from sew_jax.data.prepare import prepare
from sew_jax.errors import UserError
from sew_jax.metrics.metrics_file import read_metrics
from sew_jax.training.train import train
from tests.data.damage import GOOD, make_damaged_corpus
from tests.runs import begin, finetuning, make_corpus, pretraining

TIMES = ("time", "steps_per_s", "audio_h_per_h", "input_wait_frac", "joules")
UPDATES = 6  # of three epochs


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same corpus as a folder, a manifest and a prepared dataset; one file is 24-bit stereo at 44.1 kHz."""
    root = tmp_path_factory.mktemp("places")
    corpus = make_corpus(root / "corpus")
    wave = np.random.default_rng(1).normal(size=(50_000, 2)) * 0.1
    soundfile.write(corpus / "train/1/1/1-1-0005.flac", wave, 44_100, subtype="PCM_24")
    config = get_config()
    config.data, config.workers = str(corpus), 0
    prepare(config, root / "prepared")
    texts = {}
    for line in (corpus / "train/1/1/1-1.trans.txt").read_text().splitlines():
        name, _, text = line.partition(" ")
        texts[name] = text
    rows = [
        {"audio": str(path), "id": path.stem, "text": texts[path.stem], "split": "train"}
        for path in sorted((corpus / "train").rglob("*.flac"))
    ]
    (root / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"folder": corpus, "manifest": root / "list.jsonl", "prepared": root / "prepared"}


def rows_of(config, workdir):
    """What a run notes, without times."""
    config.num_steps = config.checkpoint_every = UPDATES
    config.compression.squeeze = (1,)
    train(config, workdir)
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(workdir)]


def test_pretraining_is_the_same(places, tmp_path):
    rows = {name: rows_of(pretraining(place), tmp_path / name) for name, place in places.items()}
    assert len(rows["folder"]) == UPDATES and rows["folder"] == rows["manifest"] == rows["prepared"]


def test_finetuning_is_the_same_with_worker_processes_too(places, tmp_path):
    begin(pretraining(places["folder"]), tmp_path / "pretrained")
    rows = {}
    for name, workers in (("folder", 0), ("prepared", 2)):
        config = finetuning(places[name], tmp_path / "pretrained")
        config.input.workers = workers
        rows[name] = rows_of(config, tmp_path / name)
    assert len(rows["folder"]) == UPDATES and rows["folder"] == rows["prepared"]


def test_damage_is_named_and_training_finishes(tmp_path, capfd):
    """Found before the first update, or when audio is first decoded; either way by name, and counted."""
    (tmp_path / "elsewhere").mkdir()
    damaged = make_damaged_corpus(tmp_path / "corpus", tmp_path / "elsewhere")
    config = pretraining(tmp_path / "corpus")
    config.input.max_seconds = 600.0  # without it an epoch would be crops of what lasts an hour
    with pytest.raises(UserError, match=r"utterances of .* are damaged .*input\.max_bad=2"):
        config.input.max_bad = 2
        train(config, tmp_path / "refused")
    config.input.max_bad = 20
    config.num_steps = config.checkpoint_every = UPDATES
    config.compression.squeeze = (1,)
    assert train(config, tmp_path / "run").step == UPDATES
    left_out = {row["id"] for row in map(json.loads, (tmp_path / "run/left_out.jsonl").read_text().splitlines())}
    screen = capfd.readouterr().out
    said = {name for name in damaged if f"! {name} " in screen}
    without_text = {name for name in damaged if "transcript" in name}  # pre-training has no use for transcripts
    assert left_out | said >= set(damaged) - without_text
    assert not left_out & {f"train/7/1/{name}" for name in GOOD}
