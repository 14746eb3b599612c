"""Every model of the zoo, pruned by magnitude and packed: sound, folded, and back bit for bit.

Every second weight is rounded to five bits, and large constants are packed as well.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper

from onnxpress_adapters.packed_tensors import prefix_of
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.read import read_model
from onnxpress_adapters.walk import constants, graphs
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.densify import densify
from onnxpress_exporters.packable import large_constants
from onnxpress_exporters.values import Scaled, Storage, rounded
from onnxpress_exporters.write import patch
from zoo_beside import ZOO

PATHS = sorted((ZOO / "models").glob("*.onnx"))

pytestmark = pytest.mark.zoo


def values(made: ModelProto) -> dict[WeightKey, bytes]:
    return {
        WeightKey(path, name): numpy_helper.to_array(tensor).tobytes()
        for path, graph in graphs(made)
        for name, tensor in constants(graph)
    }


def operators(made: ModelProto, path: Path) -> dict[str, str]:
    """Give what makes each value in the model as onnxruntime leaves it at its basic level."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=providers)
    left = onnx.load(path)
    return {
        f"{name} {'/'.join(where)}": node.op_type
        for where, graph in graphs(left)
        for node in graph.node
        for name in node.output
    }


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_model_of_the_zoo(path: Path, tmp_path: Path) -> None:
    original = read_model(path)
    changed = {}
    storage: dict[WeightKey, Storage] = {}
    for place, weight in enumerate(prunable(original)):
        array = numpy_helper.to_array(weight.tensor)
        if not weight.fixed and array.size:
            cut = np.quantile(np.abs(array).astype(np.float32), 0.8)
            pruned = np.where(np.abs(array) <= cut, array.dtype.type(0), array)
            if place % 2 and array.dtype == np.float32:
                largest = np.array(np.abs(pruned).max() or 15, np.float32)
                storage[weight.key] = Scaled(largest / np.float32(15), 5)
                pruned = rounded(pruned, storage[weight.key])
            changed[weight.key] = pruned
    everything = {**large_constants(original), **changed}
    patched = patch(original, everything, "packed", storage, freeze=True)
    dense = patch(original, changed, "dense").model
    assert values(densify(patched.model)) == values(dense)
    assert patched.model.ByteSize() <= dense.ByteSize()
    unpacked = [key for key, form in patched.forms.items() if not form.startswith("packed")]
    assert all(patched.reasons.get(key) or patched.forms[key] == "sparse" for key in unpacked)
    if not prefix_of(patched.model):
        return
    onnx.checker.check_model(patched.model)
    made = operators(patched.model, tmp_path / "optimised.onnx")
    assert not [name for name in made if name.startswith(prefix_of(patched.model))]
    names = {key.name for key, form in patched.forms.items() if form.startswith("packed")}
    assert not [name for name in made if name.split(" ")[0] in names]
