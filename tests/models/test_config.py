"""The published sizes."""

import jax
import jax.numpy as jnp
import pytest

from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.masking import MaskedFrames
from sew_jax.models.pretrain import PretrainModel
from sew_jax.models.sizes import published

WAVE, LENGTH = jnp.zeros((1, 16_000)), jnp.array([16_000])


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree)) / 1e6


def with_factors(size, factors):
    backbone, head = published(size)
    return BackboneConfig(**{**vars(backbone), "upsample_factors": factors}), head


@pytest.mark.parametrize(
    ("size", "factors", "millions"),
    [("base", (), 94.4), ("sew_tiny", (2,), 40.7), ("sew_small", (2,), 89.6), ("sew_mid", (2,), 174.7)],
)
def test_parameters_with_the_ctc_head(size, factors, millions):
    """Counts of the SEW repository's and fairseq's models."""
    model = CTCModel(with_factors(size, factors)[0], CTCHeadConfig())
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), WAVE, LENGTH, Compression(), deterministic=True)["params"]
    )
    assert count(shapes) == pytest.approx(millions, abs=0.06)


def test_parameters_with_the_pretraining_head():
    """wav2vec 2.0 base: 95 M in its paper."""
    backbone, head = published("base")
    masked = MaskedFrames(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool), None)
    model = PretrainModel(backbone, head)
    shapes = jax.eval_shape(
        lambda: model.init({"params": jax.random.key(0)}, WAVE, LENGTH, masked, Compression(), 1.0, deterministic=True)[
            "params"
        ]
    )
    assert count(shapes) == pytest.approx(95.0, abs=0.06)


def test_an_up_sampler_costs_its_linear_layer():
    sizes = []
    for factors in ((), (4,)):
        model = CTCModel(with_factors("base", factors)[0], CTCHeadConfig())
        shapes = jax.eval_shape(
            lambda m=model: m.init(jax.random.key(0), WAVE, LENGTH, Compression(), deterministic=True)["params"]
        )
        sizes.append(count(shapes))
    assert sizes[1] - sizes[0] == pytest.approx(0.59 * 4, abs=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: published("huge"), "size 'huge' is unknown; choose one of base"),
        (lambda: BackboneConfig(frontend="mel"), "model.frontend: 'mel' is unknown; choose one of wav2vec2"),
        (lambda: BackboneConfig(width=100), "model.width 100 is no multiple of model.heads 12"),
        (lambda: BackboneConfig(width=36, heads=2), "model.width 36 is no multiple of model.pos_groups 16"),
        (lambda: PretrainHeadConfig(projection="tree"), "head.projection: 'tree' is unknown"),
        (lambda: PretrainHeadConfig(codebooks=3), "head.code_width 256 is no multiple of head.codebooks 3"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(UserError, match=message):
        make()
