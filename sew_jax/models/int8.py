"""Linear layers of attention and feed-forward parts whose products are of 8-bit whole numbers, for models that only
compute; all else stays as it was.

Weights are rounded once, with a scale for each output channel; inputs as they come, with a scale for each row (a frame
of an utterance), so that what a frame gives depends on no other frame. Sums are exact, in 32 bits.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from sew_jax.models.config import BackboneConfig
from sew_jax.models.layers import transformer_dense
from sew_jax.models.parameters import cast_ahead

_LARGEST = 127  # of both signs
_LAYERS = ("query", "key", "value", "out", "ffn_in", "ffn_out")


class Int8Dense(nn.Module):
    """x (..., I) -> (..., O) in `dtype`, by parameters that `quantize` has made of a `Dense`'s."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x):
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        rounded_IxO = self.param("rounded", zeros, (x.shape[-1], self.features), jnp.int8)
        scale_O = self.param("scale", ones, (self.features,))
        bias_O = self.param("bias", zeros, (self.features,))
        rounded, scale_1 = round_to_int8(x.astype(jnp.float32), -1)
        contracted = (((x.ndim - 1,), (0,)), ((), ()))
        sum_O = jax.lax.dot_general(rounded, rounded_IxO, contracted, preferred_element_type=jnp.int32)
        return (sum_O.astype(jnp.float32) * (scale_1 * scale_O) + bias_O).astype(self.dtype)


def linear(features: int, dtype: str, int8: bool, name: str) -> nn.Module:
    """A linear layer of an attention or a feed-forward part."""
    return Int8Dense(features, dtype, name=name) if int8 else transformer_dense(features, dtype, name)


def round_to_int8(x, axis: int) -> tuple[jax.Array, jax.Array]:
    """(int8, float32 scales by which it is to be multiplied), one scale for all along `axis`, which stays as 1."""
    scale = jnp.maximum(jnp.abs(x).max(axis, keepdims=True), 1e-30) / _LARGEST
    return jnp.round(x / scale).astype(jnp.int8), scale


def operands(params: dict[str, Any], config: BackboneConfig) -> dict[str, Any]:
    """Parameters as a model that only computes takes them: cast ahead, and rounded where its products are of int8."""
    params = quantize(params) if config.int8 else params
    return params if config.dtype == "float32" else cast_ahead(params, config.dtype)


def quantize(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a model in those of the same model with `int8`."""
    flat = flatten_dict(params)
    for path in [path for path in flat if path[-1] == "kernel" and _is_of_a_layer(path)]:
        rounded_IxO, scale_1xO = round_to_int8(flat.pop(path), 0)
        flat[(*path[:-1], "rounded")], flat[(*path[:-1], "scale")] = rounded_IxO, scale_1xO[0]
    return unflatten_dict(flat)


def _is_of_a_layer(path: tuple[str, ...]) -> bool:
    return path[-2] in _LAYERS and any(part.startswith("layer_") for part in path)
