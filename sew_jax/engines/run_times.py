"""What computes a model, in which precision: JAX, or on a CPU ONNX Runtime and OpenVINO, which read ONNX files."""

import contextlib
import importlib.util
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sew_jax.errors import UserError

# int8: the products of attention and feed-forward in 8 bits, all else in float32; by JAX, in bfloat16
PRECISIONS = {
    "jax": ("float32", "bfloat16", "int8"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
}
LAYERS = "layer_"  # names of the weights of transformer layers begin so
_ROUNDED_TOGETHER = 128  # inputs of a product that share a scale, as OpenVINO rounds them to 8 bits while it computes
RUNTIMES, ALL_PRECISIONS = tuple(PRECISIONS), ("float32", "bfloat16", "int8")


class Engine(NamedTuple):
    """A run time and its precision."""

    runtime: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.runtime} {self.dtype}"

    @property
    def weights(self) -> str:
        """The kind of the weights in its ONNX files; for OpenVINO NNCF rounds them as they are read."""
        return "int8" if self == ("onnxruntime", "int8") else "float32"


class Session(Protocol):
    """A model at one setting that is ready to run; several threads may use it."""

    def __call__(self, wave_BxN: np.ndarray, length_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 and int64 in; log-probabilities (B, T, V) float32 and frames (B,) int64 out."""


def missing_packages(runtime: str, dtype: str = "") -> list[str]:
    """What is not installed of what a run time needs, in a precision where one is named."""
    needed = {"jax": [], "onnxruntime": ["onnx", "onnxruntime"], "openvino": ["onnx", "openvino"]}[runtime]
    needed = [*needed, "nncf"] if (runtime, dtype) == ("openvino", "int8") else needed
    return [name for name in needed if not importlib.util.find_spec(name)]


def need_runtime(runtime: str, key: str, dtype: str = "") -> None:
    """Refuses a run time that is not installed.

    Args:
      key: that names it.
      dtype: of the computation; empty: any.

    Raises:
      UserError: what to install.
    """
    if missing := missing_packages(runtime, dtype):
        name = f"{runtime} {dtype}" if missing == ["nncf"] else runtime
        raise UserError(f"{key}: {name} needs what is not installed; pip install {' '.join(missing)}")


def has_bfloat16(runtime: str) -> bool:
    """Whether a run time computes in bfloat16 on this machine; OpenVINO would silently compute in float32."""
    return runtime != "openvino" or "BF16" in _openvino().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def open_session(path: Path, engine: Engine, threads: int | None = None) -> Session:
    """Reads an ONNX file of `network.build`; it may be deleted then.

    Args:
      threads: None: as many as this process has cores.
    """
    if not threads:  # Linux alone knows which cores are this process's
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return (_OnnxRuntime if engine.runtime == "onnxruntime" else _OpenVINO)(path, engine, threads)


class _OnnxRuntime:
    def __init__(self, path: Path, engine: Engine, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, wave_BxN: np.ndarray, length_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_prob_BxTxV, frames_B = self._session.run(None, {"wave": wave_BxN, "length": length_B})
        return log_prob_BxTxV, frames_B


class _OpenVINO:
    def __init__(self, path: Path, engine: Engine, threads: int):
        hint = "bf16" if engine.dtype == "bfloat16" else "f32"
        options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        core = _openvino()
        model = core.read_model(str(path))
        if engine.dtype == "int8":
            model = _rounded(model)
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _ROUNDED_TOGETHER
        self._request = core.compile_model(model, "CPU", options).create_infer_request()
        self._lock = threading.Lock()  # a request has one place for its results

    def __call__(self, wave_BxN: np.ndarray, length_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            results = self._request.infer([wave_BxN, length_B])
            log_prob_BxTxV, frames_B = (np.array(results[i]) for i in range(2))
        return log_prob_BxTxV, frames_B


def _rounded(model: Any) -> Any:
    """The model with weights of 8 bits in the products of its layers, a scale for each output channel."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    kinds = "MatMul", "Convolution", "GroupConvolution"
    products = [op for op in model.get_ordered_ops() if op.get_type_name() in kinds]
    others = [op for op in products if not op.input_value(1).get_node().get_friendly_name().startswith(LAYERS)]
    kept = nncf.IgnoredScope(names=[op.get_friendly_name() for op in others], validate=False)
    with contextlib.redirect_stdout(sys.stderr):  # its progress
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=kept)


def _openvino() -> Any:
    import openvino

    return openvino.Core()
