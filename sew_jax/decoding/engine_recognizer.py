"""The recognizer by ONNX Runtime or OpenVINO: the same waves in, the same log-probabilities out."""

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sew_jax.compression import Compression
from sew_jax.console import say
from sew_jax.decoding.recognizer import Output, Recognizer, best_symbols, log_probs
from sew_jax.engines.run_times import PRECISIONS, Engine, Session, has_bfloat16, need_runtime, open_session
from sew_jax.errors import UserError
from sew_jax.models.config import precision_fields
from sew_jax.models.ctc import CTCModel


class EngineRecognizer(Recognizer):
    """A model on the cores of this host; all lengths and batches share one program of a setting.

    Args:
      of: the model in JAX, whose parameters it shares.
      engine: what computes it.
    """

    def __init__(self, of: Recognizer, engine: Engine):
        super().__init__(of.name, of.state, of.model, of.params, of.vocabulary, of.trained, of.mesh)
        self.no_text, self._engine = of.no_text, engine
        self._sessions: dict[Compression, Session] = {}

    @property
    def engine(self) -> Engine:
        """What computes it."""
        return self._engine

    def compile(
        self,
        output: Output,
        settings: Iterable[Compression],
        rows: Mapping[int, int],
        what: str,
        dtype: Any = jnp.int16,
    ) -> None:
        """Opens a session for each setting that has none yet.

        Raises:
          UserError: a per-layer setting has another number of layers than the model, or hidden states are wanted.
        """
        from sew_jax.engines.files import write_graphs  # which knows onnx

        if output not in (log_probs, best_symbols):
            raise UserError(f"runtime: {self.engine.runtime} computes log-probabilities alone; jax has hidden states")
        missing = [setting for setting in dict.fromkeys(settings) if setting not in self._sessions]
        if not missing:
            return
        assert isinstance(self.model, CTCModel)  # others are refused by `on_engine`
        kind = "int8" if self.engine.dtype == "int8" else "float32"
        with tempfile.TemporaryDirectory(prefix="sew_jax_") as folder:
            paths = write_graphs(Path(folder), self.model, self.params, missing, kind, {})
            self._sessions |= {setting: open_session(path, self.engine) for setting, path in paths.items()}

    def run(self, output: Output, setting: Compression, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """What the session of a setting gives of a batch, numpy arrays."""
        wave_BxN, length_B = np.asarray(batch["wave"]), np.asarray(batch["length"]).astype(np.int64)
        if wave_BxN.dtype == np.int16:
            wave_BxN = wave_BxN.astype(np.float32) / 2**15
        log_prob_BxTxV, frames_B = self._sessions[setting](wave_BxN, length_B)
        if output is best_symbols:
            return log_prob_BxTxV.argmax(-1).astype(np.int32), frames_B
        return log_prob_BxTxV, frames_B


def default_dtype(recognizer: Recognizer, runtime: str) -> str:
    """The precision of a run time where none is named: the model's own where it has that."""
    own = recognizer.model.backbone.precision
    return own if own in PRECISIONS[runtime] else PRECISIONS[runtime][0]


def on_engine(recognizer: Recognizer, engine: Engine) -> Recognizer:
    """The same model, by another run time or in another precision.

    Raises:
      UserError: the run time is not installed, or does not compute so, on this machine or at all.
    """
    if engine == recognizer.engine:
        return recognizer
    if engine.dtype not in PRECISIONS[engine.runtime]:
        has = " and ".join(PRECISIONS[engine.runtime])
        raise UserError(f"dtype: {engine.runtime} computes in {has}, not in {engine.dtype}")
    if recognizer.labels and engine.runtime != "jax":
        raise UserError(f"runtime: {engine.runtime} computes text alone; jax has the labels of {recognizer.name}")
    need_runtime(engine.runtime, "runtime")
    if engine.dtype == "bfloat16" and not has_bfloat16(engine.runtime):
        raise UserError(f"dtype: this machine has no bfloat16 for {engine.runtime}; take float32")
    if engine.runtime != "jax":
        say(f"  run time  {engine}")
        return EngineRecognizer(recognizer, engine)
    backbone = dataclasses.replace(recognizer.model.backbone, **precision_fields(engine.dtype))
    model = dataclasses.replace(recognizer.model, backbone=backbone)
    made = Recognizer(
        recognizer.name,
        recognizer.state,
        model,
        recognizer.params,
        recognizer.vocabulary,
        recognizer.trained,
        recognizer.mesh,
        recognizer.labels,
    )
    made.no_text = recognizer.no_text
    return made
