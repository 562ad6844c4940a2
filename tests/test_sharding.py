"""The mesh and where things lie on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.errors import UserError
from sew_jax.sharding import batch_sharding, bytes_per_device, make_mesh, place_batch, tree_shardings


@pytest.mark.parametrize(
    ("sizes", "shape"), [((-1, 1), (8, 1)), ((-1, 2), (4, 2)), ((2, -1), (2, 4)), ((2, 4), (2, 4)), ((1, 8), (1, 8))]
)
def test_sizes(sizes, shape):
    assert tuple(make_mesh(*sizes).shape.values()) == shape


@pytest.mark.parametrize("sizes", [(3, 1), (-1, 3), (-1, -1), (0, 8), (4, 1), (-2, 4)])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(UserError, match=r"does not fit 8 device\(s\)"):
        make_mesh(*sizes)


def test_fsdp_divides_the_large_and_copies_the_small():
    tree = {"w": jnp.zeros((64, 512)), "odd": jnp.zeros((99, 99)), "bias": jnp.zeros(512)}
    mesh = make_mesh(1, 8)
    shardings = tree_shardings(mesh, tree)
    assert shardings["w"].shard_shape((64, 512)) == (64, 64)
    assert bytes_per_device(tree, shardings) == 4 * (64 * 64 + 99 * 99 + 512)
    placed = jax.device_put(tree, shardings)
    assert sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(placed)) == bytes_per_device(
        tree, shardings
    )
    assert bytes_per_device(tree, tree_shardings(make_mesh(8, 1), tree)) == sum(x.nbytes for x in tree.values())


@pytest.mark.parametrize("sizes", [(8, 1), (2, 4)])
def test_a_batch_is_split_over_all_devices(sizes):
    batch = {"wave": np.arange(16.0).reshape(16, 1)}
    placed = place_batch(batch, batch_sharding(make_mesh(*sizes)))
    assert {shard.data.shape for shard in placed["wave"].addressable_shards} == {(2, 1)}
    np.testing.assert_array_equal(placed["wave"], batch["wave"])
