"""What models of any head share: their first variables, one setting as several of which there is one, the backbone.

B utterances, N samples, T frames, D width, L layers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.compression import Compression
from sew_jax.models.backbone import Backbone
from sew_jax.models.config import BackboneConfig
from sew_jax.rates import SAMPLE_RATE


class HeadedModel(nn.Module):
    """wave (B, N), length (B,) samples -> what the head makes of features, (B, T, ...), and their frames (B,)."""

    backbone: BackboneConfig
    head: Any

    def initialize(self, key) -> dict[str, Any]:
        """Variables for a key."""
        wave, length = jnp.zeros((1, SAMPLE_RATE)), jnp.array([SAMPLE_RATE])
        return dict(self.init(key, wave, length, Compression(), deterministic=True))

    def __call__(
        self,
        wave_BxN,
        length_B,
        compression: Compression,
        *,
        deterministic: bool,
        time_mask_BxT=None,
        channel_mask_BxD=None,
    ) -> tuple[jax.Array, jax.Array]:
        (output,), frames_B = self.at_settings(
            wave_BxN,
            length_B,
            (compression,),
            deterministic=deterministic,
            time_mask_BxT=time_mask_BxT,
            channel_mask_BxD=channel_mask_BxD,
        )
        return output, frames_B

    @nn.compact
    def at_settings(
        self,
        wave_BxN,
        length_B,
        settings: tuple[Compression, ...],
        *,
        deterministic: bool,
        time_mask_BxT=None,
        channel_mask_BxD=None,
        row_B=None,
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """The same at each setting, of one pass of the front end, which learns from the first alone."""
        hidden = Backbone(self.backbone, name="backbone")(
            wave_BxN,
            length_B,
            settings[0],
            deterministic=deterministic,
            time_mask_BxT=time_mask_BxT,
            channel_mask_BxD=channel_mask_BxD,
            others=settings[1:],
            row_B=row_B,
            layer_weights=self.weights_of_layers(),
        )
        contexts = (hidden.context_BxTxD, *hidden.others_BxTxD)
        return self.read(contexts, hidden.length_B, deterministic, row_B)

    def weights_of_layers(self) -> jax.Array | None:
        """(L + 1,) by which the head reads the mean of all layers; None: it reads the output."""
        if not getattr(self.head, "layer_sum", False):
            return None
        zeros = nn.initializers.zeros  # all layers alike
        return jax.nn.softmax(self.param("layer_weights", zeros, (self.backbone.layers + 1,)))

    def read(
        self, contexts: tuple[jax.Array, ...], length_B, deterministic: bool, row_B
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """What the head makes of features (B, T, D) of each setting, and the frames of that (B,)."""
        raise NotImplementedError
