"""The mesh and where things lie on it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.errors import UserError
from sew_jax.models.pretrain import PretrainModel
from sew_jax.models.sizes import published
from sew_jax.runtime.sharding import (
    abstract_mesh,
    batch_sharding,
    bytes_per_device,
    make_mesh,
    place_batch,
    tree_shardings,
)
from sew_jax.training import optimizer as optim
from sew_jax.training.step import new_state


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
    tree = {"dense": {"kernel": jnp.zeros((64, 512)), "bias": jnp.zeros(512)}, "odd": {"kernel": jnp.zeros((99, 99))}}
    tree |= {"mean": jnp.zeros(8192)}
    mesh = make_mesh(1, 8)
    shardings = tree_shardings(mesh, tree)
    assert shardings["dense"]["kernel"].shard_shape((64, 512)) == (64, 64)
    assert bytes_per_device(tree, shardings) == 4 * (64 * 64 + 99 * 99 + 512 + 8192)
    placed = jax.device_put(tree, shardings)
    assert sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(placed)) == bytes_per_device(
        tree, shardings
    )
    whole = sum(x.nbytes for x in jax.tree.leaves(tree))
    assert bytes_per_device(tree, tree_shardings(make_mesh(8, 1), tree)) == whole


def test_the_first_rule_that_fits_decides_and_none_is_idle():
    tree = {"a": {"kernel": jnp.zeros((64, 512))}, "b": {"kernel": jnp.zeros((64, 512))}}
    rules = (("^a/", "copy"), ("kernel", "split"))
    shardings = tree_shardings(make_mesh(1, 8), tree, rules)
    assert shardings["a"]["kernel"].is_fully_replicated and not shardings["b"]["kernel"].is_fully_replicated
    with pytest.raises(ValueError, match="decide nothing: embedding"):
        tree_shardings(make_mesh(1, 8), tree, (("embedding", "copy"), *rules))
    with pytest.raises(ValueError, match="no sharding rule for b/kernel"):
        tree_shardings(make_mesh(1, 8), tree, rules[:1])


@pytest.mark.parametrize("devices", [8, 64])
@pytest.mark.parametrize("size", ["large", "xlsr_1b"])
def test_fsdp_shares_the_state_of_large_models(size, devices):
    """By shapes alone: what a device holds is within 5 % of an equal share."""
    backbone, head = published(size)
    model = PretrainModel(dataclasses.replace(backbone, upsample_factors=(2, 3, 4)), head)
    optimizer = optim.adam(lambda _: 1e-3, eps=1e-6, weight_decay=0.01, clip_norm=1.0)
    state = jax.eval_shape(lambda key: new_state(model.initialize(key), optimizer), jax.random.key(0))
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert bytes_per_device(state, tree_shardings(abstract_mesh(1, devices), state)) <= 1.05 * whole / devices


@pytest.mark.parametrize("sizes", [(8, 1), (2, 4)])
def test_a_batch_is_split_over_all_devices(sizes):
    batch = {"wave": np.arange(16.0).reshape(16, 1)}
    placed = place_batch(batch, batch_sharding(make_mesh(*sizes)))
    assert {shard.data.shape for shard in placed["wave"].addressable_shards} == {(2, 1)}
    np.testing.assert_array_equal(placed["wave"], batch["wave"])
