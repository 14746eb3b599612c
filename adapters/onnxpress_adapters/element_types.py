"""The ONNX element types of a model's values, where something depends on them.

torch holds numbers of 2 and 4 bits in wider types and text not at all, so nodes that work on these
have to be told; for all other models nothing is inferred.
"""

from __future__ import annotations

from contextlib import suppress

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from onnxpress_adapters.walk import graphs

UNLIKE_TORCH = frozenset(
    {
        *(TensorProto.STRING, TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2),
        *(TensorProto.UINT2, TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E8M0),
    }
)
"""Types torch holds as another one, or not at all."""

TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})
TEXT = (AttributeProto.STRING, AttributeProto.STRINGS)
LARGE_BYTES = 1024


def odd_types(model: ModelProto) -> bool:
    """Say whether a model names a type torch does not have."""
    for _, graph in graphs(model):
        if any(tensor.data_type in UNLIKE_TORCH for tensor in graph.initializer):
            return True
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in UNLIKE_TORCH:
                return True
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in TYPE_ATTRIBUTES and attribute.i in UNLIKE_TORCH:
                    return True
                if attribute.type == AttributeProto.TENSOR:
                    if attribute.t.data_type in UNLIKE_TORCH:
                        return True
                elif node.op_type == "Constant" and attribute.type in TEXT:
                    return True
    return False


def element_types(model: ModelProto) -> dict[str, int]:
    """Infer the element type of every value of a model, bodies included.

    Args:
        model: any; it is not changed, and the data of its large constants are not copied.

    Returns:
        Name to ``TensorProto.DataType``. A name that two bodies use for different types, and what
        ONNX's inference cannot tell, is missing.
    """
    inferred = onnx.shape_inference.infer_shapes(_skeleton(model))
    found: dict[str, int] = {}
    clashing: set[str] = set()
    for _, graph in graphs(inferred):
        pairs = [(tensor.name, tensor.data_type) for tensor in graph.initializer]
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type
            if kind.WhichOneof("value") == "sequence_type":
                kind = kind.sequence_type.elem_type
            pairs.append((value.name, kind.tensor_type.elem_type))
        for name, element_type in pairs:
            if element_type and found.setdefault(name, element_type) != element_type:
                clashing.add(name)
    return {name: kind for name, kind in found.items() if name not in clashing}


def ranks_of(model: ModelProto) -> dict[str, int]:
    """Infer how many axes the values of the main graph have, as far as that can be told.

    Args:
        model: any; it is not changed, and the data of its large constants are not copied.
    """
    bare = _skeleton(model)
    # Where inference fails, what the file says itself still counts.
    with suppress(onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        bare = onnx.shape_inference.infer_shapes(bare)
    graph: GraphProto = bare.graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _skeleton(model: ModelProto) -> ModelProto:
    """Copy a model with its large initializers as inputs, so that no weights are copied."""
    bare = ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph: GraphProto = bare.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    known = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= LARGE_BYTES:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            kind = onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, list(tensor.dims)
            )
            graph.input.append(kind)
    return bare
