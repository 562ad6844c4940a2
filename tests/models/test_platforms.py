"""Forms of platforms: one where it is known what is compiled for, and the same one where it is not."""

import functools

import jax
import jax.numpy as jnp
import pytest

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from sew_jax.models.platforms import by_platform, compiled_for, compiled_for_own_devices
from tests.models.build import shapes, small

FORMS = {"default": lambda x: x + 1, "cpu": lambda x: x * 2, "tpu": lambda x: x * 3}


@pytest.mark.parametrize(("platform", "value"), [("cpu", 10), ("tpu", 15), ("cuda", 6), (None, 10)])
def test_the_form_of_what_is_compiled_for(platform, value):
    """Functions that were traced for one platform are traced again for another one. This runs on a CPU."""
    jitted = jax.jit(lambda x: by_platform(x, **FORMS))
    with compiled_for("cuda"):
        assert jitted(5) == 6
    with compiled_for(platform):
        assert jitted(5) == value


def test_own_devices_are_known():
    with compiled_for(None), compiled_for_own_devices():
        assert str(jax.make_jaxpr(lambda x: by_platform(x, **FORMS))(5)).count("=") == 1


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_products_and_convolutions_of_a_program_are_those_of_a_choice_when_it_is_lowered(platform):
    config = small("group", layers=2, dropout=0.1, attention_dropout=0.1, loop_layers=False)
    wave, length = jax.ShapeDtypeStruct((2, 8000), jnp.int16), jnp.array([8000, 5000])

    def loss(params, wave):
        apply = functools.partial(Backbone(config).apply, deterministic=False, rngs={"dropout": jax.random.key(1)})
        return apply({"params": params}, wave, length, Compression(2)).context_BxTxD.sum()

    counts = []
    for known in (None, platform):
        with compiled_for(known):
            lowered = jax.jit(jax.grad(loss)).trace(shapes(config), wave).lower(lowering_platforms=(platform,))
        text = lowered.as_text()
        counts.append([text.count(f"stablehlo.{name}") for name in ("dot_general", "convolution", "while", "scatter")])
    assert counts[0] == counts[1] and counts[0][0]
