"""A released model learns a table of settings from its own symbols: what it was is the start, and does not move."""

import contextlib
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import finetune
from sew_jax.checkpoints.checkpointer import Checkpoints, load_params
from sew_jax.checks.check import check_config
from sew_jax.compression import Compression, Draw
from sew_jax.decoding.recognizer import load_recognizer
from sew_jax.errors import UserError
from sew_jax.models.config import CTCHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.runtime.sharding import make_mesh
from sew_jax.training import train as training
from sew_jax.training.finetuning import ctc_micro_loss, open_finetuning
from sew_jax.training.setup import open_run
from sew_jax.training.step import OfRun, make_gradients, new_state
from sew_jax.training.task import Masks, SpanMask
from sew_jax.training.teacher import original
from sew_jax.training.train import train
from tests import runs
from tests.models.build import small

RELEASED = f"hf:{Path(__file__).parents[1] / 'released' / 'wav2vec2_ctc'}"
PLACE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
BACKBONE = small("logmel", layers=1)
ROWS, SAMPLES = 3, 8000


@functools.cache
def program(setting):
    """(parameters, those of the teacher, label lengths) -> what a micro-batch of an update at a setting sums to."""
    model = CTCModel(BACKBONE, CTCHeadConfig())
    random = np.random.default_rng(0)
    batch = {
        "wave": random.normal(size=(ROWS, SAMPLES)).astype(np.float32),
        "length": np.array([SAMPLES, 6000, 5000], np.int32),
        "crop": np.arange(ROWS, dtype=np.int32),
        "labels": random.integers(4, 32, size=(ROWS, 3)).astype(np.int32),
    }
    unmasked = SpanMask(0.0, 5, 0)
    teacher = original(BACKBONE.dtype, Compression())
    gradients = make_gradients(ctc_micro_loss(model, Masks(unmasked, unmasked), teacher_weight=2.0, teacher=teacher), 1)

    def run(params, of_teacher, label_length):
        state = new_state({"params": params, "batch_stats": teacher.begin({}, of_teacher)}, optax.identity())
        run = OfRun(jax.random.key(0), jnp.array(10))
        return gradients(state, batch | {"label_length": label_length}, run, Draw(setting))

    return jax.jit(run)


@functools.cache
def parameters(noise=0.0):
    params = jax.jit(CTCModel(BACKBONE, CTCHeadConfig()).initialize)(jax.random.key(0))["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + noise * random.normal(size=x.shape).astype(np.float32), params)


def sums(setting, spelt=(), student=0.0):
    lengths = np.array([3 if row in spelt else -1 for row in range(ROWS)], np.int32)
    return jax.device_get(program(setting)(parameters(student), parameters(), lengths))


def largest(grads):
    return max(np.abs(x).max() for x in jax.tree.leaves(grads))


def test_where_student_and_teacher_are_equal_there_is_nothing_to_learn():
    alike, other = sums(Compression()), sums(Compression(), student=0.05)
    assert abs(alike.metrics["loss_teacher"].sum) < 1e-4 < other.metrics["loss_teacher"].sum
    assert largest(alike.grads) < 1e-5 * largest(other.grads)


def test_at_a_cheaper_setting_there_is():
    cheap = sums(Compression(2))
    assert cheap.metrics["loss_teacher"].sum > 0
    assert largest(cheap.grads["backbone"]["encoder"]["upsample_2"]) > 0


def test_an_utterance_without_a_transcript_counts_for_the_teacher_alone():
    """Sums of CTC are those of the utterances that have one; the divergence, and the weight, are those of all."""
    none, first, second, both = (sums(Compression(2), spelt) for spelt in ((), (0,), (2,), (0, 2)))
    ctc = [out.metrics["loss_ctc"] for out in (none, first, second, both)]
    np.testing.assert_allclose([term.weight for term in ctc], [0, 1, 1, 2])
    assert ctc[0].sum == 0
    np.testing.assert_allclose(ctc[3].sum, ctc[1].sum + ctc[2].sum, rtol=1e-5)
    assert {float(out.weight) for out in (none, first, both)} == {3.0}
    taught = both.metrics["loss_teacher"].sum
    np.testing.assert_allclose(taught, none.metrics["loss_teacher"].sum, rtol=1e-6)
    np.testing.assert_allclose(both.metrics["loss"].sum, ctc[3].sum + 2.0 * taught, rtol=1e-5)
    of_both, of_none = (out.grads["symbols"]["kernel"] for out in (both, none))
    separately = (out.grads["symbols"]["kernel"] - of_none for out in (first, second))
    np.testing.assert_allclose(of_both - of_none, sum(separately), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """A manifest of audio alone."""
    corpus = runs.make_corpus(tmp_path_factory.mktemp("corpus"))
    manifest = corpus / "audio.jsonl"
    files = sorted(corpus.rglob("train/**/*.flac"))
    manifest.write_text("".join(json.dumps({"audio": str(file)}) + "\n" for file in files))
    return manifest


def recipe(audio, **options):
    config = runs.tiny(finetune.get_config("stochastic"), audio)
    config.init_from, config.num_steps, config.checkpoint_every = RELEASED, 4, 2
    config.compression.names = "s1q1k1,s2q1k1"
    config.update(options)
    return config


@pytest.fixture
def opened(monkeypatch):
    """What `train` opens: (parameters of the first update as they are before it, the run)."""
    found = []

    @contextlib.contextmanager
    def noting(config, workdir):
        with open_run(config, workdir) as run:
            found.append((jax.device_get(run.state.params), run))
            yield run

    monkeypatch.setattr(training, "open_run", noting)
    return found


def test_audio_alone_makes_a_released_model_stochastic(audio, tmp_path, opened):
    summary = train(recipe(audio), tmp_path)
    (before, run), released = opened.pop(), load_recognizer(RELEASED, "float32", make_mesh(1, 1, jax.devices()[:1]))
    wave, length = np.random.default_rng(0).normal(size=(2, 9000)).astype(np.float32), np.array([9000, 7000])
    outputs = [
        jax.jit(functools.partial(model.apply, compression=Compression(), deterministic=True))(
            {"params": jax.device_get(params)}, wave, length
        )[0]
        for model, params in ((run.task.model, before), (released.model, released.params))
    ]
    np.testing.assert_array_equal(*outputs)  # update 0 is the released model
    assert np.isfinite(summary.metrics["loss_teacher"]) and summary.metrics["weight"] > 0
    after = jax.device_get(load_params(tmp_path, PLACE)[1])
    moved = {jax.tree_util.keystr(path): np.abs(a - b).max() for (path, a), b in paired(after, before)}
    assert all((value > 0) != ("frontend" in name or "mask_embedding" in name) for name, value in moved.items())

    # its last checkpoint lost, and the teacher read again: the same to the bit, since the teacher is what it was
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.discard([4])
    train(recipe(audio), tmp_path)
    again = jax.device_get(load_params(tmp_path, PLACE)[1])
    assert all((a == b).all() for (_, a), b in paired(again, after))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_scratch": True}, r"teacher\.weight: learns from init_from's model, and from_scratch starts without"),
        ({"init_from": "hf:" + RELEASED[3:].removesuffix("_ctc")}, r"teacher\.weight: .* has no symbols"),
        ({"vocabulary": "other.json"}, r"teacher\.weight: .* has other symbols"),
    ],
)
def test_a_teacher_must_write_the_same_symbols(options, message, audio, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"<pad>": 0, "A": 1}))
    config = recipe(audio, **options)
    config.vocabulary = config.vocabulary and str(tmp_path / config.vocabulary)
    with pytest.raises(UserError, match=message):
        check_config(config)
        open_finetuning(config)


def paired(one, other):
    return zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True)
