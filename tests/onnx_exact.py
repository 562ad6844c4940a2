"""By hand: how far ONNX Runtime and OpenVINO are from the model, for each released family, front end and setting.

  python -m tests.onnx_exact [onnxruntime|openvino]

Prints the largest difference of a log-probability, and of float16 and int8 weights and bfloat16 that of ours, too.
OpenVINO's int8 needs nncf.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from sew_jax.compression import Compression
from sew_jax.engines.files import write_graphs
from sew_jax.engines.run_times import Engine, open_session
from tests.engines.test_network import LENGTHS, expected, released_model, small_model, waves

SETTINGS = ["s1q1k1", "s2q1k1", "s3q2k1", "s4q2k2"]
MODELS = {name: (released_model, (name,), {}) for name in ("wav2vec2_ctc", "hubert_ctc", "xlsr_ctc", "sew_ctc")}
MODELS |= {
    "log-mel": (small_model, ("logmel",), {}),
    "log-mel, one scale, pooled layers": (small_model, ("logmel",), {"mel_scale": "utterance", "pool_ffn": True}),
    "log-mel, SEW-D's norms": (small_model, ("logmel",), {"input_norm": False, "norm_epsilon": 1e-7}),
    "compact": (small_model, ("compact",), {}),
}
KINDS = {  # of weights and computation
    "onnxruntime": [("float32", "float32"), ("float16", "float32"), ("int8", "int8")],
    "openvino": [("float32", "float32"), ("float32", "bfloat16"), ("float32", "int8")],
}


def main(runtime: str) -> int:
    """1 where float32 is further away than 1e-4."""
    worst = 0.0
    for name, (make, arguments, options) in MODELS.items():
        model, params = make(*arguments, **options)
        for setting in map(Compression.parse, SETTINGS):
            wanted, frames_B = expected(model, params, setting)
            differences = []
            for kind, dtype in KINDS[runtime]:
                with tempfile.TemporaryDirectory() as folder:
                    path = write_graphs(Path(folder), model, params, [setting], kind, {})[setting]
                    session = open_session(path, Engine(runtime, dtype))
                together, counts_B = session(waves()[0], LENGTHS)
                assert counts_B.tolist() == frames_B.tolist()
                difference = 0.0
                for i, n in enumerate(frames_B):
                    alone, _ = session(waves()[0][i : i + 1, : LENGTHS[i]], LENGTHS[i : i + 1])
                    for found in (together[i], alone[0]):
                        difference = max(difference, np.abs(found[:n] - wanted[i, :n]).max(initial=0))
                differences.append(difference)
            worst = max(worst, differences[0])
            shown = ", ".join(
                f"{kind if kind != 'float32' else dtype} {difference:.1e}"
                for (kind, dtype), difference in zip(KINDS[runtime], differences, strict=True)
            )
            print(f"{runtime}, {name}, {setting}: {shown}", flush=True)
    print(f"largest in float32: {worst:.1e}")
    return int(worst > 1e-4)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "onnxruntime"))
