"""What libtpu's compiler says of an update's programs on a slice of TPUs, on a machine that has none."""

import contextlib
import dataclasses
import importlib.util
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sew_jax.compression import Draw
from sew_jax.machines import Slice
from sew_jax.models.config import BackboneConfig, PretrainHeadConfig, Remat
from sew_jax.models.platforms import compiled_for
from sew_jax.runtime.sharding import batch_sharding, bytes_per_device, make_mesh, tree_shardings
from sew_jax.training.pretraining import contrastive
from sew_jax.training.step import Gradients, OfRun, make_gradients, new_state

# libtpu looks for no TPU, asks no metadata server, and minds no other process that has loaded it
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


class Way(NamedTuple):
    """How an update is divided."""

    fsdp: int
    remat: Remat
    accumulate: int


class Compiled(NamedTuple):
    """What the compiler says of a program of gradients, of one device.

    Attributes:
      needs: bytes of the state, gradients and work space; None where it refused the program for want of memory.
      work: bytes of work space alone.
      flop: of a loop one round alone is counted, as of micro-batches and heads of attention.
      accessed: bytes.
      collectives: how often each stands in the program.
      cpu_seconds: of this machine's processors, to compile it.
    """

    needs: int | None
    work: int
    flop: float
    accessed: float
    collectives: dict[str, int]
    cpu_seconds: float


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Programs for other machines cannot be read from the cache of earlier runs, which warns of it."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def can_compile(where: Slice) -> bool:
    """Whether there is a compiler for a slice."""
    return bool(where.topology) and importlib.util.find_spec("libtpu") is not None


def slice_mesh(where: Slice, fsdp: int) -> Mesh:
    """The devices of a slice, none of which need be there."""
    with mock.patch.dict(os.environ, _ALONE):
        return make_mesh(-1, fsdp, topologies.get_topology_desc(where.topology, platform="tpu").devices)


def compile_gradients(
    pretrain: ConfigDict,
    backbone: BackboneConfig,
    where: Slice,
    way: Way,
    draw: Draw,
    rows: int,
    samples: int,
) -> Compiled:
    """Compiles the gradients of an update of pre-training.

    Args:
      pretrain: the config of that mode.
      rows: utterances of an update on each device.
      samples: of each.
    """
    mesh = slice_mesh(where, way.fsdp)
    backbone = dataclasses.replace(backbone, remat=way.remat, loop_layers=way.accumulate == 1)
    learning = contrastive(pretrain, backbone, PretrainHeadConfig(**pretrain.head))
    shapes = jax.eval_shape(
        lambda key: new_state(learning.model.initialize(key), learning.optimizer), jax.random.key(0)
    )
    shardings, everywhere = tree_shardings(mesh, shapes), NamedSharding(mesh, PartitionSpec())

    def of(dtype, *dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows * where.devices, *dims), dtype, sharding=batch_sharding(mesh))

    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    batch = {"wave": of(jnp.int16, samples), "length": of(jnp.int32), "crop": of(jnp.int32)}
    of_run = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(lambda: OfRun(jax.random.key(0), jnp.array(1))),
    )
    sums = Gradients(shardings.params, everywhere, everywhere, shardings.batch_stats)
    jitted = jax.jit(
        make_gradients(learning.micro_loss, way.accumulate), static_argnames="compression", out_shardings=sums
    )
    with compiled_for("tpu"):
        lowered, begin = jitted.lower(state, batch, of_run, compression=draw), time.process_time()
    try:
        with _no_cache():
            program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(None, 0, 0.0, 0.0, {}, time.process_time() - begin)
    seconds, memory, cost = time.process_time() - begin, program.memory_analysis(), program.cost_analysis() or {}
    # moments lie there, too, though no gradient asks for them
    held = bytes_per_device(shapes, shardings) + memory.output_size_in_bytes
    return Compiled(
        needs=held + memory.temp_size_in_bytes,
        work=memory.temp_size_in_bytes,
        flop=cost.get("flops", 0.0),
        accessed=cost.get("bytes accessed", 0.0),
        collectives=dict(Counter(_COLLECTIVE.findall(program.as_text()))),
        cpu_seconds=seconds,
    )
