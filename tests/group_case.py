"""A small graph and how many units each of its groups has, and the words to write one down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array
from onnx.shape_inference import infer_shapes

from hand_built import Array, normal
from small_models import model, value

Shape = Sequence[int | str]
NOTHING: Mapping[str, Shape] = {}


@dataclass(frozen=True, eq=False)
class Case:
    """A model and the numbers of units of its groups, in the order of the graph.

    Attributes:
        model: checked in full.
        units: of each group.
        kinds: numpy type of the inputs, and the largest whole number of one.
    """

    model: ModelProto
    units: tuple[int, ...]
    most: int = 10

    def feed(self, seed: int = 0, batch: int = 1) -> dict[str, Array]:
        """Draw inputs; open dimensions are a batch."""
        rng = np.random.default_rng(seed)
        drawn: dict[str, Array] = {}
        constants = {tensor.name for tensor in self.model.graph.initializer}
        for spec in self.model.graph.input:
            if spec.name in constants:
                continue
            kind = spec.type.tensor_type
            shape = [dim.dim_value or batch for dim in kind.shape.dim]
            if kind.elem_type == TensorProto.INT64:
                drawn[spec.name] = rng.integers(0, self.most, shape)
            else:
                drawn[spec.name] = rng.standard_normal(shape).astype(np.float32)
        return drawn


def made(
    nodes: Sequence[NodeProto],
    units: Sequence[int],
    constants: Mapping[str, Array],
    shape: Shape = ("N", 6),
    *,
    opset: int = 17,
    ir: int = 8,
    outputs: Sequence[str] = ("y",),
    kind: int = TensorProto.FLOAT,
    noted: Mapping[str, Shape] = NOTHING,
) -> Case:
    """Make a case with one input ``x``; shapes of all values are noted in the file.

    Shapes that Microsoft's operators make have to be told.
    """
    tensors = [from_array(np.asarray(array), name) for name, array in constants.items()]
    inputs = [value("x", *shape, kind=kind)]
    if ir < 4:
        inputs += [value(t.name, *t.dims, kind=t.data_type) for t in tensors]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", inputs, results, tensors)
    graph.value_info.extend(value(name, *dims) for name, dims in noted.items())
    whole = model(graph, opset, ir)
    if noted:
        whole.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    # Strings and domains onnx does not infer through are met nowhere here.
    whole = infer_shapes(whole, strict_mode=True)
    onnx.checker.check_model(whole, full_check=True)
    return Case(whole, tuple(units))


def random(seed: int = 1, **shapes: Sequence[int]) -> dict[str, Array]:
    """Draw constants, scaled so that activations keep their size."""
    return {
        name: (normal(*shape, seed=seed + place) / np.sqrt(np.prod(shape[1:]) or 1.0)).astype(
            np.float32
        )
        for place, (name, shape) in enumerate(shapes.items())
    }


def norm(channels: int, prefix: str = "n") -> dict[str, Array]:
    """Draw scale, shift, mean and variance."""
    rng = np.random.default_rng(channels)
    parts = (rng.uniform(0.5, 2, channels), *rng.normal(size=(2, channels)))
    names = [f"{prefix}_{part}" for part in ("scale", "shift", "mean", "var")]
    drawn = (*parts, rng.uniform(0.5, 2, channels))
    return {name: part.astype(np.float32) for name, part in zip(names, drawn, strict=True)}


def whole(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


IMAGE = ("N", 3, 6, 6)
