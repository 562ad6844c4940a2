"""While parameters are frozen nothing is computed for them: another program, the same updates."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sew_jax.checkpoints.checkpointer import load_params
from sew_jax.compression import Compression, Draw
from sew_jax.models.config import BackboneConfig, CTCHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.parameters import path_name
from sew_jax.training import optimizer as optim
from sew_jax.training.finetuning import ctc_micro_loss
from sew_jax.training.losses import Term
from sew_jax.training.step import OfRun, make_gradients, make_update, new_state
from sew_jax.training.task import Masks, SpanMask
from sew_jax.training.train import train
from tests import runs

PLACE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
RUN, DRAW, ROWS, SAMPLES = OfRun(jax.random.key(1), jnp.array(10)), Draw(Compression()), 2, 8000
BACKBONE = BackboneConfig(
    frontend="logmel", width=32, layers=2, heads=2, ffn_width=128, pos_kernel=5, pos_groups=2, layerdrop=0.2
)


def is_of_backbone(path):
    return path.startswith("backbone/")


def by_name(tree):
    return {path_name(path): np.array(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def small():
    """(gradients of what is not frozen, compiled on demand; their arguments; FLOP of the loss alone)."""
    model, random = CTCModel(BACKBONE, CTCHeadConfig()), np.random.default_rng(0)
    micro_loss = ctc_micro_loss(model, Masks(SpanMask(0.0, 5, 0), SpanMask(0.0, 5, 0)))
    state = new_state(jax.jit(model.initialize)(jax.random.key(0)), optax.identity())
    batch = {
        "wave": random.normal(size=(ROWS, SAMPLES)).astype(np.float32),
        "length": np.full(ROWS, SAMPLES, np.int32),
        "crop": np.arange(ROWS, dtype=np.int32),
        "labels": random.integers(4, 32, size=(ROWS, 3)).astype(np.int32),
        "label_length": np.full(ROWS, 3, np.int32),
    }

    def loss(params):
        return micro_loss(params, {}, batch, RUN.key, 0.0, DRAW)[0].sum

    def lowered(frozen):
        jitted = jax.jit(make_gradients(micro_loss, 1, frozen), static_argnums=3)
        return jitted.lower(state, batch, RUN, DRAW)

    return lowered, (state, batch, RUN), jax.jit(loss).lower(state.params).cost_analysis()["flops"]


def test_what_is_frozen_has_no_backward_pass(small):
    """What is left beside the loss is the head's; and the gradients that are computed stay what they were."""
    lowered, arguments, forward = small
    whole, head = lowered(lambda path: False), lowered(is_of_backbone)
    backward, of_head = (program.cost_analysis()["flops"] - forward for program in (whole, head))
    assert of_head < 0.1 * backward
    before, after = (by_name(program.compile()(*arguments).grads) for program in (whole, head))
    for name in before:
        expected = 0 * before[name] if is_of_backbone(name) else before[name]
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)
        assert np.any(before[name]) or name.endswith(("mask_embedding", "key/bias"))


def test_the_norm_is_of_what_moves_alone():
    """By the updates that were applied: a skipped one leaves the body frozen for one more."""

    def micro_loss(params, batch_stats, batch, key, progress, draw):
        loss = Term(((3 * params["head"] + 4 * params["body"]) * batch["x"]).sum(), jnp.array(1.0))
        return loss, ({"loss": loss}, batch_stats)

    def step(state, x):
        batch = {"x": jnp.array([x]), "length": jnp.ones(1, jnp.int32), "crop": jnp.zeros(1, jnp.int32)}
        sums = make_gradients(micro_loss, 1)(state, batch, RUN, DRAW)
        return make_update(optimizer, schedule, {"head": 0, "body": 2}.get)(state, sums)

    schedule = optax.constant_schedule(0.1)
    options = {"eps": 1e-8, "weight_decay": 0.1, "clip_norm": 0.0}
    optimizer = optim.adam(schedule, **options, frozen_until={"head": 0, "body": 2}.get)
    state = new_state({"params": {"head": jnp.array(1.0), "body": jnp.array(1.0)}}, optimizer)
    norms = []
    for x in (1.0, np.nan, 1.0, 1.0):
        state, metrics = step(state, x)
        norms.append(float(metrics["grad_norm"]))
    np.testing.assert_allclose(norms, [3, np.nan, 3, 5])
    assert state.params["body"] < 1


def finetuned(config, workdir):
    """(programs, parameters after the last update)."""
    return train(config, workdir).programs, by_name(load_params(workdir, PLACE)[1])


def test_a_run_with_a_frozen_phase_goes_on_at_its_end(tmp_path):
    corpus = runs.begin_finetuned(tmp_path / "origin")
    config = runs.finetuning(corpus, tmp_path / "origin/pretrain")
    config.num_steps, config.checkpoint_every, config.optim.freeze = 4, 2, 1 / 2
    config.compression.names, config.dtype = "s2q1k1", "float32"
    programs, phased = finetuned(config, tmp_path / "phased")
    assert programs == 2
    shutil.copytree(tmp_path / "phased", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/4")  # as after a kill
    programs, resumed = finetuned(config, tmp_path / "resumed")
    assert programs == 1
    for name, x in phased.items():
        np.testing.assert_array_equal(resumed[name], x)
