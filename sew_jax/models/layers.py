"""Small layers that the whole model shares: the field's defaults, spelt once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sew_jax.models.noise import hash_positions, hash_words, positions, row_seeds, rows_or_places, site_seeds
from sew_jax.models.platforms import by_platform
from sew_jax.models.products import dense_product

EPSILON = 1e-5  # torch's, for every norm of wav2vec 2.0 and SEW
# Of the heads' products, which are small: by default accelerators round float32 to bfloat16 or TF32 first
EXACT = jax.lax.Precision.HIGHEST

# torch's `kaiming_normal_` and `xavier_normal_`; flax's initialisers of these names cut the tails off
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
xavier_normal = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


@jax.custom_jvp
def gelu(x):
    """Exact GELU, in float32 inside and with its slope alone kept for the backward pass.

    `jax.nn.gelu` uses erfc, which takes XLA's CPU backend 1.7 times as long as erf. In bfloat16 1 + erf would lose what
    is left below zero.
    """
    x_float32 = x.astype(jnp.float32)
    return (x_float32 * _normal_cdf(x_float32)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    x_float32 = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(x_float32)) * np.float32((2 * np.pi) ** -0.5)
    slope = (_normal_cdf(x_float32) + x_float32 * density).astype(x.dtype)
    return gelu(x), slope * tangent


def _normal_cdf(x):
    return 0.5 * (1 + jax.lax.erf(x * np.float32(0.5**0.5)))


def layer_norm(
    dtype, name: str | None = None, axes: int | tuple[int, ...] = -1, learns: bool = True, epsilon: float = EPSILON
) -> nn.LayerNorm:
    """LayerNorm with float32 statistics over `axes`, as torch computes it; one that does not learn only normalises."""
    return nn.LayerNorm(
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=dtype,
        use_scale=learns,
        use_bias=learns,
        reduction_axes=axes,
        name=name,
    )


def dense(features: int, dtype, kernel_init, name: str | None = None, **options) -> nn.Dense:
    """Linear layer whose product is computed as the platform does it best."""
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init, dot_general=dense_product, name=name, **options)


def transformer_dense(features: int, dtype, name: str | None = None) -> nn.Dense:
    """Linear layer with BERT's initialisation, N(0, 0.02) and zero bias (fairseq `init_bert_params`)."""
    return dense(features, dtype, nn.initializers.normal(0.02), name)


def torch_uniform(fan_in: int):
    """torch's default initialisation of linear layers and convolutions: uniform in +-1/sqrt(fan_in)."""
    uniform = nn.initializers.uniform(2 * fan_in**-0.5)

    def init(key, shape, dtype=jnp.float32):
        return uniform(key, shape, dtype) - fan_in**-0.5

    return init


def torch_dense(features: int, fan_in: int, dtype, name: str | None = None, precision=None) -> nn.Dense:
    """Linear layer whose kernel and bias are drawn as torch draws them."""
    init = torch_uniform(fan_in)
    return dense(features, dtype, init, name, bias_init=init, precision=precision)


def exact_dense(features: int, kernel_init, name: str, use_bias: bool = True) -> nn.Dense:
    """Linear layer in float32 whose products round nothing, whatever the dtype of its input and the accelerator."""
    return nn.Dense(features, dtype=jnp.float32, precision=EXACT, kernel_init=kernel_init, use_bias=use_bias, name=name)


class Dropout(nn.Module):
    """Dropout by what each row holds (`noise`); see `dropout`."""

    rate: float

    @nn.compact
    def __call__(self, x, deterministic: bool, row_B=None):
        if deterministic or self.rate == 0:
            return x
        return dropout(x, self.rate, row_seeds(self.make_rng("dropout"), rows_or_places(row_B, x.shape[0])))


class SeededDropout(nn.Module):
    """The same with seeds of rows that the places of a layer share, each of which makes them its own by its name."""

    rate: float

    @nn.compact
    def __call__(self, x, deterministic: bool, seed_Bx2):
        if deterministic or self.rate == 0:
            return x
        return dropout(x, self.rate, site_seeds(seed_Bx2, (self.name,)))


def dropped_bytes(rate: float) -> int:
    """How many of 256 values of a byte drop what they stand for; not all, whatever the rate."""
    return min(round(rate * 256), 255)


def dropout(x, rate: float, seed_x2):
    """Dropout that spends one random byte an element, since random bits are a large part of a training step.

    The rate is rounded to a multiple of 1/256, and kept values are scaled by the rounded rate, so it stays unbiased.

    Args:
      seed_x2: uint32 (..., 2), a seed for each part of x that its leading axes name.
    """
    dropped = dropped_bytes(rate)
    *rows, width = x.shape[seed_x2.ndim - 1 :]
    words = -(-width // 4)

    def bytes_of_words(seed_x2):
        words_xW = hash_words(seed_x2, (*rows, words))
        return jax.lax.bitcast_convert_type(words_xW, jnp.uint8).reshape(*x.shape[:-1], -1)[..., :width] >= dropped

    def one_by_one(seed_x2):  # taking words apart across its lanes costs a TPU more than hashing each four times
        column = jax.lax.broadcasted_iota(jnp.uint32, (*rows, width), len(rows))
        words_x = hash_positions(seed_x2, positions((*rows, 1)) * np.uint32(words) + column // 4)
        return (words_x >> (column % 4 * 8)) & 0xFF >= dropped

    kept = by_platform(seed_x2, cpu=bytes_of_words, default=one_by_one)
    return jnp.where(kept, x * (256 / (256 - dropped)), jnp.zeros((), x.dtype)).astype(x.dtype)
