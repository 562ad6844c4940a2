"""The front ends of sew_jax/models/frontend.py as nodes: wave (B, N) and length (B,) to features (B, T, C) and frames.

Inside, features are (B, C, T), as convolutions of ONNX want them. The tail of the features means nothing.
"""

import numpy as np
from onnx import TensorProto

from sew_jax.engines.graph import Graph, Value
from sew_jax.engines.layers import Params, conv_length, gelu, is_valid, layer_norm, mask, pad_end
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig
from sew_jax.models.frontend import STACK, conv_stack
from sew_jax.models.layers import EPSILON
from sew_jax.models.spectrum import HOP, MEL_BINS, WINDOW, hann_kernel, htk_filters

_WAVE_EPSILON = 1e-7  # of normalize_wave
_WRITTEN = ("wav2vec2", "compact", "logmel")


def front_end(
    graph: Graph, config: BackboneConfig, params: Params, wave: str, length: str, least: int
) -> tuple[str, str]:
    """Features (B, T, C) and the frames of each utterance (B,).

    Args:
      least: samples; a shorter wave is padded.

    Raises:
      UserError: this front end has no such nodes.
    """
    if config.frontend not in _WRITTEN:
        raise UserError(
            f"model.frontend: {config.frontend} has no ONNX graph yet; give --config.runtime=jax, "
            "or --config.format=stablehlo or sew_jax"
        )
    missing = graph("Max", graph("Sub", [least], graph.size(wave, 1)), [0])
    wave = pad_end(graph, wave, 1, missing, 2)
    # what lies behind an utterance may be anything, NaN too
    wave = graph("Where", is_valid(graph, length, graph.size(wave, 1)), wave, 0.0)
    x = graph("Unsqueeze", wave, [1])
    if config.normalize_wave:
        x = _normalized(graph, x, length, _WAVE_EPSILON)
    if config.frontend == "logmel":
        return _log_mel(graph, config, x, length)
    return _extract(graph, config, params["extractor"], x, length)


def _normalized(
    graph: Graph,
    x_BxCxT: str,
    length: str,
    epsilon: float,
    one_scale: bool = False,
    scale: Value = 1.0,
) -> str:
    """`lengths.normalize_over_time`, times `scale`; in few passes over x, which is the largest array of all."""
    valid = graph("Unsqueeze", mask(graph, length, graph.size(x_BxCxT, 2)), [1])
    count = graph("Unsqueeze", graph("Cast", graph("Max", length, 1), to=TensorProto.FLOAT), [1, 2])
    mean = graph("Div", graph("ReduceSum", graph("Mul", x_BxCxT, valid), [2]), count)
    centred = graph("Sub", x_BxCxT, mean)
    variance = graph("Div", graph("ReduceSumSquare", graph("Mul", centred, valid), [2]), count)
    if one_scale:
        variance = graph("ReduceMean", variance, [1])
    return graph("Mul", centred, graph("Div", scale, graph("Sqrt", graph("Add", variance, epsilon))))


def _extract(graph: Graph, config: BackboneConfig, params: Params, x: str, length: str) -> tuple[str, str]:
    for i, (_, kernel, stride) in enumerate(conv_stack(config)):
        mine, name = params[f"conv_{i}"], f"frontend/conv_{i}"
        weights = [graph.weight(f"{name}/kernel", np.asarray(mine["kernel"]).transpose(2, 1, 0))]
        if config.conv_bias:
            weights.append(graph.weight(f"{name}/bias", np.asarray(mine["bias"])))
        x = graph("Conv", x, *weights, strides=[stride])
        length = conv_length(graph, length, kernel, stride)
        if config.conv_norm == "layer":
            x = layer_norm(graph, _swapped(graph, x), f"frontend/norm_{i}", params[f"norm_{i}"])
            x = _swapped(graph, gelu(graph, x))
            continue
        if i == 0:
            scale, bias = (np.asarray(params["norm_0"][part])[:, None] for part in ("scale", "bias"))
            x = graph("Add", _normalized(graph, x, length, EPSILON, scale=scale), bias)
        x = gelu(graph, x)
    return _swapped(graph, x), length


def _swapped(graph: Graph, x: str) -> str:
    """(B, C, T) to (B, T, C) and back."""
    return graph("Transpose", x, perm=[0, 2, 1])


def _log_mel(graph: Graph, config: BackboneConfig, x: str, length: str) -> tuple[str, str]:
    fourier = graph.weight("frontend/fourier", hann_kernel().transpose(2, 1, 0), exact=True)
    spectrum = graph("Conv", x, fourier, strides=[HOP])
    cosine, sine = graph.several(2, "Split", spectrum, axis=1, num_outputs=2)
    power = graph("Add", graph("Mul", cosine, cosine), graph("Mul", sine, sine))
    mel = graph("MatMul", graph.weight("frontend/mel", htk_filters(config.mel_top_hz).T, exact=True), power)
    length = conv_length(graph, length, WINDOW, HOP)
    log_mel = graph("Log", graph("Max", mel, 1e-5))
    x = _swapped(graph, _normalized(graph, log_mel, length, EPSILON, config.mel_scale == "utterance"))
    frames = graph("Div", graph.size(x, 1), STACK)
    x = graph.cut(x, 1, graph("Mul", frames, STACK))
    return graph("Reshape", x, [0, -1, MEL_BINS * STACK]), graph("Div", length, STACK)
