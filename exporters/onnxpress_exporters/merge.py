"""Products with nothing between them become one product: fewer nodes, and less to multiply.

``(x A + a) B + b`` is ``x (A B) + (a B + b)``. Networks have such pairs where a matrix was factored
or where training wanted a linear bottleneck, and without some units the one product is cheap. It is
computed in float64 and rounded once, so the file answers as before up to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from onnxpress_adapters.sparse_tensors import FREE_INITIALIZERS
from onnxpress_adapters.walk import STANDARD_DOMAINS
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.settable import release, settable
from onnxpress_exporters.shrink_nodes import Names, by_name, drop_dead, used

Changed = Mapping[WeightKey, np.ndarray]

NODES_WORTH = 8192
"""Multiplications that take no longer than the two nodes a merge saves: tll_N16, two thirds of a
megabyte of small matrices, runs in .70 of the time without such merges and in .63 with them."""

WIDE = (TensorProto.FLOAT, TensorProto.DOUBLE)


@dataclass(frozen=True, eq=False)
class Merged:
    """A model in which products were merged.

    Attributes:
        model: a copy; the model itself where nothing was merged.
        changed: new values of its constants.
        count: how many products are fewer.
    """

    model: ModelProto
    changed: Changed
    count: int


@dataclass(frozen=True, eq=False)
class _Product:
    """``x W + b``, as one node or two.

    Attributes:
        node: the MatMul or Gemm.
        added: the Add behind a MatMul, which has the bias; None where there is none.
        slot: which input of that node, or of the Gemm, the bias is.
        weight: ``[inputs, outputs]``.
        bias: ``[outputs]``.
    """

    node: NodeProto
    added: NodeProto | None
    slot: int
    weight: np.ndarray
    bias: np.ndarray | None

    @property
    def last(self) -> NodeProto:
        """The node that gives the result."""
        return self.added or self.node

    @property
    def is_turned(self) -> bool:
        """Whether the file holds the weight transposed."""
        return any(each.name == "transB" and each.i for each in self.node.attribute)


def merge(
    model: ModelProto, changed: Changed, *, sparse: bool = False, freeze: bool = False
) -> Merged:
    """Merge products of the main graph where that takes no more time.

    A pair is merged where each weight and bias is an initializer that no caller may set, and only
    the second product reads what the first one gives.

    Args:
        model: dense; untouched.
        changed: new values of its constants, in their shapes.
        sparse: whether only nonzeros are multiplied with, as by gathered weights.
        freeze: whether no constant stays one that a caller may set; those merged no longer are.
    """
    held = frozenset() if freeze else frozenset(settable(model))
    if _best_pair(model, changed, held, sparse) is None:
        return Merged(model, changed, 0)
    copy, values, count = ModelProto(), dict(changed), 0
    copy.CopyFrom(model)
    while (pair := _best_pair(copy, values, held, sparse)) is not None:
        _join(copy, values, *pair)
        count += 1
    gone = {each.name for each in model.graph.initializer}
    gone -= {each.name for each in copy.graph.initializer}
    left = {key: array for key, array in values.items() if key.path or key.name not in gone}
    return Merged(copy, left, count)


def _best_pair(
    model: ModelProto, changed: Changed, held: Collection[str], sparse: bool
) -> tuple[_Product, _Product] | None:
    """Find the pair whose merging saves most; None where each would cost."""
    graph = model.graph
    products = list(_products(graph, changed, held))
    reading = {each.node.input[0]: each for each in products}
    given = Counter(_read_names(graph))
    best, most = None, -NODES_WORTH
    for first in products:
        made = first.last.output[0]
        second = reading.get(made)
        if second is None or given[made] != 1 or first.weight.dtype != second.weight.dtype:
            continue
        if first.bias is not None and second.bias is None:
            continue  # there is nowhere to put it
        both = sum(_work(each.weight, sparse) for each in (first, second))
        saved = both - first.weight.shape[0] * second.weight.shape[1]
        if saved >= most:
            best, most = (first, second), saved
    return best


def _work(weight: np.ndarray, sparse: bool) -> int:
    return int(np.count_nonzero(weight)) if sparse else weight.size


def _products(graph: GraphProto, changed: Changed, held: Collection[str]) -> Iterator[_Product]:
    """Find the products with constants that are not held."""
    read = Counter(_read_names(graph))
    free = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in held}

    def value(name: str, rank: int) -> np.ndarray | None:
        if name not in free or len(free[name].dims) != rank or free[name].data_type not in WIDE:
            return None
        held = numpy_helper.to_array(free[name])
        return changed.get(WeightKey((), name), held).astype(held.dtype, copy=False)

    readers = by_name(graph)
    for node in graph.node:
        if node.domain not in STANDARD_DOMAINS or node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = value(node.input[1], 2)
        if weight is None or node.input[0] in free:
            continue
        if node.op_type == "Gemm":
            given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            if given.get("transA", 0) or (given.get("alpha", 1), given.get("beta", 1)) != (1, 1):
                continue
            weight = weight.T if given.get("transB", 0) else weight
            named = "".join(node.input[2:])
            bias = value(named, 1) if named else None
            if not named or (bias is not None and len(bias) == weight.shape[1]):
                yield _Product(node, None, 2, weight, bias)
            continue
        added = _added(readers.get(node.output[0], []))
        slot = 0 if added is not None and added.input[1] == node.output[0] else 1
        bias = value(added.input[slot], 1) if added is not None else None
        if bias is not None and read[node.output[0]] == 1 and len(bias) == weight.shape[1]:
            yield _Product(node, added, slot, weight, bias)
        else:
            yield _Product(node, None, slot, weight, None)


def _added(readers: list[NodeProto]) -> NodeProto | None:
    """Give the Add that alone reads a value."""
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    return readers[0] if readers[0].domain in STANDARD_DOMAINS else None


def _read_names(graph: GraphProto) -> Iterator[str]:
    """Give a name for every time it is read, in bodies as well, or is an output."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
            for body in bodies:
                yield from _read_names(body)


def _join(
    model: ModelProto, changed: dict[WeightKey, np.ndarray], first: _Product, second: _Product
) -> None:
    """Let the second product do the work of both, in place."""
    graph, kind, before = model.graph, second.weight.dtype, used(model.graph)
    wide, behind = first.weight.astype(np.float64), second.weight.astype(np.float64)
    weight = (wide @ behind).astype(kind)
    _put(model, changed, second.node, 1, weight.T if second.is_turned else weight)
    if first.bias is not None and second.bias is not None:
        bias = (first.bias.astype(np.float64) @ behind + second.bias).astype(kind)
        _put(model, changed, second.last, second.slot, bias)
    unread = {first.node.output[0], first.last.output[0]}
    second.node.input[0] = first.node.input[0]
    drop_dead(graph, before)
    for place in reversed(range(len(graph.value_info))):
        if graph.value_info[place].name in unread:
            del graph.value_info[place]


def _put(
    model: ModelProto,
    changed: dict[WeightKey, np.ndarray],
    node: NodeProto,
    slot: int,
    array: np.ndarray,
) -> None:
    """Give a node another constant, under the name of the old one if nothing else reads that."""
    graph, name = model.graph, node.input[slot]
    if Counter(_read_names(graph))[name] > 1:
        name = Names(graph).fresh(f"{name}_merged")
        node.input[slot] = name
    tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
    old = [each for each in graph.initializer if each.name == name]
    (old[0] if old else graph.initializer.add()).CopyFrom(tensor)
    release(graph, {name})
    if model.ir_version < FREE_INITIALIZERS:
        told = helper.make_tensor_value_info(name, tensor.data_type, array.shape)
        graph.input.append(told)
    changed[WeightKey((), name)] = numpy_helper.to_array(tensor)
