"""Multi-head attention whose queries and whose keys and values may come at different rates.

B utterances, Q query frames, K key frames, H heads, E channels of a head, D = H * E.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from sew_jax.models.int8 import linear
from sew_jax.models.layers import dropout
from sew_jax.models.lengths import MASKED, mask_from_lengths
from sew_jax.models.noise import site_seeds
from sew_jax.models.platforms import by_platform
from sew_jax.models.products import widen
from sew_jax.models.relative import Gate, disentangled, gated
from sew_jax.models.times import alibi, alibi_slopes, rotate

try:
    from sew_jax.models.flash_attention import flash_attention
except ImportError:  # JAX has announced that it will give up Pallas for Triton
    flash_attention = None

_CACHED_SCORES = 2**21  # more than a CPU's cache holds


class Bias(NamedTuple):
    """What scores gain: `of_head` makes a head's, (B, Q, K) float32, of its part of each array, all with heads first.

    So that a head's, like its scores, need not lie in memory with the others'.
    """

    of_head: Callable[..., jax.Array]
    parts: tuple[jax.Array, ...]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(E)) v over valid keys; projections in `dtype`, softmax in float32.

    What `relative` says of distances is added to scores: a bias (H, L), times a factor that each query computes, or
    with embeddings (L, D) what queries and keys make of them, by the projections that they share, over sqrt(3 E) then.
    Or it is the times of queries and keys, (B, Q) and (B, K), by which both are turned (`rotary`), or keys that are far
    cost (`alibi`). W frames that are to be compared by their keys.
    """

    heads: int
    dropout: float
    dtype: str
    form: str = "gated"
    int8: bool = False

    @nn.compact
    def __call__(
        self,
        query_BxQxD,
        key_BxKxD,
        key_length_B,
        deterministic: bool,
        seed_Bx2=None,
        relative=None,
        steps: tuple[int, int] = (1, 1),
        size_BxK=None,
        compared_BxWxD=None,
    ):
        """Queries from one sequence, keys and values from the other: returns (B, Q, D).

        With `size_BxK` a key counts as so many equal ones. With `compared_BxWxD` returns the mean over heads of the
        keys of these frames, too: (B, W, E).

        Args:
          steps: frames from one query to the next, and from key to key.
        """
        width = query_BxQxD.shape[-1]
        dense = {name: linear(width, self.dtype, self.int8, name) for name in ("query", "key", "value")}

        def project(name, x):
            return dense[name](x).reshape(*x.shape[:2], self.heads, width // self.heads)

        entangled = relative is not None and self.form == "disentangled"
        scale = (width // self.heads * (3 if entangled else 1)) ** -0.5
        q_BxQxHxE = project("query", query_BxQxD) * scale
        k_BxKxHxE, v_BxKxHxE = project("key", key_BxKxD), project("value", key_BxKxD)
        compared_BxWxE = None
        if compared_BxWxD is not None:
            same = compared_BxWxD is key_BxKxD
            compared_BxWxE = (k_BxKxHxE if same else project("key", compared_BxWxD)).mean(2)
        if self.form == "rotary":
            q_BxQxHxE, k_BxKxHxE = rotate(q_BxQxHxE, relative[0]), rotate(k_BxKxHxE, relative[1])
        if size_BxK is not None:
            q_BxQxHxE, k_BxKxHxE = _with_sizes(q_BxQxHxE, k_BxKxHxE, size_BxK)
        rate = 0.0 if deterministic else self.dropout
        seed_BxHx2 = jnp.zeros((query_BxQxD.shape[0], self.heads, 2), jnp.uint32)
        if rate:
            seed_BxHx2 = site_seeds(seed_Bx2, (self.name,), (self.heads,))
        bias = None
        if entangled:
            key_LxHxE, query_LxHxE = project("key", relative[None])[0], project("query", relative[None])[0] * scale
            of_head = functools.partial(disentangled, query_step=steps[0], key_step=steps[1])
            parts = q_BxQxHxE, k_BxKxHxE, key_LxHxE, query_LxHxE
            bias = Bias(of_head, tuple(jnp.moveaxis(x, -2, 0) for x in parts))
        elif self.form == "alibi":
            times = (jnp.broadcast_to(time, (self.heads, *time.shape)) for time in relative)
            bias = Bias(alibi, (jnp.asarray(alibi_slopes(self.heads)), *times))
        elif relative is not None and self.form == "gated":
            gate_HxBxQ = jnp.moveaxis(Gate(self.heads, name="gate")(query_BxQxD), -1, 0)
            of_head = functools.partial(gated, keys=key_BxKxD.shape[1], query_step=steps[0], key_step=steps[1])
            bias = Bias(of_head, (gate_HxBxQ, relative))
        out_BxQxHxE = attend_to_valid(q_BxQxHxE, k_BxKxHxE, v_BxKxHxE, key_length_B, seed_BxHx2, rate=rate, bias=bias)
        out_BxQxD = linear(width, self.dtype, self.int8, "out")(out_BxQxHxE.reshape(query_BxQxD.shape))
        return out_BxQxD if compared_BxWxE is None else (out_BxQxD, compared_BxWxE)


def _with_sizes(q_BxQxHxE, k_BxKxHxE, size_BxK):
    """Queries and keys of one more channel, which adds log(size) to each key's scores."""
    log_BxKxHx1 = jnp.broadcast_to(jnp.log(jnp.maximum(size_BxK, 1))[:, :, None, None], (*k_BxKxHxE.shape[:3], 1))
    ones_BxQxHx1 = jnp.ones_like(q_BxQxHxE[..., :1])
    return (
        jnp.concatenate([q_BxQxHxE, ones_BxQxHx1], axis=-1),
        jnp.concatenate([k_BxKxHxE, log_BxKxHx1.astype(k_BxKxHxE.dtype)], axis=-1),
    )


def attend_to_valid(
    q_BxQxHxE, k_BxKxHxE, v_BxKxHxE, key_length_B, seed_BxHx2, *, rate: float, bias: Bias | None = None
):
    """softmax(q k^T + bias) v over valid keys, (B, Q, H, E), in the form that the platform computes best.

    The forms draw the same dropout.
    """
    batch, keys, heads = k_BxKxHxE.shape[:3]
    of_head, parts = bias or (None, ())

    def on_cpu(q, k, v, length_B, seed, parts):
        q_BxHxQxE, k_BxHxKxE, v_BxHxKxE = widen(*(x.swapaxes(1, 2) for x in (q, k, v)))
        valid_BxK = mask_from_lengths(length_B, keys)
        if of_head:
            out = attend_with_bias(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed, widen(*parts), of_head, rate=rate)
        else:
            valid_BxHxK = jnp.broadcast_to(valid_BxK[:, None], (batch, heads, keys))
            out = attend_pair_by_pair(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxHxK, seed, rate=rate)
        return out.astype(v.dtype).swapaxes(1, 2)

    def by_kernel(q, k, v, length_B, seed, parts):
        return flash_attention(q, k, v, length_B, seed, rate)

    def elsewhere(q, k, v, length_B, seed, parts):
        q_BxHxQxE, k_BxHxKxE, v_BxHxKxE = (x.swapaxes(1, 2) for x in (q, k, v))
        valid_BxK = mask_from_lengths(length_B, keys)
        out = attend_head_by_head(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed, rate, parts, of_head)
        return out.swapaxes(1, 2)

    forms = {"cpu": on_cpu, "default": elsewhere}
    any_batch = is_symbolic_dim(batch)  # an exported program does not know how many, and a kernel would have to
    if flash_attention and v_BxKxHxE.dtype == jnp.bfloat16 and not of_head and not any_batch:
        forms["cuda"] = by_kernel
    arguments = q_BxQxHxE, k_BxKxHxE, v_BxKxHxE, key_length_B, seed_BxHx2, parts
    return by_platform(*arguments, **forms)


def attend(q_xQxE, k_xKxE, v_xKxE, valid_xK, seed_x2, bias_xQxK=None, *, rate: float):
    """softmax(q k^T) v over valid keys for any leading axes: (..., Q, E). Dropout of `rate` where it is not 0.

    The weights are divided by their sum after they have been applied, which is one pass over them less.
    """
    score_xQxK = jnp.einsum("...qe,...ke->...qk", q_xQxE, k_xKxE, preferred_element_type=jnp.float32)
    if bias_xQxK is not None:
        score_xQxK = score_xQxK + bias_xQxK
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
    return out.reshape(*q_BxHxQxE.shape[:3], v_BxHxKxE.shape[3])


def attend_with_bias(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, parts, of_head, *, rate: float):
    """The same with a `Bias`; where all scores would not fit a CPU's cache, a head of all utterances after the other.

    A head's bias may be that of all utterances, so its gradient is summed over them at once.
    """
    (batch, heads, queries), keys = q_BxHxQxE.shape[:3], k_BxHxKxE.shape[2]
    by_head = _heads_first(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, seed_BxHx2)

    def attend_head(head):
        (q_BxQxE, k_BxKxE, v_BxKxE, seed_Bx2), parts = head
        return attend(q_BxQxE, k_BxKxE, v_BxKxE, valid_BxK, seed_Bx2, of_head(*parts), rate=rate)

    if not is_symbolic_dim(batch) and batch * heads * queries * keys <= _CACHED_SCORES:
        return jax.vmap(attend_head, out_axes=1)((by_head, parts))
    return jax.lax.map(jax.checkpoint(attend_head), (by_head, parts)).swapaxes(0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 7))
def attend_head_by_head(
    q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, rate: float, parts=(), of_head: Callable | None = None
):
    """The same on accelerators, a head of all utterances after the other: no more scores than these lie in memory.

    The backward pass computes a head's weights again (as FlashAttention does, Dao et al. 2022). Operands of products
    are of v's dtype in both passes, where gradients of float32 sums would have stayed in float32; sums are float32.
    Utterances stay on their devices.
    """
    return _forward(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, rate, parts, of_head)[0]


def _forward(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, valid_BxK, seed_BxHx2, rate: float, parts, of_head):
    dtype = v_BxHxKxE.dtype

    def attend_head(head):
        (q_BxQxE, k_BxKxE, v_BxKxE, seed_Bx2), parts = head
        score_BxQxK = _scores(q_BxQxE, k_BxKxE, valid_BxK, of_head(*parts) if of_head else None)
        highest_BxQ = score_BxQxK.max(-1)
        weight_BxQxK = jnp.exp(score_BxQxK - highest_BxQ[..., None])
        total_BxQ = weight_BxQxK.sum(-1)
        dropped_BxQxK = _dropped(weight_BxQxK.astype(dtype), rate, seed_Bx2)
        out_BxQxE = _product("bqk,bke->bqe", dropped_BxQxK, v_BxKxE)
        return (out_BxQxE / total_BxQ[..., None]).astype(dtype), highest_BxQ, total_BxQ

    heads = _heads_first(q_BxHxQxE, k_BxHxKxE, v_BxHxKxE, seed_BxHx2)
    out_HxBxQxE, highest_HxBxQ, total_HxBxQ = jax.lax.map(attend_head, (heads, parts))
    return out_HxBxQxE.swapaxes(0, 1), (heads, parts, valid_BxK, out_HxBxQxE, highest_HxBxQ, total_HxBxQ)


def _backward(rate: float, of_head, kept, dout_BxHxQxE):
    heads, parts, valid_BxK, out_HxBxQxE, highest_HxBxQ, total_HxBxQ = kept
    dtype = dout_BxHxQxE.dtype

    def pull_head(head):
        (q_BxQxE, k_BxKxE, v_BxKxE, seed_Bx2), parts, out_BxQxE, highest_BxQ, total_BxQ, dout_BxQxE = head
        bias_BxQxK, pull_bias = jax.vjp(of_head, *parts) if of_head else (None, lambda _: ())
        score_BxQxK = _scores(q_BxQxE, k_BxKxE, valid_BxK, bias_BxQxK)
        weight_BxQxK = jnp.exp(score_BxQxK - highest_BxQ[..., None]) / total_BxQ[..., None]
        dropped_BxQxK = _dropped(weight_BxQxK.astype(dtype), rate, seed_Bx2)
        dv_BxKxE = _product("bqk,bqe->bke", dropped_BxQxK, dout_BxQxE)
        dweight_BxQxK = _dropped(_product("bqe,bke->bqk", dout_BxQxE, v_BxKxE), rate, seed_Bx2)
        # the mean over keys of a weight's gradient is what the output and its gradient say together
        mean_BxQ = (out_BxQxE.astype(jnp.float32) * dout_BxQxE.astype(jnp.float32)).sum(-1)
        exact_BxQxK = weight_BxQxK * (dweight_BxQxK - mean_BxQ[..., None])
        dscore_BxQxK = exact_BxQxK.astype(dtype)
        dq_BxQxE = _product("bqk,bke->bqe", dscore_BxQxK, k_BxKxE)
        dk_BxKxE = _product("bqk,bqe->bke", dscore_BxQxK, q_BxQxE)
        return tuple(x.astype(dtype) for x in (dq_BxQxE, dk_BxKxE, dv_BxKxE)), pull_bias(exact_BxQxK)

    (dout_HxBxQxE,) = _heads_first(dout_BxHxQxE)
    along = (heads, parts, out_HxBxQxE, highest_HxBxQ, total_HxBxQ, dout_HxBxQxE)
    gradients, dparts = jax.lax.map(pull_head, along)
    return (*(x.swapaxes(0, 1) for x in gradients), None, None, dparts)


attend_head_by_head.defvjp(_forward, _backward)


def _heads_first(*arrays):
    return jax.tree.map(lambda x: x.swapaxes(0, 1), arrays)


def _scores(q_BxQxE, k_BxKxE, valid_BxK, bias_BxQxK):
    score_BxQxK = _product("bqe,bke->bqk", q_BxQxE, k_BxKxE)
    if bias_BxQxK is not None:
        score_BxQxK = score_BxQxK + bias_BxQxK
    return jnp.where(valid_BxK[:, None], score_BxQxK, MASKED)


def _product(axes: str, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _dropped(x_BxQxK, rate: float, seed_Bx2):
    return dropout(x_BxQxK, rate, seed_Bx2) if rate else x_BxQxK
