"""A pressed model as a file: the original with other constants, and nothing else changed.

``patch`` works on the original proto, never on a re-export, so names, order, opset, metadata,
dynamic axes and every constant that did not change stay as they were. ``write`` puts the result on
disk whole or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
from onnx import (
    FunctionProto,
    ModelProto,
    TensorProto,
    ValueInfoProto,
    helper,
)

from onnxpress_adapters.checker import check
from onnxpress_adapters.errors import ExportError
from onnxpress_adapters.light import (
    LARGE_BYTES,
    MOST_PROTOBUF_BYTES,
    framed,
    inline_bytes,
    lightened,
    raw_bytes,
)
from onnxpress_adapters.packed_tensors import MARK, prefix_of
from onnxpress_adapters.sparse_tensors import FREE_INITIALIZERS
from onnxpress_adapters.tensors import every_tensor
from onnxpress_adapters.walk import (
    constant_value,
    functions,
    graphs,
    is_constant,
)
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.content import copy_notes, fitted, same_bits, with_data, with_value
from onnxpress_exporters.external_data import Layout
from onnxpress_exporters.files import write_files
from onnxpress_exporters.gathered_nodes import gather_weights, heights_of
from onnxpress_exporters.packable import opset_of, unpackable
from onnxpress_exporters.packed import Item, Packing, pack
from onnxpress_exporters.protos import free_prefix, replace_all
from onnxpress_exporters.settable import release, settable
from onnxpress_exporters.sparse import (
    can_be_smaller,
    framed_bytes,
    is_smaller,
    sparse_bytes,
    to_sparse,
    why_not_sparse,
)
from onnxpress_exporters.values import Plain, Storage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from onnx import GraphProto, NodeProto, SparseTensorProto

    from onnxpress_exporters.sparse import Part

Form = Literal["auto", "dense", "sparse", "packed", "gathered"]

SPARSE_CONSTANT = 11  # the first opset whose Constant node knows sparse_value


@dataclass(frozen=True, eq=False)
class Patched:
    """A model with changed constants.

    Attributes:
        model: the patched copy.
        forms: how each changed constant is written: ``"dense"``, ``"sparse"``, or ``"packed: "``
            and how.
        reasons: why a constant is not sparse or packed although that was welcome.
    """

    model: ModelProto
    forms: Mapping[WeightKey, str]
    reasons: Mapping[WeightKey, str]


def patch(
    original: ModelProto,
    changed: Mapping[WeightKey, np.ndarray],
    form: Form = "auto",
    storage: Mapping[WeightKey, Storage] | None = None,
    *,
    freeze: bool = False,
) -> Patched:
    """Put new values into a copy of a model.

    Args:
        original: with all data inline, as ``read_model`` gives it; untouched.
        changed: new values, in the shape of the constants; cast to their element types. A constant
            that is listed with the values it has may still become sparse.
        form: ``"gathered"`` where rows in groups share few columns, and ``"auto"`` elsewhere;
            ``"sparse"`` wherever that is legal, ``"dense"`` everywhere, or ``"auto"``, per
            constant whichever of the two takes fewer bytes; or ``"packed"`` where that takes fewer
            bytes than dense, and as for ``"auto"`` where it is not possible.
        storage: how the values were rounded. Those that take fewer bits are packed by ``"auto"`` as
            well: neither of the other forms can hold codes and scales.
        freeze: whether constants that are inputs of the model as well, so that a caller could give
            others, are none any more: they can be packed then, and onnxruntime folds them. Up to
            IR version 3 every constant is listed so, no runtime takes another, and it is packed
            all the same.

    Returns:
        The copy, and how each constant is written in it. Initializers stay where they are when
        dense, and leave the list of dense ones when sparse; a Constant node keeps its place, except
        below opset 11, which has no sparse Constant: there a sparse initializer replaces it.

    Raises:
        ExportError: a key names no constant, a shape differs, or a value is too large for the
            constant's element type.
    """
    for where, tensor in every_tensor(original):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ExportError(f"{where} keeps its data in another file; read it with read_model")
    if prefix_of(original):
        raise ExportError("the model holds packed constants already; read it with read_model")
    left = _replaced(original, changed)
    ours = {id(tensor) for tensor in left.values()}  # of what `left` keeps alive
    model = lightened(original, lambda tensor: id(tensor) in ours)
    heights, loose = heights_of(original, changed) if form == "gathered" else ({}, {})
    plain: Form = "auto" if form == "gathered" else form
    patcher = _Patcher(plain, model, storage or {}, left, freeze=freeze, whole=heights.keys())
    # The innermost first: packing may put copies of nodes, bodies included, in place of nodes.
    for path, graph in reversed([*graphs(model), *functions(model)]):
        patcher.graph(graph, {k.name: (k, array) for k, array in changed.items() if k.path == path})
    lost = [str(key) for key in changed if key not in patcher.forms]
    if lost:
        raise ExportError(f"the model has no dense constant called {', '.join(sorted(lost))}")
    if freeze:
        release(model.graph, settable(model))
    if patcher.packed:
        model.metadata_props.add(key=MARK, value=patcher.prefix)
    placed = gather_weights(model, heights)
    shapes = {key: weight.columns.shape for key, weight in placed.weights.items()}
    told = {key: f"gathered: {groups} x {width}" for key, (groups, width) in shapes.items()}
    reasons = {**patcher.reasons, **loose}
    return Patched(placed.model, {**patcher.forms, **told}, reasons)


def _replaced(
    original: ModelProto, changed: Mapping[WeightKey, np.ndarray]
) -> dict[WeightKey, TensorProto]:
    """Give the large initializers that are to change, so that their old data are not copied."""
    return {
        key: tensor
        for path, graph in graphs(original)
        for tensor in graph.initializer
        if (key := WeightKey(path, tensor.name)) in changed
        and tensor.HasField("raw_data")
        and inline_bytes(tensor) >= LARGE_BYTES
    }


class _Patcher:
    """Patches graph after graph and remembers what it did with each constant."""

    def __init__(
        self,
        form: Form,
        model: ModelProto,
        storage: Mapping[WeightKey, Storage],
        left: Mapping[WeightKey, TensorProto],
        *,
        freeze: bool,
        whole: Collection[WeightKey],
    ) -> None:
        """Begin with a copy of a model; it lacks the data of what is ``left`` in the original.

        What has to stay ``whole`` stays dense.
        """
        self.forms: dict[WeightKey, str] = {}
        self.reasons: dict[WeightKey, str] = {}
        self.packed = False
        self._form = form
        self._storage = storage
        self._left = left
        self._dense = set(whole)  # and what packing does not make smaller
        packs = form == "packed" or any(self._packs(key) for key in storage)
        self.prefix = free_prefix(model) if packs else ""
        self._opset = opset_of(model)
        self._listed = model.ir_version < FREE_INITIALIZERS  # every initializer, as an input
        self._unpackable = unpackable(model, freeze=freeze) if packs else {}

    def graph(
        self,
        graph: GraphProto | FunctionProto,
        wanted: Mapping[str, tuple[WeightKey, np.ndarray]],
    ) -> None:
        """Patch one graph or function, in place; ``wanted`` are keys and new values by name."""
        if not wanted:
            return
        if isinstance(graph, FunctionProto):
            for node in graph.node:
                if is_constant(node) and node.output and node.output[0] in wanted:
                    self._in_function(node, *wanted[node.output[0]])
            return
        outputs = {value.name for value in graph.output}
        packed = {name: each for name, each in wanted.items() if self._packs(each[0])}
        if packed:
            self._pack(graph, packed)
        gone = []
        for place, tensor in enumerate(graph.initializer):
            if tensor.name in wanted:
                key, array = wanted[tensor.name]
                array = fitted(key, tensor, array)
                sparse = self._sparse(key, tensor, array, tensor.name in outputs)
                dense_bytes = framed(raw_bytes(tensor))
                if sparse is not None and self._take(key, framed_bytes(sparse) < dense_bytes):
                    graph.sparse_initializer.append(sparse)
                    gone.append(place)
                elif not same_bits(self._left.get(key, tensor), array):
                    tensor.CopyFrom(with_data(tensor, array))
                elif key in self._left:
                    tensor.CopyFrom(self._left[key])
        for place in reversed(gone):
            del graph.initializer[place]
        gone = []
        for place, node in enumerate(graph.node):
            if is_constant(node) and node.output and node.output[0] in wanted:
                key, array = wanted[node.output[0]]
                if self._node(graph, node, key, array, node.output[0] in outputs):
                    gone.append(place)
        for place in reversed(gone):
            del graph.node[place]

    def _packs(self, key: WeightKey) -> bool:
        """Say whether a constant is to be packed, where that is possible and pays."""
        narrow = not isinstance(self._storage.get(key, Plain()), Plain)
        if key in self._dense:
            return False
        return self._form == "packed" or (self._form == "auto" and narrow)

    def _pack(self, graph: GraphProto, wanted: Mapping[str, tuple[WeightKey, np.ndarray]]) -> None:
        """Pack what can be packed and is smaller so; the rest stays, with a reason."""
        found: list[tuple[TensorProto, NodeProto | None]] = [(t, None) for t in graph.initializer]
        for node in graph.node:
            tensor = constant_value(node) if is_constant(node) and node.output else None
            if tensor is not None:
                found.append((tensor, node))
        items = []
        for tensor, place in found:
            name = tensor.name if place is None else place.output[0]
            if name not in wanted:
                continue
            key, array = wanted[name]
            array = fitted(key, tensor, array)
            if reason := self._unpackable.get(key, ""):
                self.reasons[key] = reason
                continue
            items.append(
                Item(
                    name,
                    array,
                    self._storage.get(key, Plain()),
                    framed(raw_bytes(tensor))
                    if key in self._left
                    else framed_bytes(tensor if place is None else place),
                    place,
                    tensor.doc_string,
                    tuple(tensor.metadata_props),
                )
            )
        packing = pack(items, self._opset, self.prefix)
        listed = [_as_input(tensor) for tensor in packing.tensors] if self._listed else []
        if listed and not _pays(packing, listed, graph, items):
            packing = pack([], self._opset, self.prefix)
        for item in items:
            key = wanted[item.name][0]
            if item.name in packing.forms:
                self.forms[key] = packing.forms[item.name]
                self.packed = True
            elif self._form == "packed":
                self._dense.add(key)
                self.reasons[key] = "dense is smaller"
        nodes = [
            packing.in_place.get(node.output[0], node) if node.output else node
            for node in graph.node
        ]
        if packing.forms:
            # Not _replace: those that stay may be large.
            for index in reversed(range(len(graph.initializer))):
                if graph.initializer[index].name in packing.forms:
                    del graph.initializer[index]
            graph.initializer.extend(packing.tensors)
            replace_all(graph.node, [*packing.nodes, *nodes])
            asked = [one for one in graph.input if one.name not in packing.forms]
            replace_all(graph.input, [*asked, *listed])

    def _in_function(self, node: NodeProto, key: WeightKey, array: np.ndarray) -> None:
        """Patch a Constant node of a function; most tools read no sparse ones there."""
        tensor = constant_value(node)
        if tensor is None:
            return
        array = fitted(key, tensor, array)
        self.forms[key] = "dense"
        if self._form != "dense":
            self.reasons[key] = "it stands in a function"
        if not same_bits(tensor, array):
            node.CopyFrom(with_value(node, with_data(tensor, array)))

    def _node(
        self, graph: GraphProto, node: NodeProto, key: WeightKey, array: np.ndarray, output: bool
    ) -> bool:
        """Patch a Constant node; say whether a sparse initializer replaces it."""
        tensor = constant_value(node)
        if tensor is None:
            return False
        array = fitted(key, tensor, array)
        dense = with_value(node, with_data(tensor, array))
        sparse = self._sparse(key, tensor, array, output)
        if sparse is not None:
            if self._opset < SPARSE_CONSTANT:
                sparse.values.name = node.output[0]
                if self._take(key, is_smaller(sparse, dense)):
                    graph.sparse_initializer.append(sparse)
                    return True
            else:
                sparse_node = with_value(node, sparse)
                if self._take(key, is_smaller(sparse_node, dense)):
                    node.CopyFrom(sparse_node)
                    return False
        if not same_bits(tensor, array):
            node.CopyFrom(dense)
        return False

    def _sparse(
        self, key: WeightKey, tensor: TensorProto, array: np.ndarray, output: bool
    ) -> SparseTensorProto | None:
        """Make the sparse form where it is legal and has a chance; note why not otherwise."""
        self.forms[key] = "dense"
        if self._form == "dense" or key in self._dense:
            return None
        reason = why_not_sparse(tensor.data_type, tensor.dims)
        if output:
            # onnxruntime would answer with a SparseTensor, and refuse it in a body.
            reason = "it is an output of its graph"
        elif not reason and self._form != "sparse" and not can_be_smaller(array):
            reason = "dense is smaller"
        elif not reason and sparse_bytes(array) > MOST_PROTOBUF_BYTES:
            reason = "as a sparse one it would take over 2 GiB"
        if reason:
            self.reasons.setdefault(key, reason)
            return None
        sparse = to_sparse(tensor.name, array)
        copy_notes(tensor, sparse.values)
        return sparse

    def _take(self, key: WeightKey, smaller: bool) -> bool:
        """Note which form a constant takes; say whether it is the sparse one."""
        if smaller or self._form == "sparse":
            self.forms[key] = "sparse"
            return True
        self.reasons.setdefault(key, "dense is smaller")
        return False


def _pays(
    packing: Packing, listed: Sequence[ValueInfoProto], graph: GraphProto, items: Sequence[Item]
) -> bool:
    """Say whether packing saves bytes where every new initializer becomes an input as well."""
    parts: list[Part] = [*packing.tensors, *packing.nodes, *packing.in_place.values(), *listed]
    gone = [one for one in graph.input if one.name in packing.forms]
    dense = sum(item.dense_bytes for item in items if item.name in packing.forms)
    return sum(map(framed_bytes, parts)) < dense + sum(map(framed_bytes, gone))


def _as_input(tensor: TensorProto) -> ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def write(model: ModelProto, path: Path, most_bytes: int = MOST_PROTOBUF_BYTES) -> int:
    """Write a model so that it is either all there or as it was before.

    Args:
        model: all data inline.
        path: of the new file; an older one is replaced. A symbolic link is followed.
        most_bytes: above which its large tensors go to a data file (``external_data``).

    Returns:
        The bytes on disk, those of a data file included.

    Raises:
        ExportError: the model is unsound or too large, or the folder is missing or cannot be
            written to. No partial file stays, and an older file and its data are untouched.
    """
    try:
        check(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the patched model is unsound: {str(error).splitlines()[0]}") from error
    return write_files(Layout.of(model, most_bytes), path)
