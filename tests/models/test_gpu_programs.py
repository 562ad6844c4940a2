"""Programs that XLA's compiler for NVIDIA GPUs makes on a machine without one; skipped without JAX's CUDA plugin."""

import dataclasses
import importlib.util
import os
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from sew_jax.models.platforms import compiled_for
from sew_jax.runtime.sharding import batch_sharding, make_mesh, tree_shardings
from tests.models.build import shapes, small
from tests.models.test_partitioning import FRAMES, ROWS, SAMPLES, sizes

PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
# what XLA asks of an H100 (SXM), in its protocol buffer `GpuTargetConfig`
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: 3350000000000 l2_cache_size: 52428800 device_memory_size: 80000000000
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def found(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even a package of plugins
        return False


pytestmark = pytest.mark.skipif(not any(map(found, PLUGINS)), reason="needs JAX's CUDA plugin")


def compiled_text(dtype, devices):
    """Of the gradient of a sum of outputs, noise included."""
    config = small("group", layers=2, dropout=0.1, attention_dropout=0.1, feature_grad_scale=1.0)
    config = dataclasses.replace(config, heads=2, dtype=dtype)
    with mock.patch.dict(os.environ, {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}):
        chips = topologies.get_topology_desc(platform="cuda", topology=f"1x1x{devices}", target_config=H100).devices
    mesh = make_mesh(devices, 1, chips)

    def loss(params, wave, length, row):
        hidden = Backbone(config).apply(
            {"params": params},
            wave,
            length,
            Compression(1, 1, 1),
            deterministic=False,
            row_B=row,
            rngs={"dropout": jax.random.key(1), "layerdrop": jax.random.key(2)},
        )
        return jnp.square(hidden.context_BxTxD.astype(jnp.float32)).sum()

    params = shapes(config)
    placed = tree_shardings(mesh, params)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, placed)
    batch = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
        for shape, dtype in (((ROWS, SAMPLES), jnp.int16), ((ROWS,), jnp.int32), ((ROWS,), jnp.int32))
    ]
    # Pallas asks what the device is
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), compiled_for("cuda"):
        return jax.jit(jax.grad(loss), out_shardings=placed).lower(like, *batch).compile().as_text()


@pytest.mark.parametrize("devices", [1, 8])
def test_scores_and_other_devices_utterances_lie_nowhere(devices):
    text = compiled_text("bfloat16", devices)
    for kernel in ("forward_kernel", "to_keys_kernel", "to_queries_kernel"):
        assert text.count(f'name = "{kernel}"') == 2, kernel
    arrays = sizes(text)
    assert any(ROWS // devices in axes for axes in arrays)
    assert devices == 1 or not [axes for axes in arrays if ROWS in axes]
    assert not [axes for axes in arrays if axes.count(FRAMES) == 2]


def test_float32_takes_heads_one_after_the_other():
    text = compiled_text("float32", 1)
    assert "forward_kernel" not in text
    assert max(len(axes) for axes in sizes(text) if axes.count(FRAMES) == 2) == 3
