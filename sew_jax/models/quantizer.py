"""Product quantizer with hard straight-through Gumbel softmax, in float32 (wav2vec 2.0, section 2; Jang et al. 2017).

B utterances, M masked frames, C feature channels, G codebooks, V codes of each, E = code width / G.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.models.config import PretrainHeadConfig
from sew_jax.models.layers import EXACT, exact_dense
from sew_jax.models.noise import draw_rows, row_keys, rows_or_places


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Gumbel temperature over training: geometric from `start` to `end`, reached at the fraction `anneal` of it.

    With `anneal` above 1 training ends before the temperature is at `end`. fairseq multiplies by 0.999995 an update, so
    that 2.0 falls to 0.5 in 277,258 updates: an `anneal` of 0.693 for base's 400,000, and of 2.773 for SEW's 100,000.
    """

    start: float
    end: float
    anneal: float

    def at(self, progress: jax.Array | float) -> jax.Array:
        """The temperature at a fraction `progress` of training."""
        return self.start * (self.end / self.start) ** jnp.minimum(progress / self.anneal, 1.0)


class Quantized(NamedTuple):
    vectors_BxMxQ: jax.Array  # targets before their projection
    codes_BxMxG: jax.Array  # the chosen entries (with Gumbel noise when training)
    best_BxMxG: jax.Array  # the most likely entries, without noise
    probs_BxMxGxV: jax.Array  # softmax without noise or temperature


class Quantizer(nn.Module):
    """One codeword a group and frame: one-hot forward, soft backward at `temperature`; argmax when deterministic."""

    config: PretrainHeadConfig

    @nn.compact
    def __call__(self, features_BxMxC, temperature, deterministic: bool, row_B=None) -> Quantized:
        batch, frames, _ = features_BxMxC.shape
        groups, codes = self.config.codebooks, self.config.codes
        logits = exact_dense(groups * codes, nn.initializers.normal(1.0), name="logits")(features_BxMxC)
        logit_BxMxGxV = logits.reshape(batch, frames, groups, codes)
        best_BxMxG = chosen_BxMxG = logit_BxMxGxV.argmax(-1)
        if deterministic:
            weight_BxMxGxV = jax.nn.one_hot(chosen_BxMxG, codes)
        else:
            key_B = row_keys(self.make_rng("gumbel"), rows_or_places(row_B, batch))
            noise_BxMxGxV = draw_rows(jax.random.gumbel, key_B, logit_BxMxGxV.shape[1:])
            noisy_BxMxGxV = (logit_BxMxGxV + noise_BxMxGxV) / temperature
            chosen_BxMxG, soft_BxMxGxV = noisy_BxMxGxV.argmax(-1), jax.nn.softmax(noisy_BxMxGxV)
            hard_BxMxGxV = jax.nn.one_hot(chosen_BxMxG, codes)
            weight_BxMxGxV = soft_BxMxGxV + jax.lax.stop_gradient(hard_BxMxGxV - soft_BxMxGxV)
        shape = (groups, codes, self.config.code_width // groups)
        codebook_GxVxE = self.param("codebook", nn.initializers.uniform(1.0), shape)
        vector_BxMxGxE = jnp.einsum("bmgv,gve->bmge", weight_BxMxGxV, codebook_GxVxE, precision=EXACT)
        vectors_BxMxQ = vector_BxMxGxE.reshape(batch, frames, -1)
        return Quantized(vectors_BxMxQ, chosen_BxMxG, best_BxMxG, jax.nn.softmax(logit_BxMxGxV))
