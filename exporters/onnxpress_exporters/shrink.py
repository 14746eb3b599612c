"""Removed units leave the graph: the file is smaller and faster, and answers as before.

The model that is meant is the *masked* one: the original with new values, in which whatever makes a
removed unit is zero (``Groups.masked``). Such a unit still says something: zero, or what its
activation makes of zero. Zero needs nothing. A constant is added to the bias of whoever reads it,
and a bias is made where there is none. A unit whose readers would miss more than a constant stays,
and why is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxpress_adapters.checker import check
from onnxpress_adapters.element_types import element_types
from onnxpress_adapters.errors import ExportError
from onnxpress_adapters.run import from_numpy
from onnxpress_adapters.sparse_tensors import FREE_INITIALIZERS
from onnxpress_adapters.walk import constants, is_constant
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.packable import opset_of
from onnxpress_exporters.settable import release, settable
from onnxpress_exporters.shrink_bias import Fold
from onnxpress_exporters.shrink_fold import Constants, constants_read
from onnxpress_exporters.shrink_nodes import Names, Removal, adapt, drop_dead, used
from onnxpress_exporters.write import patch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from onnxpress_adapters.groups import Groups
    from onnxpress_adapters.network import Network
    from onnxpress_adapters.trace import Value


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, imported, with its groups and one sample to run it on.

    Attributes:
        model: the original, as ``read_model`` gives it.
        network: the same, imported.
        reference: its weights.
        groups: found on the same sample.
        inputs: one sample, as for a call of the network.
    """

    model: ModelProto
    network: Network
    reference: Mapping[WeightKey, Tensor]
    groups: Groups
    inputs: Sequence[Value]


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A model without the units that could leave.

    Attributes:
        model: dense, with the names of the original.
        removed: bool ``[units of all groups]``, what has left.
        stays: why a unit that was to leave did not, by its number among the units of all groups.
        folded: the nodes that got a constant to add, as messages name them.
    """

    model: ModelProto
    removed: np.ndarray
    stays: Mapping[int, str]
    folded: tuple[str, ...]


def settle(
    subject: Subject, values: Mapping[WeightKey, np.ndarray], gone: np.ndarray
) -> dict[WeightKey, np.ndarray]:
    """Mask removed units so that they can leave.

    Where what a unit still says is a constant that no bias can say in its stead (because it differs
    from place to place, as at the border of an image that is padded), its readers are masked too.

    Args:
        subject: the model; untouched.
        values: of its constants, in the shapes of the original.
        gone: bool ``[units of all groups]``, as ``Groups.gone`` gives it.

    Returns:
        The constants that change, as ``shrink`` takes them.
    """
    masked = subject.groups.masked(values, gone)
    found = _constants(subject, masked, gone)
    if not found.stays:
        return masked
    unread = np.zeros(len(gone), bool)
    unread[list(found.stays)] = True
    return subject.groups.masked(values, gone, unread)


def shrink(
    subject: Subject,
    changed: Mapping[WeightKey, np.ndarray],
    gone: np.ndarray,
    *,
    freeze: bool = False,
) -> Shrunk:
    """Take removed units out of a model.

    Args:
        subject: the original; untouched.
        changed: new values of constants, in the shapes of the original, the removed units included:
            those of ``settle`` and whatever a repair made of the rest.
        gone: bool ``[units of all groups]``, as ``Groups.gone`` gives it.
        freeze: whether no constant stays an input of the model, which a caller may set anew:
            onnxruntime folds nothing into such a one and fuses no norm with its convolution. One
            that was cut is none any more in any case (up to IR version 3 every constant is listed
            as an input, no runtime takes another, and the list stays).

    Returns:
        A model that computes what the original with ``changed`` computes, up to rounding.

    Raises:
        ExportError: a constant is unknown or does not fit, or the result is unsound.
    """
    patched = patch(subject.model, changed, "dense").model
    held = {key: numpy_helper.to_array(t) for key, t in _main_constants(patched)}
    written = {key: held.get(key, array) for key, array in changed.items()}
    gone, stays = gone.copy(), dict[int, str]()
    while True:
        found = _constants(subject, written, gone)
        if not found.stays:
            break
        stays.update(found.stays)
        gone[list(found.stays)] = False
    folded = _rewrite(patched, subject.groups, gone, found)
    if freeze:
        release(patched.graph, settable(patched))
    try:
        check(patched)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the shrunk model is unsound: {str(error).splitlines()[0]}") from error
    return Shrunk(patched, gone, stays, folded)


def _main_constants(model: ModelProto) -> Iterator[tuple[WeightKey, TensorProto]]:
    for name, tensor in constants(model.graph):
        yield WeightKey((), name), tensor


def _constants(
    subject: Subject, changed: Mapping[WeightKey, np.ndarray], gone: np.ndarray
) -> Constants:
    """See what removed units still say under new values."""
    weights = dict(subject.reference)
    for key, array in changed.items():
        if key in weights:
            weights[key] = from_numpy(array).to(weights[key])
    return constants_read(subject.network, weights, subject.inputs, subject.groups, gone)


def _rewrite(
    model: ModelProto, groups: Groups, gone: np.ndarray, found: Constants
) -> tuple[str, ...]:
    """Cut the graph down, in place."""
    if not gone.any():
        return ()
    graph, removal = model.graph, Removal(groups, gone)
    before, names = used(graph), Names(graph)
    opset = opset_of(model)
    # Places count the nodes of the original, so nodes are held before any comes or goes.
    readers = {place: graph.node[place] for place in found.shifts}
    folded = tuple(f"{node.op_type} '{node.name or node.output[0]}'" for node in readers.values())
    _slice_constants(graph, removal)
    ahead: dict[int, list[NodeProto]] = {}
    for place, node in enumerate(graph.node):
        ahead[place] = adapt(node, removal, names, opset)
    types = element_types(model) if readers else {}
    behind: dict[int, list[NodeProto]] = {}
    for place, node in readers.items():
        behind[place] = Fold(graph, names, removal, node, types).add(found.shifts[place])
    nodes = [
        each
        for place, node in enumerate(graph.node)
        for each in (*ahead[place], node, *behind.get(place, ()))
    ]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    _note_shapes(graph, removal)
    drop_dead(graph, before)
    _list_inputs(model, removal)
    return folded


def _slice_constants(graph: GraphProto, removal: Removal) -> None:
    """Cut removed units out of every constant."""

    def cut(name: str, tensor: TensorProto) -> TensorProto | None:
        places = removal.groups.places(name, removal.gone)
        if places is None:
            return None
        array = numpy_helper.to_array(tensor)
        for axis, leaving in enumerate(places):
            array = np.compress(~leaving, array, axis)
        return _with_array(tensor, array)

    for tensor in graph.initializer:
        new = cut(tensor.name, tensor)
        if new is not None:
            tensor.CopyFrom(new)
    for node in graph.node:
        if not is_constant(node) or not node.output:
            continue
        for name, tensor in constants(GraphProto(node=[node])):
            new = cut(name, tensor)
            if new is not None:
                del node.attribute[:]
                node.attribute.append(helper.make_attribute("value", new))


def _with_array(tensor: TensorProto, array: np.ndarray) -> TensorProto:
    new = numpy_helper.from_array(np.ascontiguousarray(array), tensor.name)
    if tensor.HasField("doc_string"):
        new.doc_string = tensor.doc_string
    new.metadata_props.extend(tensor.metadata_props)
    return new


def _note_shapes(graph: GraphProto, removal: Removal) -> None:
    """Correct the noted shapes that changed; their types may be known from nowhere else."""
    for value in graph.value_info:
        places = removal.groups.places(value.name, removal.gone) or ()
        dims = value.type.tensor_type.shape.dim
        for dim, leaving in zip(dims, places, strict=False):
            if leaving.any() and dim.HasField("dim_value"):
                dim.dim_value = len(leaving) - int(leaving.sum())


def _list_inputs(model: ModelProto, removal: Removal) -> None:
    """List constants as inputs as the IR version wants it: all of them, or none that was cut."""
    graph = model.graph
    cut = {
        tensor.name
        for tensor in graph.initializer
        if removal.groups.places(tensor.name, removal.gone) is not None
    }
    old = model.ir_version < FREE_INITIALIZERS
    release(graph, cut)
    known = {value.name for value in graph.input}
    graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in graph.initializer
        if old and tensor.name not in known
    )
