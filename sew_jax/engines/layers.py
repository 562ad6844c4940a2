"""Parts that the whole network shares, as nodes of a graph; each is what sew_jax/models computes.

B utterances, T frames, D channels. A length is (B,) int64; a mask (B, T) float32, 1 at valid positions.
"""

from typing import Any

import numpy as np
from onnx import TensorProto

from sew_jax.engines.graph import Graph, Value
from sew_jax.models.layers import EPSILON

Params = dict[str, Any]


def dense(graph: Graph, x: str, name: str, params: Params, factor: float = 1.0, rounded: bool = False) -> str:
    """A linear layer, its output times `factor`; see `Graph.product`."""
    kernel, bias = np.asarray(params["kernel"]) * factor, np.asarray(params["bias"]) * factor
    return graph("Add", graph.product(x, f"{name}/kernel", kernel, rounded), graph.weight(f"{name}/bias", bias))


def layer_norm(graph: Graph, x: str, name: str, params: Params, epsilon: float = EPSILON) -> str:
    """Over the last axis."""
    parts = [graph.weight(f"{name}/{part}", np.asarray(params[part])) for part in ("scale", "bias")]
    return graph("LayerNormalization", x, *parts, axis=-1, epsilon=epsilon)


def gelu(graph: Graph, x: str) -> str:
    """The exact one."""
    return graph("Gelu", x, approximate="none")


def conv_length(graph: Graph, length: str, kernel: int, stride: int) -> str:
    """Output positions of a convolution; the sum is kept from below 0, where integers are divided in two ways."""
    return graph("Div", graph("Max", graph("Add", length, stride - kernel), 0), stride)


def pooled_length(graph: Graph, length: str, factor: int) -> str:
    """Windows that hold at least one valid position."""
    return length if factor == 1 else graph("Div", graph("Add", length, factor - 1), factor)


def is_valid(graph: Graph, length: str, positions: str) -> str:
    """(B, T) booleans for T (1,)."""
    places = graph("Range", 0, graph("Squeeze", positions, [0]), 1)
    return graph("Less", places, graph("Unsqueeze", length, [1]))


def mask(graph: Graph, length: str, positions: str) -> str:
    """The same as float32."""
    return graph("Cast", is_valid(graph, length, positions), to=TensorProto.FLOAT)


def zero_padding(graph: Graph, x: str, length: str) -> str:
    """x (B, T, D) with its tail zeroed."""
    return graph("Mul", x, graph("Unsqueeze", mask(graph, length, graph.size(x, 1)), [2]))


def pad_end(graph: Graph, x: str, axis: int, count: Value, axes: int) -> str:
    """x of so many axes, with `count` ((1,)) zeros behind an axis."""
    before, after = [0] * (axes + axis), [0] * (axes - axis - 1)
    return graph("Pad", x, graph("Concat", before, count, *([after] if after else []), axis=0))


def mean_pool(graph: Graph, x: str, length: str, factor: int, width: int) -> str:
    """Means over windows of `factor` frames, counting valid frames only."""
    if factor == 1:
        return x
    frames = graph.size(x, 1)
    windows = pooled_length(graph, frames, factor)
    missing = graph("Sub", graph("Mul", windows, factor), frames)
    x = pad_end(graph, zero_padding(graph, x, length), 1, missing, 3)
    total = graph("ReduceSum", split_frames(graph, x, factor, width), [2], keepdims=0)
    begins = graph("Mul", graph("Range", 0, graph("Squeeze", windows, [0]), 1), factor)
    left = graph("Sub", graph("Unsqueeze", length, [1]), begins)
    count = graph("Cast", graph("Min", graph("Max", left, 1), factor), to=TensorProto.FLOAT)
    return graph("Div", total, graph("Unsqueeze", count, [2]))


def split_frames(graph: Graph, x: str, factor: int, width: int) -> str:
    """(B, W * factor, D) -> (B, W, factor, D)."""
    return graph("Reshape", x, [0, -1, factor, width])


def join_frames(graph: Graph, x: str, width: int) -> str:
    """(B, W, factor, D) -> (B, W * factor, D)."""
    return graph("Reshape", x, [0, -1, width])


def repeat_frames(graph: Graph, x: str, factor: int, frames: str, width: int) -> str:
    """Each frame `factor` times, cut to `frames` (1,)."""
    if factor == 1:
        return graph.cut(x, 1, frames)
    tiled = graph("Tile", graph("Unsqueeze", x, [2]), [1, 1, factor, 1])
    return graph.cut(join_frames(graph, tiled, width), 1, frames)
