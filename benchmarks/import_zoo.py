"""The claim: zoo models import and answer like onnxruntime, sample by sample and batched.

At least 28 of the 38 models agree to a largest error of 1e-4 of the output's largest magnitude
(1e-3 where the model holds fp16) on 16 real inputs each.

    python benchmarks/import_zoo.py [--models a,b] [--out benchmarks/import_zoo.md]

Times are those of the same run, one after the other on one thread each: onnxruntime one input at a
time, the network looped over the inputs, and the network batched the way it proved. Exits 1 where
the claim is not met. Needs ../shared/zoo.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import torch

from onnxpress_adapters.batching import LOOP
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.network import import_network
from onnxpress_adapters.read import read_model
from onnxpress_exporters.compare import Runner
from tables import load_zoo, publish, table, where

INPUTS = 16
NEEDED = 28
ROUNDS = 3
HALF = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
HEAD = (
    "model", "largest error, loop", "largest error, batched", "allowed", "batching",
    "ms looped", "ms batched", "ms onnxruntime", "agrees",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """What was found for one model."""

    cells: tuple[str, ...]
    agrees: bool
    complaint: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Import every model and print the table."""
    parser = argparse.ArgumentParser(description="Import zoo models, compare with onnxruntime.")
    parser.add_argument("--models", help="names, separated by commas; all unless given")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    zoo = load_zoo()
    if zoo is None:
        return 0
    torch.set_num_threads(1)
    chosen = [
        entry
        for entry in zoo.entries()
        if options.models is None or entry.name in options.models.split(",")
    ]
    lines = []
    for entry in chosen:
        lines.append(measure(entry))
        print(" ".join(lines[-1].cells), lines[-1].complaint, file=sys.stderr, flush=True)
    agreeing = sum(line.agrees for line in lines)
    needed = min(NEEDED, len(lines))
    pieces = [
        "# Importing the zoo",
        f"Claim: at least {NEEDED} models import and agree with onnxruntime to a largest error of "
        f"1e-4 of the output's largest magnitude (1e-3 for fp16) on {INPUTS} real inputs each. "
        f"Written by benchmarks/import_zoo.py: {agreeing} of {len(lines)} agree.",
        where("torch", "onnxruntime"),
        "Times are per input, on one thread, the fastest of three rounds in one run.",
        table(HEAD, [line.cells for line in lines]),
        *(f"{line.cells[0]}: {line.complaint}" for line in lines if line.complaint),
    ]
    publish("\n\n".join(pieces), options.out)
    return 0 if agreeing >= needed else 1


def measure(entry: Any) -> Line:
    """Import one model and compare its answers with onnxruntime's."""
    try:
        model = read_model(entry.path)
        network, weights = import_network(model)
    except AdapterError as error:
        return Line((entry.name, *["-"] * (len(HEAD) - 2), "no"), False, str(error))
    runner = Runner(model, threads=1)
    feeds = entry.inputs(INPUTS, "calibration")
    samples = [
        torch.from_numpy(np.stack([feed[spec.name] for feed in feeds])) for spec in network.inputs
    ]
    with torch.no_grad():
        proven = network.proven(weights, samples)
        answers = [runner.run(feed) for feed in feeds]
        expected = [np.stack(values) for values in zip(*answers, strict=True)]
        looped = LOOP.run(network, weights, samples).outputs
        batched = proven.batched(weights, samples)
        times = [
            fastest(lambda: LOOP.run(network, weights, samples)),
            fastest(lambda: proven.batched(weights, samples)),
            fastest(lambda: [runner.run(feed) for feed in feeds]),
        ]
    allowed = 1e-3 if any(t.data_type in HALF for t in model.graph.initializer) else 1e-4
    errors = [largest_error(expected, found) for found in (looped, batched)]
    agrees = max(errors) <= allowed
    cells = (
        entry.name,
        *(f"{error:.1e}" for error in errors),
        f"{allowed:.0e}",
        proven.batching.mode,
        *(f"{1e3 * seconds / len(feeds):.2f}" for seconds in times),
        "yes" if agrees else "no",
    )
    return Line(cells, agrees, "" if agrees else f"imports, but is {max(errors):.1e} away")


def fastest(run: Callable[[], object]) -> float:
    """Time the fastest of a few rounds, in seconds."""
    seconds = []
    for _ in range(ROUNDS):
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return min(seconds)


def largest_error(expected: Sequence[np.ndarray], found: Sequence[torch.Tensor]) -> float:
    """Give the largest error of any output, as a share of that output's largest magnitude."""
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if tuple(ours.shape) != theirs.shape:
            return float("inf")
        error = np.abs(ours.numpy().astype(np.float64) - theirs.astype(np.float64)).max()
        share = float(error) / max(float(np.abs(theirs).max()), 1e-30)
        worst = max(worst, share if np.isfinite(share) else float("inf"))
    return worst


if __name__ == "__main__":
    sys.exit(main())
