"""What a pre-trained state is worth on held-out audio: its objective's loss, and what its contexts are like.

B utterances, T frames, M masked frames, W frames of a layer, D width.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone, Hidden
from sew_jax.models.config import BackboneConfig
from sew_jax.models.data2vec import Data2VecModel
from sew_jax.models.encoder import Layer
from sew_jax.models.lengths import mask_from_lengths
from sew_jax.models.masking import negative_indices
from sew_jax.models.merging import unmerge
from sew_jax.models.noise import row_keys
from sew_jax.models.pretrain import PretrainModel
from sew_jax.training import losses
from sew_jax.training.data2vec import score
from sew_jax.training.losses import LOG2E
from sew_jax.training.task import SpanMask


def score_contrast(
    model: PretrainModel, mask: SpanMask, largest: Compression, seed: int, variables, batch, compression: Compression
) -> dict[str, jax.Array]:
    """Contrastive bits and accuracy without noise; mean cosine to the largest setting's context; each layer's change.

    Masks and negatives are the same at each evaluation and each setting.
    """
    mask_key, negative_key = jax.random.split(jax.random.key(seed))
    masked = mask.draw(model.backbone, row_keys(mask_key, batch["crop"]), batch)
    changes: list[jax.Array] = []
    with nn.intercept_methods(_noting_changes(model.backbone, changes)):
        out, kept = model.apply(
            variables,
            batch["wave"],
            batch["length"],
            masked,
            compression,
            1.0,  # without noise the temperature decides nothing
            deterministic=True,
            others=_beside(compression, largest),
            capture_intermediates=lambda module, _: isinstance(module, Backbone),
        )
    logits_BxMxC = losses.contrastive_logits(
        out.prediction_BxMxF,
        out.target_BxMxF,
        out.quantized.codes_BxMxG,
        negative_indices(row_keys(negative_key, batch["crop"]), masked.valid_BxM, model.head.negatives),
        model.head.logit_temperature,
    )
    contrastive, accuracy = losses.contrastive(logits_BxMxC, masked.valid_BxM)
    (hidden,) = kept["intermediates"]["backbone"]["__call__"]
    scores = {"loss_contrastive": contrastive.mean * LOG2E, "accuracy": accuracy.mean}
    return scores | _of_contexts(model.backbone, hidden, changes)


def score_regression(
    model: Data2VecModel, largest: Compression, seed: int, variables, batch, compression: Compression
) -> dict[str, jax.Array]:
    """The loss of data2vec 2.0, and of contexts without masks what `score_contrast` says of masked ones."""
    changes: list[jax.Array] = []
    with nn.intercept_methods(_noting_changes(model.backbone, changes)):
        hidden, _ = Backbone(model.backbone).apply(
            {"params": variables["params"]["backbone"]},
            batch["wave"],
            batch["length"],
            compression,
            deterministic=True,
            others=_beside(compression, largest),
            mutable=["intermediates"],  # so that layers are called one by one on all platforms
        )
    return score(model, seed, variables, batch, compression) | _of_contexts(model.backbone, hidden, changes)


def _beside(setting: Compression, largest: Compression) -> tuple[Compression, ...]:
    return () if setting == largest else (largest,)


def _noting_changes(backbone: BackboneConfig, changes: list[jax.Array]) -> Callable[..., Any]:
    """What notes how much each layer changes its stream, in the order in which layers are computed.

    Merging counts as a change of the frames that are merged.
    """

    def note_change(call, arguments, options, context):
        output = call(*arguments, **options)
        if isinstance(context.module, Layer) and context.method_name == "__call__":
            before, length_B, *_, track = arguments
            after = unmerge(*output) if track else output
            before = unmerge(before, track) if track else before
            changes.append(_change(before, after, length_B, unit=not backbone.pre_norm))
        return output

    return note_change


def _of_contexts(backbone: BackboneConfig, hidden: Hidden, changes: list[jax.Array]) -> dict[str, jax.Array]:
    valid_BxT = mask_from_lengths(hidden.length_B, hidden.context_BxTxD.shape[1])
    other = hidden.others_BxTxD[0] if hidden.others_BxTxD else hidden.context_BxTxD
    return {
        "cosine": _mean(losses.cosine(hidden.context_BxTxD, other), valid_BxT),
        "layer_changes": jnp.array(changes[: backbone.layers]),
    }


def _mean(x_BxT, valid_BxT):
    return jnp.where(valid_BxT, x_BxT, 0.0).sum() / jnp.maximum(valid_BxT.sum(), 1)


def _change(before_BxWxD, after_BxWxD, length_B, *, unit: bool):
    """Mean over valid frames of the norm of what a layer adds, over that of what it is given.

    With `unit`, of the two as unit vectors: behind a norm, their lengths say nothing.
    """
    before, after = before_BxWxD.astype(jnp.float32), after_BxWxD.astype(jnp.float32)
    length = functools.partial(jnp.linalg.norm, axis=-1, keepdims=True)
    if unit:
        before, after = (x / jnp.maximum(length(x), 1e-9) for x in (before, after))
    added = length(after - before) / jnp.maximum(length(before), 1e-9)
    return _mean(added[:, :, 0], mask_from_lengths(length_B, before.shape[1]))
