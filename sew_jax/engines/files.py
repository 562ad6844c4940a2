"""A model's ONNX files: a graph for each setting, and the weights that they share."""

from collections.abc import Sequence
from pathlib import Path

import jax
import onnx

from sew_jax.compression import Compression
from sew_jax.engines.graph import Weights
from sew_jax.engines.network import build
from sew_jax.files import write_whole
from sew_jax.models.ctc import CTCModel

WEIGHTS_FILE = "weights.bin"


def write_graphs(
    folder: Path, model: CTCModel, params, settings: Sequence[Compression], kind: str, about: dict[str, str]
) -> dict[Compression, Path]:
    """Writes SETTING.onnx for each setting, and `WEIGHTS_FILE`; returns where each setting is.

    Args:
      kind: of the weights: float32, float16 or int8 (see `Weights`).
      about: properties of each file.

    Raises:
      UserError: a setting does not fit the model's layers.
    """
    weights, on_host = Weights(kind), jax.device_get(params)
    paths = {}
    for setting in settings:
        graph = build(
            model.backbone, on_host, setting, weights, WEIGHTS_FILE, {"setting": str(setting), "weights": kind} | about
        )
        paths[setting] = folder / f"{setting}.onnx"
        write_whole(paths[setting], onnx.ModelProto.SerializeToString(graph))
    weights.save(folder / WEIGHTS_FILE)
    return paths
