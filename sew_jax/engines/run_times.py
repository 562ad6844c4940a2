"""What computes a model, in which precision: JAX, or on a CPU ONNX Runtime and OpenVINO, which read ONNX files."""

import importlib.util
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sew_jax.errors import UserError

# int8: the products of attention and feed-forward in 8 bits, all else in float32; by JAX, in bfloat16
PRECISIONS = {
    "jax": ("float32", "bfloat16", "int8"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16"),
}
RUNTIMES, ALL_PRECISIONS = tuple(PRECISIONS), ("float32", "bfloat16", "int8")


class Engine(NamedTuple):
    """A run time and its precision."""

    runtime: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.runtime} {self.dtype}"


class Session(Protocol):
    """A model at one setting that is ready to run; several threads may use it."""

    def __call__(self, wave_BxN: np.ndarray, length_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 and int64 in; log-probabilities (B, T, V) float32 and frames (B,) int64 out."""


def missing_packages(runtime: str) -> list[str]:
    """What is not installed of what a run time needs."""
    needed = {"jax": (), "onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}[runtime]
    return [name for name in needed if not importlib.util.find_spec(name)]


def need_runtime(runtime: str, key: str) -> None:
    """Refuses a run time that is not installed.

    Args:
      key: that names it.

    Raises:
      UserError: what to install.
    """
    if missing := missing_packages(runtime):
        raise UserError(f"{key}: {runtime} needs what is not installed; pip install {' '.join(missing)}")


def has_bfloat16(runtime: str) -> bool:
    """Whether a run time computes in bfloat16 on this machine; OpenVINO would silently compute in float32."""
    return runtime != "openvino" or "BF16" in _openvino().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def open_session(path: Path, engine: Engine, threads: int | None = None) -> Session:
    """Reads an ONNX file of `network.build`; it may be deleted then.

    Args:
      threads: None: as many as this process has cores.
    """
    threads = threads or len(os.sched_getaffinity(0))
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
        hint = {"float32": "f32", "bfloat16": "bf16"}[engine.dtype]
        options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        self._request = _openvino().compile_model(str(path), "CPU", options).create_infer_request()
        self._lock = threading.Lock()  # a request has one place for its results

    def __call__(self, wave_BxN: np.ndarray, length_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            results = self._request.infer([wave_BxN, length_B])
            log_prob_BxTxV, frames_B = (np.array(results[i]) for i in range(2))
        return log_prob_BxTxV, frames_B


def _openvino() -> Any:
    import openvino

    return openvino.Core()
