"""Layers as a loop are those that are written out, gradients, noise and left-out layers included."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.models import layer_stack
from sew_jax.models.encoder import Encoder
from tests.models.build import small

LENGTH = jnp.array([13, 8])


def gradients(name, **changes):
    """Of a sum of outputs, for input and parameters."""
    noise = dict(dropout=0.2, attention_dropout=0.2, activation_dropout=0.2, layerdrop=0.4)
    config = dataclasses.replace(small("logmel", layers=4, heads=2), **noise | changes)
    encoder, setting = Encoder(config), Compression.parse(name)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, config.width)), jnp.float32)
    params = encoder.init(jax.random.key(0), x, LENGTH, setting, True)["params"]

    def loss(params, x):
        rngs = {"dropout": jax.random.key(1), "layerdrop": jax.random.key(4)}
        out = encoder.apply({"params": params}, x, LENGTH, setting, False, rngs=rngs)
        return jnp.square(out).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)


@pytest.mark.parametrize(
    ("name", "changes", "loops_expected"),
    [
        ("s1q1k1", {}, 1),
        ("s2q1.1.2.2k1", {"remat": "dots"}, 2),
        ("s1q2k1.1.1.3", {"remat": "layers"}, 1),
        ("s1q1k1m0.2-0.2-0-0", {}, 1),
        ("s1q1k1", {"loop_layers": False}, 0),
    ],
    ids=str,
)
def test_a_loop_is_the_layers_written_out(name, changes, loops_expected, monkeypatch):
    written_out = gradients(name, **changes)
    loops = []
    monkeypatch.setattr(layer_stack, "by_platform", lambda *arguments, tpu, default: tpu(*arguments))
    as_a_loop = layer_stack._as_a_loop
    monkeypatch.setattr(layer_stack, "_as_a_loop", lambda *a: (loops.append(1), as_a_loop(*a))[1])
    looped = gradients(name, **changes)
    assert len(loops) == loops_expected
    for mine, theirs in zip(jax.tree.leaves(looped), jax.tree.leaves(written_out), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
