"""Multi-head attention whose queries and whose keys and values may come at different rates.

B utterances, Q query frames, K key frames, H heads, E channels of a head, D = H * E.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from sew_jax.models.attention_by_blocks import MASKED, attend_by_blocks
from sew_jax.models.layers import dropout, transformer_dense
from sew_jax.models.lengths import mask_from_lengths
from sew_jax.models.noise import draw_rows, row_keys, rows_or_places

_CACHED_SCORES = 2**21  # more than a CPU's cache holds


class Attention(nn.Module):
    """softmax(q k^T / sqrt(E)) v over valid keys; projections in `dtype`, softmax in float32."""

    heads: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, query_BxQxD, key_BxKxD, key_length_B, deterministic: bool, row_B=None):
        """Queries from one sequence, keys and values from the other: returns (B, Q, D)."""
        width = query_BxQxD.shape[-1]

        def project(name, x):
            y = transformer_dense(width, self.dtype, name=name)(x)
            return y.reshape(*x.shape[:2], self.heads, width // self.heads).swapaxes(1, 2)

        q_BxHxQxE = project("query", query_BxQxD) * (width // self.heads) ** -0.5
        k_BxHxKxE, v_BxHxKxE = project("key", key_BxKxD), project("value", key_BxKxD)
        rate = 0.0 if deterministic else self.dropout
        seed_BxHx2 = None
        if rate:
            key_B = row_keys(self.make_rng("dropout"), rows_or_places(row_B, k_BxHxKxE.shape[0]))
            seed_BxHx2 = draw_rows(jax.random.bits, key_B, (self.heads, 2), "uint32")
        out_BxHxQxE = attend_to_valid(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, key_length_B, seed_BxHx2, rate=rate)
        return transformer_dense(width, self.dtype, name="out")(out_BxHxQxE.swapaxes(1, 2).reshape(query_BxQxD.shape))


def attend_to_valid(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, key_length_B, seed_BxHx2, *, rate: float):
    """softmax(q k^T) v over valid keys, (B, H, Q, E), in the form that the platform computes best.

    The forms draw the same dropout.
    """
    batch, heads, keys = k_BxHxKxE.shape[:3]
    valid_BxK = mask_from_lengths(key_length_B, keys)

    def on_cpu(q, k, v, valid_BxK, seed):
        valid_BxHxK = jnp.broadcast_to(valid_BxK[:, None], (batch, heads, keys))
        return attend_pair_by_pair(q, k, v, valid_BxHxK, seed, rate=rate)

    def elsewhere(q, k, v, valid_BxK, seed):
        return attend_by_blocks(q, k, v, valid_BxK, seed, rate)

    return jax.lax.platform_dependent(
        q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, cpu=on_cpu, default=elsewhere
    )


def attend(q_xQxE, k_xKxE, v_xKxE, valid_xK, seed_x2, *, rate: float):
    """softmax(q k^T) v over valid keys for any leading axes: (..., Q, E). Dropout of `rate` where it is not 0.

    The weights are divided by their sum after they have been applied, which is one pass over them less.
    """
    score_xQxK = jnp.einsum("...qe,...ke->...qk", q_xQxE, k_xKxE, preferred_element_type=jnp.float32)
    score_xQxK = jnp.where(valid_xK[..., None, :], score_xQxK, MASKED)
    weight_xQxK = jnp.exp(score_xQxK - jax.lax.stop_gradient(score_xQxK.max(-1, keepdims=True)))
    total_xQx1 = weight_xQxK.sum(-1, keepdims=True)
    weight_xQxK = weight_xQxK.astype(v_xKxE.dtype)
    if rate:
        weight_xQxK = dropout(weight_xQxK, rate, seed_x2)
    out_xQxE = jnp.einsum("...qk,...ke->...qe", weight_xQxK, v_xKxE, preferred_element_type=jnp.float32)
    return (out_xQxE / total_xQx1).astype(v_xKxE.dtype)


def attend_pair_by_pair(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxHxK, seed_BxHx2, *, rate: float):
    """The same, a pair of heads after the other where all scores would not fit a CPU's cache.

    The backward pass computes a pair's scores again rather than fetch them from memory.
    """
    (batch, heads, queries), keys = q_BxHxQxE.shape[:3], k_BxHxKxE.shape[2]
    arguments = q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxHxK, seed_BxHx2
    any_batch = is_symbolic_dim(batch)  # an exported program does not know how many
    if not any_batch and batch * heads * queries * keys <= _CACHED_SCORES:
        return attend(*arguments, rate=rate)
    # an axis for the heads of a pair, also where there is one: remat=dots keeps a layer's products, and not these
    pair = math.gcd(heads if any_batch else batch * heads, 2)
    flat = jax.tree.map(lambda x: x.reshape(batch * heads // pair, pair, *x.shape[2:]), arguments)
    out = jax.lax.map(jax.checkpoint(lambda a: attend(*a, rate=rate)), flat)
    return out.reshape(q_BxHxQxE.shape)
