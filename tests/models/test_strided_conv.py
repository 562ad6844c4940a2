"""The strided convolution against numpy, its gradients against XLA's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.models import strided_conv
from sew_jax.models.platforms import compiled_for

CASES = [(9, 3, 2), (8, 3, 2), (7, 2, 2), (8, 2, 2), (5, 1, 1), (20, 10, 5), (23, 10, 5), (9, 2, 3), (3, 3, 2)]


def arguments(frames, taps, stride):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, frames, 4)), random.normal(size=(taps, 4, 6))
    return *(a.astype(np.float32) for a in (x, kernel)), stride


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_sum_of_its_definition(case):
    x, kernel, stride = arguments(*case)
    taps = len(kernel)
    windows = (x.shape[1] - taps) // stride + 1
    expected = np.stack([np.einsum("bkc,kcd->bd", x[:, stride * t :][:, :taps], kernel) for t in range(windows)], 1)
    np.testing.assert_allclose(strided_conv.strided_conv(x, kernel, stride), expected, rtol=1e-5, atol=1e-5)


def outputs_and_gradients(convolve, case, dtype):
    """In float32, whatever `dtype` it is computed in; of whole numbers that bfloat16 holds."""
    x, kernel, stride = arguments(*case)
    x, kernel = (jnp.round(4 * a).astype(dtype) for a in (x, kernel))
    y, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
    return jax.tree.map(lambda a: a.astype(jnp.float32), (y, pull(jnp.ones_like(y))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [*CASES, (2, 3, 2), (4, 10, 5)], ids=str)
@pytest.mark.parametrize("form", ["strided_conv", "_convolve_wave"])
def test_a_tpus_form_and_its_gradients_are_the_convolution(form, case, dtype):
    exact = outputs_and_gradients(strided_conv._convolve, case, "float32")
    with compiled_for("tpu"):
        ours = outputs_and_gradients(getattr(strided_conv, form), case, dtype)
    # of overlapping windows gradients of x are rounded once for each product and once more
    tolerance = {"float32": 1e-6, "bfloat16": 2 * 2**-8}[dtype]
    scales = jax.tree.map(lambda a: np.abs(a).max(initial=1), exact)
    jax.tree.map(lambda a, b, s: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * s), ours, exact, scales)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_by_products_are_those_of_the_convolution(case):
    x, kernel, stride = arguments(*case)
    y, pull = jax.vjp(lambda x, kernel: strided_conv._convolve(x, kernel, stride), x, kernel)
    dy = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    ours = jax.jit(strided_conv._by_products, static_argnames="stride")(x, kernel, dy, stride=stride)
    for mine, theirs in zip(ours, pull(dy), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_layer_are_those_of_flax():
    x = arguments(21, 3, 2)[0]
    layer = strided_conv.StridedConv(6, 3, 2, use_bias=True, dtype="float32")
    variables = layer.init(jax.random.key(0), x)
    flax_layer = nn.Conv(6, (3,), (2,), padding="VALID")

    def loss(layer, variables, x):
        return (layer.apply(variables, x) ** 3).sum()

    ours, theirs = (jax.grad(loss, (1, 2))(one, variables, x) for one in (layer, flax_layer))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)
