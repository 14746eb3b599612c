"""Small models to save and read, and what the refusal of one says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxpress_adapters.errors import BrokenModelError
from onnxpress_adapters.read import Limits, read_model

FLOAT = TensorProto.FLOAT
USUAL = Limits()


def value(name: str, *shape: int, kind: int = FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(*nodes: NodeProto, init: list[TensorProto] | None = None, y: str = "y") -> ModelProto:
    graph = helper.make_graph(list(nodes), "g", [value("x", 2)], [value(y, 2)], init or [])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def weight(values: object = (1.0, 2.0), name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def add(tensor: TensorProto) -> ModelProto:
    return model(helper.make_node("Add", ["x", tensor.name], ["y"], name="plus"), init=[tensor])


def saved(made: ModelProto | bytes, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


def refusal(made: ModelProto | bytes, folder: Path, limits: Limits = USUAL) -> str:
    path = saved(made, folder)
    with pytest.raises(BrokenModelError) as caught:
        read_model(path, limits)
    message = str(caught.value)
    start = f"cannot read {path}: "
    assert message.startswith(start)
    assert "\n" not in message
    return message.removeprefix(start)
