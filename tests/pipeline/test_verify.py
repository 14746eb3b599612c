"""Verification: two files on disk, judged on data or on a domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.numpy_helper import from_array

from onnxpress.domain import Box
from onnxpress.problem import Tolerance
from onnxpress.report import Report
from onnxpress.verify import VerifyJob, draws, judge, read_tolerance, verify
from onnxpress_adapters.errors import BrokenModelError, MisuseError
from onnxpress_adapters.specs import OutputSpec, specs
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.write import patch, write
from small_models import model, perceptron, value

W1 = WeightKey((), "w1")


def saved(made: ModelProto, path: Path) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


def weight() -> np.ndarray:
    return numpy_helper.to_array(perceptron().graph.initializer[0])


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return saved(perceptron(), tmp_path / "original.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    rng = np.random.default_rng(1)
    np.savez(path, x=rng.normal(size=(200, 16)).astype(np.float32))
    return path


def verified(original: Path, pressed: Path, tolerance: str = "1%", **more: Any) -> Report:
    return verify(VerifyJob(original, pressed, tolerance, **more))


def test_a_model_is_within_any_tolerance_of_itself(original: Path, data: Path) -> None:
    report = verified(original, original, "1e-9", data=data)
    assert (report.verdict, report.exit_code) == ("within", 0)
    assert report.distance.relative == 0
    assert report.samples.judge == 200
    assert report.out is None
    assert report.providers == ("CPUExecutionProvider",)


def test_sparse_files_are_read_and_their_zeros_counted(
    tmp_path: Path, original: Path, data: Path
) -> None:
    thin = np.where(np.abs(weight()) < 0.5, 0, weight()).astype(np.float32)
    pressed = tmp_path / "pressed.onnx"
    patched = patch(perceptron(), {W1: thin}, "sparse")
    assert patched.forms == {W1: "sparse"}
    size = write(patched.model, pressed)
    report = verified(original, pressed, data=data)
    zeros = int((thin == 0).sum())
    assert zeros > 200
    assert report.sparsity == zeros / (512 + 128)
    assert report.original_sparsity == 0
    assert [row.zeros_after for row in report.layers] == [zeros, 0]
    assert report.sizes.pressed.size_bytes == size
    assert report.verdict == "exceeded"


def test_the_mean_answer_is_refused_at_fifty_percent(
    tmp_path: Path, original: Path, data: Path
) -> None:
    """Answering what the original answers on average is no compression."""
    x = np.load(data)["x"]
    w1, b1, w2, b2 = (numpy_helper.to_array(tensor) for tensor in perceptron().graph.initializer)
    answers = np.maximum(x @ w1 + b1, 0) @ w2 + b2
    dead = perceptron()
    dead.graph.initializer[2].CopyFrom(from_array(np.zeros((32, 4), np.float32), "w2"))
    dead.graph.initializer[3].CopyFrom(from_array(answers.mean(0).astype(np.float32), "b2"))
    report = verified(original, saved(dead, tmp_path / "dead.onnx"), "50%", data=data)
    assert report.verdict == "exceeded"
    assert report.distance.relative == pytest.approx(1.0, abs=1e-5)
    assert report.exit_code == 3


def test_a_domain_is_drawn_from(original: Path) -> None:
    report = verified(original, original, domain=("x=uniform:-1,1",))
    assert (report.verdict, report.samples.judge) == ("within", 2048)


def test_large_inputs_are_drawn_fewer_times() -> None:
    def box(*shape: int) -> Box:
        return Box(shape, np.dtype("float32"), np.array(0), np.array(1))

    assert draws({"x": box(1, 16)}) == 2048
    assert draws({"x": box(1, 1 << 20), "y": box(1)}) == 63 + 1
    assert draws({"x": box(1, 1 << 16), "y": box(1, 1 << 16)}) == 512


def test_nothing_about_inputs_gives_a_line_to_copy(original: Path) -> None:
    with pytest.raises(MisuseError) as raised:
        verified(original, original)
    assert f"onnxpress verify {original} {original} --tolerance 1% --domain x=uniform:0,1" in str(
        raised.value
    )


def test_data_and_domain_together_are_refused(original: Path, data: Path) -> None:
    with pytest.raises(MisuseError, match="give --data or --domain, not both"):
        verified(original, original, data=data, domain=("x=uniform:0,1",))


def test_models_that_differ_at_the_border_are_refused_once(
    tmp_path: Path, original: Path, data: Path
) -> None:
    other = perceptron()
    other.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    other.graph.output[0].name = "z"
    other.graph.node[-1].output[0] = "z"
    pressed = saved(other, tmp_path / "other.onnx")
    with pytest.raises(MisuseError) as raised:
        verified(original, pressed, data=data)
    assert str(raised.value) == (
        f"{original} and {pressed} cannot be compared: "
        "the input x float32[N,16] is x float64[N,16] there; "
        f"{pressed} has no output 'y'; {original} has no output 'z'"
    )


def test_an_open_batch_and_a_batch_of_one_are_alike(tmp_path: Path, original: Path) -> None:
    fixed = saved(perceptron(batch=1), tmp_path / "fixed.onnx")
    report = verified(original, fixed, "1e-9", domain=("x=normal:0,1",))
    assert report.verdict == "within"


def test_another_number_of_weights_is_noted(tmp_path: Path, original: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", "N", 16)],
        [value("y", "N", 4)],
        [from_array(np.ones((16, 4), np.float32), "w")],
    )
    report = verified(
        original, saved(model(graph), tmp_path / "small.onnx"), domain=("x=normal:0,1",)
    )
    assert report.notes == (
        "the pressed model has 64 prunable weights where the original has 640; "
        "the share of zeros is over its own",
    )
    assert report.layers == ()


def test_a_broken_candidate_is_named(tmp_path: Path, original: Path, data: Path) -> None:
    torn = tmp_path / "torn.onnx"
    torn.write_bytes(original.read_bytes()[:500])
    with pytest.raises(BrokenModelError, match=r"cannot read .*torn\.onnx: it begins like an ONNX"):
        verified(original, torn, data=data)


def test_a_verdict_repeats(tmp_path: Path, original: Path, data: Path) -> None:
    nearly = weight() + np.random.default_rng(0).normal(size=(16, 32)) * 0.01
    pressed = tmp_path / "pressed.onnx"
    write(patch(perceptron(), {W1: nearly}, "auto").model, pressed)
    first, second = (verified(original, pressed, data=data, seed=3) for _ in range(2))
    assert first.decision == second.decision
    assert first.decision != verified(original, pressed, data=data, seed=4).decision


OUTPUTS = (
    OutputSpec("logits", (None, 10), np.dtype("float32")),
    OutputSpec("a=b", (None, 2), np.dtype("float32")),
    OutputSpec("label", (None,), np.dtype("int64")),
)


@pytest.mark.parametrize(
    ("text", "output", "flips", "expected"),
    [
        ("1%", [], None, Tolerance(0.01)),
        ("1e-3", [], None, Tolerance(0.001, absolute=True)),
        ("1%", ["logits"], None, Tolerance(0.01, outputs=(("logits", None),))),
        ("1%", ["logits=2%"], "0.5%", Tolerance(0.01, False, (("logits", 0.02),), 0.005)),
        ("1%", ["a=b"], None, Tolerance(0.01, outputs=(("a=b", None),))),
        (
            "1",
            ["a=b=2", "logits=3"],
            None,
            Tolerance(1.0, True, (("logits", 3.0), ("a=b", 2.0))),
        ),
        (None, [], None, None),
    ],
)
def test_tolerances_read(
    text: str | None, output: list[str], flips: str | None, expected: Tolerance | None
) -> None:
    assert read_tolerance(text, output, flips, OUTPUTS) == expected


@pytest.mark.parametrize(
    ("text", "output", "flips", "message"),
    [
        (None, ["logits"], None, "--output says more about a tolerance; add --tolerance"),
        (None, [], "1%", "--flips says more about a tolerance; add --tolerance"),
        (
            "1%",
            ["logit"],
            None,
            r"no output 'logit' \(did you mean 'logits'\?\); it gives",
        ),
        ("1%", ["logit=3%"], None, "no output 'logit'"),
        ("1%", ["label"], None, r"the output label int64\[\?\] holds no real numbers"),
        ("1%", ["logits", "logits=2%"], None, "two --output flags name 'logits'"),
        ("1%", ["logits=0.02"], None, "of two kinds; write both with %, or both without"),
        ("1%", ["logits=much"], None, "'much' is no tolerance"),
        ("1%", [], "150%", "--flips 150% is more than all answers"),
        ("nought", [], None, "'nought' is no tolerance"),
        ("0%", [], None, "a tolerance is a number above zero"),
    ],
)
def test_tolerances_that_do_not_read(
    text: str | None, output: list[str], flips: str | None, message: str
) -> None:
    with pytest.raises(MisuseError, match=message):
        read_tolerance(text, output, flips, OUTPUTS)


def two_outputs(second: float) -> ModelProto:
    """The outputs x and ``second * x``."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Mul", ["x", "k"], ["z"])]
    borders = [value("x", "N", 3)], [value("y", "N", 3), value("z", "N", 3)]
    constants = [from_array(np.array(second, np.float32), "k")]
    return model(helper.make_graph(nodes, "g", *borders, constants))


def test_selected_outputs_are_the_only_ones_run() -> None:
    original, pressed = two_outputs(1.0), two_outputs(0.9)
    arrays = {"x": np.random.default_rng(0).normal(size=(50, 1, 3)).astype(np.float32)}
    _, outputs = specs(original)
    for names, verdict in ((["y"], "within"), (["z"], "exceeded"), ([], "exceeded")):
        tolerance = read_tolerance("0.5%", names, None, outputs)
        found = judge(original, pressed, arrays, tolerance, seed=0)
        assert found.decision.verdict == verdict
        assert list(found.distance.names) == (names or ["y", "z"])
