"""What the compiler of TPUs makes of the model's parts, without a TPU; skipped where libtpu is not installed."""

import dataclasses
import os
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from sew_jax.models import frontend, strided_conv
from sew_jax.models.attention import attend_to_valid
from sew_jax.models.frontend import Frontend
from sew_jax.models.platforms import compiled_for
from sew_jax.models.positions import PositionalConv
from sew_jax.models.sizes import published
from sew_jax.runtime.sharding import batch_sharding, make_mesh
from tests.models.build import small
from tests.models.test_partitioning import FRAMES, ROWS, sizes, sizes_of_scores

pytest.importorskip("libtpu")

ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
CONV = PositionalConv(small("logmel"))


def attended_and_convolved(x_BxTxD, conv, length_B, seed_BxHx2):
    """As in a training step: with dropout, and its gradients."""

    def loss(x_BxTxD, conv):
        head_BxTxHxE = CONV.apply(conv, x_BxTxD, 1).reshape(*x_BxTxD.shape[:2], 3, 8)
        out = attend_to_valid(head_BxTxHxE, head_BxTxHxE, head_BxTxHxE, length_B, seed_BxHx2, rate=0.1)
        return jnp.square(out.astype(jnp.float32)).sum()

    return jax.grad(loss, argnums=(0, 1))(x_BxTxD, conv)


def topology():
    with mock.patch.dict(os.environ, ALONE | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}):
        return topologies.get_topology_desc("v5e:2x2", platform="tpu").devices


def bytes_of_extractor():
    """That a chip moves for the gradients of the extractor; of shorter search for tiles than for runs."""
    one = SingleDeviceSharding(topology()[0])
    extractor = Frontend(dataclasses.replace(published("base")[0], conv_width=128, dtype="bfloat16"))
    batch = jax.ShapeDtypeStruct((2, 32_000), jnp.int16), jax.ShapeDtypeStruct((2,), jnp.int32)
    params = jax.eval_shape(extractor.init, jax.random.key(0), *batch)

    def loss(params, *batch):
        return jnp.square(extractor.apply(params, *batch)[0].astype(jnp.float32)).sum()

    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), (params, *batch))
    options = {"exec_time_optimization_effort": -1.0}
    with compiled_for("tpu"):
        return jax.jit(jax.grad(loss)).lower(*arguments).compile(options).cost_analysis()["bytes accessed"]


def test_the_extractor_moves_much_less_than_xlas_convolutions_would(monkeypatch):
    """Of wav2vec 2.0's first layers, the largest, at a quarter of their width."""
    monkeypatch.setattr(frontend, "conv_stack", lambda _: [(128, 10, 5), (128, 3, 2), (128, 3, 2)])
    ours = bytes_of_extractor()
    monkeypatch.setattr(strided_conv, "strided_conv", strided_conv._convolve)
    monkeypatch.setattr(strided_conv, "_convolve_wave", strided_conv._convolve)
    assert ours < 0.75 * bytes_of_extractor()


def test_each_chip_holds_its_rows_and_the_scores_of_a_head():
    mesh = make_mesh(2, 2, topology())
    rows, everywhere = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def of(sharding, dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    x = of(rows, jnp.bfloat16, ROWS, FRAMES, 24)
    conv = jax.eval_shape(lambda: CONV.init(jax.random.key(0), jnp.zeros((1, FRAMES, 24)), 1))
    conv = jax.tree.map(lambda p: of(everywhere, p.dtype, *p.shape), conv)
    arguments = x, conv, of(rows, jnp.int32, ROWS), of(rows, jnp.uint32, ROWS, 3, 2)
    with compiled_for("tpu"):
        text = jax.jit(attended_and_convolved).lower(*arguments).compile().as_text()
    assert not [axes for axes in sizes(text) if ROWS in axes]
    assert max(sizes_of_scores(text)) == ROWS // 4 * FRAMES**2
