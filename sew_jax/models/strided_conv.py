"""Convolution over time with a stride: matrix products on a TPU, and on a CPU where they are quicker.

For a TPU XLA lays strided convolutions out with time as batch, and copies the model's largest arrays to do so; products
read them as they lie (docs/scaling.md). B utterances, N input frames, T output frames, K taps, C channels in, D
channels out.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sew_jax.models.layers import kaiming_normal, torch_uniform
from sew_jax.models.lengths import conv_length
from sew_jax.models.platforms import by_platform
from sew_jax.models.products import cpu_multiplies_bfloat16, cpu_product, wide_on_cpu


class StridedConv(nn.Module):
    """`nn.Conv` over time without padding: (B, N, C) -> (B, T, channels)."""

    channels: int
    kernel: int
    stride: int
    use_bias: bool
    dtype: str

    @nn.compact
    def __call__(self, x_BxNxC):
        shape = (self.kernel, x_BxNxC.shape[-1], self.channels)
        kernel_KxCxD = self.param("kernel", kaiming_normal, shape).astype(self.dtype)
        convolve = strided_conv if x_BxNxC.shape[-1] > 1 else _convolve_wave
        y_BxTxD = convolve(x_BxNxC.astype(self.dtype), kernel_KxCxD, self.stride)
        if self.use_bias:
            bias_D = self.param("bias", torch_uniform(self.kernel * x_BxNxC.shape[-1]), (self.channels,))
            y_BxTxD = y_BxTxD + bias_D.astype(self.dtype)
        return y_BxTxD


def _convolve(x_BxNxC, kernel_KxCxD, stride: int):
    return jax.lax.conv_general_dilated(
        x_BxNxC, kernel_KxCxD, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )


def _convolve_wave(x_BxNx1, kernel_Kx1xD, stride: int):
    """The same of one channel: on a TPU one product of all taps, on a CPU none, where they do not pay."""
    by_xla = functools.partial(_convolve, stride=stride)
    on_tpu = functools.partial(_multiply_windows, stride=stride)
    on_cpu = functools.partial(wide_on_cpu, by_xla)
    return by_platform(x_BxNx1, kernel_Kx1xD, cpu=on_cpu, tpu=on_tpu, default=by_xla)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def strided_conv(x_BxNxC, kernel_KxCxD, stride: int):
    """y[t] = sum over k of x[stride * t + k] @ kernel[k], without padding: (B, T, D)."""
    by_xla = functools.partial(_convolve, stride=stride)

    def on_cpu(x_BxNxC, kernel_KxCxD):
        if x_BxNxC.dtype != jnp.bfloat16 or not cpu_multiplies_bfloat16():
            return wide_on_cpu(by_xla, x_BxNxC, kernel_KxCxD)
        x_BxNxC = jax.lax.optimization_barrier(x_BxNxC)  # else what computes x is computed again for each slice
        return _multiply_taps(x_BxNxC, kernel_KxCxD, stride=stride, product=cpu_product)

    exact = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    on_tpu = functools.partial(_multiply_taps, stride=stride, product=exact)
    return by_platform(x_BxNxC, kernel_KxCxD, cpu=on_cpu, tpu=on_tpu, default=by_xla)


def _multiply_taps(x_BxNxC, kernel_KxCxD, *, stride: int, product: Callable):
    """A product for each `stride` taps, whose frames lie side by side, and one for each tap that is left over."""
    (batch, frames, channels), (taps, _, width) = x_BxNxC.shape, kernel_KxCxD.shape
    windows = conv_length(frames, taps, stride)
    total_BxTxD, tap = jnp.zeros((), jnp.float32), 0
    while tap < taps:
        count = stride if tap + stride <= taps else 1
        if count == stride:
            frame_BxTxI = x_BxNxC[:, tap : tap + windows * stride].reshape(batch, windows, stride * channels)
        else:
            frame_BxTxI = x_BxNxC[:, tap::stride][:, :windows]
        total_BxTxD += product(frame_BxTxI, kernel_KxCxD[tap : tap + count].reshape(-1, width))
        tap += count
    return total_BxTxD.astype(x_BxNxC.dtype)


def _multiply_windows(x_BxNxC, kernel_KxCxD, *, stride: int):
    """One product of windows, all taps of each side by side: where channels are few."""
    (batch, frames, channels), (taps, _, width) = x_BxNxC.shape, kernel_KxCxD.shape
    windows = conv_length(frames, taps, stride)
    whole_BxNxC = jnp.pad(x_BxNxC, ((0, 0), (0, -frames % stride), (0, 0)))
    step_BxMxI = whole_BxNxC.reshape(batch, -1, stride * channels)
    shifted = [step_BxMxI[:, i : i + windows] for i in range(-(-taps // stride))]
    window_BxTxI = jnp.concatenate(shifted, -1)[:, :, : taps * channels]
    return window_BxTxI @ kernel_KxCxD.reshape(-1, width)


def _forward(x_BxNxC, kernel_KxCxD, stride: int):
    return strided_conv(x_BxNxC, kernel_KxCxD, stride), (x_BxNxC, kernel_KxCxD)


def _backward(stride: int, kept, dy_BxTxD):
    def by_xla(x, kernel, dy):
        return jax.vjp(functools.partial(_convolve, stride=stride), x, kernel)[1](dy)

    def on_tpu(x, kernel, dy):  # not of float32 sums, whose gradients would be products of float32
        return jax.vjp(functools.partial(_multiply_taps, stride=stride, product=jnp.matmul), x, kernel)[1](dy)

    # XLA's CPU backend convolves dilated gradients: for wav2vec 2.0's layers 1.1 to 1.8 times as long as products
    on_cpu = functools.partial(_by_products, stride=stride)
    return by_platform(*kept, dy_BxTxD, cpu=on_cpu, tpu=on_tpu, default=by_xla)


strided_conv.defvjp(_forward, _backward)


def _by_products(x_BxNxC, kernel_KxCxD, dy_BxTxD, *, stride: int):
    """Gradients of x and the kernel."""
    (batch, frames, channels), taps, windows = x_BxNxC.shape, len(kernel_KxCxD), dy_BxTxD.shape[1]
    rows = -(-frames // stride)
    phases = []
    for phase in range(stride):  # x[stride * t + phase] met tap phase + stride * i in window t - i
        mine_IxCxD = kernel_KxCxD[phase::stride]
        shifted = [
            jnp.pad(dy_BxTxD, ((0, 0), (i, max(rows - windows - i, 0)), (0, 0)))[:, :rows]
            for i in range(len(mine_IxCxD))
        ]
        if shifted:
            stacked = mine_IxCxD.swapaxes(1, 2).reshape(-1, channels)
            phases.append(cpu_product(jnp.concatenate(shifted, -1), stacked).astype(x_BxNxC.dtype))
        else:
            phases.append(jnp.zeros((batch, rows, channels), x_BxNxC.dtype))
    dx_BxNxC = jnp.stack(phases, 2).reshape(batch, rows * stride, channels)[:, :frames]

    dy_RxD = dy_BxTxD.reshape(batch * windows, -1)
    last = stride * (windows - 1) + 1
    dkernel_KxCxD = jnp.stack(
        [
            # copied: a product that transposes on the way takes up to twice as long
            cpu_product(x_BxNxC[:, tap : tap + last : stride].reshape(batch * windows, channels).T.copy(), dy_RxD)
            for tap in range(taps)
        ]
    ).astype(kernel_KxCxD.dtype)
    return dx_BxNxC, dkernel_KxCxD
