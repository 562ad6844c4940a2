"""Small backbones for the tests of the models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from sew_jax.models.config import BackboneConfig

SMALL = dict(
    conv_width=16,
    width=24,
    layers=2,
    heads=3,
    ffn_width=40,
    pos_kernel=6,
    pos_groups=4,
    upsample_factors=(2, 3, 4),
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
    layerdrop=0.0,
)
FRONTENDS = {
    "group": dict(frontend="wav2vec2"),
    "layer": dict(frontend="wav2vec2", conv_norm="layer", conv_bias=True, normalize_wave=True, pre_norm=True),
    "compact": dict(frontend="compact", conv_width=4),
    "logmel": dict(frontend="logmel"),
}


def small(frontend, **options):
    return BackboneConfig(**SMALL | FRONTENDS[frontend] | options)


@functools.cache
def init(config, seed=0, samples=4000):
    """A backbone and parameters none of which is at a special value (zero biases would hide a forgotten one)."""
    model = Backbone(config)

    def make():
        wave, length = jnp.zeros((1, samples)), jnp.array([samples])
        return model.init(jax.random.key(seed), wave, length, Compression(), deterministic=True)["params"]

    params = jax.jit(make)()
    random = np.random.default_rng(seed)
    return model, jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32), params)


def apply(model, params, wave, length, setting):
    """Hidden states of a batch, numpy."""
    run = jax.jit(lambda w, n: model.apply({"params": params}, w, n, setting, deterministic=True))
    return jax.device_get(run(jnp.asarray(wave, jnp.float32), jnp.asarray(length)))


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(size=samples).astype(np.float32)
