"""Random numbers of a batch by what its rows hold: where a row lies, and which rows lie beside it, changes nothing.

So neither the order of the devices nor the number of micro-batches changes a loss. B rows.
"""

import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def row_keys(key, row_B) -> jax.Array:
    """(B,) keys of one purpose, from the number of what each row holds."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, row_B)


def split_rows(key_B, count: int) -> jax.Array:
    """(count, B) keys."""
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(key_B)


def draw_rows(sampler: Callable[..., jax.Array], key_B, shape: tuple[int, ...], *options) -> jax.Array:
    """(B, *shape) of what a sampler of `jax.random` gives each row."""
    return jax.vmap(lambda key: sampler(key, shape, *options))(key_B)


def row_seeds(key, row_B) -> jax.Array:
    """(B, 2) uint32 seeds of one purpose, from the number of what each row holds."""
    position_Bx2 = 2 * row_B.astype(jnp.uint32)[:, None] + jnp.arange(2, dtype=jnp.uint32)
    return hash_positions(jax.random.key_data(key)[:2], position_Bx2)


def site_seeds(seed_Bx2, site: tuple[str, ...], shape: tuple[int, ...] = ()) -> jax.Array:
    """(B, *shape, 2) uint32 seeds of one place in the model, from those of the rows.

    Hashed, where keys would be threefry's: some hundred of them, written out, were most of what XLA had to compile in
    an update of wav2vec 2.0 base.
    """
    number = jnp.uint32(zlib.crc32("/".join(site).encode()))
    count = 2 * math.prod(shape)
    return hash_positions(seed_Bx2, number + jnp.arange(count, dtype=jnp.uint32)).reshape(-1, *shape, 2)


def rows_or_places(row_B, batch: int) -> jax.Array:
    """The rows' numbers; their places where none are given."""
    return jnp.arange(batch) if row_B is None else row_B


def hash_words(seed_x2, shape: tuple[int, ...]) -> jax.Array:
    """Random uint32 (..., *shape) for seeds (..., 2): a hash of seed and position.

    JAX's own threefry took 13 times as long on CPU (2 cores, 3.6 M words); any device computes its part alone.
    """
    return hash_positions(seed_x2, positions(shape))


def positions(shape: tuple[int, ...]) -> jax.Array:
    """Numbers of an array's elements in their order, uint32."""
    position = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        position = position * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return position


def hash_positions(seed_x2, position) -> jax.Array:
    """Random uint32 (..., *position.shape), see `hash_words`."""
    first, second = (jnp.expand_dims(s, range(s.ndim, s.ndim + position.ndim)) for s in jnp.moveaxis(seed_x2, -1, 0))
    return keyed_hash(position, first, second)


def keyed_hash(position, first, second):
    """Random uint32 for positions, by a seed of two words."""
    return mix(position + first, mix(second + mix(first)))


def mix(x, key=0):
    """lowbias32 (C. Wellons' hash-prospector) of x, with a key whose every bit is random."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15) ^ key) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
