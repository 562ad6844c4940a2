"""The training step: exact accumulation, the same on any devices, and nothing but the loss it should be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression, Draw
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.masking import MaskedFrames
from sew_jax.models.pretrain import PretrainModel
from sew_jax.runtime.sharding import batch_sharding, bytes_per_device, make_mesh, place_batch, tree_shardings
from sew_jax.training import optimizer as optim
from sew_jax.training.finetuning import ctc_micro_loss
from sew_jax.training.losses import Term
from sew_jax.training.pretraining import Temperature, pretrain_micro_loss
from sew_jax.training.step import OfRun, make_step, new_state
from sew_jax.training.task import Masks, SpanMask

SAMPLES = 16_000
BACKBONE = BackboneConfig(
    frontend="logmel",
    width=64,
    layers=1,
    heads=4,
    ffn_width=128,
    pos_kernel=7,
    pos_groups=2,
    upsample_factors=(2,),
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
    layerdrop=0.2,
)
HEAD = PretrainHeadConfig(codes=8, code_width=16, final_width=16, negatives=10, feature_dropout=0.0)
DRAW, RUN = Draw(Compression(2, 1, 2)), OfRun(jax.random.key(0), jnp.array(10))


def make_batch(rows=8):
    random = np.random.default_rng(0)
    length = random.integers(SAMPLES // 2, SAMPLES + 1, size=rows).astype(np.int32)
    wave = random.normal(size=(rows, SAMPLES)).astype(np.float32) * (np.arange(SAMPLES) < length[:, None])
    labels = random.integers(4, 32, size=(rows, 6)).astype(np.int32)
    batch = {"wave": wave, "length": length, "crop": np.arange(rows, dtype=np.int32)}
    return batch | {"labels": labels, "label_length": np.full(rows, 6, np.int32)}


@functools.cache
def pretraining(head=HEAD, backbone=BACKBONE):
    model = PretrainModel(backbone, head)
    masked = MaskedFrames(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool), None)
    rngs = {"params": jax.random.key(0), "gumbel": jax.random.key(1)}
    shapes = jnp.zeros((1, SAMPLES)), jnp.array([SAMPLES]), masked
    variables = jax.jit(lambda: model.init(rngs, *shapes, Compression(), 1.0, deterministic=True))()
    return variables, pretrain_micro_loss(model, SpanMask(0.65, 5, 2), Temperature(2.0, 0.5, 0.7))


@functools.cache
def finetuning(backbone=BACKBONE, mask=SpanMask(0.0, 5, 0), dropout=0.0):  # noqa: B008
    model = CTCModel(backbone, CTCHeadConfig(dropout=dropout))
    variables = jax.jit(model.initialize)(jax.random.key(0))
    return variables, ctc_micro_loss(model, Masks(mask, mask))


def noisy(kind):
    """A task with all noise that there is."""
    backbone = dataclasses.replace(BACKBONE, dropout=0.1, attention_dropout=0.1, input_dropout=0.1, frontend="logmel")
    if kind == "finetune":
        return finetuning(backbone, SpanMask(0.5, 5, 0), 0.1)
    return pretraining(dataclasses.replace(HEAD, feature_dropout=0.1), backbone)


def schedule(count):
    return 1e-2


# eps of 1: Adam's first steps would turn rounding into whole steps
OPTIMIZER = optim.adam(schedule, eps=1.0, weight_decay=0.01, clip_norm=0.0)


@functools.cache
def program(micro_loss, accumulate):
    """Traced once for all meshes."""
    return jax.jit(make_step(micro_loss, OPTIMIZER, schedule, accumulate), static_argnames="compression")


def run(task, mesh, *, accumulate=1, updates=2, batch=None):
    variables, micro_loss = task
    shapes = jax.eval_shape(lambda: new_state(variables, OPTIMIZER))
    state = jax.device_put(new_state(variables, OPTIMIZER), tree_shardings(mesh, shapes))
    step, metrics = program(micro_loss, accumulate), []
    for _ in range(updates):
        state, scalars = step(state, place_batch(batch or make_batch(), batch_sharding(mesh)), RUN, compression=DRAW)
        metrics.append(jax.device_get(scalars))
    return jax.device_get(state), metrics


def assert_same(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def one_device():
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    return {kind: run(task, mesh) for kind, task in (("pretrain", pretraining()), ("finetune", finetuning()))}


@pytest.mark.parametrize("sizes", [(8, 1), (1, 8), (2, 4)])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_eight_devices_give_what_one_gives(one_device, kind, sizes):
    task = pretraining() if kind == "pretrain" else finetuning()
    state, metrics = run(task, make_mesh(*sizes))
    # losses and gradient norms, and through the updated parameters every gradient
    assert_same(one_device[kind][1], metrics, 1e-4)
    assert_same(one_device[kind][0].params, state.params, 1e-5)


def test_fsdp_holds_an_eighth_of_the_large_arrays():
    variables, _ = pretraining()
    total = sum(x.nbytes for x in jax.tree.leaves(variables["params"]))
    share = bytes_per_device(variables["params"], tree_shardings(make_mesh(1, 8), variables["params"]))
    small = sum(x.nbytes for x in jax.tree.leaves(variables["params"]) if x.size < 4096)
    assert share == pytest.approx((total - small) / 8 + small, rel=0.01)
    assert bytes_per_device(variables["params"], tree_shardings(make_mesh(8, 1), variables["params"])) == total


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_noise_follows_what_a_row_holds_and_not_its_place(kind):
    """Rows in another order, as on another mesh, have the same masks, negatives and dropout: the same loss."""
    mesh, order = make_mesh(1, 1, devices=jax.devices()[:1]), np.random.default_rng(1).permutation(8)
    batch = make_batch()
    shuffled = {name: x[order] for name, x in batch.items()}
    task = noisy(kind)
    before, after = run(task, mesh, batch=batch), run(task, mesh, batch=shuffled)
    assert_same(before[1], after[1], 1e-5)
    assert_same(before[0].params, after[0].params, 1e-6)
    other = run(task, mesh, batch=batch | {"crop": batch["crop"] + 8})
    assert before[1][0]["loss"] != pytest.approx(other[1][0]["loss"], rel=1e-3)  # there is noise


def test_accumulation_of_ctc_is_exact():
    """With all noise too, which micro-batches draw as one batch does."""
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    task = noisy("finetune")
    batch = make_batch()
    batch["length"][3] = 0  # a filler row: micro-batches of unequal weight
    whole, split = run(task, mesh, batch=batch), run(task, mesh, accumulate=4, batch=batch)
    assert_same(whole[1], split[1], 1e-4)
    assert_same(whole[0].params, split[0].params, 1e-6)


def toy(x):
    """A batch of numbers instead of audio."""
    return {"x": jnp.array(x), "length": jnp.ones(len(x), jnp.int32), "crop": jnp.arange(len(x))}


def test_accumulated_terms_are_divided_once():
    """Micro-batches of 1 and 3 utterances weigh 1 and 3, not one half each."""

    def micro_loss(params, batch_stats, batch, key, progress, compression):
        loss = Term((params["w"] * batch["x"]).sum(), batch["n"].sum())
        return loss, ({"loss": loss}, batch_stats)

    optimizer = optim.adam(lambda c: 0.0, eps=1.0, weight_decay=0.0, clip_norm=0.0)
    step = make_step(micro_loss, optimizer, lambda c: 0.0, 2)
    state = new_state({"params": {"w": jnp.array(2.0)}}, optimizer)
    _, metrics = step(state, toy([5.0, 7.0]) | {"n": jnp.array([1.0, 3.0])}, RUN, DRAW)
    assert float(metrics["loss"]) == pytest.approx(2 * 12 / 4)
    assert float(metrics["grad_norm"]) == pytest.approx(12 / 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_changes_nothing(bad):
    def micro_loss(params, batch_stats, batch, key, progress, compression):
        loss = Term((params["w"] * batch["x"]).sum(), jnp.array(1.0))
        return loss, ({"loss": loss}, jax.tree.map(lambda mean: mean + batch["x"].sum(), batch_stats))

    optimizer = optim.adam(lambda c: 0.1, eps=1e-6, weight_decay=0.0, clip_norm=0.0)
    step = make_step(micro_loss, optimizer, lambda c: 0.1, 1)
    before = new_state({"params": {"w": jnp.array(2.0)}, "batch_stats": {"mean": jnp.array(1.0)}}, optimizer)
    after, metrics = step(before, toy([1.0, bad]), RUN, DRAW)
    assert metrics["skipped"] == 1 and after.step == 1
    assert_same(after.replace(step=before.step), before, 0)
    finite, metrics = step(after, toy([1.0, 1.0]), RUN, DRAW)
    assert metrics["skipped"] == 0 and finite.params["w"] < 2 and finite.batch_stats["mean"] == 3


def test_the_logged_rate_is_the_one_that_moves_the_parameters():
    """Also after an update that was skipped: the schedule then waits, as fairseq's does."""

    def micro_loss(params, batch_stats, batch, key, progress, compression):
        loss = Term((params["w"] * batch["x"]).sum(), jnp.array(1.0))
        return loss, ({"loss": loss}, batch_stats)

    schedule = optim.warmup_linear(0.1, 4, 100)
    optimizer = optim.adam(schedule, eps=1e-12, weight_decay=0.0, clip_norm=0.0)
    step = jax.jit(make_step(micro_loss, optimizer, schedule, 1), static_argnames="compression")
    state, rates = new_state({"params": {"w": jnp.array(2.0)}}, optimizer), []
    for x in (1.0, np.nan, 1.0, np.inf, np.nan, 1.0):
        before = state.params["w"]
        state, metrics = step(state, toy([x]), RUN, compression=Compression())
        moved = before - state.params["w"]  # Adam's step for a gradient that is always 1
        assert float(moved) == pytest.approx(0.0 if metrics["skipped"] else float(metrics["lr"]), rel=1e-5)
        rates.append(float(metrics["lr"]))
    assert rates == pytest.approx([0.025, 0.05, 0.05, 0.075, 0.075, 0.075])
    assert state.step == 6


def test_filler_rows_change_nothing(one_device):
    filled = {name: np.concatenate([x, np.zeros_like(x)]) for name, x in make_batch().items()}
    filled["crop"][8:] = -1
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    a, b = one_device["finetune"], run(finetuning(), mesh, batch=filled)
    assert_same(a[1], b[1], 1e-4)
    assert_same(a[0].params, b[0].params, 1e-6)


def test_losses_are_logged_in_bits(one_device):
    metrics = one_device["pretrain"][1][0]
    terms = metrics["loss_contrastive"] + metrics["loss_diversity"] + metrics["loss_penalty"]
    assert metrics["loss"] == pytest.approx(terms, rel=1e-5)
    assert metrics["loss_contrastive"] == pytest.approx(np.log2(11), rel=0.2)  # an untrained model guesses among 11
    assert metrics["loss_penalty"] == 0  # a log-mel front end learns nothing that could be penalised


def test_batch_norm_heads_keep_running_statistics():
    head = dataclasses.replace(HEAD, projection="mlp", mlp_width=32)
    state = run(pretraining(head), make_mesh(8, 1), updates=2)[0]
    mean = state.batch_stats["project_prediction"]["norm"]["mean"]
    assert np.isfinite(mean).all() and np.abs(mean).max() > 0


@pytest.mark.parametrize("num_steps", [10, 40])
def test_one_program_serves_runs_of_any_length(num_steps):
    """The temperature falls with the part of the run that is done."""
    variables, micro_loss = pretraining()
    step = program(micro_loss, 1)
    state = new_state(variables, OPTIMIZER).replace(step=jnp.array(5))
    batch = place_batch(make_batch(), batch_sharding(make_mesh(1, 1, devices=jax.devices()[:1])))
    _, metrics = step(state, batch, OfRun(jax.random.key(0), jnp.array(num_steps)), compression=DRAW)
    assert float(metrics["temperature"]) == pytest.approx(float(Temperature(2.0, 0.5, 0.7).at(5 / num_steps)))
    before = step._cache_size()
    step(state, batch, OfRun(jax.random.key(1), jnp.array(num_steps + 1)), compression=DRAW)
    assert step._cache_size() == before


def test_rows_that_could_not_be_read_are_counted_by_all_processes():
    """Filler is not among them."""
    batch = make_batch()
    batch["length"][[1, 4, 5]], batch["crop"][5] = 0, -1
    _, metrics = run(finetuning(), make_mesh(4, 2), batch=batch, updates=1)
    assert metrics[0]["unread"] == 2


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_an_update_that_learns_from_nothing_changes_nothing(name, one_device):
    """None of its audio could be read: parameters, moments, rate and running statistics stay, and the count goes on."""
    mesh, state = make_mesh(1, 1, devices=jax.devices()[:1]), one_device[name][0]
    _, micro_loss = {"pretrain": pretraining, "finetune": finetuning}[name]()
    batch = make_batch()
    empty = {key: np.zeros_like(x) for key, x in batch.items()} | {"crop": batch["crop"]}
    after, scalars = program(micro_loss, 1)(state, place_batch(empty, batch_sharding(mesh)), RUN, compression=DRAW)
    assert float(scalars["weight"]) == 0 and float(scalars["skipped"]) == 1
    assert int(after.step) == int(state.step) + 1
    same = jax.tree.map(np.array_equal, jax.device_get(after.replace(step=state.step)), state)
    assert all(jax.tree.leaves(same))
