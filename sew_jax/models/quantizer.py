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
        groups, codes = self.config.codebooks, self.config.codes
        logits = exact_dense(groups * codes, nn.initializers.normal(1.0), name="logits")(features_BxMxC)
        logits = logits.reshape(*logits.shape[:2], groups, codes)
        best = logits.argmax(-1)
        chosen = best
        if deterministic:
            weights = jax.nn.one_hot(chosen, codes)
        else:
            key_B = row_keys(self.make_rng("gumbel"), rows_or_places(row_B, logits.shape[0]))
            noisy = (logits + draw_rows(jax.random.gumbel, key_B, logits.shape[1:])) / temperature
            chosen, soft = noisy.argmax(-1), jax.nn.softmax(noisy)
            weights = soft + jax.lax.stop_gradient(jax.nn.one_hot(chosen, codes) - soft)
        shape = (groups, codes, self.config.code_width // groups)
        codebook = self.param("codebook", nn.initializers.uniform(1.0), shape)
        vectors = jnp.einsum("bmgv,gve->bmge", weights, codebook, precision=EXACT)
        return Quantized(vectors.reshape(*vectors.shape[:2], -1), chosen, best, jax.nn.softmax(logits))
