"""Multi-head attention whose queries and whose keys and values may come at different rates.

B utterances, Q query frames, K key frames, H heads, E channels of a head, D = H * E.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from sew_jax.models.layers import dropout, transformer_dense
from sew_jax.models.lengths import mask_from_lengths
from sew_jax.models.noise import draw_rows, row_keys, rows_or_places

_MASKED = -1e30  # finite, so that an utterance without valid keys (a filler row) yields numbers, not NaN
_CACHED_SCORES = 2**21  # more than a CPU's cache holds


class Attention(nn.Module):
    """softmax(q k^T / sqrt(E)) v over valid keys; projections in `dtype`, softmax in float32.

    W frames that are to be compared by their keys.
    """

    heads: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(
        self, query_BxQxD, key_BxKxD, key_length_B, deterministic: bool, row_B=None, size_BxK=None, compared_BxWxD=None
    ):
        """Queries from one sequence, keys and values from the other: returns (B, Q, D).

        With `size_BxK` a key counts as so many equal ones. With `compared_BxWxD` returns the mean over heads of the
        keys of these frames, too: (B, W, E).
        """
        width = query_BxQxD.shape[-1]
        dense = {name: transformer_dense(width, self.dtype, name=name) for name in ("query", "key", "value")}

        def project(name, x):
            y = dense[name](x)
            return y.reshape(*x.shape[:2], self.heads, width // self.heads).swapaxes(1, 2)

        q_BxHxQxE = project("query", query_BxQxD) * (width // self.heads) ** -0.5
        k_BxHxKxE, v_BxHxKxE = project("key", key_BxKxD), project("value", key_BxKxD)
        compared_BxWxE = None
        if compared_BxWxD is not None:
            same = compared_BxWxD is key_BxKxD
            compared_BxWxE = (k_BxHxKxE if same else project("key", compared_BxWxD)).mean(1)
        if size_BxK is not None:
            q_BxHxQxE, k_BxHxKxE = _with_sizes(q_BxHxQxE, k_BxHxKxE, size_BxK)
        rate = 0.0 if deterministic else self.dropout
        seed_BxHx2 = None
        if rate:
            key_B = row_keys(self.make_rng("dropout"), rows_or_places(row_B, k_BxHxKxE.shape[0]))
            seed_BxHx2 = draw_rows(jax.random.bits, key_B, (self.heads, 2), "uint32")
        out_BxHxQxE = attend_to_valid(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, key_length_B, seed_BxHx2, rate=rate)
        out_BxQxD = out_BxHxQxE.swapaxes(1, 2).reshape(query_BxQxD.shape)
        out_BxQxD = transformer_dense(width, self.dtype, name="out")(out_BxQxD)
        return out_BxQxD if compared_BxWxE is None else (out_BxQxD, compared_BxWxE)


def _with_sizes(q_BxHxQxE, k_BxHxKxE, size_BxK):
    """Queries and keys of one more channel, which adds log(size) to each key's scores."""
    log_BxHxKx1 = jnp.broadcast_to(jnp.log(jnp.maximum(size_BxK, 1))[:, None, :, None], (*k_BxHxKxE.shape[:3], 1))
    ones_BxHxQx1 = jnp.ones_like(q_BxHxQxE[..., :1])
    return (
        jnp.concatenate([q_BxHxQxE, ones_BxHxQx1], axis=-1),
        jnp.concatenate([k_BxHxKxE, log_BxHxKx1.astype(k_BxHxKxE.dtype)], axis=-1),
    )


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
        return attend_head_by_head(q, k, v, valid_BxK, seed, rate)

    return jax.lax.platform_dependent(
        q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, cpu=on_cpu, default=elsewhere
    )


def attend(q_xQxE, k_xKxE, v_xKxE, valid_xK, seed_x2, *, rate: float):
    """softmax(q k^T) v over valid keys for any leading axes: (..., Q, E). Dropout of `rate` where it is not 0.

    The weights are divided by their sum after they have been applied, which is one pass over them less.
    """
    score_xQxK = jnp.einsum("...qe,...ke->...qk", q_xQxE, k_xKxE, preferred_element_type=jnp.float32)
    score_xQxK = jnp.where(valid_xK[..., None, :], score_xQxK, _MASKED)
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
    return out.reshape(*q_BxHxQxE.shape[:3], v_BxHxKxE.shape[3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_head_by_head(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, rate: float):
    """The same on accelerators, a head of all utterances after the other: no more scores than these lie in memory.

    The backward pass computes a head's weights again (as FlashAttention does, Dao et al. 2022). Operands of products
    are of v's dtype in both passes, where gradients of float32 sums would have stayed in float32; sums are float32.
    Utterances stay on their devices.
    """
    return _forward(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, rate)[0]


def _forward(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, rate: float):
    dtype = v_BxHxKxE.dtype

    def of_head(head):
        q_BxQxE, k_BxKxE, v_BxKxE, seed_Bx2 = head
        score_BxQxK = _scores(q_BxQxE, k_BxKxE, valid_BxK)
        highest_BxQ = score_BxQxK.max(-1)
        weight_BxQxK = jnp.exp(score_BxQxK - highest_BxQ[..., None])
        total_BxQ = weight_BxQxK.sum(-1)
        dropped_BxQxK = _dropped(weight_BxQxK.astype(dtype), rate, seed_Bx2)
        out_BxQxE = _product("bqk,bke->bqe", dropped_BxQxK, v_BxKxE)
        return (out_BxQxE / total_BxQ[..., None]).astype(dtype), highest_BxQ, total_BxQ

    heads = _heads_first(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, seed_BxHx2)
    out_HxBxQxE, highest_HxBxQ, total_HxBxQ = jax.lax.map(of_head, heads)
    return out_HxBxQxE.swapaxes(0, 1), (heads, valid_BxK, out_HxBxQxE, highest_HxBxQ, total_HxBxQ)


def _backward(rate: float, kept, dout_BxHxQxE):
    heads, valid_BxK, out_HxBxQxE, highest_HxBxQ, total_HxBxQ = kept
    dtype = dout_BxHxQxE.dtype

    def of_head(parts):
        (q_BxQxE, k_BxKxE, v_BxKxE, seed_Bx2), out_BxQxE, highest_BxQ, total_BxQ, dout_BxQxE = parts
        score_BxQxK = _scores(q_BxQxE, k_BxKxE, valid_BxK)
        weight_BxQxK = jnp.exp(score_BxQxK - highest_BxQ[..., None]) / total_BxQ[..., None]
        dropped_BxQxK = _dropped(weight_BxQxK.astype(dtype), rate, seed_Bx2)
        dv_BxKxE = _product("bqk,bqe->bke", dropped_BxQxK, dout_BxQxE)
        dweight_BxQxK = _dropped(_product("bqe,bke->bqk", dout_BxQxE, v_BxKxE), rate, seed_Bx2)
        # the mean over keys of a weight's gradient is what the output and its gradient say together
        mean_BxQ = (out_BxQxE.astype(jnp.float32) * dout_BxQxE.astype(jnp.float32)).sum(-1)
        dscore_BxQxK = (weight_BxQxK * (dweight_BxQxK - mean_BxQ[..., None])).astype(dtype)
        dq_BxQxE = _product("bqk,bke->bqe", dscore_BxQxK, k_BxKxE)
        dk_BxKxE = _product("bqk,bqe->bke", dscore_BxQxK, q_BxQxE)
        return tuple(x.astype(dtype) for x in (dq_BxQxE, dk_BxKxE, dv_BxKxE))

    (dout_HxBxQxE,) = _heads_first(dout_BxHxQxE)
    gradients = jax.lax.map(of_head, (heads, out_HxBxQxE, highest_HxBxQ, total_HxBxQ, dout_HxBxQxE))
    return (*(x.swapaxes(0, 1) for x in gradients), None, None)


attend_head_by_head.defvjp(_forward, _backward)


def _heads_first(*arrays):
    return jax.tree.map(lambda x: x.swapaxes(0, 1), arrays)


def _scores(q_BxQxE, k_BxKxE, valid_BxK):
    return jnp.where(valid_BxK[:, None], _product("bqe,bke->bqk", q_BxQxE, k_BxKxE), _MASKED)


def _product(axes: str, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _dropped(x_BxQxK, rate: float, seed_Bx2):
    return dropout(x_BxQxK, rate, seed_Bx2) if rate else x_BxQxK
