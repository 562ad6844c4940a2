"""By hand: how far exported StableHLO programs are from the model, for each released family, front end and setting.

  python -m tests.stablehlo_exact [NAME/SETTING ...]

Prints the largest difference of a log-probability, of utterances alone, padded and batched, on this platform.
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from sew_jax.compression import Compression
from sew_jax.decoding.recognizer import Recognizer, log_probs
from sew_jax.export.stablehlo import write_programs
from sew_jax.models.parameters import path_name
from sew_jax.runtime.sharding import make_mesh
from tests.engines.test_network import LENGTHS, released_model, small_model

FAMILIES = ["wav2vec2", "hubert", "xlsr", "mms", "sew", "sew_d", "wavlm", "unispeech", "data2vec"]
FRONT_ENDS = ["logmel", "fbank50", "fbank25", "scf", "compact"]
SETTINGS = ["s1q1k1", "s3q2k1", "s4q2k2", "s2q1k1m0.2", "r0.4q1k1"]


def difference(name: str, text: str) -> float:
    """The largest one."""
    model, params = released_model(f"{name}_ctc") if name in FAMILIES else small_model(name)
    setting, mesh = Compression.parse(text), make_mesh(1, 1, jax.devices()[:1])
    wave_BxN = np.random.default_rng(0).integers(-3000, 3000, (len(LENGTHS), LENGTHS.max()), np.int16)
    length_B = LENGTHS.astype(np.int32)
    batch = {"wave": wave_BxN, "length": length_B}
    wanted, frames_B = jax.device_get(jax.jit(log_probs, static_argnums=(0, 3))(model, params, batch, setting))
    weights = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    with tempfile.TemporaryDirectory() as folder:
        recognizer = Recognizer(name, "", model, params, None, [setting], mesh)
        (program,) = write_programs(Path(folder), recognizer, [setting])
        call = jax.jit(jax.export.deserialize(bytearray((Path(folder) / program.file).read_bytes())).call)

    def furthest(rows: list[int], samples: int) -> float:
        padded = np.full((len(rows), samples), 9999, np.int16)
        for place, row in enumerate(rows):
            padded[place, : length_B[row]] = wave_BxN[row, : length_B[row]]
        found, counts = jax.device_get(call(weights, padded, length_B[rows]))
        assert counts.tolist() == frames_B[rows].tolist()
        return max(
            np.abs(log_prob_TxV[:count] - wanted[row, :count]).max(initial=0)
            for row, log_prob_TxV, count in zip(rows, found, counts, strict=True)
        )

    alone = [furthest([row], program.padded(int(length_B[row]))) for row in (0, 1)]
    together = furthest(list(range(len(length_B))), program.padded(int(length_B.max())) + 3 * program.step)
    return float(max(*alone, together))


def main(chosen: list[str]) -> int:
    """1 where one is further away than 1e-4."""
    worst = 0.0
    for case in chosen or [f"{name}/{text}" for name in (*FAMILIES, *FRONT_ENDS) for text in SETTINGS]:
        found = difference(*case.split("/"))
        worst = max(worst, found)
        print(f"{case}: {found:.1e}", flush=True)
    print(f"largest: {worst:.1e}")
    return int(not worst <= 1e-4)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
