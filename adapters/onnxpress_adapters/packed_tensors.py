"""Packed constants, as onnxpress writes them, made plain.

A packed constant is what a few nodes of standard operators compute from streams of bytes. A runtime
folds them when it loads a model; here numpy does, so that nothing above this file meets one.

The names of all streams and of everything between them and the constants begin with a prefix that
occurs nowhere else in the model; the model's metadata says which (``MARK``). A node that reads
nothing else is part of a decoder, and what it makes under another name is a constant. Where that
node has a name the constant was a Constant node and becomes one again, in its place, without a name
where that begins with the prefix; otherwise it was an initializer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from onnxpress_adapters.errors import AdapterError, BrokenModelError
from onnxpress_adapters.sparse_tensors import FREE_INITIALIZERS
from onnxpress_adapters.walk import STANDARD_DOMAINS, graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnx import GraphProto, NodeProto, TensorProto

    Arrays = list[np.ndarray]
    Attributes = Mapping[str, Any]

MARK = "onnxpress.packed"
"""The key in a model's metadata; its value is the prefix."""

MOST_BYTES = 2**31 - 1


def prefix_of(model: ModelProto) -> str:
    """Give the prefix of the packed streams of a model, or ``""`` where nothing is packed."""
    return next((str(entry.value) for entry in model.metadata_props if entry.key == MARK), "")


def make_plain(model: ModelProto, most_bytes: int = MOST_BYTES) -> None:
    """Turn the packed constants of a model into initializers and Constant nodes.

    Initializers follow those of their graph, in the order of the file; streams, decoders and the
    mark go. Up to IR version 3 an initializer must be a graph input too, and becomes one.

    Args:
        model: changed in place; its data inline.
        most_bytes: what any one result on the way may take.

    Raises:
        BrokenModelError: a decoder holds what none of ours does, or contradicts itself.
        AdapterError: a result is larger than allowed.
    """
    prefix = prefix_of(model)
    if not prefix:
        return
    for path, graph in graphs(model):
        known = {value.name for value in graph.initializer}
        _unpack(graph, prefix, most_bytes)
        if model.ir_version < FREE_INITIALIZERS and not path:
            graph.input.extend(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                for tensor in graph.initializer
                if tensor.name not in known
            )
    kept = [entry for entry in model.metadata_props if entry.key != MARK]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def _unpack(graph: GraphProto, prefix: str, most_bytes: int) -> None:
    known = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.name.startswith(prefix)
    }
    last = {name: place for place, node in enumerate(graph.node) for name in node.input}
    gone = []
    for place, node in enumerate(graph.node):
        if not node.input or not all(name.startswith(prefix) for name in node.input):
            continue
        tensors = []
        for made, array in _run(node, known, most_bytes).items():
            if made.startswith(prefix):
                known[made] = array
            else:
                tensors.append(_tensor(made, array, node))
        for used in node.input:  # what nothing reads any more may be as large as a weight
            if last[used] == place:
                known.pop(used, None)
        if node.name and tensors:
            name, output = "" if node.name.startswith(prefix) else node.name, tensors[0].name
            tensors[0].ClearField("name")
            node.CopyFrom(helper.make_node("Constant", [], [output], name, value=tensors[0]))
        else:
            graph.initializer.extend(tensors)
            gone.append(place)
    for place in reversed(gone):
        del graph.node[place]
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name.startswith(prefix):
            del graph.initializer[place]
    for field in (graph.input, graph.value_info):
        for place in reversed(range(len(field))):
            if field[place].name.startswith(prefix):
                del field[place]


def _tensor(name: str, array: np.ndarray, node: NodeProto) -> TensorProto:
    tensor = numpy_helper.from_array(array, name)
    if node.HasField("doc_string"):
        tensor.doc_string = node.doc_string
    tensor.metadata_props.extend(node.metadata_props)
    return tensor


def _run(
    node: NodeProto, known: Mapping[str, np.ndarray], most_bytes: int
) -> Mapping[str, np.ndarray]:
    """Compute one node of a decoder."""
    called = f"the decoder node '{node.output[0] if node.output else node.op_type}'"
    compute = OPERATORS.get(node.op_type) if node.domain in STANDARD_DOMAINS else None
    if compute is None:
        raise BrokenModelError(
            f"{called} is a {node.op_type}, which no decoder of this version of onnxpress has; "
            "write the model again, or densify it with the version that wrote it"
        )
    try:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        attributes.update(outputs=len(node.output), most_bytes=most_bytes)
        with np.errstate(all="ignore"):
            made = compute([known[name] for name in node.input], attributes)
        return dict(zip(node.output, made, strict=True))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BrokenModelError(f"{called} does not fit its inputs: {error}") from error
    except MemoryError as error:
        raise AdapterError(f"{called} makes more than memory holds") from error


def _afford(shape: tuple[int, ...], dtype: np.dtype[Any], attributes: Attributes) -> None:
    if any(extent < 0 for extent in shape):
        raise ValueError(f"a negative extent in {list(shape)}")
    if math.prod(shape) * dtype.itemsize > attributes["most_bytes"]:
        raise AdapterError(f"a packed constant takes more than {attributes['most_bytes']} bytes")


def _cast(inputs: Arrays, attributes: Attributes) -> Arrays:
    (values,) = inputs
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(attributes["to"]))
    if dtype.kind not in "fiu":
        raise ValueError(f"a cast to {dtype}")
    _afford(values.shape, dtype, attributes)
    return [values.astype(dtype)]


def _cum_sum(inputs: Arrays, attributes: Attributes) -> Arrays:
    values, axis = inputs
    sums = np.cumsum(values, int(axis), values.dtype)
    return [sums - values if attributes.get("exclusive") else sums]


def _constant_of_shape(inputs: Arrays, attributes: Attributes) -> Arrays:
    (shape,) = inputs
    value = numpy_helper.to_array(attributes["value"]).reshape(())
    extents = tuple(int(extent) for extent in shape.reshape(-1))
    _afford(extents, value.dtype, attributes)
    return [np.full(extents, value)]


def _scatter(inputs: Arrays, _: Attributes) -> Arrays:
    data, places, values = inputs
    if places.size and (int(places.min()) < 0 or int(places.max()) >= data.size):
        raise ValueError(f"a place outside {data.size} entries")
    if data.ndim != 1 or places.shape != values.shape:
        raise ValueError(f"{list(values.shape)} values for {list(places.shape)} places")
    filled = data.copy()
    filled[places] = values
    return [filled]


def _gather(inputs: Arrays, attributes: Attributes) -> Arrays:
    table, places = inputs
    axis = int(attributes.get("axis", 0))
    rest = table.shape[:axis] + table.shape[axis + 1 :]
    _afford((*rest, *places.shape), table.dtype, attributes)
    return [np.take(table, places, axis)]


def _expand(inputs: Arrays, attributes: Attributes) -> Arrays:
    values, shape = inputs
    extents = np.broadcast_shapes(values.shape, tuple(int(extent) for extent in shape))
    _afford(extents, values.dtype, attributes)
    return [np.broadcast_to(values, extents).copy()]


def _pad(inputs: Arrays, attributes: Attributes) -> Arrays:
    values, (before, after) = inputs
    _afford((int(before) + len(values) + int(after),), values.dtype, attributes)
    return [np.pad(values, (int(before), int(after)))]


def _concat(inputs: Arrays, attributes: Attributes) -> Arrays:
    _afford((sum(len(values) for values in inputs),), inputs[0].dtype, attributes)
    return [np.concatenate(inputs)]


def _reshape(inputs: Arrays, _: Attributes) -> Arrays:
    values, shape = inputs
    return [values.reshape([int(extent) for extent in shape])]


def _mat_mul(inputs: Arrays, attributes: Attributes) -> Arrays:
    rows, matrix = inputs
    _afford((rows.shape[0], matrix.shape[1]), rows.dtype, attributes)
    return [rows @ matrix]


def _transpose(inputs: Arrays, attributes: Attributes) -> Arrays:
    (values,) = inputs
    return [values.transpose(attributes["perm"])]


def _negate(inputs: Arrays, _: Attributes) -> Arrays:
    (values,) = inputs
    return [np.logical_not(values)]


def _split(inputs: Arrays, attributes: Attributes) -> Arrays:
    values = inputs[0]
    lengths = [int(n) for n in (inputs[1] if len(inputs) > 1 else attributes["split"])]
    if sum(lengths) != len(values) or min(lengths) < 0 or len(lengths) != attributes["outputs"]:
        raise ValueError(f"parts of {sum(lengths)} entries of {len(values)}")
    return np.split(values, np.cumsum(lengths)[:-1])


def _binary(compute: Callable[..., np.ndarray]) -> Callable[[Arrays, Attributes], Arrays]:
    def run(inputs: Arrays, attributes: Attributes) -> Arrays:
        first, second = inputs
        _afford(np.broadcast_shapes(first.shape, second.shape), first.dtype, attributes)
        return [np.asarray(compute(first, second))]

    return run


OPERATORS: Mapping[str, Callable[[Arrays, Attributes], Arrays]] = {
    "Add": _binary(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cum_sum,
    "Div": _binary(np.floor_divide),  # whole numbers from 0 up
    "Expand": _expand,
    "Gather": _gather,
    "Less": _binary(np.less),
    "MatMul": _mat_mul,
    "Mod": _binary(np.mod),
    "Mul": _binary(np.multiply),
    "Not": _negate,
    "Pad": _pad,
    "Reshape": _reshape,
    "Scatter": _scatter,
    "ScatterElements": _scatter,
    "Split": _split,
    "Sub": _binary(np.subtract),
    "Transpose": _transpose,
}
"""What decoders are made of, for the inputs that they have."""
