"""A fine-tuned model at one setting as a graph: wave and length in, log-probabilities and frames out.

Written from the parameters, part by part as sew_jax/models computes it; the tests hold the two together. B utterances,
N samples, T frames at 50 Hz, W = ceil(T / S) squeezed frames, D channels, V symbols.
"""

import itertools

import numpy as np
import onnx
from onnx import TensorProto

from sew_jax.compression import Compression
from sew_jax.engines.front_end import front_end
from sew_jax.engines.graph import Graph, Weights
from sew_jax.engines.layers import (
    Params,
    dense,
    gelu,
    is_valid,
    join_frames,
    layer_norm,
    mean_pool,
    pad_end,
    pooled_length,
    repeat_frames,
    split_frames,
    zero_padding,
)
from sew_jax.engines.run_times import LAYERS
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig
from sew_jax.models.frontend import feature_width, frame_count
from sew_jax.models.lengths import MASKED
from sew_jax.models.upsamplers import upsampler_of


def build(
    config: BackboneConfig, params: Params, setting: Compression, weights: Weights, file: str, about: dict[str, str]
) -> onnx.ModelProto:
    """The graph of a setting.

    Inputs: `wave` (B, N) float32, of which 1 is full scale, and `length` (B,) int64, its samples. Outputs: `log_probs`
    (B, T, V) float32 and `frames` (B,) int64.

    Args:
      params: numpy arrays, as a `CTCModel` names them.
      weights: takes the arrays; graphs of one model share it.
      file: name of the file that the weights will lie in.
      about: properties of the ONNX file.

    Raises:
      UserError: a per-layer setting has another number of layers than the model, the setting merges frames or has a
        rate, or the model has parts without such nodes.
    """
    for field, plain in (("positions", "conv"), ("pos_layers", 1), ("rel_buckets", 0), ("adapter_width", 0)):
        if getattr(config, field) != plain:
            raise UserError(
                f"model.{field}: {getattr(config, field)} has no ONNX graph yet; give --config.runtime=jax, "
                "or --config.format=stablehlo or sew_jax"
            )
    if setting.merges or setting.rate < 1:
        raise UserError(
            f"setting: graphs of ONNX cannot express merging or a rate, as {setting} has; compute it by jax "
            "(--config.format=stablehlo where it is exported)"
        )
    graph, backbone = Graph(weights, file), params["backbone"]
    least = 1 if config.tail == "keep" else setting.squeeze  # frames, without which a sequence would be empty
    samples = next(n for n in itertools.count() if frame_count(config, n) >= least)
    x, frames = front_end(graph, config, backbone.get("frontend", {}), "wave", "length", samples)
    x = layer_norm(graph, x, "feature_norm", backbone["feature_norm"])
    if feature_width(config) != config.width:
        x = dense(graph, x, "feature_projection", backbone["feature_projection"])
    x = _Encoder(graph, config, backbone["encoder"], setting)(x, frames)
    logits = dense(graph, x, "symbols", params["symbols"])
    symbols = int(np.asarray(params["symbols"]["bias"]).shape[0])
    inputs = ("wave", TensorProto.FLOAT, ["B", "N"]), ("length", TensorProto.INT64, ["B"])
    outputs = ("log_probs", TensorProto.FLOAT, ["B", "T", symbols]), ("frames", TensorProto.INT64, ["B"])
    return graph.model(inputs, outputs, [graph("LogSoftmax", logits, axis=-1), frames], about)


class _Encoder:
    """`models.encoder.Encoder` at one setting."""

    def __init__(self, graph: Graph, config: BackboneConfig, params: Params, setting: Compression):
        self._graph, self._config, self._params, self._setting = graph, config, params, setting

    def __call__(self, x_BxTxD: str, length: str) -> str:
        graph, config, squeeze = self._graph, self._config, self._setting.squeeze
        frames = graph.size(x_BxTxD, 1)
        x_BxTxD = zero_padding(graph, x_BxTxD, length)
        pooled = mean_pool(graph, x_BxTxD, length, squeeze, config.width)
        x = graph("Add", pooled, gelu(graph, self._positions(x_BxTxD)))
        if config.tail == "drop":
            x, squeezed = graph.cut(x, 1, graph("Div", frames, squeeze)), graph("Div", length, squeeze)
        else:
            squeezed = pooled_length(graph, length, squeeze)
        if config.input_norm and not config.pre_norm:
            x = self._norm(x, "norm")
        for i, (query_pool, kv_pool) in enumerate(self._setting.layer_pools(config.layers)):
            x = self._layer(x, squeezed, i, query_pool, kv_pool)
        if config.pre_norm:
            x = self._norm(x, "norm")
        x_BxTxD = self._upsample(x, frames)
        return zero_padding(graph, x_BxTxD, graph("Min", length, graph("Mul", squeezed, squeeze)))

    def _norm(self, x: str, *path: str) -> str:
        return layer_norm(self._graph, x, "/".join(path), self._at(path), self._config.norm_epsilon)

    def _dense(self, x: str, *path: str, factor: float = 1.0) -> str:
        rounded = path[0].startswith(LAYERS)
        return dense(self._graph, x, "/".join(path), self._at(path), factor, rounded)

    def _at(self, path: tuple[str, ...]) -> Params:
        found = self._params
        for name in path:
            found = found[name]
        return found

    def _positions(self, x_BxTxD: str) -> str:
        graph, config, params = self._graph, self._config, self._params["pos_conv"]
        v_KxIxO, gain_K = np.asarray(params["weight_v"]), np.asarray(params["weight_g"])
        kernel = v_KxIxO * (gain_K / np.sqrt(np.square(v_KxIxO).sum((1, 2))))[:, None, None]
        weights = (
            graph.weight("pos_conv/kernel", kernel.transpose(2, 1, 0)),
            graph.weight("pos_conv/bias", np.asarray(params["bias"])),
        )
        y = graph(
            "Conv",
            graph("Transpose", x_BxTxD, perm=[0, 2, 1]),
            *weights,
            strides=[self._setting.squeeze],
            group=config.pos_groups,
            pads=[config.pos_kernel // 2, (config.pos_kernel - 1) // 2],
        )
        return graph("Transpose", y, perm=[0, 2, 1])

    def _layer(self, x: str, length: str, i: int, query_pool: int, kv_pool: int) -> str:
        graph, config, name = self._graph, self._config, f"layer_{i}"
        frames, width = graph.size(x, 1), config.width
        source = self._norm(x, name, "attention_norm") if config.pre_norm else x
        query = mean_pool(graph, source, length, query_pool, width)
        key = query if kv_pool == query_pool else mean_pool(graph, source, length, kv_pool, width)
        update = self._attention(query, key, pooled_length(graph, length, kv_pool), name)
        rate = query_pool if config.pool_ffn else 1
        base = mean_pool(graph, x, length, rate, width)
        if not config.pool_ffn:
            update = repeat_frames(graph, update, query_pool, frames, width)
        y = graph("Add", base, update)
        if config.pre_norm:
            y = graph("Add", y, self._feed_forward(self._norm(y, name, "ffn_norm"), name))
        else:
            y = self._norm(y, name, "attention_norm")
            y = self._norm(graph("Add", y, self._feed_forward(y, name)), name, "ffn_norm")
        if rate == 1:
            return y
        return graph("Add", x, repeat_frames(graph, graph("Sub", y, base), rate, frames, width))

    def _attention(self, query: str, key: str, key_length: str, name: str) -> str:
        graph, config = self._graph, self._config
        channels = config.width // config.heads

        def project(x: str, part: str, perm: list[int], factor: float = 1.0) -> str:
            y = self._dense(x, name, "attention", part, factor=factor)
            return graph("Transpose", graph("Reshape", y, [0, 0, config.heads, channels]), perm=perm)

        q_BxHxQxE = project(query, "query", [0, 2, 1, 3], channels**-0.5)
        k_BxHxExK, v_BxHxKxE = project(key, "key", [0, 2, 3, 1]), project(key, "value", [0, 2, 1, 3])
        valid_BxK = is_valid(graph, key_length, graph.size(key, 1))
        hidden = graph("Unsqueeze", graph("Where", valid_BxK, 0.0, MASKED), [1, 2])
        weight = graph("Softmax", graph("Add", graph("MatMul", q_BxHxQxE, k_BxHxExK), hidden), axis=-1)
        out = graph("Transpose", graph("MatMul", weight, v_BxHxKxE), perm=[0, 2, 1, 3])
        return self._dense(graph("Reshape", out, [0, 0, config.width]), name, "attention", "out")

    def _feed_forward(self, x: str, name: str) -> str:
        return self._dense(gelu(self._graph, self._dense(x, name, "ffn_in")), name, "ffn_out")

    def _upsample(self, x_BxWxD: str, frames: str) -> str:
        graph, config, squeeze = self._graph, self._config, self._setting.squeeze
        width, factor = config.width, upsampler_of(config, squeeze)
        if factor is None:
            out = repeat_frames(graph, x_BxWxD, squeeze, frames, width)
        else:
            if config.upsampler == "linear":
                y = gelu(graph, self._dense(x_BxWxD, f"upsample_{factor}", "linear"))
                out = split_frames(graph, y, factor, width)
            else:
                y = self._dense(x_BxWxD, f"upsample_{factor}", "difference")
                out = graph("Add", graph("Unsqueeze", x_BxWxD, [2]), split_frames(graph, y, factor, width))
            if factor != squeeze:  # output i reads frame i * factor // S
                out = graph("Gather", out, [i * factor // squeeze for i in range(squeeze)], axis=2)
            out = join_frames(graph, out, width)
        if config.tail == "drop":  # up to S - 1 frames have none
            out = pad_end(graph, out, 1, [squeeze - 1], 3)
        return graph.cut(out, 1, frames)
