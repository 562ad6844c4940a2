"""Small layers that the whole model shares: the field's defaults, spelt once."""

import flax.linen as nn
import jax
import jax.numpy as jnp

EPSILON = 1e-5  # torch's, for every norm of wav2vec 2.0 and SEW


def gelu(x):
    """Exact GELU (JAX's default is the tanh approximation)."""
    return jax.nn.gelu(x, approximate=False)


def layer_norm(dtype, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm with float32 statistics, as torch computes it."""
    return nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False, dtype=dtype, name=name)


def transformer_dense(features: int, dtype, name: str | None = None) -> nn.Dense:
    """Linear layer with BERT's initialisation, N(0, 0.02) and zero bias (fairseq `init_bert_params`)."""
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(0.02), name=name)


def torch_dense(features: int, fan_in: int, dtype, name: str | None = None) -> nn.Dense:
    """Linear layer with torch's default initialisation: kernel and bias uniform in +-1/sqrt(fan_in)."""
    uniform = nn.initializers.uniform(2 * fan_in**-0.5)

    def init(key, shape, dtype=jnp.float32):
        return uniform(key, shape, dtype) - fan_in**-0.5

    return nn.Dense(features, dtype=dtype, kernel_init=init, bias_init=init, name=name)


class Dropout(nn.Module):
    """Dropout that spends one random byte an element, since random bits are a large part of a training step.

    The rate is rounded to a multiple of 1/256, and kept values are scaled by the rounded rate, so it stays unbiased.
    """

    rate: float

    @nn.compact
    def __call__(self, x, deterministic: bool):
        dropped = round(self.rate * 256)
        if deterministic or dropped == 0:
            return x
        *lead, width = x.shape
        words = jax.random.bits(self.make_rng("dropout"), (*lead, -(-width // 4)), "uint32")
        bytes_ = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*lead, -1)[..., :width]
        return jnp.where(bytes_ >= dropped, x * (256 / (256 - dropped)), jnp.zeros((), x.dtype)).astype(x.dtype)
