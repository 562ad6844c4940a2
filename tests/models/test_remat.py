"""Rematerialisation: less is kept for the backward pass, and nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from tests.models.build import init, noise, small


def gradients_and_kept(config, params):
    """Gradients of a sum of outputs, dropout and layer-drop included, and the bytes that the backward pass is given."""
    wave, length = jnp.asarray(noise(2 * 4000).reshape(2, 4000)), jnp.array([4000, 3000])

    def loss(params):
        rngs = {"dropout": jax.random.key(1), "layerdrop": jax.random.key(2)}
        hidden = Backbone(config).apply(
            {"params": params}, wave, length, Compression(2, 1, 2), deterministic=False, rngs=rngs
        )
        return jnp.square(hidden.context_BxTxD).sum()

    kept = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
    return jax.jit(jax.grad(loss))(params), sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))


@pytest.mark.parametrize(("frontend", "remats"), [("layer", ["layers"]), ("logmel", ["dots", "layers"])])
def test_gradients_are_the_same_and_less_is_kept(frontend, remats):
    config = small(frontend, layers=1, dropout=0.1, attention_dropout=0.1, layerdrop=0.3, feature_grad_scale=1.0)
    params = init(config)[1]
    usual, most = gradients_and_kept(config, params)
    for remat in remats:
        other, kept = gradients_and_kept(dataclasses.replace(config, remat=remat), params)
        assert kept < most, (remat, kept, most)
        most = kept
        scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(usual))
        for x, y in zip(jax.tree.leaves(usual), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * scale)
