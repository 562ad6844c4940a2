"""Training losses; each term is a (sum, weight) pair, divided once over the global batch and all micro-batches.

Sums are in nats. B utterances, M masked slots, N negatives, F final width, G codebooks, V codes, T frames, U labels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sew_jax.models.layers import EPSILON
from sew_jax.models.lengths import centred_over_time, mask_from_lengths
from sew_jax.models.platforms import by_platform

LOG2E = 1.4426950408889634  # nats to bits, as fairseq logs losses
_EXCLUDED = -1e9  # the logit of a negative that is no negative


class Term(NamedTuple):
    """A quantity that is averaged at the very end: sum / weight."""

    sum: jax.Array
    weight: jax.Array

    @property
    def mean(self) -> jax.Array:
        return self.sum / jnp.maximum(self.weight, 1e-9)


def cosine_matrix(a_BxMxF, b_BxMxF) -> jax.Array:
    """Cosines of all pairs of one utterance, (B, M, M), in float32 (norms at least 1e-8, as torch)."""

    def unit(x):
        x = x.astype(jnp.float32)
        # max under the root keeps the gradient of a zero vector finite
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-16))

    return jnp.einsum("bif,bjf->bij", unit(a_BxMxF), unit(b_BxMxF), precision=jax.lax.Precision.HIGHEST)


def cosine(a_BxTxD, b_BxTxD) -> jax.Array:
    """Of frames at the same place, (B, T), in float32; 0 where one is zero."""
    a, b = a_BxTxD.astype(jnp.float32), b_BxTxD.astype(jnp.float32)
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / jnp.maximum(norms, 1e-8)


def contrastive_logits(prediction_BxMxF, target_BxMxF, codes_BxMxG, negative_BxMxN, temperature: float) -> jax.Array:
    """Cosines over `temperature` of the positive, first, and the negatives of the same utterance: (B, M, 1 + N).

    A negative with the positive's codewords in every group is no negative; its logit is far below all others.
    """
    logits_BxMxM = cosine_matrix(prediction_BxMxF, target_BxMxF) / temperature
    positive_BxM = jnp.diagonal(logits_BxMxM, axis1=1, axis2=2)
    same_BxMxM = (codes_BxMxG[:, :, None] == codes_BxMxG[:, None, :]).all(-1)
    negative = _take_along_rows(jnp.where(same_BxMxM, _EXCLUDED, logits_BxMxM), negative_BxMxN)
    return jnp.concatenate([positive_BxM[:, :, None], negative], axis=2)


@jax.custom_vjp
def _take_along_rows(x_BxMxM, index_BxMxN) -> jax.Array:
    """x[b, m, index[b, m, n]], with a gradient whose sums over repeated indices have one order on every platform.

    A gather's gradient is a scatter, whose sums GPUs take in the order in which threads arrive.
    """
    return jnp.take_along_axis(x_BxMxM, index_BxMxN, axis=2)


def _take_forward(x_BxMxM, index_BxMxN):
    return _take_along_rows(x_BxMxM, index_BxMxN), (x_BxMxM.shape[2], index_BxMxN)


def _take_backward(kept, dy_BxMxN):
    slots, index_BxMxN = kept

    def by_scatter(index_BxMxN, dy_BxMxN):
        zeros = jnp.zeros((*dy_BxMxN.shape[:2], slots), dy_BxMxN.dtype)
        return jax.vjp(lambda x: jnp.take_along_axis(x, index_BxMxN, axis=2), zeros)[1](dy_BxMxN)[0]

    def by_comparison(index_BxMxN, dy_BxMxN):
        equal_BxMxMxN = index_BxMxN[:, :, None] == jnp.arange(slots)[:, None]
        return jnp.where(equal_BxMxMxN, dy_BxMxN[:, :, None], 0.0).sum(-1)

    # CPUs scatter in order, and take 160 times as long to compare
    dx_BxMxM = by_platform(index_BxMxN, dy_BxMxN, cpu=by_scatter, default=by_comparison)
    return dx_BxMxM, None


_take_along_rows.defvjp(_take_forward, _take_backward)


def contrastive(logits_BxMxC, valid_BxM) -> tuple[Term, Term]:
    """InfoNCE of `contrastive_logits` (wav2vec 2.0, equation 3): (loss, accuracy).

    Weights count masked frames of which the utterance has more than one.
    """
    positive_BxM = logits_BxMxC[:, :, 0]
    loss_BxM = jax.nn.logsumexp(logits_BxMxC, axis=2) - positive_BxM
    weight_BxM = _frame_weights(valid_BxM)
    # a draw counts as wrong (fairseq's rule), so that a constant output has accuracy 0, not 1
    correct_BxM = positive_BxM > logits_BxMxC[:, :, 1:].max(2)
    total = weight_BxM.sum()
    return Term((loss_BxM * weight_BxM).sum(), total), Term((correct_BxM * weight_BxM).sum(), total)


def contrastive_distillation(teacher_BxMxC, student_BxMxC, valid_BxM) -> Term:
    """KL divergence from the teacher's choice among the candidates, which gets no gradient, to the student's."""
    weight_BxM = _frame_weights(valid_BxM)
    return Term((_divergence(teacher_BxMxC, student_BxMxC) * weight_BxM).sum(), weight_BxM.sum())


def ctc_distillation(teacher_BxTxV, student_BxTxV, length_B, weight_B) -> Term:
    """KL divergence from the teacher's symbols, without gradient, to the student's, summed over its frames."""
    valid_BxT = mask_from_lengths(length_B, teacher_BxTxV.shape[1])
    weight_B = weight_B.astype(jnp.float32)
    divergence_B = jnp.where(valid_BxT, _divergence(teacher_BxTxV, student_BxTxV), 0.0).sum(1)
    return Term((divergence_B * weight_B).sum(), weight_B.sum())


def regression(prediction_RxTxD, target_RxTxD, masked_RxT) -> Term:
    """data2vec 2.0's: squared differences over the square root of the width; weights count masked frames."""
    scale = prediction_RxTxD.shape[2] ** -0.5
    error_RxT = jnp.square(prediction_RxTxD - target_RxTxD).sum(-1) * scale
    return Term(jnp.where(masked_RxT, error_RxT, 0.0).sum(), masked_RxT.sum().astype(jnp.float32))


def relative_error(features_BxTxD, target_BxTxD, length_B) -> Term:
    """Squared differences over the target's variance, of each channel over an utterance, meant over channels.

    1 is what an utterance's mean reaches; weights count frames.
    """
    target_BxTxD = target_BxTxD.astype(jnp.float32)
    _, variance_Bx1xD = centred_over_time(target_BxTxD, length_B)
    error_BxT = (jnp.square(features_BxTxD - target_BxTxD) / (variance_Bx1xD + EPSILON)).mean(2)
    valid_BxT = mask_from_lengths(length_B, error_BxT.shape[1])
    return Term(jnp.where(valid_BxT, error_BxT, 0.0).sum(), valid_BxT.sum().astype(jnp.float32))


def deviation(x_RxTxD, masked_RxT) -> jax.Array:
    """Mean over channels of the standard deviation over all masked frames (fairseq's `compute_var`)."""
    masked_RxTx1 = masked_RxT[:, :, None]
    count = masked_RxT.sum()
    mean_D = jnp.where(masked_RxTx1, x_RxTxD, 0.0).sum((0, 1)) / jnp.maximum(count, 1)
    squares_D = jnp.where(masked_RxTx1, jnp.square(x_RxTxD - mean_D), 0.0).sum((0, 1))
    return jnp.sqrt(squares_D / jnp.maximum(count - 1, 1) + 1e-6).mean()


def label_cross_entropy(logits_BxTxC, length_B, labels_BxU, label_length_B) -> tuple[Term, Term]:
    """Of the labels of frames, where there are both: (loss, accuracy) terms; weights count them.

    A draw counts for the first.
    """
    frames = logits_BxTxC.shape[1]
    label_BxT = jnp.pad(labels_BxU, ((0, 0), (0, max(frames - labels_BxU.shape[1], 0))))[:, :frames]
    weight_BxT = mask_from_lengths(jnp.minimum(length_B, label_length_B), frames).astype(jnp.float32)
    log_prob_BxTxC = jax.nn.log_softmax(logits_BxTxC.astype(jnp.float32))
    # by comparison, whose gradient is no scatter (see `_take_along_rows`)
    is_told_BxTxC = label_BxT[:, :, None] == jnp.arange(logits_BxTxC.shape[2])
    loss_BxT = -jnp.where(is_told_BxTxC, log_prob_BxTxC, 0.0).sum(2)
    right_BxT = logits_BxTxC.argmax(2) == label_BxT
    total = weight_BxT.sum()
    return Term((loss_BxT * weight_BxT).sum(), total), Term((right_BxT * weight_BxT).sum(), total)


def _frame_weights(valid_BxM) -> jax.Array:
    return (valid_BxM & (valid_BxM.sum(1, keepdims=True) > 1)).astype(jnp.float32)


def _divergence(teacher, student) -> jax.Array:
    """KL(teacher || student) over the last axis, of logits; the teacher is detached."""
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher))
    return (jnp.exp(teacher) * (teacher - jax.nn.log_softmax(student))).sum(-1)


def mean_probabilities(probs_BxMxGxV, valid_BxM) -> jax.Array:
    """Softmax averaged over valid masked frames: (G, V)."""
    weight = valid_BxM[:, :, None, None].astype(jnp.float32)
    return (probs_BxMxGxV * weight).sum((0, 1)) / jnp.maximum(weight.sum(), 1.0)


def perplexity(probs_GxV) -> jax.Array:
    """Sum over groups of exp(entropy): between G (collapsed) and G * V (uniform)."""
    entropy_G = -(probs_GxV * jnp.log(probs_GxV + 1e-7)).sum(-1)
    return jnp.exp(entropy_G).sum()


def diversity(probs_BxMxGxV, valid_BxM, weight) -> Term:
    """(G V - perplexity) / (G V) of the micro-batch, weighted by its masked frames (fairseq `wav2vec_criterion.py`)."""
    total = probs_BxMxGxV.shape[2] * probs_BxMxGxV.shape[3]
    ratio = (total - perplexity(mean_probabilities(probs_BxMxGxV, valid_BxM))) / total
    return Term(ratio * weight, weight)


def ctc(logits_BxTxV, length_B, labels_BxU, label_length_B, weight_B, blank: int = 0) -> tuple[Term, Term]:
    """CTC (Graves 2006): (loss, impossible) terms; weights count utterances.

    A pair is impossible when its labels, plus one frame between equal neighbours, do not fit its frames: it gives no
    loss and is counted (`zero_infinity` in fairseq).
    """
    valid_BxU = mask_from_lengths(label_length_B, labels_BxU.shape[1])
    repeats_B = ((labels_BxU[:, 1:] == labels_BxU[:, :-1]) & valid_BxU[:, 1:]).sum(1)
    possible_B = label_length_B + repeats_B <= length_B
    padding_BxT = 1.0 - mask_from_lengths(length_B, logits_BxTxV.shape[1])
    loss_B = optax.ctc_loss(logits_BxTxV.astype(jnp.float32), padding_BxT, labels_BxU, 1.0 - valid_BxU, blank_id=blank)
    weight_B = weight_B.astype(jnp.float32)
    total = weight_B.sum()
    loss = jnp.where(possible_B, loss_B, 0.0) * weight_B
    return Term(loss.sum(), total), Term((weight_B * ~possible_B).sum(), total)
