"""What the benchmarks share: the machine in a line, tables, and the model zoo if there is one."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT.parent / "shared" / "zoo"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells as a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def where(*packages: str) -> str:
    """Say when and on what a measurement was made.

    Args:
        packages: whose versions matter, by the name they are imported under (onnxruntime comes from
            one of two distributions).
    """
    date = datetime.now(UTC).date().isoformat()
    threads = os.environ.get("OMP_NUM_THREADS")
    cores = f"{os.cpu_count()} cores" + (f" (OMP_NUM_THREADS={threads})" if threads else "")
    python = f"Python {platform.python_version()}"
    versions = ", ".join(f"{package} {import_module(package).__version__}" for package in packages)
    return f"Measured on {date}, {platform.machine()}, {cores}, {python}, {versions}."


def load_zoo() -> ModuleType | None:
    """Import the zoo's own module; None, with the reason printed, where there is no zoo."""
    if not (ZOO / "zoo.py").exists():
        print("skipped: the model zoo (../shared/zoo) is not beside this checkout")
        return None
    if str(ZOO) not in sys.path:
        sys.path.insert(0, str(ZOO))
    return import_module("zoo")


def chosen_models(
    parser: argparse.ArgumentParser, zoo: ModuleType, given: str | None
) -> tuple[str, ...]:
    """Name the zoo's models a command line asks for; it ends where one is unknown.

    Args:
        parser: of the command line.
        zoo: as ``load_zoo`` gives it.
        given: names, separated by commas; None for all.
    """
    names = tuple(str(entry.name) for entry in zoo.entries())
    chosen = names if given is None else tuple(filter(None, given.split(",")))
    if odd := set(chosen) - set(names):
        parser.error(f"there is no {', '.join(sorted(odd))}; there are {', '.join(names)}")
    return chosen


def publish(text: str, out: Path | None) -> None:
    """Print a result and keep it in a file where one is named."""
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
