"""What fine-tuning trains while the backbone is frozen, and how fast, from origins made here and released ones."""

import contextlib
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sew_jax.checkpoints.checkpointer import load_params
from sew_jax.checkpoints.pretrained import open_pretrained
from sew_jax.checks.check import check_config
from sew_jax.errors import UserError
from sew_jax.models.parameters import path_name
from sew_jax.training import train as training
from sew_jax.training.setup import open_run
from sew_jax.training.train import train
from tests import runs

RELEASED = Path(__file__).parents[1] / "released"
PLACE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
HEAD, UP_SAMPLER = "symbols/", "backbone/encoder/upsample_2/"


def by_name(tree):
    return {path_name(path): np.array(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return runs.make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def pretrained(corpus, tmp_path_factory):
    """Pre-trained at squeeze 1 alone, so that it has no up-sampler."""
    config = runs.pretraining(corpus)
    config.compression.names = "s1q1k1"
    workdir = tmp_path_factory.mktemp("runs") / "pretrain"
    runs.begin(config, workdir)
    return workdir


def finetuning(corpus, init_from, **options):
    config = runs.finetuning(corpus, init_from)
    config.num_steps, config.mesh.data, config.mesh.fsdp = 3, -1, 1
    config.compression.names, config.dtype = "s2q1k1", "float32"
    config.model.layerdrop = 0.0
    config.optim.update(options)
    return config


@pytest.fixture
def start_and_end(monkeypatch):
    """(config, workdir) -> parameters by name before the first update and after the last; of one device."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    starts = []

    @contextlib.contextmanager
    def noting(config, workdir):
        with open_run(config, workdir) as run:
            starts.append(by_name(run.state.params))
            yield run

    monkeypatch.setattr(training, "open_run", noting)

    def run(config, workdir):
        train(config, workdir)
        return starts.pop(), by_name(load_params(workdir, PLACE)[1])

    return run


def moved(start, end):
    assert start.keys() == end.keys()
    return {name for name in start if (start[name] != end[name]).any()}


def origins(name, pretrained):
    return str(pretrained) if name == "workdir" else f"hf:{RELEASED / name}"


@pytest.mark.parametrize("origin", ["workdir", "wav2vec2"])
def test_while_frozen_all_that_the_checkpoint_lacks_is_trained(origin, corpus, pretrained, tmp_path, start_and_end):
    config = finetuning(corpus, origins(origin, pretrained), freeze=1.0)
    start, end = start_and_end(config, tmp_path)
    new = {name for name in start if name.startswith((HEAD, UP_SAMPLER))}
    assert len(new) == 4 and moved(start, end) == new


def test_an_up_sampler_of_the_checkpoint_is_frozen_with_the_rest(corpus, tmp_path, start_and_end):
    released = f"hf:{RELEASED / 'sew_ctc'}"  # squeeze 3
    config = finetuning(corpus, released, freeze=1.0)
    config.compression.names = "s3q1k1"
    start, end = start_and_end(config, tmp_path)
    assert moved(start, end) == {name for name in start if name.startswith(HEAD)}


def test_after_the_frozen_phase_all_but_the_front_end_is_trained(corpus, tmp_path, start_and_end):
    config = finetuning(corpus, f"hf:{RELEASED / 'wav2vec2'}", freeze=1 / 3)
    config.mask.time_prob = 0.65  # else nothing reads the mask embedding
    start, end = start_and_end(config, tmp_path)
    still = start.keys() - moved(start, end)
    assert still and still == {name for name in start if name.startswith("backbone/frontend/")}


@pytest.mark.parametrize("scratch", [False, True])
def test_the_backbones_rate_is_a_share_of_the_heads(scratch, corpus, pretrained, tmp_path, start_and_end):
    """After one update, whose direction no rate has changed yet. Random weights are no backbone to go easy on."""
    ends = []
    for scale in (1.0, 0.1):
        config = finetuning(corpus, pretrained, backbone_lr_scale=scale, clip_norm=0.0, initial=1.0, eps=1e-3)
        config.num_steps, config.from_scratch = 1, scratch
        start, end = start_and_end(config, tmp_path / str(scale))
        ends.append(end)
    for name in moved(start, ends[0]):
        share = 1.0 if scratch or name.startswith((HEAD, UP_SAMPLER)) else 0.1
        steps = [end[name] - start[name] for end in ends]
        np.testing.assert_allclose(steps[1], share * steps[0], rtol=1e-3, atol=1e-6)


def test_a_rate_below_zero_is_refused(corpus, pretrained):
    with pytest.raises(UserError, match=r"optim.backbone_lr_scale: -1.0 must be at least 0"):
        check_config(finetuning(corpus, pretrained, backbone_lr_scale=-1.0))


@pytest.mark.parametrize("name", ["workdir", "wav2vec2", "wav2vec2_pretraining", "hubert_ctc", "xlsr_ctc", "sew_ctc"])
def test_an_origin_says_what_it_has_without_reading_it(name, pretrained):
    origin = open_pretrained(origins(name, pretrained))
    read = {name: x.shape for name, x in by_name(origin.load(PLACE)[1]).items()}
    shapes = jax.tree_util.tree_leaves_with_path(origin.shapes())
    assert {path_name(path): x.shape for path, x in shapes} == read


def test_a_mask_embedding_that_is_missing_is_named(tmp_path):
    folder = shutil.copytree(RELEASED / "sew_ctc", tmp_path / "unmasked")
    tensors = load_file(folder / "model.safetensors")
    del tensors["sew.masked_spec_embed"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "mask_embedding" not in open_pretrained(f"hf:{folder}").shapes()["backbone"]
