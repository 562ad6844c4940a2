"""Attention on NVIDIA GPUs in bfloat16, whose scores never leave a multiprocessor: FlashAttention-2 (Dao 2023,
arXiv:2307.08691).

Written for Triton by way of Pallas, as no kept kernel draws dropout by what a row holds (`noise`): cuDNN's depends on
where it lies. B utterances, H heads, Q query frames, K key frames, E channels of a head; in a kernel q and k are frames
of a block, and P is the power of two that holds E. A head's frames are read where the projections wrote them: copied
to lie side by side they took as long as half of all that the kernels compute (H200).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton

from sew_jax.models.layers import dropped_bytes
from sew_jax.models.lengths import MASKED
from sew_jax.models.noise import keyed_hash

_LOG2_E = math.log2(math.e)  # exp2 is an instruction, exp is not


class Blocks(NamedTuple):
    """Frames of queries and keys that a program multiplies at once, its warps, and the loads that it has under way."""

    queries: int
    keys: int
    warps: int
    stages: int


# of some tried on an H200 at base's shapes, the fastest
FORWARD = Blocks(64, 64, 4, 3)
TO_KEYS = Blocks(64, 64, 4, 3)  # gradients of keys and values
TO_QUERIES = Blocks(64, 64, 4, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def flash_attention(q_BxQxHxE, k_BxKxHxE, v_BxKxHxE, length_B, seed_BxHx2, rate: float, interpret: bool = False):
    """softmax(q k^T) v over valid keys, (B, Q, H, E), as `attention.attend_to_valid` computes it.

    Utterances and heads stay on their devices.

    Args:
      length_B: valid keys.
      seed_BxHx2: of dropout, see `layers.dropout`.
      rate: of dropout.
      interpret: run the kernels step by step, on any platform.
    """
    return _forward(q_BxQxHxE, k_BxKxHxE, v_BxKxHxE, length_B, seed_BxHx2, rate, interpret)[0]


def _forward(q_BxQxHxE, k_BxKxHxE, v_BxKxHxE, length_B, seed_BxHx2, rate: float, interpret: bool):
    arguments = length_B, seed_BxHx2, q_BxQxHxE, k_BxKxHxE, v_BxKxHxE
    out_BxQxHxE, lse_BxHxQ = _attend(*arguments, rate, interpret)
    return out_BxQxHxE, (*arguments, out_BxQxHxE, lse_BxHxQ)


def _backward(rate: float, interpret: bool, kept, dout_BxQxHxE):
    *arguments, out_BxQxHxE, lse_BxHxQ = kept
    # the mean over keys of a weight's gradient is what the output and its gradient say together
    mean_BxHxQ = jnp.einsum("bqhe,bqhe->bhq", out_BxQxHxE, dout_BxQxHxE, preferred_element_type=jnp.float32)
    arguments = *arguments, dout_BxQxHxE, lse_BxHxQ, mean_BxHxQ
    dk_BxKxHxE, dv_BxKxHxE = _differentiate_keys(*arguments, rate, interpret)
    (dq_BxQxHxE,) = _differentiate_queries(*arguments, rate, interpret)
    return dq_BxQxHxE, dk_BxKxHxE, dv_BxKxHxE, None, None


flash_attention.defvjp(_forward, _backward)


def _device_by_device(rule: str, arguments: int):
    """A function of so many arrays, rate and interpret, whose utterances `b` and heads `h` may lie on any devices."""

    def wrap(function):
        partitioned = custom_partitioning(function, static_argnums=(arguments, arguments + 1))

        def partition(rate, interpret, mesh, arguments, results):
            shardings = jax.tree.map(lambda x: x.sharding, (results, arguments))
            return mesh, functools.partial(function, rate=rate, interpret=interpret), *shardings

        partitioned.def_partition(partition, sharding_rule=rule, need_replication_factors=("s", "q", "e", "k", "f"))
        return partitioned

    return wrap


@_device_by_device("b, b h s, b q h e, b k h e, b k h f -> b q h f, b h q", 5)
def _attend(length_B, seed_BxHx2, q_BxQxHxE, k_BxKxHxE, v_BxKxHxE, rate: float, interpret: bool):
    batch, queries, heads, _ = q_BxQxHxE.shape
    out = jax.ShapeDtypeStruct((batch, queries, heads, v_BxKxHxE.shape[3]), v_BxKxHxE.dtype)
    lse = jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32)
    arguments = length_B, seed_BxHx2, q_BxQxHxE, k_BxKxHxE, v_BxKxHxE
    return _call(_forward_kernel, FORWARD, pl.cdiv(queries, FORWARD.queries), rate, interpret, arguments, (out, lse))


@_device_by_device("b, b h s, b q h e, b k h e, b k h f, b q h f, b h q, b h q -> b k h e, b k h f", 8)
def _differentiate_keys(
    length_B, seed_BxHx2, q_BxQxHxE, k_BxKxHxE, v_BxKxHxE, dout_BxQxHxE, lse_BxHxQ, mean_BxHxQ, rate: float, interpret
):
    arguments = length_B, seed_BxHx2, q_BxQxHxE, k_BxKxHxE, v_BxKxHxE, dout_BxQxHxE, lse_BxHxQ, mean_BxHxQ
    results, blocks = (_like(k_BxKxHxE), _like(v_BxKxHxE)), pl.cdiv(k_BxKxHxE.shape[1], TO_KEYS.keys)
    return _call(_to_keys_kernel, TO_KEYS, blocks, rate, interpret, arguments, results)


@_device_by_device("b, b h s, b q h e, b k h e, b k h f, b q h f, b h q, b h q -> b q h e", 8)
def _differentiate_queries(
    length_B, seed_BxHx2, q_BxQxHxE, k_BxKxHxE, v_BxKxHxE, dout_BxQxHxE, lse_BxHxQ, mean_BxHxQ, rate: float, interpret
):
    arguments = length_B, seed_BxHx2, q_BxQxHxE, k_BxKxHxE, v_BxKxHxE, dout_BxQxHxE, lse_BxHxQ, mean_BxHxQ
    results, blocks = (_like(q_BxQxHxE),), pl.cdiv(q_BxQxHxE.shape[1], TO_QUERIES.queries)
    return _call(_to_queries_kernel, TO_QUERIES, blocks, rate, interpret, arguments, results)


def _like(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _call(kernel, blocks: Blocks, count: int, rate: float, interpret: bool, arguments, results):
    """A program for each utterance, head and one of `count` blocks; references hold all frames of a head."""
    batch, heads = arguments[1].shape[:2]

    def spec(x) -> pl.BlockSpec:
        if x.ndim == 1:
            return pl.BlockSpec((None,), lambda b, h, _: (b,))
        if x.ndim == 3:
            return pl.BlockSpec((None, None, x.shape[2]), lambda b, h, _: (b, h, 0))
        return pl.BlockSpec((None, x.shape[1], None, x.shape[3]), lambda b, h, _: (b, 0, h, 0))

    return pl.pallas_call(
        functools.partial(kernel, blocks=blocks, rate=rate),
        grid=(batch, heads, count),
        in_specs=[spec(x) for x in arguments],
        out_specs=[spec(x) for x in results],
        out_shape=results,
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*arguments)


def _forward_kernel(length_ref, seed_ref, q_ref, k_ref, v_ref, out_ref, lse_ref, *, blocks: Blocks, rate: float):
    """Of a block of queries: output, and the base-2 logarithm of the softmax's denominator."""
    length, rows = length_ref[...], _Frames(pl.program_id(2) * blocks.queries, blocks.queries, q_ref.shape[0])
    q_qxP = rows.load(q_ref)

    def step(i, carry):
        sum_qxP, highest_q, total_q = carry
        columns = _Frames(i * blocks.keys, blocks.keys, k_ref.shape[0])
        v_kxP = columns.load(v_ref)
        score_qxk = _scores(q_qxP, columns.load(k_ref), columns, length)
        new_q = jnp.maximum(highest_q, score_qxk.max(1))
        weight_qxk, left_q = jnp.exp2(score_qxk - new_q[:, None]), jnp.exp2(highest_q - new_q)
        dropped_qxk = _dropped(weight_qxk, rate, seed_ref, rows, columns).astype(v_kxP.dtype)
        sum_qxP = sum_qxP * left_q[:, None] + triton.dot(dropped_qxk, v_kxP)
        return sum_qxP, new_q, total_q * left_q + weight_qxk.sum(1)

    width = pl.next_power_of_2(v_ref.shape[1])
    start = (
        jnp.zeros((blocks.queries, width), jnp.float32),
        jnp.full(blocks.queries, 2 * MASKED),
        jnp.zeros(blocks.queries),
    )
    sum_qxP, highest_q, total_q = jax.lax.fori_loop(0, _valid_blocks(length, blocks.keys), step, start)
    rows.store(out_ref, sum_qxP / total_q[:, None])
    rows.store(lse_ref, highest_q + jnp.log2(total_q))


def _to_keys_kernel(
    length_ref, seed_ref, q_ref, k_ref, v_ref, dout_ref, lse_ref, mean_ref, dk_ref, dv_ref, *, blocks: Blocks, rate
):
    """Of a block of keys: the gradients of keys and values."""
    columns = _Frames(pl.program_id(2) * blocks.keys, blocks.keys, k_ref.shape[0])
    k_kxP, v_kxP = columns.load(k_ref), columns.load(v_ref)

    def step(i, carry):
        dk_kxP, dv_kxP = carry
        rows = _Frames(i * blocks.queries, blocks.queries, q_ref.shape[0])
        q_qxP, dout_qxP = rows.load(q_ref), rows.load(dout_ref)
        weight_qxk = jnp.exp2(_scores(q_qxP, k_kxP, columns, length_ref[...]) - rows.load(lse_ref)[:, None])
        dropped_qxk = _dropped(weight_qxk, rate, seed_ref, rows, columns).astype(dout_qxP.dtype)
        dv_kxP += triton.dot(dropped_qxk.T, dout_qxP)
        dweight_qxk = _dropped(triton.dot(dout_qxP, v_kxP.T), rate, seed_ref, rows, columns)
        dscore_qxk = (weight_qxk * (dweight_qxk - rows.load(mean_ref)[:, None])).astype(q_qxP.dtype)
        return dk_kxP + triton.dot(dscore_qxk.T, q_qxP), dv_kxP

    start = jnp.zeros(k_kxP.shape, jnp.float32), jnp.zeros(v_kxP.shape, jnp.float32)
    dk_kxP, dv_kxP = jax.lax.fori_loop(0, pl.cdiv(q_ref.shape[0], blocks.queries), step, start)
    columns.store(dk_ref, dk_kxP)
    columns.store(dv_ref, dv_kxP)


def _to_queries_kernel(
    length_ref, seed_ref, q_ref, k_ref, v_ref, dout_ref, lse_ref, mean_ref, dq_ref, *, blocks: Blocks, rate: float
):
    """Of a block of queries: their gradient."""
    length, rows = length_ref[...], _Frames(pl.program_id(2) * blocks.queries, blocks.queries, q_ref.shape[0])
    q_qxP, dout_qxP, lse_q, mean_q = (rows.load(ref) for ref in (q_ref, dout_ref, lse_ref, mean_ref))

    def step(i, dq_qxP):
        columns = _Frames(i * blocks.keys, blocks.keys, k_ref.shape[0])
        k_kxP = columns.load(k_ref)
        weight_qxk = jnp.exp2(_scores(q_qxP, k_kxP, columns, length) - lse_q[:, None])
        dweight_qxk = _dropped(triton.dot(dout_qxP, columns.load(v_ref).T), rate, seed_ref, rows, columns)
        dscore_qxk = (weight_qxk * (dweight_qxk - mean_q[:, None])).astype(k_kxP.dtype)
        return dq_qxP + triton.dot(dscore_qxk, k_kxP)

    dq_qxP = jax.lax.fori_loop(0, _valid_blocks(length, blocks.keys), step, jnp.zeros(q_qxP.shape, jnp.float32))
    rows.store(dq_ref, dq_qxP)


class _Frames:
    """Frames `begin` to `begin + size` of `count`, some of which may lie beyond the end."""

    def __init__(self, begin, size: int, count: int):
        self.at, self.index, self.count = pl.ds(begin, size), begin + jnp.arange(size), count

    def load(self, ref):
        """(size, P), or (size,) of what is one number a frame; zeros beyond the end."""
        return triton.load(self._part(ref), mask=self._mask(ref), other=0)

    def store(self, ref, x) -> None:
        """Writes the frames that there are."""
        triton.store(self._part(ref), x.astype(ref.dtype), mask=self._mask(ref))

    def _part(self, ref):
        return ref.at[self.at] if len(ref.shape) == 1 else ref.at[self.at, pl.ds(0, pl.next_power_of_2(ref.shape[1]))]

    def _mask(self, ref):
        inside = self.index < self.count
        if len(ref.shape) == 1:
            return inside
        channels = ref.shape[1]
        return inside[:, None] & (jnp.arange(pl.next_power_of_2(channels)) < channels)[None]


def _valid_blocks(length, size: int):
    """Blocks of keys that hold a valid one; at least one."""
    return jax.lax.div(jnp.maximum(length, 1) + (size - 1), size)


def _scores(q_qxP, k_kxP, columns: _Frames, length):
    """In units of log2."""
    return jnp.where((columns.index < length)[None], triton.dot(q_qxP, k_kxP.T) * _LOG2_E, MASKED)


def _dropped(x_qxk, rate: float, seed_ref, rows: _Frames, columns: _Frames):
    """`layers.dropout` of a part of (Q, K)."""
    if not rate:
        return x_qxk
    dropped, words = dropped_bytes(rate), -(-columns.count // 4)
    row_q, column_k = rows.index.astype(jnp.uint32), columns.index.astype(jnp.uint32)
    position_qxk = row_q[:, None] * np.uint32(words) + (column_k // 4)[None]
    word_qxk = keyed_hash(position_qxk, seed_ref[0], seed_ref[1])
    byte_qxk = (word_qxk >> (column_k % 4 * 8)[None]) & np.uint32(0xFF)
    return jnp.where(byte_qxk >= np.uint32(dropped), x_qxk * (256 / (256 - dropped)), 0.0)
