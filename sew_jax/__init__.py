"""Stochastic wav2vec 2.0 in JAX: pre-train once, choose the compute afterwards (arXiv 2204.11934).

    import sew_jax

    model = sew_jax.load("runs/finetune")
    print(model.transcribe("speech.flac", setting="s2q1k1").text)

`load` and the types that it gives are those of `sew_jax.api`, `train` and `evaluate` of `sew_jax.jobs`; JAX is imported
when the first is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sew_jax.errors import UserError

if TYPE_CHECKING:
    from sew_jax.api import Model, Transcript, load
    from sew_jax.jobs import evaluate, train

__version__ = "0.1.0"
__all__ = ["Model", "Transcript", "UserError", "__version__", "evaluate", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sew_jax' has no attribute {name!r}")
    home = "jobs" if name in ("train", "evaluate") else "api"
    return getattr(importlib.import_module(f"sew_jax.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
