"""ONNX graphs whose weights lie in one file beside them.

Standard operators alone (opset 20), so that ONNX Runtime and OpenVINO read the same file.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sew_jax.files import write_whole

_OPSET, _IR = 20, 10
_INLINE = 1024  # elements: what is smaller lies in the graph itself
_ALIGN = 64  # bytes

Value = str | int | float | Sequence[int] | np.ndarray  # the name of what a node gives, or a constant


class Weights:
    """Arrays that several graphs share.

    Args:
      kind: float32; float16: arrays are stored in half and computed with in float32; int8: products of attention and
        feed-forward have weights of 8 bits, one scale an output channel, and round their input to 8 bits, one scale
        for all of it.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._places: dict[str, tuple[int, int]] = {}  # name -> where its bytes begin, how many they are
        self._bytes = io.BytesIO()

    def place(self, name: str, array: np.ndarray) -> tuple[int, int]:
        """Where an array lies in the file; one of a name that is there already lies where that does."""
        if name not in self._places:
            self._bytes.write(bytes(-self._bytes.tell() % _ALIGN))
            self._places[name] = self._bytes.tell(), array.nbytes
            self._bytes.write(np.ascontiguousarray(array).data)
        return self._places[name]

    def save(self, path: Path) -> None:
        """Writes the file."""
        write_whole(path, self._bytes.getbuffer())


class Graph:
    """A graph that is built node by node: `graph("Add", x, 1.0)` is the name of the sum.

    Args:
      file: name of the file of the weights.
    """

    def __init__(self, weights: Weights, file: str):
        self._weights, self._file = weights, file
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._rounded: dict[str, list[str]] = {}  # name -> the same in 8 bits, its scale and zero

    def __call__(self, operator: str, *inputs: Value, **attributes: Any) -> str:
        """Adds a node; its one output's name."""
        return self.several(1, operator, *inputs, **attributes)[0]

    def several(self, count: int, operator: str, *inputs: Value, **attributes: Any) -> list[str]:
        """Adds a node with so many outputs; their names."""
        outputs = [f"{operator}_{len(self._nodes)}" + (f"_{i}" if count > 1 else "") for i in range(count)]
        names = [self._name(value) for value in inputs]
        self._nodes.append(helper.make_node(operator, names, outputs, name=outputs[0], **attributes))
        return outputs

    def _name(self, value: Value) -> str:
        if isinstance(value, str):
            return value
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
        if not isinstance(value, np.ndarray):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        name = f"constant_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()[:64]}"
        if name in self._tensors and not np.array_equal(numpy_helper.to_array(self._tensors[name]), array):
            name = f"{name}_{len(self._tensors)}"
        self._tensors.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, array: np.ndarray, exact: bool = False) -> str:
        """A parameter, float32 where it is computed with; `exact` ones are stored so, too."""
        half = self._weights.kind == "float16" and array.ndim > 1 and not exact
        stored = self._stored(name, array.astype(np.float16 if half else np.float32))
        return self("Cast", stored, to=TensorProto.FLOAT) if half else stored

    def _stored(self, name: str, array: np.ndarray) -> str:
        if name in self._tensors:
            return name
        if array.size < _INLINE:
            self._tensors[name] = numpy_helper.from_array(array, name)
            return name
        offset, length = self._weights.place(name, array)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._file), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        self._tensors[name] = tensor
        return name

    def product(self, x: str, name: str, kernel_IxO: np.ndarray, rounded: bool) -> str:
        """x (..., I) times a parameter; what may be `rounded` in 8 bits where the weights' kind is int8."""
        if not rounded or self._weights.kind != "int8":
            return self("MatMul", x, self.weight(name, kernel_IxO))
        scale_O = np.maximum(np.abs(kernel_IxO).max(0), 1e-12).astype(np.float32) / 127
        kernel_8 = np.rint(kernel_IxO / scale_O).astype(np.int8)
        if x not in self._rounded:  # queries, keys and values round one input
            self._rounded[x] = self.several(3, "DynamicQuantizeLinear", x)
        x_8, x_scale, x_zero = self._rounded[x]
        zero = self._stored(f"{name}_zero", np.zeros(1, np.int8))
        total = self("MatMulInteger", x_8, self._stored(f"{name}_int8", kernel_8), x_zero, zero)
        scales = self("Mul", x_scale, self._stored(f"{name}_scale", scale_O))
        return self("Mul", self("Cast", total, to=TensorProto.FLOAT), scales)

    def size(self, x: str, axis: int) -> str:
        """How long an axis is: (1,) int64."""
        return self("Shape", x, start=axis, end=axis + 1)

    def cut(self, x: str, axis: int, stop: Value) -> str:
        """The first `stop` ((1,) int64) of an axis, or all where there are no more."""
        return self("Slice", x, [0], stop, [axis])

    def model(
        self, inputs: Sequence, outputs: Sequence, values: Sequence[str], about: dict[str, str]
    ) -> onnx.ModelProto:
        """The whole.

        Args:
          inputs, outputs: (name, type as of `TensorProto`, dimensions by name or number) each.
          values: what the outputs are.
          about: properties of the file.
        """

        def infos(values):
            return [helper.make_tensor_value_info(*value) for value in values]

        for value, (name, *_) in zip(values, outputs, strict=True):
            self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        tensors = list(self._tensors.values())
        graph = helper.make_graph(self._nodes, "sew_jax", infos(inputs), infos(outputs), tensors)
        opset = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, producer_name="sew_jax", ir_version=_IR, opset_imports=opset)
        helper.set_model_props(model, about)
        return model
