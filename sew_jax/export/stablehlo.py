"""A fine-tuned model as StableHLO programs: one for each setting, of any batch size and length, for CPU, GPU and TPU.

B utterances, N samples (in steps of a few frames; shorter utterances are padded), T frames. The programs share their
weights, which they take as an argument and which lie in one file of numpy's.
"""

import io
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from sew_jax.compression import Compression
from sew_jax.console import format_duration, say
from sew_jax.decoding.recognizer import Recognizer, log_probs
from sew_jax.files import write_whole
from sew_jax.models.config import BackboneConfig
from sew_jax.models.frontend import frame_count
from sew_jax.models.parameters import path_name
from sew_jax.models.platforms import compiled_for
from sew_jax.rates import SAMPLE_RATE

PLATFORMS = ("cpu", "cuda", "tpu")
WEIGHTS_FILE = "weights.npz"
# Largest difference to the model, relative to its largest log-probability: the compiler may order sums in another way
_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


class Program(NamedTuple):
    """A written program, for waves of `offset` and any multiple of `step` samples."""

    file: str
    setting: Compression
    step: int
    offset: int

    def padded(self, samples: int) -> int:
        """The shortest length from so many samples on."""
        return self.offset + max(-(-(samples - self.offset) // self.step), 1) * self.step


def lengths(backbone: BackboneConfig, setting: Compression) -> tuple[int, int]:
    """(step, offset) of the lengths that leave nothing over: no sample, no frame of a squeeze or a pool.

    All sizes of a program are multiples of one unknown then, which is what JAX can tell about them.
    """
    pools = [factor for pools in setting.layer_pools(backbone.layers) for factor in pools]
    frames = math.lcm(*(setting.squeeze * factor for factor in pools))
    shortest = next(samples for samples in itertools.count() if frame_count(backbone, samples))
    return frames * backbone.frame_samples, shortest - backbone.frame_samples


def write_programs(folder: Path, recognizer: Recognizer, settings: Sequence[Compression]) -> list[Program]:
    """Writes SETTING.stablehlo for each setting, and the weights.

    Each is read back, run and compared with the model before it is written.

    Raises:
      UserError: the model cannot compute a setting.
      RuntimeError: a program computes something else.
    """
    for setting in settings:
        recognizer.model.backbone.check_setting(setting)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(recognizer.params)}
    names, structure = list(weights), jax.tree.structure(recognizer.params)
    programs = []
    for setting in settings:

        def compute(weights: dict[str, jax.Array], wave_BxN, length_B, setting=setting):
            params = jax.tree.unflatten(structure, [weights[name] for name in names])
            return log_probs(recognizer.model, params, {"wave": wave_BxN, "length": length_B}, setting)

        begin = time.monotonic()
        program = Program(f"{setting}.stablehlo", setting, *lengths(recognizer.model.backbone, setting))
        data = _serialized(compute, weights, program)
        difference = _compare(data, compute, weights, program.padded(SAMPLE_RATE), recognizer.model.backbone)
        write_whole(folder / program.file, data)
        programs.append(program)
        took = format_duration(time.monotonic() - begin)
        say(
            f"  {len(programs)}/{len(settings)} {program.file}: {len(data) / 2**20:.1f} MiB, "
            f"within {difference:.1e} of the model, {took}"
        )
    archive = io.BytesIO()
    np.savez(archive, **jax.device_get(weights))
    write_whole(folder / WEIGHTS_FILE, archive.getvalue())
    return programs


def _serialized(compute, weights: dict[str, Any], program: Program) -> bytes:
    sizes = f"b, {program.step}*n + {program.offset}"
    batch, samples = export.symbolic_shape(sizes, constraints=["b >= 1", "n >= 1"])
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    wave, length = jax.ShapeDtypeStruct((batch, samples), jnp.int16), jax.ShapeDtypeStruct((batch,), jnp.int32)
    with compiled_for(None):
        return bytes(export.export(jax.jit(compute), platforms=PLATFORMS)(shapes, wave, length).serialize())


def _compare(data: bytes, compute, weights: dict[str, Any], samples: int, backbone: BackboneConfig) -> float:
    """Largest difference between a program and the model on noise, one utterance whole and one half as long."""
    wave_BxN = np.random.default_rng(0).integers(-3000, 3000, (2, samples), np.int16)
    length_B = np.array([samples, samples // 2], np.int32)
    exported, frames_B = jax.device_get(jax.jit(export.deserialize(bytearray(data)).call)(weights, wave_BxN, length_B))
    expected, expected_B = jax.device_get(jax.jit(compute)(weights, wave_BxN, length_B))
    difference = float(np.abs(exported - expected).max() / np.abs(expected).max())
    if not difference <= _TOLERANCE[backbone.dtype] or not np.array_equal(frames_B, expected_B):
        raise RuntimeError(f"an exported program differs from the model by {difference:.1e}, so it is not written")
    return difference
