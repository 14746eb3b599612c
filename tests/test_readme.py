"""What the README says about the command line is true of the command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from checkout import ROOT
from onnxpress import Chain, load_recipe
from onnxpress.candidates import MOST_JUDGED
from onnxpress.cli import main
from onnxpress.problem import FEW_RESERVE, RESERVE
from onnxpress.recipe import STEPS
from onnxpress.samples import FEW
from onnxpress.search import Search

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
CALLS = re.findall(r"^onnxpress (.+)$", "".join(BLOCKS), flags=re.MULTILINE)


def test_every_command_has_an_example() -> None:
    assert isinstance(main, click.Group)
    assert sorted(main.commands) == sorted({call.split()[0] for call in CALLS})


@pytest.mark.parametrize("call", CALLS)
def test_every_call_parses(call: str) -> None:
    assert isinstance(main, click.Group)
    name, *words = shlex.split(call)
    command = main.commands[name]
    known = {flag for parameter in command.params for flag in parameter.opts}
    assert [word for word in words if word.startswith("--") and word not in known] == []


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, flags=re.MULTILINE))
def test_every_make_target_exists(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"examples/[\w.]+", README))))
def test_every_example_exists(path: str) -> None:
    assert (ROOT / path).exists()


def block(language: str) -> str:
    """Give the one code block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_recipe_is_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(block("yaml"), encoding="utf-8")
    read = load_recipe(path)
    assert isinstance(read.steps, Chain)
    assert read.settings["model"] == tmp_path / "examples/digits_cnn.onnx"
    assert read.settings["tolerance"] == "1%"


def test_every_step_of_recipes_is_listed() -> None:
    listed = re.findall(r"^\| `(\w+)` \| [a-z]+s ", README, flags=re.MULTILINE)
    assert sorted(listed) == sorted(STEPS)


def test_the_python_is_python_and_fits_the_library() -> None:
    """The example runs the same lines; here the names and fields are held."""
    lines = block("python").replace("report = compress(job)\nprint(report.text())\n", "")
    names: dict[str, object] = {}
    exec(compile(lines, "README.md", "exec"), names)
    assert names["job"] is not None


def test_what_the_verdict_rests_on_is_true() -> None:
    prose = " ".join(README.split())
    assert f"only {100 * RESERVE:.0f} % of the tolerance" in prose
    assert f"({100 * FEW_RESERVE:.0f} % where fewer than four sources are held out" in prose
    assert FEW == 4
    assert f"it uses {100 * Search.margin:.0f} %" in prose
    assert {3: "three"}[MOST_JUDGED] + " candidates at most" in prose


def test_the_result_is_the_measured_one() -> None:
    measured = (ROOT / "benchmarks" / "demo.md").read_text(encoding="utf-8")
    result = README[README.index("<!-- result: begin") : README.index("<!-- result: end")]
    figures = re.findall(r"[\d,]+(?= bytes)", result)
    assert len(figures) == 4
    assert [figure for figure in figures if figure not in measured] == []
    (zeros,) = re.findall(r"zeros .* ([\d.]+) % \|$", result, flags=re.MULTILINE)
    assert f"| zeros | {zeros}%" in measured
    (moved,) = re.findall(r"([\d.]+ %) of the variance", result)
    assert f"| on the test images | {moved} of the output's variance" in measured


def table_rows(text: str) -> dict[str, list[str]]:
    """Give the cells of every row of the tables in a text, by the first of them."""
    rows = re.findall(r"^\| (.+) \|$", text, flags=re.MULTILINE)
    return {cells[0]: cells[1:] for cells in (row.split(" | ") for row in rows)}


def test_the_importers_are_the_measured_ones() -> None:
    measured = table_rows((ROOT / "benchmarks" / "import_suite.md").read_text(encoding="utf-8"))
    table = README[README.index("<!-- importers: begin") : README.index("<!-- importers: end")]
    told = table_rows(table)
    head = told.pop("importer")
    assert [re.findall(r"of [\d,]+", cell) for cell in head] == [
        re.findall(r"of [\d,]+", measured["importer"][place]) for place in (1, 4, 5, 6, 7)
    ]
    assert len(told) == 6
    for importer, cells in told.items():
        name = importer.replace(", torch alone", " without the reference")
        assert cells == [measured[name][place] for place in (1, 4, 5, 6, 7)], importer
