"""Small backbones for the tests of the models."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from sew_jax.models.config import BackboneConfig
from sew_jax.models.parameters import path_name

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
    "fbank50": dict(frontend="fbank50"),
    "fbank25": dict(frontend="fbank25"),
    "scf": dict(frontend="scf", normalize_wave=True),
}


def small(frontend, **options):
    return BackboneConfig(**SMALL | FRONTENDS[frontend] | options)


def shapes(config):
    """Of the parameters that a backbone draws."""
    wave, length = jnp.zeros((1, 4000)), jnp.array([4000])
    make = functools.partial(Backbone(config).init, deterministic=True)
    return jax.eval_shape(lambda: make(jax.random.key(0), wave, length, Compression()))["params"]


def draw(shapes):
    """Parameters none of which is at a special value (zero biases would hide a forgotten one).

    Drawn by numpy: what the model itself draws has tests of its own, and takes a program to compile.
    """
    random = np.random.default_rng(0)

    def of_leaf(path, leaf):
        name, drawn = path_name(path).rsplit("/", 1)[-1], random.normal(size=leaf.shape).astype(leaf.dtype)
        if name in ("scale", "weight_g"):
            return 1 + 0.1 * drawn
        return drawn * (0.1 if name == "bias" else math.prod(leaf.shape[:-1]) ** -0.5)

    return jax.tree_util.tree_map_with_path(of_leaf, shapes)


@functools.cache
def init(config):
    """A backbone and its parameters, as `draw` draws them."""
    return Backbone(config), draw(shapes(config))


def apply(model, params, wave, length, setting):
    """Hidden states of a batch, numpy."""
    return jax.device_get(_program(model, setting)(params, jnp.asarray(wave, jnp.float32), jnp.asarray(length)))


@functools.cache
def _program(model, setting):
    return jax.jit(lambda p, w, n: model.apply({"params": p}, w, n, setting, deterministic=True))


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(size=samples).astype(np.float32)
