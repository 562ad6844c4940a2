"""Attention for accelerators: a block of queries after the other, so that no layer's scores lie in memory whole.

B utterances, Q query frames, K key frames, H heads, E channels of a head, I queries of a block.
"""

import functools

import jax
import jax.numpy as jnp

from sew_jax.models.layers import dropout

MASKED = -1e30  # finite, so that an utterance without valid keys (a filler row) yields numbers, not NaN
_BLOCK = 128  # queries at most: a side of the matrix units of TPUs and GPUs
_SUBLANES = 16  # blocks are a multiple of a TPU's tile in bfloat16


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_by_blocks(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, rate: float):
    """softmax(q k^T) v over valid keys, (B, H, Q, E), with dropout of `rate` on the weights where it is not 0.

    The backward pass computes a block's weights again (Dao et al. 2022, FlashAttention); products take operands of q's
    dtype in both passes, sums are float32. Rows of the batch stay on their devices.
    """
    return _forward(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, rate)[0]


def _forward(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, rate: float):
    dtype, queries = v_BxHxKxE.dtype, q_BxHxQxE.shape[2]

    def of_block(first, q_BxHxIxE):
        score_BxHxIxK = _scores(q_BxHxIxE, k_BxHxKxE, valid_BxK)
        highest_BxHxI = score_BxHxIxK.max(-1)
        weight_BxHxIxK = jnp.exp(score_BxHxIxK - highest_BxHxI[..., None])
        total_BxHxI = weight_BxHxIxK.sum(-1)
        dropped_BxHxIxK = _dropped(weight_BxHxIxK.astype(dtype), rate, seed_BxHx2, first)
        out_BxHxIxE = _product("bhik,bhke->bhie", dropped_BxHxIxK, v_BxHxKxE)
        out_BxHxIxE = (out_BxHxIxE / total_BxHxI[..., None]).astype(dtype)
        return first + q_BxHxIxE.shape[2], (out_BxHxIxE, highest_BxHxI, total_BxHxI)

    _, (out, highest, total) = jax.lax.scan(of_block, 0, _split(q_BxHxQxE))
    out_BxHxQxE = _join(out, queries)
    return out_BxHxQxE, (q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, out_BxHxQxE, highest, total)


def _backward(rate: float, kept, dout_BxHxQxE):
    q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, out_BxHxQxE, highest, total = kept
    dtype, queries = v_BxHxKxE.dtype, q_BxHxQxE.shape[2]

    def of_block(carry, block):
        first, dk_BxHxKxE, dv_BxHxKxE = carry
        q_BxHxIxE, out_BxHxIxE, dout_BxHxIxE, highest_BxHxI, total_BxHxI = block
        # over keys, of a weight's gradient: what the output and its gradient say together
        mean_BxHxI = (out_BxHxIxE.astype(jnp.float32) * dout_BxHxIxE.astype(jnp.float32)).sum(-1)
        score_BxHxIxK = _scores(q_BxHxIxE, k_BxHxKxE, valid_BxK)
        weight_BxHxIxK = jnp.exp(score_BxHxIxK - highest_BxHxI[..., None]) / total_BxHxI[..., None]
        dropped_BxHxIxK = _dropped(weight_BxHxIxK.astype(dtype), rate, seed_BxHx2, first)
        dv_BxHxKxE += _product("bhik,bhie->bhke", dropped_BxHxIxK, dout_BxHxIxE)
        dweight_BxHxIxK = _dropped(_product("bhie,bhke->bhik", dout_BxHxIxE, v_BxHxKxE), rate, seed_BxHx2, first)
        dscore_BxHxIxK = (weight_BxHxIxK * (dweight_BxHxIxK - mean_BxHxI[..., None])).astype(dtype)
        dk_BxHxKxE += _product("bhik,bhie->bhke", dscore_BxHxIxK, q_BxHxIxE)
        dq_BxHxIxE = _product("bhik,bhke->bhie", dscore_BxHxIxK, k_BxHxKxE).astype(dtype)
        return (first + q_BxHxIxE.shape[2], dk_BxHxKxE, dv_BxHxKxE), dq_BxHxIxE

    blocks = *(_split(x) for x in (q_BxHxQxE, out_BxHxQxE, dout_BxHxQxE)), highest, total
    zeros = jnp.zeros(k_BxHxKxE.shape, jnp.float32)
    (_, dk_BxHxKxE, dv_BxHxKxE), dq = jax.lax.scan(of_block, (0, zeros, zeros), blocks)
    return _join(dq, queries), dk_BxHxKxE.astype(dtype), dv_BxHxKxE.astype(dtype), None, None


attend_by_blocks.defvjp(_forward, _backward)


def _scores(q_BxHxIxE, k_BxHxKxE, valid_BxK):
    score_BxHxIxK = _product("bhie,bhke->bhik", q_BxHxIxE, k_BxHxKxE)
    return jnp.where(valid_BxK[:, None, None], score_BxHxIxK, MASKED)


def _product(axes: str, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _dropped(x_BxHxIxK, rate: float, seed_BxHx2, first):
    return dropout(x_BxHxIxK, rate, seed_BxHx2, first) if rate else x_BxHxIxK


def _split(x_BxHxQxC):
    """(blocks, B, H, I, C), the last block filled up with zeros."""
    batch, heads, queries, channels = x_BxHxQxC.shape
    blocks = -(-queries // _BLOCK)
    size = -(-queries // (blocks * _SUBLANES)) * _SUBLANES
    x = jnp.pad(x_BxHxQxC, ((0, 0), (0, 0), (0, blocks * size - queries), (0, 0)))
    return jnp.moveaxis(x.reshape(batch, heads, blocks, size, channels), 2, 0)


def _join(x, queries: int):
    """(B, H, Q, C) of blocks."""
    blocks, batch, heads, size, channels = x.shape
    return jnp.moveaxis(x, 0, 2).reshape(batch, heads, blocks * size, channels)[:, :, :queries]
