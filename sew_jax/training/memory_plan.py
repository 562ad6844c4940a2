"""What a model needs of each device's memory, from shapes alone: no weights are made and no device is asked."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sew_jax.checks.check import check_config
from sew_jax.compression import Compression, Draw, settings_table
from sew_jax.console import say
from sew_jax.machines import slice_named
from sew_jax.models.config import REMAT, BackboneConfig, PretrainHeadConfig, Remat
from sew_jax.models.platforms import compiled_for
from sew_jax.rates import SAMPLE_RATE
from sew_jax.runtime.sharding import abstract_mesh, bytes_per_device, tree_shardings
from sew_jax.training.compiled_plan import can_compile
from sew_jax.training.compiled_way import Estimates, at_once, compiled_way
from sew_jax.training.pretraining import contrastive
from sew_jax.training.step import new_state
from sew_jax.training.task import fields_of_table

_GIB = 2**30
# XLA's work space is up to so many times what is kept for the backward pass: base and large on v5e (docs/scaling.md)
_ROOM = 1.4


def plan_memory(config: ConfigDict, workdir: Path | None = None) -> None:
    """Says what each way to divide a model needs, and the flags of the first that fits.

    Args:
      config: `pretrain` is the config of that mode; `machine`, where it names a slice, else `devices` and `memory_gib`
        describe the machine.
      workdir: of all modes; nothing is written.

    Raises:
      UserError: the sizes make no sense, or the model cannot compute a setting of the table.
    """
    check_config(config)
    jax.config.update("jax_platforms", "cpu")  # asks no device, and no other process
    where, pretrain = slice_named(config.machine), config.pretrain
    devices = where.devices if where else config.devices
    memory = (where.machine.memory_gib or 0) if where else config.memory_gib
    crop = round(pretrain.input.crop_seconds * SAMPLE_RATE)
    rows = max(round(pretrain.input.batch_seconds / pretrain.input.crop_seconds / devices), 1)
    table = settings_table(**pretrain.compression)
    backbone = BackboneConfig(**pretrain.model, **fields_of_table(table), dtype=pretrain.dtype)
    for setting in table:
        backbone.check_setting(setting)
    head = PretrainHeadConfig(**pretrain.head)
    learning = contrastive(pretrain, backbone, head)
    state = jax.eval_shape(lambda key: new_state(learning.model.initialize(key), learning.optimizer), jax.random.key(0))
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    say(f"{parameters / 1e6:.1f} M parameters; {devices} devices of {memory:g} GiB")
    say(f"an update is {rows} utterances of {pretrain.input.crop_seconds:g} s a device, {pretrain.dtype}, at s1q1k1\n")

    with compiled_for("tpu" if where and where.topology else "cuda"):
        needs = _needs(pretrain, backbone, head, crop)
    for remat, (kept, again) in needs.items():
        recomputed = f" and {again / _GIB:5.2f} GiB while it computes again" if again else ""
        say(f"  remat={remat:6} keeps {kept / _GIB:6.2f} GiB an utterance for the backward pass{recomputed}")
    say("  (an estimate, with room for XLA; what it needs is printed before training)\n")

    say("  fsdp  state GiB  gradients GiB  utterances at once:" + "".join(f"{f'remat={r}':>14}" for r in REMAT))
    held = {}
    for fsdp in (n for n in range(1, devices + 1) if devices % n == 0):
        mesh = abstract_mesh(devices // fsdp, fsdp)
        of_state = bytes_per_device(state, tree_shardings(mesh, state))
        gradients = bytes_per_device(state.params, tree_shardings(mesh, state.params))
        held[fsdp] = of_state + gradients
        counts = "".join(f"{at_once(memory * _GIB - held[fsdp], need):14}" for need in needs.values())
        say(f"  {fsdp:4}  {of_state / _GIB:9.2f}  {gradients / _GIB:13.2f}  {'':19}{counts}")
    estimates = Estimates(memory * _GIB, rows, held, needs)
    if where and config.programs != "none" and can_compile(where):
        way = compiled_way(config, backbone, where, estimates, crop)
    else:
        way = estimates.best(1.0)
    if way is None:
        say("\nnothing fits: take more devices, or of more memory")
        return
    say(f"\n--config.mesh.fsdp={way.fsdp} --config.remat={way.remat} --config.accumulate={way.accumulate}")


def _needs(
    pretrain: ConfigDict, backbone: BackboneConfig, head: PretrainHeadConfig, samples: int
) -> dict[Remat, tuple[int, int]]:
    """For each remat the bytes an utterance takes for its backward pass, and those of the largest part computed again.

    Each layer keeps the same, so that one and two layers tell of any number.
    """
    layer: dict[Remat, int] = {}
    rest: dict[Remat, int] = {}
    for remat in REMAT:
        one, two = (
            _bytes_kept(dataclasses.replace(backbone, remat=remat, layers=layers), head, pretrain, samples)
            for layers in (1, 2)
        )
        layer[remat], rest[remat] = two - one, 2 * one - two
    again: dict[Remat, int] = {
        "none": 0,
        "dots": layer["none"] - layer["dots"],
        "layers": max(layer["none"] - layer["layers"], rest["none"] - rest["layers"]),
    }
    kept = {remat: rest[remat] + backbone.layers * layer[remat] for remat in REMAT}
    return {remat: (round(_ROOM * kept[remat]), round(_ROOM * again[remat])) for remat in REMAT}


def _bytes_kept(backbone: BackboneConfig, head: PretrainHeadConfig, pretrain: ConfigDict, samples: int) -> int:
    """Bytes that the forward pass of one more utterance leaves for the backward pass."""
    learning = contrastive(pretrain, backbone, head)
    variables = jax.eval_shape(learning.model.initialize, jax.random.key(0))

    def total(rows: int) -> int:
        def forward(variables, batch, key):
            def scalar(params):
                term, _ = learning.micro_loss(
                    params, variables.get("batch_stats", {}), batch, key, 0.0, Draw(Compression())
                )
                return term.sum

            return jax.vjp(scalar, variables["params"])[1]

        batch = {
            "wave": jax.ShapeDtypeStruct((rows, samples), jnp.int16),
            "length": jax.ShapeDtypeStruct((rows,), jnp.int32),
            "crop": jax.ShapeDtypeStruct((rows,), jnp.int32),
        }
        residuals = jax.eval_shape(forward, variables, batch, jax.random.key(0))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))

    return total(2) - total(1)  # so that weights and what is made of them drop out
