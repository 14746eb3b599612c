"""``onnxpress compress`` on real files: each mistake gets one sentence, each success a file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto, helper
from onnx.numpy_helper import from_array

from checkout import environment
from onnxpress.cli import main
from onnxpress_adapters.prunable import count_zeros
from onnxpress_adapters.read import read_model
from small_models import model, perceptron, value

DRAWN = ("--domain", "x=normal:0,1")


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def saved(made: ModelProto, path: Path) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return saved(perceptron(), tmp_path / "m.onnx")


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    """Steps that take little time and leave the sparsity open."""
    path = tmp_path / "fast.yaml"
    path.write_text("steps: [magnitude, repair: {work: 0.1}]")
    return path


def one_sentence(result: Result, code: int) -> str:
    """Check that a call failed politely and give its message."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    return lines[0].removeprefix("Error: ")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "there is no such file; check the path"),
        (b"", "it is empty (0 bytes); copy or export it again"),
        (b"PNG, perhaps", "it is not an ONNX model"),
        (perceptron().SerializeToString()[:900], "it begins like an ONNX model and then breaks"),
    ],
    ids=["missing", "empty", "foreign", "torn"],
)
def test_unreadable_files(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "m.onnx"
    if data is not None:
        path.write_bytes(data)
    result = call("compress", path, "--tolerance", "1%", *DRAWN)
    assert one_sentence(result, 1).startswith(f"cannot read {path}: {message}")


def test_a_weight_that_is_not_a_number(tmp_path: Path) -> None:
    made = perceptron()
    weight = np.zeros((16, 32), np.float32)
    weight[3, 4] = np.nan
    made.graph.initializer[0].CopyFrom(from_array(weight, "w1"))
    result = call("compress", saved(made, tmp_path / "m.onnx"), "--tolerance", "1%", *DRAWN)
    message = one_sentence(result, 1)
    assert "w1" in message
    assert "NaN" in message


def test_operators_without_a_converter_are_all_listed(tmp_path: Path) -> None:
    made = perceptron()
    for place, operator in ((1, "Blur"), (2, "Sharpen")):
        made.graph.node[place].op_type = operator
        made.graph.node[place].domain = "some.where"
        made.graph.node[place].name = f"the {operator}"
    made.opset_import.append(helper.make_opsetid("some.where", 1))
    result = call("compress", saved(made, tmp_path / "m.onnx"), "--tolerance", "1%", *DRAWN)
    one_sentence(result, 1)
    assert "some.where::Blur (opset 1): 'the Blur'" in result.stderr
    assert "some.where::Sharpen (opset 1): 'the Sharpen'" in result.stderr


def test_a_model_without_prunable_weights(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", "N", 4)], [value("y", "N", 4)]
    )
    path = saved(model(graph), tmp_path / "m.onnx")
    result = call("compress", path, "--tolerance", "1%", *DRAWN)
    assert result.exit_code in (1, 2)
    assert "weight" in one_sentence(result, result.exit_code)


def test_an_unknown_input(original: Path) -> None:
    result = call("compress", original, "--tolerance", "1%", "--domain", "image=uniform:0,1")
    assert "the model has no input 'image'; it takes x float32[N,16]" in one_sentence(result, 2)


def test_data_of_a_wrong_shape(original: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.npz"
    np.savez(data, x=np.zeros((100, 15), np.float32))
    result = call("compress", original, "--tolerance", "1%", "--data", data)
    assert "'x' has shape [100, 15]; the model takes x float32[N,16]" in one_sentence(result, 2)


def test_too_few_samples(original: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.npz"
    np.savez(data, x=np.eye(14, 16, dtype=np.float32))
    result = call("compress", original, "--tolerance", "1%", "--data", data)
    assert "the data has 14 different samples; at least 15 are needed" in one_sentence(result, 2)


def test_no_inputs_at_all_gives_a_line_to_copy(original: Path) -> None:
    result = call("compress", original, "--tolerance", "1%")
    one_sentence(result, 2)
    assert "x float32[N,16]" in result.stderr
    line = f"onnxpress compress {original} --tolerance 1% --domain x=uniform:0,1"
    assert line in result.stderr


def test_neither_a_tolerance_nor_a_sparsity(original: Path) -> None:
    message = one_sentence(call("compress", original, *DRAWN), 2)
    assert "--tolerance" in message
    assert "--sparsity" in message
    assert "1%" in message


def test_flags_that_do_not_read(original: Path) -> None:
    for words in (
        ["--tolerance", "much"],
        ["--tolerance", "1%", "--flips", "some"],
        ["--tolerance", "1%", "--output", "z"],
        ["--tolerance", "1%", "--time", "soon"],
        ["--tolerance", "1%", "--shape", "x=1,17"],
        ["--tolerance", "1%", "--include", "nothing*"],
    ):
        assert one_sentence(call("compress", original, *DRAWN, *words), 2), words


def test_a_promise_that_is_kept(original: Path, fast: Path) -> None:
    words = ("--tolerance", "5%", "--recipe", fast, "--json", "--quiet")
    result = call("compress", original, *words, *DRAWN)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    read = json.loads(result.stdout)
    pressed = original.with_name("m.pressed.onnx")
    assert read["out"] == str(pressed)
    assert read["verdict"] == "within"
    assert read["distance"]["interval"]["relative"][1] <= 0.05
    zeros, elements = count_zeros(read_model(pressed))
    assert read["sparsity"] == zeros / elements
    assert 0.1 < read["sparsity"] < 1
    assert read["size_bytes"]["pressed"] == pressed.stat().st_size
    assert 1 <= read["judged"] <= 3
    again = call("verify", original, pressed, "--tolerance", "6%", *DRAWN, "--seed", "1")
    assert again.exit_code == 0, again.output


def test_outside_the_tolerance_nothing_is_written(
    original: Path, fast: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"older")
    words = ("--tolerance", "1e-9", "--sparsity", "95%", "--recipe", fast)
    result = call("compress", original, out, *words, *DRAWN)
    assert result.exit_code == 3, result.output
    assert out.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast.yaml", "m.onnx", "out.onnx"]
    assert "nothing was written" in result.stdout
    assert "was the closest that could be reached" in result.stdout


def test_a_sparsity_alone_is_reached(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = call(
        "compress", original, out, "--sparsity", "60%", *DRAWN, "--effort", "quick", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sparsity"] >= 0.6
    zeros, elements = count_zeros(read_model(out))
    assert zeros / elements >= 0.6


def test_steps_of_a_recipe_run_as_written(original: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "model: m.onnx\nout: pressed.onnx\ntolerance: 200%\ndomain: x=normal:0,1\n"
        "steps: [magnitude: {sparsity: 0.5}]"
    )
    result = call("run", recipe, "--json")
    assert result.exit_code in (0, 3), result.output
    read = json.loads(result.stdout)
    assert read["sparsity"] == 0.5
    assert (tmp_path / "pressed.onnx").exists() == (result.exit_code == 0)


def test_the_same_seed_gives_the_same_bytes(original: Path, fast: Path, tmp_path: Path) -> None:
    written = []
    for seed in (3, 3, 4):
        out = tmp_path / "out.onnx"
        words = ("--tolerance", "5%", "--recipe", fast, "--seed", seed, "--device", "cpu")
        assert call("compress", original, out, *words, *DRAWN).exit_code == 0
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_an_interrupt_writes_nothing(original: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "long.yaml"
    recipe.write_text("steps: [magnitude, repair: {work: 100}]")
    # A process in the background of a shell may have been told to ignore interrupts.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from onnxpress.cli import main; main()"
    )
    words = [sys.executable, "-c", code, "compress", str(original), "--tolerance", "5%", *DRAWN]
    with subprocess.Popen(
        [*words, "--recipe", str(recipe)],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("pressing"):
                break
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().endswith("Error: interrupted; nothing was written\n")
        assert process.stdout.read() == ""
        assert process.wait() == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.yaml", "m.onnx"]
