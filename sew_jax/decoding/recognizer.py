"""A fine-tuned model as what evaluation, transcription and export share: waves in, symbols of each frame out."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from sew_jax.checkpoints.pretrained import open_origin
from sew_jax.compression import Compression
from sew_jax.console import say
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.errors import UserError
from sew_jax.models.config import CTCHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.parameters import merge_params


class FineTuned(NamedTuple):
    """A model that transcribes."""

    model: CTCModel
    params: Any
    vocabulary: Vocabulary
    trained: list[Compression]  # the table of its training
    state: str  # which of it: an update, or of a released one the family


def load_finetuned(init_from: str, dtype: str, sharding: NamedSharding) -> FineTuned:
    """A model with a CTC head: the newest checkpoint of a finetune run, or a released one.

    Args:
      dtype: of the computation; empty keeps that of training.

    Raises:
      UserError: there is none, or its files do not fit each other.
    """
    origin = open_origin(init_from)
    if not isinstance(origin.head, CTCHeadConfig):
        raise UserError(f"init_from: {init_from} has no CTC head yet; fine-tune it first (configs/finetune.py)")
    backbone = dataclasses.replace(origin.backbone, remat="none", **({"dtype": dtype} if dtype else {}))
    model = CTCModel(backbone, origin.head)
    state, saved = origin.load(sharding)
    # a model that never masks may lack the mask embedding, which is not used here
    saved["backbone"].setdefault("mask_embedding", jnp.zeros(backbone.width))
    fresh = jax.eval_shape(model.initialize, jax.random.key(0))["params"]
    params, _, _ = merge_params(fresh, saved, init_from, may_be_new=())
    say(
        f"  model     {init_from}, {state}: {sum(x.size for x in jax.tree.leaves(params)) / 1e6:.2f} M parameters, {backbone.dtype} compute"
    )
    return FineTuned(model, params, origin.vocabulary, origin.trained, state)


def log_probs(model: CTCModel, params, batch: dict[str, jax.Array], compression: Compression):
    """Log-probability of each symbol at each frame, (B, T, symbols) float32, and the frames of each utterance, (B,)."""
    logits, length = model.apply({"params": params}, batch["wave"], batch["length"], compression, deterministic=True)
    return jax.nn.log_softmax(logits), length


def best_symbols(model: CTCModel, params, batch: dict[str, jax.Array], compression: Compression):
    """The most likely symbol of each frame, (B, T), and the frames of each utterance, (B,)."""
    logits, length = model.apply({"params": params}, batch["wave"], batch["length"], compression, deterministic=True)
    return logits.argmax(-1).astype(jnp.int32), length
