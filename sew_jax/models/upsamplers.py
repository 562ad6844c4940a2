"""What brings the transformer's output back to 50 Hz, with parameters of a squeeze factor's own.

B utterances, W squeezed frames, S of 50 Hz in each, D channels.
"""

import math

import flax.linen as nn

from sew_jax.models.config import BackboneConfig
from sew_jax.models.layers import dense, gelu


class ResidualUpsampler(nn.Module):
    """Each squeezed frame S times, each time with a linear difference of its own that is zero at first.

    What all settings of a table can share: at any S the output is the transformer's own, as at S = 1, so one head reads
    them all; the differences tell the S frames of a window apart, without which characters do not fit at S of 3 and 4.
    """

    factor: int
    dtype: str

    @nn.compact
    def __call__(self, x_BxWxD):
        batch, windows, width = x_BxWxD.shape
        zeros = nn.initializers.zeros
        difference = dense(width * self.factor, self.dtype, zeros, name="difference")(x_BxWxD)
        difference_BxWxSxD = difference.reshape(batch, windows, self.factor, width)
        return (x_BxWxD[:, :, None] + difference_BxWxSxD).reshape(batch, windows * self.factor, width)


class LinearUpsampler(nn.Module):
    """SEW's: Linear(D -> D * S), GELU, and each squeezed frame becomes S frames (time-major split).

    For SEW's checkpoints and models of one setting. In a table with S = 1, whose output is a norm's, the head would
    have to read two languages.
    """

    factor: int
    dtype: str

    @nn.compact
    def __call__(self, x_BxWxD):
        batch, windows, width = x_BxWxD.shape
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        y = dense(width * self.factor, self.dtype, init, name="linear")(x_BxWxD)
        return gelu(y).reshape(batch, windows * self.factor, width)


def upsampler_of(config: BackboneConfig, squeeze: int) -> int | None:
    """The factor whose up-sampler serves a squeeze: its own, else the nearest one's; None where frames are repeated."""
    if squeeze == 1 or config.upsampler == "repeat" or not config.upsample_factors:
        return None
    return min(config.upsample_factors, key=lambda s: (abs(math.log(s / squeeze)), s))
