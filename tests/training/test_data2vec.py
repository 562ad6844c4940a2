"""Pre-training by data2vec 2.0: its loss, its teacher's schedule, and runs that resume and are fine-tuned."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sew_jax
from configs import export as export_config
from configs import pretrain as pretrain_config
from sew_jax.checkpoints.checkpointer import load_params
from sew_jax.checkpoints.pretrained import open_pretrained
from sew_jax.checks.check import check_config
from sew_jax.compression import Compression, Draw
from sew_jax.errors import UserError
from sew_jax.export.export import export
from sew_jax.metrics.metrics_file import read_metrics, read_rows
from sew_jax.models.data2vec import teacher_part
from sew_jax.models.parameters import path_name
from sew_jax.runtime.sharding import make_mesh
from sew_jax.training import losses
from sew_jax.training import optimizer as optim
from sew_jax.training.data2vec import annealed, data2vec_micro_loss
from sew_jax.training.held_out import open_held_out
from sew_jax.training.setup import open_task
from sew_jax.training.spending import data2vec_flop
from sew_jax.training.step import OfRun, make_step, new_state
from sew_jax.training.teacher import TEACHER, Teacher
from sew_jax.training.template import Template
from sew_jax.training.train import train
from sew_jax.training.watchdog import Watchdog
from tests.models.test_data2vec import MODEL, SAMPLES, variables
from tests.runs import finetuning, make_corpus, pretraining

SETTING = Compression(2, 1, 2)
KEY = jax.random.key(5)
RUN = OfRun(jax.random.key(0), jnp.array(40))
SLOW = Teacher(teacher_part, Compression(), annealed(0.9, 0.99, 20))
RATE, UPDATES = 2e-2, 60


def make_batch(lengths, samples=SAMPLES, rows=None):
    """Tones and noise by a row's number."""
    wave = np.zeros((len(lengths), samples), np.float32)
    rows = range(len(lengths)) if rows is None else rows
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        random = np.random.default_rng(row)
        pitch = np.repeat(random.uniform(0.01, 0.3, size=length // 1600 + 1), 1600)[:length]  # ten tones a second
        wave[i, :length] = np.sin(np.cumsum(pitch)) + 0.1 * random.normal(size=length)
    return {"wave": wave, "length": np.array(lengths, np.int32), "crop": np.array(rows, np.int32)}


@functools.cache
def step():
    """The state before, and what an update makes of it."""
    optimizer = optim.adam(lambda count: RATE, eps=1e-6, weight_decay=0.01, clip_norm=0.0, decay_vectors=False)
    begun = variables() | {"batch_stats": SLOW.begin({}, variables()["params"])}
    empty = jax.eval_shape(lambda: new_state(begun, optimizer))
    before = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), empty).replace(**begun)
    update = make_step(data2vec_micro_loss(MODEL), optimizer, lambda count: RATE, 1, SLOW)
    jitted = jax.jit(update, static_argnames="compression")
    return before, lambda state, batch: jitted(state, batch, RUN, compression=Draw(SETTING))


def test_neither_padding_nor_neighbours_change_a_loss_or_its_gradients():
    """What rows give alone, each at another place and with rubbish behind it, they give together.

    So do micro-batches, whose sums `test_step` compares.
    """
    before, update = step()
    lengths = np.array([SAMPLES, 8_560, 5_040])

    def sums(batch):
        after, scalars = jax.device_get(update(before, batch))
        weight = scalars["weight"]
        moments = jax.tree.map(lambda m: weight * m, optax.tree.get(after.opt_state, "mu"))
        return weight, weight * scalars["loss"], *jax.tree.leaves(moments)

    def alone(row):
        rows = np.roll(np.arange(3), row + 1)
        batch = make_batch(np.where(rows == row, lengths[rows], 0), rows=rows)
        place = list(rows).index(row)
        batch["wave"][place, lengths[row] :] = 9.0
        return sums(batch)

    together, parts = sums(make_batch(lengths)), [alone(row) for row in range(3)]
    assert all(part[0] > 0 for part in parts)
    scale = max(float(np.abs(x).max()) for x in together[2:])
    for whole, *each in zip(together, *parts, strict=True):
        np.testing.assert_allclose(whole, sum(each), rtol=1e-4, atol=1e-5 * scale)


def _paths(tree):
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_the_loss_against_numpy():
    random = np.random.default_rng(0)
    target, masked = random.normal(size=(3, 9, 16)).astype(np.float32) * 0.7, random.random((3, 9)) < 0.5
    regression = jax.jit(lambda prediction: losses.regression(prediction, target, masked))
    zero = regression(np.zeros_like(target))
    seen = target[masked].astype(np.float64)
    # of a zero prediction: the root of the width times the targets' mean square
    assert float(zero.mean) == pytest.approx(16**0.5 * np.square(seen).mean(), rel=1e-5) and zero.weight == len(seen)
    off = regression(target + 0.5)
    assert float(off.mean) == pytest.approx(16**0.5 * 0.25, rel=1e-4)
    deviation = np.sqrt(seen.var(0, ddof=1) + 1e-6).mean()
    assert float(jax.jit(losses.deviation)(target, masked)) == pytest.approx(deviation, rel=1e-5)


def test_the_teachers_decay_and_the_rate_are_the_published_ones():
    """`get_annealed_rate` and `cosine` of fairseq, at base's 400,000 updates."""
    config = pretrain_config.get_config("base,data2vec2")
    check_config(config)
    options = config.data2vec
    decay = annealed(options.ema_start, options.ema_end, options.ema_anneal * config.num_steps)
    for update in (1, 1000, 37_500, 74_999, 75_000, 400_000):
        expected = 0.99999 - (0.99999 - 0.999) * (1 - update / 75_000) if update < 75_000 else 0.99999
        assert float(decay(update)) == pytest.approx(expected, abs=1e-7)
    assert float(annealed(0.9997, 1.0, 10)(11)) == 1.0  # the large teacher stands still in the end
    schedule = optim.warmup_cosine(config.optim.lr, config.optim.warmup * 400_000, 400_000)
    for update, rate in {4000: 3.75e-4, 8000: 7.5e-4, 204_000: 3.75e-4, 400_000: 0.0}.items():
        assert float(schedule(update - 1)) == pytest.approx(rate, abs=1e-8)


def test_the_teacher_follows_each_update_that_is_applied():
    (before, update), batch = step(), make_batch([SAMPLES, 8_560, 0])
    for done in (1, 2):
        state, scalars = jax.device_get(update(before, batch))
        decay = 0.9 + 0.09 * done / 20
        assert scalars["ema_decay"] == pytest.approx(decay)
        jax.tree.map(
            lambda t, old, p, decay=decay: np.testing.assert_allclose(t, decay * old + (1 - decay) * p, atol=1e-6),
            state.batch_stats[TEACHER],
            before.batch_stats[TEACHER],
            teacher_part(state.params),
        )
        before = state
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.batch_stats[TEACHER], teacher_part(before.params))
    assert max(jax.tree.leaves(moved)) > 0  # it is behind its student
    after, scalars = update(before, batch | {"wave": np.full_like(batch["wave"], np.nan)})
    assert scalars["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, before.batch_stats)


def tiny(corpus):
    config = pretraining(corpus)
    config.objective, config.eval.split, config.eval.every = "data2vec2", "test", 12
    config.compression.names, config.checkpoint_every = "s2q1k1", 10
    config.model.update(pos_groups=1, layerdrop=0.0, dropout=0.0, attention_dropout=0.0, input_dropout=0.0)
    config.data2vec.update(
        decoder_dropout=0.0, clones=2, top_layers=1, decoder_width=16, decoder_layers=1, decoder_groups=1, ema_start=0.9
    )
    return config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def train_alone(config, workdir):
    """On one of the devices: programs of eight take several times as long to compile."""
    config.mesh.data = config.mesh.fsdp = 1
    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: one)
        train(config, workdir)


@pytest.fixture(scope="module")
def pretrained(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "pretrain"
    train_alone(tiny(corpus), workdir)
    return workdir


def test_a_run_says_what_it_learns_and_resumes_to_the_bit(corpus, pretrained, tmp_path, capfd):
    rows, held_out = read_metrics(pretrained), read_rows(pretrained / "held_out.jsonl")
    assert all(row["loss"] > 0 and row["tflop"] > 0 and 0.4 < row["masked_frac"] <= 0.5 for row in rows)
    (row,) = held_out
    assert row["setting"] == "s2q1k1" and row["cosine"] == 1.0 and len(row["layer_changes"]) == 1
    assert row["loss"] > 0 and row["target_std"] > 0.1 and row["prediction_std"] > 0
    workdir = shutil.copytree(pretrained, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "12")  # as after a kill: updates 11 and 12 are lost
    train_alone(tiny(corpus), workdir)
    out = capfd.readouterr().out
    assert "resumes at update 10" in out and "held-out test | s2q1k1 loss" in out
    assert read_rows(workdir / "held_out.jsonl") == held_out  # which the teacher decides, too
    assert [row["loss"] for row in read_metrics(workdir)] == [row["loss"] for row in rows]
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    jax.tree.map(np.testing.assert_array_equal, load_params(pretrained, one_device), load_params(workdir, one_device))


def test_what_was_pretrained_is_fine_tuned_exported_and_read(corpus, pretrained, tmp_path, capfd):
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load_params(pretrained, one_device)[1]
    student = _paths(params)
    task = open_task(finetuning(corpus, pretrained))
    shapes = jax.eval_shape(task.init, KEY)["params"]
    fresh = jax.tree.map(lambda x: np.full(x.shape, 7.0, x.dtype), shapes)
    tuned = _paths(task.warm_start(fresh, one_device))
    assert "new: symbols" in (out := capfd.readouterr().out) and "left behind: decoder" in out
    for path, x in tuned.items():  # the student's weights, as data2vec 2.0 is fine-tuned
        np.testing.assert_array_equal(x, student[path] if path.startswith("backbone/") else 7.0)

    config = export_config.get_config()
    config.init_from, config.format, config.weights = str(pretrained), "sew_jax", "float32"
    export(config, tmp_path / "exported")
    exported = _paths(open_pretrained(str(tmp_path / "exported")).load(one_device)[1])
    jax.tree.map(np.testing.assert_array_equal, exported, student)
    features = sew_jax.load(pretrained).features(np.random.default_rng(0).normal(size=8_000).astype(np.float32))
    assert features.shape == (24, 32) and np.ptp(features, axis=0).min() > 0.01

    config = tiny(corpus)  # and pre-training goes on from it, with a teacher that is what was read
    config.init_from = str(pretrained)
    drawn = jax.tree.map(np.zeros_like, {"params": params})
    task = open_task(config)._replace(init=lambda key: drawn)
    template = Template(config, task, make_mesh(4, 2))
    assert template.shardings.batch_stats[TEACHER] == teacher_part(template.shardings.params)
    first = template.first_state()
    jax.tree.map(np.testing.assert_array_equal, first.batch_stats[TEACHER], teacher_part(first.params))
    jax.tree.map(np.testing.assert_array_equal, _paths(first.params), student)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model=dict(tail="drop")), "model.tail: data2vec2 learns from each frame"),
        (dict(data2vec=dict(top_layers=5)), "data2vec.top_layers: 5 is more than model.layers=1"),
        (
            dict(compression=dict(names=""), sandwich=dict(enabled=True, distill=0.5)),
            "sandwich.distill: 0.5 needs a distribution",
        ),
        (dict(data2vec=dict(decoder_groups=3)), "data2vec.decoder_width: 16 is no multiple"),
    ],
)
def test_what_does_not_fit_is_named(corpus, change, message):
    config = tiny(corpus)
    config.update(change)
    with pytest.raises(UserError, match=message):
        check_config(config)


def test_crops_without_room_for_a_mask_are_named(corpus):
    config = tiny(corpus)
    config.compression.names, config.input.crop_seconds = "s4q4k4", 0.6
    with pytest.raises(UserError, match=r"input.crop_seconds: 0.6 leaves nothing to mask at s4q4k4, .* of 16 frames"):
        open_task(config)


@pytest.mark.parametrize("name", ["s1q1k1m0.2", "r0.4q1k1"])
def test_settings_that_mix_frames_are_named(corpus, name):
    config = tiny(corpus)
    config.compression.names = f"s2q1k1,{name}"
    with pytest.raises(UserError, match=f"setting: {name} would mix frames that are seen with"):
        open_task(config)
    config.compression.names, config.eval.settings = "s2q1k1", name  # in held-out evaluation, too
    with pytest.raises(UserError, match=f"setting: {name} would mix"):
        open_held_out(config, open_task(config), make_mesh(1, 1, jax.devices()[:1]))


def test_distances_between_what_is_seen_are_named(corpus):
    config = tiny(corpus)
    config.model.rel_buckets = 16
    with pytest.raises(UserError, match=r"model.rel_buckets: 16 asks for distances"):
        open_task(config)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, None),
        (dict(target_std=0.05), "the targets have collapsed"),
        (dict(prediction_std=0.005), "predictions are the same for all frames"),
    ],
)
def test_guards(change, sentence):
    row = dict(setting="s1q1k1", bucket_s=8.0, steps_per_s=2.0, loss=3.0, target_std=0.6, prediction_std=0.2)
    row |= dict(input_wait_frac=0.0) | change
    for first, count in ((120, 151), (500, 500)):
        watchdog, said = Watchdog(guarded_from=first), []
        for step in range(count):
            said += watchdog.check(row | {"step": step}).values()
        assert (first < count and sentence in said[0]) if sentence and first < count else not said


def test_the_loss_falls():
    """Below that of a constant, on tones that a neighbour gives away."""
    (state, update), batch, seen = step(), make_batch([SAMPLES, SAMPLES, 0]), []
    for _ in range(UPDATES):
        state, scalars = update(state, batch)
        seen.append(scalars)
    seen = jax.device_get(seen)
    constant = 4 * np.mean([row["target_std"] for row in seen[-20:]]) ** 2  # the root of 16 channels
    assert np.mean([row["loss"] for row in seen[-20:]]) < 0.85 * constant
    assert seen[-1]["prediction_std"] > 0.1 and seen[-1]["target_std"] > 0.3


def test_flop_against_xla():
    backbone = dataclasses.replace(MODEL.backbone, width=128, ffn_width=512, layers=1)
    head = dataclasses.replace(MODEL.head, decoder_width=64)
    model = dataclasses.replace(MODEL, backbone=backbone, head=head)
    shapes = jax.eval_shape(model.initialize, jax.random.key(0))
    teacher = jax.eval_shape(lambda: SLOW.begin({}, shapes["params"]))
    micro_loss, drawn = data2vec_micro_loss(model), Draw(Compression(), (Compression(2),))

    def update(params, averages, batch):
        return jax.grad(lambda p: micro_loss(p, averages, batch, jax.random.key(0), 0.0, drawn)[0].sum)(params)

    batch = make_batch([48_240], 48_240)
    counted = jax.jit(update).lower(shapes["params"], teacher, batch).cost_analysis()["flops"]
    # XLA also counts norms, softmax and noise, and knows that others' gradients stop before the front end
    assert 0.97 < counted / data2vec_flop(model, drawn, 48_240) < 1.15
