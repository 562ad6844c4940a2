"""Multi-head attention whose queries and whose keys and values may come at different rates.

B utterances, Q query frames, K key frames, H heads, E channels of a head, D = H * E.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.lengths import mask_from_lengths
from sew_jax.models.layers import Dropout, transformer_dense

_MASKED = -1e30  # finite, so that an utterance without valid keys (a filler row) yields numbers, not NaN


class Attention(nn.Module):
    """softmax(q k^T / sqrt(E)) v over valid keys; projections in `dtype`, softmax in float32."""

    heads: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, query_BxQxD, key_BxKxD, key_length_B, deterministic: bool):
        """Queries from one sequence, keys and values from the other: returns (B, Q, D)."""
        width = query_BxQxD.shape[-1]

        def project(name, x):
            y = transformer_dense(width, self.dtype, name=name)(x)
            return y.reshape(*x.shape[:2], self.heads, width // self.heads)

        q_BxQxHxE = project("query", query_BxQxD) * (width // self.heads) ** -0.5
        k_BxKxHxE, v_BxKxHxE = project("key", key_BxKxD), project("value", key_BxKxD)
        score_BxHxQxK = jnp.einsum("bqhe,bkhe->bhqk", q_BxQxHxE, k_BxKxHxE, preferred_element_type=jnp.float32)
        mask_BxK = mask_from_lengths(key_length_B, key_BxKxD.shape[1])
        weight_BxHxQxK = jax.nn.softmax(jnp.where(mask_BxK[:, None, None, :], score_BxHxQxK, _MASKED))
        weight_BxHxQxK = Dropout(self.dropout)(weight_BxHxQxK.astype(self.dtype), deterministic)
        out_BxQxHxE = jnp.einsum("bhqk,bkhe->bqhe", weight_BxHxQxK, v_BxKxHxE)
        return transformer_dense(width, self.dtype, name="out")(out_BxQxHxE.reshape(query_BxQxD.shape))
