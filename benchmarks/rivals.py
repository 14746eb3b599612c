"""One pruning by onnxsim, measured: the rival's side of benchmarks/pruning.py.

    python benchmarks/rivals.py MODEL METHOD SPARSITY INPUTS [FILE]

Runs with onnxsim, onnx and onnxruntime, and without our dependencies, so that the rival can have an
environment of its own. The last line on stdout is what was found, as JSON; where a FILE is named,
the pruned model is written there, before anything is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, metadata
from time import monotonic
from typing import Any

import onnx

from tables import load_zoo
from zoo_measures import worth

FIRST = "simplify+"
"""Before a method's name: onnxsim simplifies the model first, and finds more weights in some."""

Prune = Callable[[Any, Any, float, Sequence[Any]], Any]

METHODS: Mapping[str, Prune] = {
    "magnitude": lambda sim, model, share, feeds: sim.apply_magnitude_pruning(
        model, sparsity=share
    ),
    "magnitude_global": lambda sim, model, share, feeds: sim.apply_magnitude_pruning(
        model, sparsity=share, global_sparsity=True
    ),
    "wanda": lambda sim, model, share, feeds: sim.apply_wanda_pruning(
        model, calibration_data=feeds, sparsity=share
    ),
    "wanda_global": lambda sim, model, share, feeds: sim.apply_wanda_pruning(
        model, calibration_data=feeds, sparsity=share, global_sparsity=True
    ),
    "sparsegpt": lambda sim, model, share, feeds: sim.apply_sparsegpt_pruning(
        model, calibration_data=feeds, sparsity=share
    ),
}
SMALLER: Mapping[str, Prune] = {
    "structured": lambda sim, model, share, feeds: sim.apply_structured_pruning(
        model, sparsity=share
    ),
    "structured_wanda": lambda sim, model, share, feeds: sim.apply_structured_wanda_pruning(
        model, calibration_data=feeds, sparsity=share
    ),
}
"""Methods that take channels out: the share is one of channels."""

NAMES = (*METHODS, *(f"{FIRST}{name}" for name in METHODS))
BLIND = frozenset({"magnitude", "magnitude_global", "structured"})
"""Methods that look at no inputs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune one model one way and print what it is worth."""
    name, method, share, count, *file = sys.argv[1:] if arguments is None else arguments
    zoo = load_zoo()
    if zoo is None:
        return 1
    entry = zoo.entry(name)
    base = method.removeprefix(FIRST)
    inputs = 0 if base in BLIND else int(count)
    feeds = entry.inputs(inputs, "calibration")
    original = onnx.load(entry.path)
    sim = import_module("onnxsim")
    start = monotonic()
    model = onnx.load(entry.path)
    if method != base:
        model, unchanged = sim.simplify(model)
        if not unchanged:
            raise SystemExit("onnxsim says that its simplified model is another one")
    pruned = {**METHODS, **SMALLER}[base](sim, model, float(share), feeds)
    seconds = monotonic() - start
    if file:
        onnx.save(pruned, file[0])
    versions = {package: metadata.version(package) for package in ("onnxsim", "onnxruntime")}
    found = {"inputs": inputs, "seconds": seconds, "versions": versions}
    print(json.dumps({**found, **worth(entry, original, pruned, pruned)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
