"""Random numbers of a batch by what its rows hold: where a row lies, and which rows lie beside it, changes nothing.

So neither the order of the devices nor the number of micro-batches changes a loss. B rows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def row_keys(key, row_B) -> jax.Array:
    """(B,) keys of one purpose, from the number of what each row holds."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, row_B)


def split_rows(key_B, count: int) -> jax.Array:
    """(count, B) keys."""
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(key_B)


def draw_rows(sampler: Callable[..., jax.Array], key_B, shape: tuple[int, ...], *options) -> jax.Array:
    """(B, *shape) of what a sampler of `jax.random` gives each row."""
    return jax.vmap(lambda key: sampler(key, shape, *options))(key_B)


def rows_or_places(row_B, batch: int) -> jax.Array:
    """The rows' numbers; their places where none are given."""
    return jnp.arange(batch) if row_B is None else row_B
