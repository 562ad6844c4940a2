"""Products of 8-bit whole numbers against numpy, where in a model they are, and what they change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from sew_jax.models.config import precision_fields
from sew_jax.models.int8 import Int8Dense, operands, quantize
from sew_jax.models.platforms import compiled_for
from tests.models.build import init, noise, small

CONFIG = small("logmel", loop_layers=False, **precision_fields("int8"))


def rounded(x, axis):
    scale = np.abs(x).max(axis, keepdims=True).astype(np.float32) / np.float32(127)
    return np.round(x / np.where(scale > 0, scale, 1)).astype(np.int64), scale


def test_a_product_is_what_numpy_makes_of_whole_numbers():
    x, kernel, bias = noise((2, 5, 64)), noise((64, 48), 1), noise(48)
    x *= np.logspace(-3, 2, 5, dtype=np.float32)[:, None]
    x[1, 2] = 0  # a frame of padding
    layer = {"attention": {"query": {"kernel": kernel, "bias": bias}}}
    params = quantize({"layer_0": layer, "projector": layer})
    assert params["projector"] == layer  # the heads' own stay
    ours = Int8Dense(48, "float32").apply({"params": params["layer_0"]["attention"]["query"]}, x)
    (whole_x, scale_x), (whole_kernel, scale_kernel) = rounded(x, -1), rounded(kernel, 0)
    np.testing.assert_allclose(ours, (whole_x @ whole_kernel) * scale_x * scale_kernel + bias, rtol=2e-6, atol=1e-6)
    exact = x @ kernel
    error = np.sqrt(np.square(ours - bias - exact).mean(-1) / np.maximum(np.square(exact).mean(-1), 1e-9))
    assert error.max() < 0.02 and np.isfinite(ours).all()  # frames of any loudness alike
    alone = Int8Dense(48, "float32").apply({"params": params["layer_0"]["attention"]["query"]}, x[1:, 3:])
    np.testing.assert_allclose(alone, ours[1:, 3:], rtol=1e-6)  # whatever is beside them


@functools.cache
def contexts():
    """Of an utterance in float32 and in int8 alone, and in int8 in a batch: (T, D) float32."""
    config = dataclasses.replace(CONFIG, **precision_fields("float32"))
    _, params = init(config)
    wave, batch = noise((1, 4000)), 20 * noise((3, 6000), 1)
    batch[1, :4000] = wave

    def both(params, wave, batch):
        def run(config, wave, length):
            made = operands({"backbone": params}, config)["backbone"]
            out = Backbone(config).apply({"params": made}, wave, length, Compression(2, 1, 2), deterministic=True)
            return out.context_BxTxD.astype(jnp.float32)

        alone = [run(config, wave, jnp.array([4000]))[0] for config in (config, CONFIG)]
        return *alone, run(CONFIG, batch, jnp.array([6000, 4000, 900]))[1]

    return jax.device_get(jax.jit(both)(params, wave, batch))


def test_a_model_is_near_float32_and_knows_no_other_utterance():
    exact, alone, together = contexts()
    error = np.abs(alone - exact)  # outputs are a norm's, of size 1
    assert 1e-4 < error.mean() < 0.03 and error.max() < 0.15
    assert np.abs(together[: len(alone)] - alone).max() < 0.03  # a digit of bfloat16, where a row is rounded otherwise


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # a GPU's kernels are lowered beside one alone, by jax 0.11
def test_layers_products_alone_are_of_8_bits(platform):
    params = {"backbone": init(dataclasses.replace(CONFIG, **precision_fields("bfloat16")))[1]}
    made = operands(params, CONFIG)["backbone"]
    assert {x.dtype for x in jax.tree.leaves(made)} == {np.dtype("float32"), jnp.dtype("int8"), jnp.dtype("bfloat16")}
    run = functools.partial(Backbone(CONFIG).apply, deterministic=True)
    jitted = jax.jit(lambda p, w: run({"params": p}, w, jnp.array([4000]), Compression()))
    with compiled_for(platform):
        text = jitted.trace(made, noise((1, 4000))).lower(lowering_platforms=(platform,)).as_text().splitlines()
    products = [line for line in text if "stablehlo.dot_general" in line or "stablehlo.convolution" in line]
    of_8_bits = [line for line in products if "xi8>" in line]
    assert len(of_8_bits) == 6 * CONFIG.layers and all(line.rstrip().endswith("xi32>") for line in of_8_bits)
    assert of_8_bits[0] != products[0]
