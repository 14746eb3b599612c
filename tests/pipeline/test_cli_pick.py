"""``onnxpress pick`` on real files: what is printed, what is written, what it exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from onnxpress import beginning
from onnxpress.cli import main
from small_models import perceptron

DRAWN = ("--domain", "x=normal:0,1")


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a run at 20 % kept."""
    monkeypatch.setattr(beginning, "MOST_DRAWN", 512)
    model, recipe, path = (tmp_path / name for name in ("m.onnx", "r.yaml", "t.trace"))
    model.write_bytes(perceptron().SerializeToString())
    recipe.write_text("steps: [magnitude, repair: {work: 0.05}]")
    words = ("--tolerance", "20%", "--recipe", recipe, "--effort", "quick", "--trace", path)
    result = call("compress", model, *words, *DRAWN, "--quiet")
    assert result.exit_code == 0, result.output
    assert f"Note: {path} keeps " in result.stdout
    return path


def one_sentence(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("Error: ")


def test_another_point(trace: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "o.onnx", tmp_path / "r.html"
    result = call("pick", trace, out, "--tolerance", "40%", *DRAWN, "--json", "--report", page)
    assert result.exit_code == 0, result.output
    read = json.loads(result.stdout)
    assert (read["verdict"], read["out"]) == ("within", str(out))
    assert read["distance"]["interval"]["relative"][1] <= 0.4
    assert read["distance"]["fitted"] > 0
    assert [point["chosen"] for point in read["curve"]].count(True) == 1
    assert read["size_bytes"]["pressed"] == out.stat().st_size
    assert "Candidates" in page.read_text()
    assert "judging: sparsity 0." in result.stderr
    again = call("verify", tmp_path / "m.onnx", out, "--tolerance", "50%", *DRAWN, "--seed", "1")
    assert again.exit_code == 0, again.output


def test_outside_the_tolerance_nothing_is_written(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    result = call("pick", trace, out, "--tolerance", "1e-5%", *DRAWN, "--quiet")
    assert result.exit_code == 3, result.output
    assert not out.exists()
    assert "nothing was written" in result.stdout
    assert "was the closest that could be reached" in result.stdout
    assert result.stderr == ""


def test_a_sparsity_and_a_form(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    result = call("pick", trace, out, "--sparsity", ".8", *DRAWN, "--form", "dense", "--json")
    assert result.exit_code == 0, result.output
    read = json.loads(result.stdout)
    distances = {abs(point["sparsity"] - 0.8): point["chosen"] for point in read["curve"]}
    assert distances[min(distances)] is True
    assert {row["form"] for row in read["layers"]} == {"dense"}


def test_politeness(trace: Path, tmp_path: Path) -> None:
    assert "nothing says which candidate to take" in one_sentence(call("pick", trace, *DRAWN), 2)
    message = one_sentence(call("pick", tmp_path / "no", "--tolerance", "1%", *DRAWN), 2)
    assert message == f"cannot read {tmp_path / 'no'}: there is no such file; check the path"
    message = one_sentence(call("pick", tmp_path / "m.onnx", "--tolerance", "1%", *DRAWN), 2)
    assert "it is no sound trace" in message
    message = one_sentence(call("pick", trace, trace, "--tolerance", "1%", *DRAWN), 2)
    assert "written over the original" in message
    trace.write_bytes(trace.read_bytes()[:-9])
    message = one_sentence(call("pick", trace, "--tolerance", "1%", *DRAWN), 2)
    assert message.endswith("; copy it again, or compress again")


def test_a_recipe_may_keep_a_trace(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(perceptron().SerializeToString())
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "model: m.onnx\ntrace: kept.trace\nsparsity: 0.5\ndomain: x=normal:0,1\nsteps: [magnitude]"
    )
    assert call("run", recipe, "--quiet").exit_code == 0
    result = call("pick", tmp_path / "kept.trace", "--sparsity", "50%", *DRAWN, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sparsity"] == 0.5
