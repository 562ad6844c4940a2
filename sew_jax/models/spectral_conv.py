"""Grouped convolution as products of spectra, which a GPU computes several times as fast as the convolution itself.

Of 128 taps, group by group, base's took 4.5 ms forward and backward (H200, 6 x 779 frames, bfloat16), this 1.1.
Transforms are products with cosines and sines: XLA's partitioner gathers the batch of an FFT on each device.
B utterances, T frames, D channels in G groups of I in and O out; K taps; M blocks of N frames, each with P outputs;
F frequencies, real and imaginary parts R in and S out.
"""

import jax.numpy as jnp
import numpy as np


def convolve_by_spectrum(x_BxTxD, kernel_KxIxD, stride: int, groups: int):
    """Output frame w centred on input frame w * stride: (B, ceil(T / stride), D), as `positions.convolve` has it.

    Overlap-save: blocks as long as twice the kernel, of whose circular correlation the part that does not wrap is kept.
    """
    (batch, frames, _), (taps, inputs, width) = x_BxTxD.shape, kernel_KxIxD.shape
    size = 1 << (2 * max(taps, stride) - 1).bit_length()
    hop = (size - taps + 1) // stride * stride
    outputs, windows = hop // stride, -(-frames // stride)
    blocks = -(-windows // outputs)

    before, after = taps // 2, max(blocks * hop - hop + size - frames - taps // 2, 0)
    x_BxJxD = jnp.pad(x_BxTxD.astype(jnp.float32), ((0, 0), (before, after), (0, 0)))
    x_MxBxNxD = jnp.stack([x_BxJxD[:, i * hop : i * hop + size] for i in range(blocks)])
    x_MxBxNxGxI = x_MxBxNxD.reshape(blocks, batch, size, groups, inputs)
    kernel_KxIxGxO = kernel_KxIxD.astype(jnp.float32).reshape(taps, inputs, groups, width // groups)

    cos_NxF, sin_NxF = _waves(size)
    of_frames_NxFxR = np.stack([cos_NxF, -sin_NxF], -1)
    # the conjugate of the kernel's spectrum, as the matrix that multiplies (real, imaginary)
    of_taps_KxFxRxS = np.stack([np.stack([cos_NxF, sin_NxF], -1), np.stack([-sin_NxF, cos_NxF], -1)], -2)[:taps]
    twice_F = np.where(np.isin(np.arange(size // 2 + 1), (0, size // 2)), 1, 2) / size  # frequencies and their mirrors
    to_outputs_FxSxP = twice_F[:, None, None] * of_frames_NxFxR[: outputs * stride : stride].transpose(1, 2, 0)

    def product(axes: str, *arrays):
        return jnp.einsum(axes, *(jnp.asarray(a, jnp.float32) for a in arrays), preferred_element_type=jnp.float32)

    x_FxGxMxBxRxI = product("mbngi,nfr->fgmbri", x_MxBxNxGxI, of_frames_NxFxR)
    kernel_FxGxRxIxSxO = product("kigo,kfrs->fgriso", kernel_KxIxGxO, of_taps_KxFxRxS)
    y_FxGxMxBxSxO = product("fgmbri,fgriso->fgmbso", x_FxGxMxBxRxI, kernel_FxGxRxIxSxO)
    y_BxMxPxGxO = product("fgmbso,fsp->bmpgo", y_FxGxMxBxSxO, to_outputs_FxSxP)
    return y_BxMxPxGxO.reshape(batch, blocks * outputs, width)[:, :windows].astype(x_BxTxD.dtype)


def _waves(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (N, F) of the frequencies up to half the rate, in float64."""
    turn_NxF = np.outer(np.arange(size), np.arange(size // 2 + 1)) % size * (2 * np.pi / size)
    return np.cos(turn_NxF), np.sin(turn_NxF)
