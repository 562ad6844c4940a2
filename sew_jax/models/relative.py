"""Relative positions in attention: what a score gains for how far, and to which side, a key lies from its query.

Frames pooled by different factors have distances too: those of their windows' centres, in frames of the front end, so
a head that looks 40 ms back does so at every setting. H heads, Q queries, K keys, L distances, one each row below.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from sew_jax.models.config import BackboneConfig
from sew_jax.models.layers import layer_norm


class RelativeBias(nn.Module):
    """A learned number for each head and bucket of distances (T5's; WavLM shares one such table between its layers)."""

    heads: int
    buckets: int
    furthest: int
    unit: int = 1

    @nn.compact
    def __call__(self, queries: int, keys: int, query_step: int, key_step: int) -> jax.Array:
        """(H, L) float32 by distance, as `spread` lays it out.

        A distance of no whole number of units, as between windows of odd and even length, lies between its neighbours.

        Args:
          query_step: front-end frames from one query to the next, which is also how long its window is.
        """
        embedding_PxH = self.param("embedding", nn.initializers.normal(0.02), (self.buckets, self.heads))
        rows = functools.partial(bucket, buckets=self.buckets, furthest=self.furthest)
        steps = query_step, key_step
        return by_distance(embedding_PxH, queries, keys, steps, self.unit, self.furthest, rows).T


class RelativeEmbeddings(nn.Module):
    """DeBERTa's, as SEW-D has them: normalised embeddings of buckets of distances, one table for all layers."""

    config: BackboneConfig

    @nn.compact
    def __call__(self, queries: int, keys: int, query_step: int, key_step: int) -> jax.Array:
        """(L, D) float32 by distance; see `RelativeBias`."""
        config, shape = self.config, (2 * self.config.rel_buckets, self.config.width)
        embedding_PxD = self.param("embedding", nn.initializers.normal(0.02), shape)
        embedding_PxD = layer_norm("float32", name="norm", epsilon=config.norm_epsilon)(embedding_PxD)
        rows = functools.partial(log_bucket, buckets=config.rel_buckets, furthest=config.rel_furthest)
        steps = query_step, key_step
        return by_distance(embedding_PxD, queries, keys, steps, config.rel_unit, config.rel_furthest, rows)


def by_distance(
    table_PxX,
    queries: int,
    keys: int,
    steps: tuple[int, int],
    unit: int,
    furthest: int,
    rows: Callable[[np.ndarray], np.ndarray],
):
    """(L, X): what a table says of each distance, from the last query and first key on.

    Args:
      queries, keys: also symbolic ones, of an exported program.
      steps: of queries and keys, in frames.
      unit: frames of a distance of 1.
      furthest: in units; all beyond twice as far have the same row.
      rows: of whole distances.
    """
    if not is_symbolic_dim(queries):
        return interpolate(table_PxX, distances(queries, keys, *steps) / unit, rows)
    step = math.gcd(*steps)
    reach = -(-2 * furthest * unit // step)
    nearby_G = np.arange(-reach, reach + 1) * step + (steps[1] - steps[0]) / 2
    rows_GxX = interpolate(table_PxX, nearby_G / unit, rows)
    before, behind = (queries - 1) * (steps[0] // step), (keys - 1) * (steps[1] // step)
    index_L = jnp.arange(before + behind + 1) - before
    return rows_GxX[jnp.clip(index_L, -reach, reach) + reach]


def interpolate(table_PxX, distance_L: np.ndarray, bucket_of: Callable[[np.ndarray], np.ndarray]):
    """(L, X): a table's rows at whole distances, and between them what a straight line has there."""
    below = np.floor(distance_L)
    share_Lx1 = np.asarray(distance_L - below, np.float32)[:, None]
    return (1 - share_Lx1) * table_PxX[bucket_of(below)] + share_Lx1 * table_PxX[bucket_of(np.ceil(distance_L))]


def distances(queries: int, keys: int, query_step: int, key_step: int) -> np.ndarray:
    """(L,): from each query's centre to each key's, in frames, from the last query and first key on."""
    unit = math.gcd(query_step, key_step)
    first, last = -(queries - 1) * query_step, (keys - 1) * key_step
    return np.arange(first, last + 1, unit) + (key_step - query_step) / 2


def spread(x_LxQ, keys: int, query_step: int, key_step: int):
    """(..., Q, K) of (..., Q, L): what each query, in its row, has for the distance to each key.

    No gather, whose gradient would be a scatter: rows one step longer than L, cut into rows of L, begin a step later
    each.
    """
    *rest, queries, count = x_LxQ.shape
    unit = math.gcd(query_step, key_step)
    later, stride = query_step // unit, key_step // unit
    if is_symbolic_dim(queries):  # of an exported program, whose products of sizes JAX cannot compare
        place_QxK = (queries - 1 - jnp.arange(queries)[:, None]) * later + jnp.arange(keys) * stride
        return jnp.take_along_axis(x_LxQ, jnp.broadcast_to(place_QxK, (*rest, queries, keys)), axis=-1)
    x = jnp.pad(x_LxQ, [(0, 0)] * (len(rest) + 1) + [(0, later)]).reshape(*rest, queries * (count + later))
    x = x[..., : queries * count].reshape(*rest, queries, count)
    return x[..., (queries - 1) * later :: stride][..., :keys]


def bucket(distance: np.ndarray, buckets: int, furthest: int) -> np.ndarray:
    """T5's bucket of whole distances: keys before in the first half, a frame each, then wider by a constant factor.

    Computed in float32 and in transformers' order, so that the edges of buckets are the same.
    """
    half = buckets // 2
    exact = half // 2
    size = np.abs(distance)
    with np.errstate(divide="ignore"):
        far = np.log(size.astype(np.float32) / np.float32(exact)) / np.float32(math.log(furthest / exact))
    far = np.minimum(np.floor(exact + far * np.float32(half - exact)), half - 1)
    return (np.where(size < exact, size, far) + half * (distance > 0)).astype(np.int32)


def log_bucket(distance: np.ndarray, buckets: int, furthest: int) -> np.ndarray:
    """DeBERTa's row of whole distances, of twice `buckets`: the nearest, `buckets // 2` to a side, have one each.

    Its distances are from key to query. Computed in float32 and in transformers' order, as `bucket` is.
    """
    behind, exact = -distance, buckets // 2
    size = np.maximum(np.abs(behind), exact - 1).astype(np.float32)
    scale = np.log(np.float32((furthest - 1) / exact))
    far = np.ceil(np.log(size / np.float32(exact)) / scale * np.float32(exact - 1)) + exact
    row = np.where(size <= exact, behind, far * np.sign(behind)) + buckets
    return np.clip(row, 0, 2 * buckets - 1).astype(np.int32)


def disentangled(q_BxQxE, k_BxKxE, key_LxE, query_LxE, *, query_step: int, key_step: int):
    """A head's (B, Q, K): each query against the embedding of the distance as a key, each key against it as a query."""
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    from_query_BxQxL = product("...qe,le->...ql", q_BxQxE, key_LxE)
    from_key_BxKxL = product("...ke,le->...kl", k_BxKxE, query_LxE[::-1])  # distances from keys to queries
    forward = spread(from_query_BxQxL, k_BxKxE.shape[-2], query_step, key_step)
    return forward + spread(from_key_BxKxL, q_BxQxE.shape[-2], key_step, query_step).swapaxes(-1, -2)


def gated(gate_BxQ, bias_L, *, keys: int, query_step: int, key_step: int):
    """A head's (B, Q, K) to be added to its scores: its bias by distance, each query's times a factor of its own."""
    bias_QxL = jnp.broadcast_to(bias_L, (gate_BxQ.shape[-1], *bias_L.shape))
    return gate_BxQ[..., None] * spread(bias_QxL, keys, query_step, key_step)


class Gate(nn.Module):
    """WavLM's factor of each query's bias, (B, Q, H) float32, from its own channels of each head: about 1 to 3."""

    heads: int

    @nn.compact
    def __call__(self, query_BxQxD):
        scale_H = self.param("scale", nn.initializers.ones, (self.heads,))
        x_BxQxHxE = query_BxQxD.astype(jnp.float32).reshape(*query_BxQxD.shape[:2], self.heads, -1)
        logits = nn.Dense(8, kernel_init=nn.initializers.normal(0.02), name="linear")(x_BxQxHxE)
        reset, update = jnp.moveaxis(nn.sigmoid(logits.reshape(*x_BxQxHxE.shape[:3], 2, 4).sum(-1)), -1, 0)
        return reset * (update * scale_H - 1) + 2
