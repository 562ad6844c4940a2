"""What devices say to each other in an update, read off programs compiled for a slice; skipped without libtpu."""

import math
import os
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from sew_jax.compression import Compression, Draw
from sew_jax.models.config import BackboneConfig
from sew_jax.models.encoder import Encoder
from sew_jax.models.platforms import compiled_for
from sew_jax.runtime.sharding import batch_sharding, make_mesh
from sew_jax.training.losses import Term
from sew_jax.training.step import OfRun, TrainState, make_gradients

pytest.importorskip("libtpu")

CONFIG = BackboneConfig(
    width=64,
    layers=2,
    loop_layers=False,  # as training has it for several micro-batches
    heads=1,
    ffn_width=256,
    pos_kernel=3,
    pos_groups=1,
    dropout=0.0,
    attention_dropout=0.0,
    layerdrop=0.05,
    dtype="bfloat16",
)
ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
ALL_REDUCE = re.compile(r"= (.*) all-reduce(?:-start)?\(")


@pytest.fixture
def no_cache():
    """Programs for other machines cannot be read from the cache of earlier runs, which warns of it."""
    before = jax.config.jax_compilation_cache_dir
    for folder in (None, before):
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
        if folder is None:
            yield


def micro_loss(params, batch_stats, batch, key, progress, draw):
    """Of the encoder alone, which compiles in seconds."""
    rngs = {"dropout": key, "layerdrop": key}
    out = Encoder(CONFIG).apply(
        {"params": params}, batch["x"], batch["length"], draw.setting, False, batch["crop"], rngs=rngs
    )
    loss = Term(jnp.square(out.astype(jnp.float32)).sum(), jnp.array(1.0))
    return loss, ({"loss": loss}, batch_stats)


def compiled_text(accumulate):
    """Of the gradients of `accumulate` micro-batches on v5e:2x2, four ways data-parallel."""
    with mock.patch.dict(os.environ, ALONE | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}):
        mesh = make_mesh(-1, 1, topologies.get_topology_desc("v5e:2x2", platform="tpu").devices)
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), 4 * accumulate

    def of(sharding, dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    batch = {
        "x": of(batch_sharding(mesh), jnp.bfloat16, rows, 16, CONFIG.width),
        "length": of(batch_sharding(mesh), jnp.int32, rows),
        "crop": of(batch_sharding(mesh), jnp.int32, rows),
    }
    arguments = jnp.zeros((1, 16, CONFIG.width)), jnp.array([16]), Compression(), True
    params = jax.eval_shape(lambda key: Encoder(CONFIG).init(key, *arguments)["params"], jax.random.key(0))
    of_run = jax.eval_shape(lambda: OfRun(jax.random.key(0), jnp.array(10)))
    params, of_run = jax.tree.map(lambda x: of(everywhere, x.dtype, *x.shape), (params, of_run))
    state = TrainState(of(everywhere, jnp.int32), params, (), {})
    jitted = jax.jit(make_gradients(micro_loss, accumulate), static_argnums=3, out_shardings=everywhere)
    with compiled_for("tpu"):
        return params, jitted.lower(state, batch, of_run, Draw(Compression())).compile().as_text()


def summed(text):
    """Elements of float arrays that an all-reduce of a text takes."""
    shapes = [shape for line in text.splitlines() if (found := ALL_REDUCE.search(line)) for shape in _shapes(found[1])]
    return sum(math.prod(shape) for shape in shapes)


def _shapes(types):
    return [
        [int(size) for size in shape.split(",") if size] for shape in re.findall(r"(?:f32|bf16)\[([\d,]*)\]", types)
    ]


def test_gradients_are_summed_over_the_devices_once_an_update(no_cache):
    """After the last micro-batch; but for the positional convolution's kernel, which weight norm takes as summed."""
    params, text = compiled_text(accumulate=2)
    assert " conditional(" not in text  # layer-drop's would hold the sums of a layer inside the loop
    loops, entry = text.split("ENTRY ")
    assert " while(" in entry
    sizes = {name: sum(np.size(x) for x in jax.tree.leaves(part)) for name, part in params.items()}
    assert summed(loops) <= 1.1 * sizes["pos_conv"]
    assert summed(entry) >= sum(sizes.values()) - sizes["pos_conv"]
