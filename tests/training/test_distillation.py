"""An encoder learns a table of settings from its own features: what it was is the start, and does not move."""

import contextlib
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sew_jax
from configs import export as export_config
from configs import pretrain as pretrain_config
from sew_jax.checkpoints.checkpointer import Checkpoints, load_params
from sew_jax.checkpoints.hf_folder import open_released
from sew_jax.checkpoints.pretrained import open_pretrained
from sew_jax.checks.check import check_config
from sew_jax.compression import Compression, Draw
from sew_jax.errors import UserError
from sew_jax.export.export import export
from sew_jax.metrics.metrics_file import read_metrics, read_rows
from sew_jax.models.config import ARCHITECTURE
from sew_jax.models.features import FeatureModel
from sew_jax.models.parameters import path_name
from sew_jax.training import losses
from sew_jax.training import train as training
from sew_jax.training.distillation import distill_micro_loss
from sew_jax.training.setup import open_run, open_task
from sew_jax.training.step import OfRun, make_gradients, new_state
from sew_jax.training.task import Sandwich
from sew_jax.training.teacher import TEACHER, original
from sew_jax.training.train import train
from sew_jax.training.validation import FILE
from tests import runs
from tests.models.build import small

RELEASED = Path(__file__).parents[1] / "released" / "wav2vec2"
PLACE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
BACKBONE = small("logmel")
BESIDE = Compression(2)


@functools.cache
def program():
    """(parameters, those of the teacher, micro-batch) -> what these of an update at s1q1k1 and beside it sum to."""
    model, teacher = FeatureModel(BACKBONE), original(BACKBONE.dtype, Compression())
    gradients = make_gradients(distill_micro_loss(model, teacher, Sandwich(0.5)), 1)

    def run(params, of_teacher, batch):
        state = new_state({"params": params, "batch_stats": teacher.begin({}, of_teacher)}, optax.identity())
        return gradients(state, batch, OfRun(jax.random.key(0), jnp.array(10)), Draw(Compression(), (BESIDE,)))

    return jax.jit(run)


def parameters(noise=0.0):
    shapes = jax.eval_shape(FeatureModel(BACKBONE).initialize, jax.random.key(0))["params"]
    drawn, moved = np.random.default_rng(1), np.random.default_rng(2)

    def value(path, x):  # up-samplers begin at zero
        scale = 0.0 if "upsample" in path_name(path) else 0.3
        return (scale * drawn.normal(size=x.shape) + noise * moved.normal(size=x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)


def sums(noise=0.0):
    wave = np.random.default_rng(0).normal(size=(2, 8000)).astype(np.float32)
    batch = {"wave": wave, "length": np.array([8000, 5000]), "crop": np.arange(2)}
    return jax.device_get(program()(parameters(noise), parameters(), batch))


def test_where_it_was_trained_there_is_nothing_to_learn_and_at_cheaper_settings_there_is():
    alike, moved = sums(), sums(0.1)
    assert alike.metrics["loss"].sum < 1e-6 < 0.01 < moved.metrics["loss"].sum
    assert alike.metrics["loss_others"].sum > 0.01 and alike.weight == 24 + 14
    encoder = alike.grads["backbone"]["encoder"]
    assert np.abs(encoder["upsample_2"]["difference"]["kernel"]).max() > 0
    assert np.abs(encoder["layer_0"]["ffn_in"]["kernel"]).max() > 0


def test_the_error_against_numpy():
    random, lengths = np.random.default_rng(0), np.array([9, 5, 0])
    features, target = random.normal(size=(2, 3, 9, 4)).astype(np.float32)
    compute = jax.jit(losses.relative_error)
    error = compute(features, target, lengths)
    expected = 0.0
    for row, length in enumerate(lengths[:2]):
        x, t = features[row, :length].astype(np.float64), target[row, :length].astype(np.float64)
        expected += (np.square(x - t).sum(0) / (t.var(0) + 1e-5)).mean()
    np.testing.assert_allclose([error.sum, error.weight], [expected, 14], rtol=1e-5)
    means = np.stack([np.broadcast_to(t[: max(n, 1)].mean(0), t.shape) for t, n in zip(target, lengths, strict=True)])
    assert float(compute(means, target, lengths).mean) == pytest.approx(1.0, abs=1e-4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Audio without a text in `train` and `dev`."""
    root = runs.make_corpus(tmp_path_factory.mktemp("distillation"))
    manifest = root / "audio.jsonl"
    rows = [{"audio": str(file), "split": file.parts[-4]} for file in sorted(root.rglob("*.flac"))]
    manifest.write_text(
        "".join(json.dumps(row | {"split": row["split"].replace("test", "dev")}) + "\n" for row in rows)
    )
    return manifest


def recipe(corpus, init_from):
    config = runs.tiny(pretrain_config.get_config("inherit,distill"), corpus)
    config.init_from, config.dtype, config.num_steps, config.checkpoint_every = str(init_from), "float32", 4, 2
    config.compression.names, config.eval.every, config.input.min_seconds = "s1q1k1,s2q1k1", 2, 0.1
    config.eval.settings, config.eval.max_seconds = "s2q1k1", 6.0
    return config


def begun(config, workdir):
    """Trains; (parameters, the teacher's) where the run begins."""
    found = []

    @contextlib.contextmanager
    def noting(config, workdir):
        with open_run(config, workdir) as run:
            found.append(jax.device_get((run.state.params, run.state.batch_stats[TEACHER])))
            yield run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "open_run", noting)
        train(config, workdir)
    return found.pop()


def test_a_run_of_audio_alone_and_one_that_goes_on_to_the_bit(corpus, tmp_path):
    """It goes on without what it began from: the teacher lies in the checkpoints, and is what it was."""
    encoder, workdir = tmp_path / "encoder", tmp_path / "run"
    runs.begin(runs.pretraining(corpus.parent), encoder)
    config = recipe(corpus, encoder)
    params, teacher = begun(config, workdir)
    was, after = (named(load_params(place, PLACE)[1]) for place in (encoder, workdir))
    for name, x in named(params).items():
        np.testing.assert_array_equal(x, 0.0 if "/upsample_2/" in name else was[name])
    moved = {name for name, x in after.items() if (x != named(params)[name]).any()}
    assert (
        after.keys() - moved == {"backbone/mask_embedding"} and "backbone/encoder/upsample_2/difference/bias" in moved
    )
    rows, held_out = read_metrics(workdir), read_rows(workdir / FILE)
    assert {row["setting"] for row in rows} == {"s1q1k1", "s2q1k1"} and all(row["loss"] >= 0 for row in rows)
    assert [(row["step"], row["setting"]) for row in held_out] == [(2, "s2q1k1"), (4, "s2q1k1")]
    assert all(0.01 < row["distance"] and -1 <= row["cosine"] <= 1 for row in held_out)

    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        checkpoints.discard([4])
    encoder.rename(tmp_path / "moved")
    _, again = begun(config, workdir)
    assert all((x == after[name]).all() for name, x in named(load_params(workdir, PLACE)[1]).items())
    assert all((x == named(teacher)[name]).all() for name, x in named(again).items())
    assert read_rows(workdir / FILE) == held_out


@pytest.fixture(scope="module")
def released(corpus):
    """The task of a released encoder."""
    return open_task(recipe(corpus, f"hf:{RELEASED}"))


def test_update_0_is_the_released_encoder_whose_extractor_stays(released):
    """Its architecture and its parameters, to the bit, and new up-samplers, which give zero."""
    origin = open_pretrained(f"hf:{RELEASED}")
    ours, theirs = released.model.backbone, named(origin.load(PLACE)[1])
    assert all(getattr(ours, name) == getattr(origin.backbone, name) for name in (*ARCHITECTURE, "upsampler"))
    shapes = jax.eval_shape(released.init, jax.random.key(0))["params"]
    begins = named(released.warm_start(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), PLACE))
    assert {name for name in begins.keys() - theirs.keys() if "/upsample_2/" not in name} == set()
    for name, x in theirs.items():
        np.testing.assert_array_equal(begins[name], x)
    stays = {name for name in begins if released.frozen_until(name) > 0}
    assert stays == {name for name in begins if name.startswith("backbone/frontend/")} != set()


def test_its_checkpoint_is_used_as_any_other(corpus, tmp_path):
    workdir = tmp_path / "run"
    runs.begin(recipe(corpus, f"hf:{RELEASED}"), workdir)
    saved = named(load_params(workdir, PLACE)[1])
    model, wave = sew_jax.load(workdir), np.random.default_rng(0).normal(size=9000).astype(np.float32)
    assert model.settings == ["s1q1k1", "s2q1k1"]
    features = model.features(wave, setting="s2q1k1")
    assert features.shape == (27, 24) and np.ptp(features, axis=0).min() > 0
    with pytest.raises(UserError, match="has no CTC head yet"):
        model.transcribe(wave)

    config = export_config.get_config()
    config.init_from, config.format, config.setting = str(workdir), "hf", "s1q1k1"
    export(config, tmp_path / "exported")
    exported = open_released(str(tmp_path / "exported"))
    assert exported.family == "wav2vec2" and exported.architecture.head is None
    for name, x in named(exported.parameters()).items():
        np.testing.assert_array_equal(x, saved[name])

    task = open_task(runs.finetuning(corpus.parent, workdir))
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    tuned = named(task.warm_start(jax.tree.map(lambda x: np.full(x.shape, 7.0, x.dtype), shapes), PLACE))
    for name, x in tuned.items():
        np.testing.assert_array_equal(x, saved.get(name, 7.0), err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_from": ""}, r"init_from is empty; distill learns from the features of what it names"),
        ({"sandwich": {"enabled": True, "distill": 0.5}}, r"sandwich\.distill: 0\.5 needs a distribution"),
    ],
)
def test_what_does_not_fit_is_named(options, message, corpus):
    config = recipe(corpus, RELEASED)
    config.update(options)
    with pytest.raises(UserError, match=message):
        check_config(config)


def named(params):
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(params))}
