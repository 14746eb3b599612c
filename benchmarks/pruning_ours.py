"""One pressing by us, measured from outside: our side of benchmarks/pruning.py.

    python benchmarks/pruning_ours.py MODEL dense|ours|peer TASK

TASK is a sparsity in percent or `tolerance`. The command line runs in a process of its own, with
the zoo's calibration inputs and default effort; the file it wrote is measured by the zoo. The last
line on stdout is what was found, as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import onnx

from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.read import read_model
from onnxpress_exporters.densify import densify
from tables import ROOT, load_zoo
from zoo_measures import (
    CLASSIFIERS,
    calibration_count,
    save_calibration,
    worth,
    zeros_and_elements,
)

TOLERANCE = "1%"
PEER = "steps:\n  - greedy: {layerwise: 1.0}\n"
"""The fair peer: brain surgery in every layer, shared out by dynamic programming, no repair."""

LAUNCHER = """
import sys
from pathlib import Path
from onnxpress.cli import main
noted = Path(sys.argv.pop(1))
try:
    main(prog_name="onnxpress")
finally:
    status = Path("/proc/self/status")
    if status.exists():
        noted.write_bytes(status.read_bytes())
"""
"""Runs the command line and notes the process's own peak of memory, which dies with it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one model and print what was found."""
    name, side, task = sys.argv[1:] if arguments is None else arguments
    zoo = load_zoo()
    if zoo is None:
        return 1
    entry = zoo.entry(name)
    if side == "dense":
        found = dense(entry)
    else:
        with TemporaryDirectory() as folder:
            found = pressed(entry, side, task, Path(folder))
    print(json.dumps(found))
    return 0


def dense(entry: Any) -> Mapping[str, Any]:
    """Say what there is to prune in a model, and what the model scores as it is."""
    zeros, elements = zeros_and_elements(onnx.load(entry.path))
    movable = any(not weight.fixed for weight in prunable(read_model(entry.path)))
    return {
        "zeros": zeros,
        "elements": elements,
        "movable": movable,
        "inputs": calibration_count(entry),
        "score": entry.score(entry.session()) if entry.name in CLASSIFIERS else None,
    }


@dataclass(frozen=True)
class Run:
    """One run of the command line.

    Attributes:
        exit: the exit code.
        seconds: how long it took.
        peak_bytes: the most memory it held, None where the system does not say.
        report: what it printed as JSON, None where it printed nothing.
        stderr: what it said beside that.
    """

    exit: int
    seconds: float
    peak_bytes: int | None
    report: dict[str, Any] | None
    stderr: str


def run_command(words: Sequence[object], folder: Path) -> Run:
    """Run the command line in a process of its own, timed from outside.

    Args:
        words: of the command, ``--json`` among them.
        folder: to note things in.
    """
    noted = folder / "status"
    start = monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(noted), *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = monotonic() - start
    report = json.loads(done.stdout) if done.stdout.strip() else None
    return Run(done.returncode, seconds, peak_bytes(noted), report, done.stderr)


def pressed(entry: Any, side: str, task: str, folder: Path) -> Mapping[str, Any]:
    """Press a model and look at what was written."""
    data, out = folder / "data.npz", folder / "out.onnx"
    inputs = save_calibration(entry, data)
    goal = ("--tolerance", TOLERANCE) if task == "tolerance" else ("--sparsity", f"{task}%")
    words: list[object] = ["compress", entry.path, out, *goal, "--data", data, "--json", "-q"]
    if side == "peer":
        recipe = folder / "peer.yaml"
        recipe.write_text(PEER, encoding="utf-8")
        words += ["--recipe", recipe]
    run = run_command(words, folder)
    found = {
        "inputs": inputs,
        "exit": run.exit,
        "seconds": run.seconds,
        "peak_bytes": run.peak_bytes,
        "report": run.report,
    }
    if not out.exists():
        said = run.stderr.strip() or str((run.report or {}).get("reason"))
        return {**found, "error": said.splitlines()[-1]}
    original, written = onnx.load(entry.path), onnx.load(out)
    return {**found, **worth(entry, original, densify(written), out)}


def peak_bytes(noted: Path) -> int | None:
    """Read the most memory a process held, where the system says so."""
    if not noted.exists():
        return None
    lines = (line.split() for line in noted.read_text(encoding="utf-8").splitlines())
    return next((1024 * int(line[1]) for line in lines if line[:1] == ["VmHWM:"]), None)


if __name__ == "__main__":
    sys.exit(main())
