"""Updates of several settings: gradients are weighted sums on the same masks, targets follow the largest alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression, Draw, draw, product_table, sandwich_draws, uniform_draws
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.cost import count_macs
from sew_jax.models.ctc import CTCModel
from sew_jax.models.pretrain import PretrainModel
from sew_jax.training import losses
from sew_jax.training.finetuning import ctc_micro_loss
from sew_jax.training.pretraining import Temperature, pretrain_micro_loss
from sew_jax.training.task import Masks, Sandwich, SpanMask

SAMPLES = 16_000
BACKBONE = BackboneConfig(
    frontend="wav2vec2",
    conv_width=16,
    width=32,
    layers=2,
    heads=2,
    ffn_width=32,
    pos_kernel=5,
    pos_groups=2,
    upsample_factors=(2, 4),
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
    layerdrop=0.0,
    feature_grad_scale=1.0,
)
HEAD = PretrainHeadConfig(codes=8, code_width=16, final_width=16, negatives=10, feature_dropout=0.0)
LARGE, MIDDLE, SMALL = Compression(), Compression(2), Compression(4)


def batch():
    random = np.random.default_rng(0)
    length = np.array([SAMPLES, 12_000], np.int32)
    wave = random.normal(size=(2, SAMPLES)).astype(np.float32) * (np.arange(SAMPLES) < length[:, None])
    labels = random.integers(4, 32, size=(2, 5)).astype(np.int32)
    batch = {"wave": wave, "length": length, "crop": np.arange(2, dtype=np.int32)}
    return batch | {"labels": labels, "label_length": np.full(2, 5, np.int32)}


@functools.cache
def parameters(kind):
    model = PretrainModel(BACKBONE, HEAD) if kind == "pretrain" else CTCModel(BACKBONE, CTCHeadConfig())
    params = jax.jit(model.initialize)(jax.random.key(0))["params"]
    random = np.random.default_rng(1)  # zero up-samplers would hide a forgotten gradient
    return model, jax.tree.map(lambda x: x + 0.05 * random.normal(size=x.shape).astype(np.float32), params)


@functools.cache
def program(kind, drawn):
    """The gradient at a draw; the sandwich's weights are arguments, so that one program serves them all."""
    model, _ = parameters(kind)

    def total(params, weight, distill):
        sandwich = Sandwich(weight, distill)
        if kind == "pretrain":
            loss = pretrain_micro_loss(model, SpanMask(0.65, 5, 2), Temperature(2.0, 0.5, 0.7), sandwich)
        else:
            loss = ctc_micro_loss(model, Masks(SpanMask(0.5, 5, 0), SpanMask(0.0, 5, 0)), sandwich)
        term, (metrics, _) = loss(params, {}, batch(), jax.random.key(3), 0, drawn)
        return term.sum, metrics

    return jax.jit(jax.grad(total, has_aux=True))


def gradient(kind, drawn, weight=0.0, distill=0.0):
    return jax.device_get(program(kind, drawn)(parameters(kind)[1], weight, distill))


def part(grads, kind):
    """(what follows the largest alone, the rest)."""
    backbone = grads["backbone"]
    own = {k: v for k, v in backbone.items() if k != "encoder"}
    if kind == "pretrain":
        own |= {k: grads[k] for k in ("quantizer", "project_target")}
        return own, {"encoder": backbone["encoder"], "head": grads["project_prediction"]}
    return own, {"encoder": backbone["encoder"], "head": grads["symbols"]}


def combine(function, *trees):
    return jax.tree.map(function, *trees)


def assert_close(a, b, tolerance=2e-4):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(np.abs(y).max(), 1e-2))


@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_without_weight_the_largest_is_alone(kind):
    alone, _ = gradient(kind, Draw(LARGE))
    beside, metrics = gradient(kind, Draw(LARGE, (MIDDLE, SMALL)))
    assert_close(alone, beside, 1e-5)
    assert metrics["loss_others"].sum > 0


@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_gradients_are_weighted_sums(kind):
    """Each setting's own gradient on the same masks, negatives and codes, times its weight."""
    large, small = (gradient(kind, Draw(setting))[0] for setting in (LARGE, SMALL))
    both, _ = gradient(kind, Draw(LARGE, (SMALL,)), 0.3)
    own, shared = part(both, kind)
    assert_close(own, part(large, kind)[0])  # extractor, projection, mask embedding and targets
    expected = combine(lambda a, b: a + 0.3 * b, part(large, kind)[1], part(small, kind)[1])
    assert_close(shared, expected)


@pytest.mark.parametrize("kind", ["pretrain", "ctc"])
def test_distillation_teaches_the_others_alone(kind):
    """The teacher's gradient does not change with the weight of the divergence, which is linear in it."""
    grads = [gradient(kind, Draw(LARGE, (SMALL,)), 0.0, weight)[0] for weight in (0.0, 1.0, 2.0)]
    owns, rest = zip(*(part(g, kind) for g in grads), strict=True)
    assert_close(owns[1], owns[0])
    once, twice = (combine(np.subtract, r, rest[0]) for r in rest[1:])
    assert max(np.abs(x).max() for x in jax.tree.leaves(once)) > 0
    assert_close(combine(lambda x: 2 * x, once), twice, 5e-3)


def test_divergences_are_numpys():
    random = np.random.default_rng(0)
    teacher, student = random.normal(size=(2, 3, 7, 5)).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (teacher, student))
    expected = (p * np.log(p / q)).sum(-1)
    valid = np.arange(7) < np.array([7, 3, 1])[:, None]
    term = losses.contrastive_distillation(teacher, student, jnp.asarray(valid))
    counted = valid & (valid.sum(1, keepdims=True) > 1)
    np.testing.assert_allclose([term.sum, term.weight], [expected[counted].sum(), counted.sum()], rtol=1e-5)
    term = losses.ctc_distillation(teacher, student, jnp.array([7, 3, 1]), jnp.array([True, True, False]))
    np.testing.assert_allclose([term.sum, term.weight], [expected[:2][valid[:2]].sum(), 2], rtol=1e-5)
    excluded = teacher.copy()
    excluded[..., -1] = -1e9  # a negative that is none
    assert np.isfinite(losses.contrastive_distillation(excluded, excluded, jnp.asarray(valid)).sum)


def test_draws():
    table = product_table((1, 2, 3, 4), (1, 2), (1,))
    draws = sandwich_draws(table, lambda s: count_macs(BACKBONE, s, 160_000).total)
    assert {d.setting.name for d in draws} == {"s1q1k1"} and {d.others[-1].name for d in draws} == {"s4q2k1"}
    assert sorted(d.others[0].name for d in draws) == sorted({s.name for s in table} - {"s1q1k1", "s4q2k1"})
    assert sandwich_draws([LARGE, SMALL], lambda s: -s.squeeze) == [Draw(LARGE, (SMALL,))]
    with pytest.raises(UserError, match=r"sandwich\.enabled: a table of one setting"):
        sandwich_draws([LARGE], lambda s: 0)
    assert [draw(uniform_draws(table), 5, i).setting for i in range(50)] == [draw(table, 5, i) for i in range(50)]
    assert Draw(LARGE, (MIDDLE, SMALL)).name == "s1q1k1+s2q1k1+s4q1k1"
