"""The rules of the house: imports go down only, and the command line starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxpress
from checkout import ROOT, SOURCES, environment

FLOORS = {package: floor for floor, package in enumerate(SOURCES, start=1)}
HEAVY = {"torch", "onnxruntime", "onnx", "scipy"}


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            assert node.module is not None
            yield node.module


def at_import_time(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Give the statements that run when the module is imported: no functions, no type checking."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from at_import_time(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from at_import_time(getattr(node, field, []))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@pytest.mark.parametrize("package", SOURCES)
def test_imports_go_down_only(package: str) -> None:
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(SOURCES[package].rglob("*.py"))
        for name in imports(ast.walk(parsed(path)))
        if FLOORS.get(name.partition(".")[0], 0) > FLOORS[package]
    ]
    assert upward == []


def test_sources_import_no_tests() -> None:
    own = {path.stem for path in (ROOT / "tests").glob("*.py")}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in SOURCES.values()
        for path in sorted(folder.rglob("*.py"))
        for name in imports(ast.walk(parsed(path)))
        if name.partition(".")[0] in own
    ]
    assert wrong == []


def test_the_command_line_names_no_heavy_library_at_its_top() -> None:
    heavy = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((SOURCES["onnxpress"] / "cli").rglob("*.py"))
        for name in imports(at_import_time(parsed(path).body))
        if name.partition(".")[0] in HEAVY
    ]
    assert heavy == []


def loaded_after(code: str) -> set[str]:
    """Run code in a fresh Python and give the top-level names of what it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


def test_import_onnxpress_loads_neither_torch_nor_onnxruntime() -> None:
    assert loaded_after("import onnxpress").isdisjoint({"torch", "onnxruntime"})


@pytest.mark.parametrize(
    "words", [[], ["compress"], ["verify"], ["inspect"], ["run"], ["densify"], ["pick"]]
)
def test_help_loads_neither_torch_nor_onnxruntime(words: list[str]) -> None:
    code = (
        "from onnxpress.cli import main\n"
        "try:\n"
        f"    main({[*words, '--help']!r})\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
    )
    assert loaded_after(code).isdisjoint({"torch", "onnxruntime"})


def test_every_public_name_is_there() -> None:
    assert [name for name in onnxpress.__all__ if not hasattr(onnxpress, name)] == []
    assert set(onnxpress.__all__) <= set(dir(onnxpress))


def test_no_module_hides_a_public_name() -> None:
    """Importing ``onnxpress.x`` sets ``onnxpress.x``: a function of that name would be lost."""
    modules = {path.stem for path in SOURCES["onnxpress"].iterdir()}
    assert modules.isdisjoint(onnxpress.__all__)


def test_an_unknown_public_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'decompress'"):
        onnxpress.decompress  # noqa: B018  # the access itself is what is tested


def test_the_constraints_pin_every_line_without_local_builds() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert "torch==2.13.0" in lines
    assert [line for line in lines if line.count("==") != 1 or "+" in line] == []
