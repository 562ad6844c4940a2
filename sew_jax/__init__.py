"""Stochastic wav2vec 2.0 in JAX: pre-train once, choose the compute afterwards (arXiv 2204.11934).

    import sew_jax

    model = sew_jax.load("runs/finetune")
    print(model.transcribe("speech.flac", setting="s2q1k1").text)

`load`, `train`, `evaluate` and the types that they give are those of `sew_jax.api`; JAX is imported when the first is
used.
"""

from typing import TYPE_CHECKING, Any

from sew_jax.errors import UserError

if TYPE_CHECKING:
    from sew_jax.api import Model, Transcript, evaluate, load, train

__version__ = "0.1.0"
__all__ = ["Model", "Transcript", "UserError", "__version__", "evaluate", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sew_jax' has no attribute {name!r}")
    from sew_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
