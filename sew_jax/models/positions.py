"""Positions by convolution, strided by the squeeze factor: wav2vec 2.0's one, and data2vec's several.

B utterances, T frames, D channels; K taps, I and O channels of a group and of all.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from sew_jax.models.config import BackboneConfig
from sew_jax.models.layers import gelu, layer_norm, torch_uniform
from sew_jax.models.lengths import zero_padding
from sew_jax.models.platforms import by_platform
from sew_jax.models.products import wide_on_cpu
from sew_jax.models.spectral_conv import convolve_by_spectrum


def convolve(x_BxTxD, kernel_KxIxO, stride: int, groups: int):
    """Grouped convolution, output frame w centred on input frame w * stride: (B, ceil(T / stride), D)."""
    taps = kernel_KxIxO.shape[0]
    return jax.lax.conv_general_dilated(
        x_BxTxD,
        kernel_KxIxO,
        (stride,),
        [(taps // 2, (taps - 1) // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


def convolve_group_by_group(x_BxTxD, kernel_KxIxO, stride: int, groups: int):
    """The same, for CPUs.

    XLA's CPU backend took 10 to 32 times longer (2 cores) for a grouped kernel's gradient, and the partitioner of CPUs
    and GPUs gathers the whole batch on each device for a grouped convolution (openxla/xla issue 47945).
    """
    pairs = zip(jnp.split(x_BxTxD, groups, axis=2), jnp.split(kernel_KxIxO, groups, axis=2), strict=True)
    return jnp.concatenate([convolve(x, kernel, stride, groups=1) for x, kernel in pairs], axis=2)


def grouped_convolution(x_BxTxD, kernel_KxIxO, stride: int, groups: int):
    """The same in the form that the platform computes best."""
    forms: dict[str, Callable] = {"cpu": convolve_group_by_group, "default": convolve}
    if not is_symbolic_dim(x_BxTxD.shape[1]):  # an exported program does not know how many blocks there are
        forms["cuda"] = convolve_by_spectrum
    forms = {name: functools.partial(form, stride=stride, groups=groups) for name, form in forms.items()}
    return wide_on_cpu(functools.partial(by_platform, **forms), x_BxTxD, kernel_KxIxO)


class PositionalConv(nn.Module):
    """Grouped convolution with one gain a tap (weight norm, dim 2), strided by the squeeze factor, one kernel for all.

    Output frame w sees taps centred on frame w * S. At S = 1 and an even kernel this is fairseq's `SamePad`
    convolution.
    """

    config: BackboneConfig

    @nn.compact
    def __call__(self, x_BxTxD, stride: int):
        taps, groups, width = self.config.pos_kernel, self.config.pos_groups, self.config.width
        init = nn.initializers.normal(math.sqrt(4 / (taps * width)))
        v_KxIxO = self.param("weight_v", init, (taps, width // groups, width))
        gain_K = self.param("weight_g", lambda key: jnp.sqrt(jnp.square(v_KxIxO).sum((1, 2))))
        bias_D = self.param("bias", nn.initializers.zeros, (width,))
        scale_K = gain_K * jax.lax.rsqrt(jnp.square(v_KxIxO).sum((1, 2)))
        kernel_KxIxO = (v_KxIxO * scale_K[:, None, None]).astype(x_BxTxD.dtype)
        return grouped_convolution(x_BxTxD, kernel_KxIxO, stride, groups) + bias_D.astype(x_BxTxD.dtype)


class PositionalStack(nn.Module):
    """data2vec's: grouped convolutions, each with a norm that learns nothing, GELU between them and after the last.

    The last one is strided by the squeeze factor, so window w has the positions that frame w * S has at S = 1.
    """

    config: BackboneConfig

    @nn.compact
    def __call__(self, x_BxTxD, length_B, stride: int):
        config = self.config
        for i in range(config.pos_layers):
            last = i == config.pos_layers - 1
            if i:  # what a convolution makes of padding must not come back with the next one
                x_BxTxD = zero_padding(gelu(x_BxTxD), length_B)
            y = PlainConv(config, name=f"conv_{i}")(x_BxTxD, stride if last else 1)
            x_BxTxD = layer_norm(config.dtype, learns=False)(y)
        return x_BxTxD


class PlainConv(nn.Module):
    """Grouped convolution, drawn as torch draws it."""

    config: BackboneConfig

    @nn.compact
    def __call__(self, x_BxTxD, stride: int):
        config, dtype = self.config, x_BxTxD.dtype
        shape = config.pos_kernel, config.width // config.pos_groups, config.width
        init = torch_uniform(shape[0] * shape[1])
        kernel_KxIxO = self.param("kernel", init, shape).astype(dtype)
        bias_D = self.param("bias", init, (config.width,)).astype(dtype)
        return grouped_convolution(x_BxTxD, kernel_KxIxO, stride, config.pos_groups) + bias_D
