from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx.numpy_helper import from_array

from onnxpress_adapters.errors import ExportError, MisuseError
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.compare import CPU, Runner, compare, first_line
from onnxpress_exporters.write import patch, write
from small_models import branching, model, perceptron, thinned, value
from zoo_beside import load_zoo

W1 = WeightKey((), "w1")


def samples(count: int = 50) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(7).normal(size=(count, 1, 16)).astype(np.float32)}


def pressed(batch: int | str = "N") -> ModelProto:
    return patch(perceptron(batch=batch), {W1: thinned(16, 32, density=0.3)}).model


@pytest.mark.parametrize("batch", [1, "N"])
def test_it_agrees_with_the_zoo(batch: int | str) -> None:
    zoo = load_zoo()
    original, new = perceptron(batch=batch), pressed(batch)
    feeds = [{"x": x} for x in samples()["x"]]
    expected = zoo.distances(zoo.make_run(original), zoo.make_run(new), feeds)
    found = compare(original, new, samples())
    assert found.batched == (batch == "N")
    assert found.providers == (CPU,)
    assert found.distance.samples == 50
    assert found.distance.relative == pytest.approx(expected["relative"], rel=1e-5)
    assert found.distance.absolute == pytest.approx(expected["absolute"], rel=1e-5)
    assert 0.01 < found.distance.relative < 10


def test_equal_models_are_at_zero() -> None:
    found = compare(perceptron(), perceptron(), samples()).distance
    assert (found.relative, found.absolute, found.flips) == (0.0, 0.0, 0.0)


def test_a_file_a_proto_and_bytes_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "pressed.onnx"
    write(pressed(), path)
    forms = [path, pressed(), pressed().SerializeToString()]
    found = {compare(perceptron(), form, samples()).distance.relative for form in forms}
    assert len(found) == 1


def mixing() -> ModelProto:
    """A model whose first dimension is free but is no batch: each row depends on all rows."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1)]
    nodes.append(helper.make_node("Sub", ["x", "m"], ["y"]))
    graph = helper.make_graph(nodes, "g", [value("x", "N", 16)], [value("y", "N", 16)])
    return model(graph, opset=13)


def gathering() -> ModelProto:
    """A model whose free first dimension must be 1."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        "g",
        [value("x", "N", 16)],
        [value("y", 16)],
        [from_array(np.array([16]), "s")],
    )
    return model(graph)


@pytest.mark.parametrize("made", [mixing(), gathering()])
def test_a_free_dimension_that_is_no_batch_runs_one_by_one(made: ModelProto) -> None:
    found = compare(made, made, samples())
    assert not found.batched
    assert found.distance.absolute == 0.0


def test_one_model_without_a_batch_is_enough_to_run_one_by_one() -> None:
    assert not compare(perceptron(), pressed(batch=1), samples()).batched


def test_scalar_inputs_and_weights_in_branches() -> None:
    original = branching(thinned(16, 4, density=1.0), as_node=True)
    key = WeightKey(("choose[0].then_branch",), "w")
    new = patch(original, {key: thinned(16, 4, density=0.1)}).model
    feeds = samples(6) | {"c": np.array([True, False] * 3)}
    found = compare(original, new, feeds)
    assert not found.batched
    assert (found.distance.per_output[0].errors > 0).tolist() == [True, False] * 3


def test_selected_outputs() -> None:
    made = perceptron()
    made.graph.output.append(value("h3", "N", 32))
    found = compare(made, made, samples(), outputs=["h3"]).distance
    assert found.names == ("h3",)
    with pytest.raises(MisuseError, match="the original model has no output z; it has y, h3"):
        compare(made, made, samples(), outputs=["z"])
    with pytest.raises(MisuseError, match="the pressed model has no output h3; it has y"):
        compare(made, perceptron(), samples())


def test_a_model_that_answers_no_number_is_reported() -> None:
    made = perceptron()
    made.graph.initializer[3].CopyFrom(from_array(np.full(4, np.nan, np.float32), "b2"))
    found = compare(perceptron(), made, samples()).distance
    assert found.nonfinite
    assert found.relative == float("inf")


def test_outputs_that_are_not_tensors_are_left_out() -> None:
    made = perceptron()
    made.graph.node.append(helper.make_node("SequenceConstruct", ["y", "h3"], ["both"]))
    sequence = helper.make_tensor_sequence_value_info("both", TensorProto.FLOAT, None)
    made.graph.output.append(sequence)
    assert compare(made, made, samples()).distance.names == ("y",)


def test_a_model_onnxruntime_refuses_is_one_sentence(tmp_path: Path) -> None:
    made = perceptron()
    made.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError) as caught:
        Runner(made)
    message = str(caught.value)
    assert message.startswith("onnxruntime refuses the model: ")
    assert "NoSuchOperator" in message
    assert "\n" not in message
    with pytest.raises(ExportError, match=r"onnxruntime refuses .*none.onnx: "):
        Runner(tmp_path / "none.onnx")


def test_a_feed_that_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(ExportError, match="onnxruntime cannot run the model: "):
        Runner(perceptron()).run({"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(ExportError, match="onnxruntime cannot run the model: "):
        Runner(perceptron()).run({})
    with pytest.raises(MisuseError, match="the same number of samples, at least one"):
        compare(perceptron(), perceptron(), {"x": np.zeros((0, 1, 16), np.float32)})


def test_errors_lose_their_codes() -> None:
    error = RuntimeError("[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is bad.\nstack")
    assert first_line(error) == "This is bad"


def test_a_provider_that_is_not_there_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MisuseError, match="this onnxruntime was built without NoSuchProvider"):
        Runner(perceptron(), providers=["NoSuchProvider"])
    # As onnxruntime-gpu on a machine without a GPU: listed, asked for, silently not used.
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ExportError, match="does not use CUDAExecutionProvider"):
            Runner(perceptron(), providers=["CUDAExecutionProvider"])


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu() -> None:
    cuda = "CUDAExecutionProvider"
    if cuda not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    try:
        on_gpu = compare(perceptron(), pressed(), samples(), providers=[cuda])
    except ExportError as error:
        pytest.skip(f"no CUDA device: {error}")
    on_cpu = compare(perceptron(), pressed(), samples())
    assert on_gpu.providers[0] == cuda
    assert on_gpu.distance.relative == pytest.approx(on_cpu.distance.relative, rel=1e-3)
