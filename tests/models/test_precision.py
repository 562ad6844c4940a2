"""Heads compute in float32 and round nothing before a product, whatever the backbone's dtype: by jaxprs of updates."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from sew_jax.compression import Compression
from sew_jax.models import products
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.masking import MaskedFrames
from sew_jax.models.pretrain import PretrainModel

BACKBONE = BackboneConfig(
    frontend="logmel",
    width=32,
    layers=1,
    heads=2,
    ffn_width=48,
    pos_kernel=5,
    pos_groups=4,
    layerdrop=0.0,
    upsample_factors=(2,),
    dtype="bfloat16",
)
RNGS = {name: jax.random.key(i) for i, name in enumerate(("params", "gumbel", "dropout"))}
WAVE, LENGTH = jax.ShapeDtypeStruct((2, 16_000), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
MASKED = MaskedFrames(jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool), None)
PRETRAIN = (MASKED, Compression(2), 1.0)
# For each model its heads, with how many products each has: one forward, two backward, less those of constants
CASES = {
    "ctc": (CTCModel(BACKBONE, CTCHeadConfig()), (Compression(2),), {"symbols": 3}),
    "linear": (
        PretrainModel(BACKBONE, PretrainHeadConfig()),
        PRETRAIN,
        {"quantizer": 6, "project_prediction": 3, "project_target": 3},
    ),
    "mlp": (
        PretrainModel(BACKBONE, PretrainHeadConfig(projection="mlp", mlp_width=64)),
        PRETRAIN,
        {"quantizer": 6, "project_prediction": 6, "project_target": 6},
    ),
}


def products_of(jaxpr, scope=""):
    """(names of modules around it, equation) of each dot_general, also in inner jaxprs."""
    for equation in jaxpr.eqns:
        here = f"{scope}/{equation.source_info.name_stack}"
        if equation.primitive.name == "dot_general":
            yield here, equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from products_of(inner, here)


@pytest.mark.parametrize("case", CASES)
def test_products_of_heads_are_float32_and_of_the_highest_precision(case, monkeypatch):
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: True)  # elsewhere CPUs widen operands
    model, inputs, heads = CASES[case]

    def variables():
        return model.init(RNGS, jnp.zeros(WAVE.shape), jnp.full(2, 16_000), *inputs, deterministic=True)

    def loss(variables, wave, length):
        out, _ = model.apply(variables, wave, length, *inputs, deterministic=False, rngs=RNGS, mutable=["batch_stats"])
        return sum(x.sum() for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating))

    found = list(products_of(jax.make_jaxpr(jax.grad(loss))(jax.eval_shape(variables), WAVE, LENGTH).jaxpr))
    for head, count in heads.items():
        mine = [equation for scope, equation in found if head in scope]
        assert len(mine) == count, head
        for equation in mine:
            assert {str(x.aval.dtype) for x in (*equation.invars, *equation.outvars)} == {"float32"}
            assert equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
    layer = [equation for scope, equation in found if "ffn_in" in scope]
    assert layer and all(x.aval.dtype == jnp.bfloat16 for equation in layer for x in equation.invars)
