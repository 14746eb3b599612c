"""A constant added to what a node computes: in its bias, in the next one, or by a new Add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from onnxpress_adapters.axes_products import GATES
from onnxpress_adapters.errors import ExportError
from onnxpress_adapters.prunable import FLOATS
from onnxpress_adapters.walk import constants
from onnxpress_exporters.shrink_nodes import CONVOLUTIONS, Names, Removal, by_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxpress_exporters.shrink_fold import Shift

BIASED = CONVOLUTIONS | {"Gemm", "FusedGemm"}
BIAS = 2
RECURRENT_BIAS = 3


@dataclass(frozen=True, eq=False)
class Fold:
    """Adds a constant to what one node computes, in place.

    Attributes:
        graph: the main graph, its constants cut already.
        names: of that graph.
        removal: what has left.
        node: of that graph.
        types: ONNX element types of values by name, as far as they are known.
    """

    graph: GraphProto
    names: Names
    removal: Removal
    node: NodeProto
    types: Mapping[str, int]

    def add(self, shift: Shift) -> list[NodeProto]:
        """Add it, and give the nodes that have to follow this one.

        Args:
            shift: for all units of the result, also those that leave.
        """
        node = self.node
        if node.op_type in GATES:
            self._recurrent(shift.values)
            return []
        rank = len(self.removal.groups.ledger.shapes[node.output[0]])
        kept = self.removal.kept(node.output[0], shift.axis)
        values = shift.values if kept is None else shift.values[kept]
        shape = [1] * rank
        shape[shift.axis] = -1
        beta = _number(node, "beta", 1.0)
        if node.op_type in BIASED and beta:
            flat = node.op_type in CONVOLUTIONS or shift.axis == rank - 1
            if self._bias(BIAS, (values if flat else values[:, None]) / beta):
                return []
        return self._behind(values.reshape(shape))

    def _bias(self, slot: int, shift: np.ndarray) -> bool:
        """Add to the bias of the node; say no where that is computed."""
        node = self.node
        if slot < len(node.input) and node.input[slot]:
            old = self._numbers(node.input[slot])
            if old is None:
                return False
            new = (old.astype(np.float64) + shift).astype(old.dtype)
            node.input[slot] = self.names.constant(new, f"{node.input[slot]}_shrunk")
            return True
        while len(node.input) <= slot:
            node.input.append("")
        node.input[slot] = self.names.constant(self._cast(shift), f"{node.output[0]}_bias")
        return True

    def _behind(self, shift: np.ndarray) -> list[NodeProto]:
        """Add behind the node: in the constant of an Add that follows anyway, or by a new one."""
        node, result = self.node, self.node.output[0]
        readers = by_name(self.graph).get(result, [])
        outputs = {value.name for value in self.graph.output}
        if len(readers) == 1 and readers[0].op_type == "Add" and result not in outputs:
            follower = readers[0]
            slot = 1 - list(follower.input).index(result)
            old = self._numbers(follower.input[slot])
            if old is not None and old.ndim <= shift.ndim:
                new = (old.astype(np.float64) + shift).astype(old.dtype)
                # Leading axes of one entry say nothing.
                while new.ndim > max(1, old.ndim) and new.shape[0] == 1:
                    new = new[0]
                follower.input[slot] = self.names.constant(new, f"{follower.input[slot]}_shrunk")
                return []
        array = self._cast(shift)
        inner = self.names.fresh(f"{result}_without_constant")
        node.output[0] = inner
        added = [inner, self.names.constant(array, f"{result}_constant")]
        return [helper.make_node("Add", added, [result], name=self.names.fresh(f"{result}_add"))]

    def _recurrent(self, shift: np.ndarray) -> None:
        """Add to the input half of the bias ``[directions, 2 * gates * units]``."""
        rows = self.removal.kept(self.node.input[1], 1)
        kept = shift if rows is None else shift[:, rows]
        if not self._bias(RECURRENT_BIAS, np.concatenate([kept, np.zeros_like(kept)], 1)):
            raise ExportError(
                f"{self.node.op_type} '{self.node.name}' has a computed bias, to which what "
                "removed units say cannot be added; keep the units it reads"
            )

    def _numbers(self, name: str) -> np.ndarray | None:
        """Give a constant of floating-point numbers; None for anything else."""
        for known, tensor in constants(self.graph):
            if known == name and tensor.data_type in FLOATS:
                return numpy_helper.to_array(tensor)
        return None

    def _cast(self, shift: np.ndarray) -> np.ndarray:
        """Give numbers the type of what the node computes."""
        kind = self.types.get(self.node.output[0], TensorProto.FLOAT)
        return shift.astype(helper.tensor_dtype_to_np_dtype(kind))


def _number(node: NodeProto, name: str, default: float) -> float:
    return next((float(a.f) for a in node.attribute if a.name == name), default)
