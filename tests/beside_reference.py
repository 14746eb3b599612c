"""Run one node in the evaluator that comes with onnx: the second oracle."""

from __future__ import annotations

import numpy as np
from onnx import helper
from onnx.reference import ReferenceEvaluator

from beside_runtime import Row, given, node
from one_node import Array


def reference(chosen: Row) -> list[Array]:
    """Run a row of ai.onnx in onnx's evaluator."""
    proto, feeds = node(chosen), given(chosen)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for name, v in feeds.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in proto.output]
    opset = helper.make_opsetid("", chosen.version)
    graph = helper.make_graph([proto], "one", infos, results)
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[opset]))
    answers = evaluator.run(None, feeds)
    return [np.asarray(value) for value in answers]
