"""This project's side of the contests, for child processes: inference and updates in JAX, with random weights."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sew_jax.benchmarks.contest import Bench
from sew_jax.benchmarks.memory import RESIDENT, UNKNOWN
from sew_jax.compression import Compression, Draw, uniform_draws
from sew_jax.console import say
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.int8 import operands
from sew_jax.models.platforms import compiled_for_own_devices
from sew_jax.runtime.programs import compile_one
from sew_jax.training.pretraining import contrastive
from sew_jax.training.step import OfRun, make_gradients, make_update, new_state

_SECONDS_A_SIZE = 1.0  # of measuring the peak


def inference(
    backbone: BackboneConfig, table: Sequence[Compression], batch: int, samples: int, peak_gflops: float | None
) -> Bench:
    """Waveforms (batch, samples) to logits, once for each setting; `peak_gflops` where it has been measured before."""
    _configure()
    model = CTCModel(backbone, CTCHeadConfig())
    plain = CTCModel(dataclasses.replace(backbone, int8=False), CTCHeadConfig())
    params = operands(jax.jit(plain.initialize)(jax.random.key(0))["params"], backbone)

    def logits(params, wave, length, compression):
        return model.apply({"params": params}, wave, length, compression, deterministic=True)

    wave = jnp.asarray(np.random.default_rng(0).normal(size=(batch, samples)), jnp.float32)
    arguments = params, wave, jnp.full(batch, samples)
    programs, facts = _compile(jax.jit(logits, static_argnames="compression"), arguments, table)
    cases = {name: _bound(program, arguments) for name, program in programs.items()}
    return _bench(cases, facts, backbone.dtype, peak_gflops)


def training(
    backbone: BackboneConfig,
    head: PretrainHeadConfig,
    recipe: ConfigDict,
    table: Sequence[Compression],
    batch: int,
    samples: int,
    peak_gflops: float | None,
) -> Bench:
    """Updates of pre-training on waveforms (batch, samples), once for each setting; all go on with the same state.

    As training does, an update is two programs: gradients of the setting, and what all settings share. `peak_gflops`
    where it has been measured before.
    """
    _configure()
    learning = contrastive(recipe, backbone, head)
    state = jax.jit(lambda key: new_state(learning.model.initialize(key), learning.optimizer))(jax.random.key(0))
    wave = np.random.default_rng(0).normal(scale=3000, size=(batch, samples)).astype(np.int16)
    arrays = {"wave": jnp.asarray(wave), "length": jnp.full(batch, samples), "crop": jnp.arange(batch)}
    of_run, draws = OfRun(jax.random.key(recipe.seed), jnp.array(recipe.num_steps)), uniform_draws(table)
    arguments = state, arrays, of_run
    jitted = jax.jit(make_gradients(learning.micro_loss, accumulate=1), static_argnames="compression")
    programs, facts = _compile(jitted, arguments, draws)
    with compiled_for_own_devices():  # as it was traced for these
        sums = jitted.eval_shape(*arguments, compression=draws[0])
    shared = jax.jit(make_update(learning.optimizer, learning.schedule), donate_argnums=0)
    update, of_update = _compile_one(functools.partial(shared.lower, state, sums))
    facts = {name: _in_turn(of_gradients, of_update) for name, of_gradients in facts.items()}
    _, *others = arguments
    del arguments, sums  # the first update takes the state over

    def run(gradients) -> None:
        nonlocal state
        state, _ = jax.block_until_ready(update(state, gradients(state, *others)))

    cases = {name: _bound(run, (gradients,)) for name, gradients in programs.items()}
    return _bench(cases, facts, backbone.dtype, peak_gflops)


def _configure() -> None:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # read at the first use of a GPU, which others use, too
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is measured


def _compile(jitted, arguments: tuple, table: Sequence[Compression | Draw]) -> tuple[dict[str, Any], dict[str, Any]]:
    """For each setting's name its program, and what XLA says of it; at once but on CPUs, which have few cores."""
    programs, facts = {}, {}
    lowers = {s: functools.partial(jitted.lower, *arguments, compression=s) for s in table}
    with ThreadPoolExecutor(1 if jax.default_backend() == "cpu" else len(table)) as pool:
        for setting, (program, of_it) in zip(lowers, pool.map(_compile_one, lowers.values()), strict=True):
            programs[setting.name], facts[setting.name] = program, of_it
            say(f"    {setting}: compiled in {of_it['compile_seconds']:.1f} s")
    return programs, facts


def _compile_one(lower: Callable[[], jax.stages.Lowered]) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """A program, compiled as those of runs are, and what XLA says of it."""
    begin = time.perf_counter()
    with compiled_for_own_devices():
        program = compile_one(lower())
    seconds, memory = time.perf_counter() - begin, program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return program, {
        "compile_seconds": seconds,
        "xla_gflop": (program.cost_analysis() or {}).get("flops", 0.0) / 1e9,
        "xla_mb": (held + memory.temp_size_in_bytes) / 2**20,
    }


def _in_turn(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """The facts of two programs that run one after the other."""
    return {key: max(first[key], second[key]) if key == "xla_mb" else first[key] + second[key] for key in first}


def _bound(function: Callable, arguments: tuple) -> Callable[[], object]:
    return lambda: jax.block_until_ready(function(*arguments))


def _bench(
    cases: dict[str, Callable[[], object]], facts: dict[str, Any], dtype: str, peak_gflops: float | None
) -> Bench:
    device = jax.devices()[0]
    about = {"version": jax.__version__, "platform": device.platform, "device": device.device_kind}
    about["peak_gflops"] = peak_gflops or _peak_gflops(device.platform, dtype)
    return Bench(cases, facts, about, RESIDENT if device.platform == "cpu" else UNKNOWN, jax.profiler.trace)


def _peak_gflops(platform: str, dtype: str) -> float:
    """The best of some products of square matrices, GFLOP a second."""
    best = 0.0
    for size in (1024, 2048, 3072) if platform == "cpu" else (4096, 8192, 16_384):
        x = jnp.ones((size, size), dtype)
        product = jax.jit(jnp.matmul).lower(x, x).compile()
        product(x, x).block_until_ready()
        until = time.perf_counter() + _SECONDS_A_SIZE
        for _ in range(12):  # now and then a machine shows what it can do
            begin = time.perf_counter()
            product(x, x).block_until_ready()
            best = max(best, 2 * size**3 / 1e9 / (time.perf_counter() - begin))
            if time.perf_counter() > until:
                break
    return best
