"""The claim: time grows at most as the number of weights to the power 1.2 in the largest decade.

A perceptron of four square layers with random weights, 256 to 4096 wide (260,000 to 67 million
weights), goes to 90 % zeros through the command line at quick effort; which methods its layers get
is left to onnxpress. Inputs lie near a subspace of 64 dimensions, as data does. Prints seconds and
the peak of memory, each width in a process of its own, and the slope between the widest and the one
with a tenth of its weights.

    python benchmarks/width.py [--widths 256,512] [--effort quick] [--out benchmarks/width.md]

Exits 1 where the claim is not met.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from gpu_models import Draft
from pruning_ours import Run, run_command
from tables import publish, table, where

LAYERS = 4
WIDTHS = (256, 512, 1024, 1296, 2048, 4096)
SLOPE_FROM = 1296
"""A tenth of the weights of the widest."""

MOST_SLOPE = 1.2
SAMPLES, DIMENSIONS, NOISE = 1280, 64, 0.1
SPARSITY = "90%"


def main(arguments: Sequence[str] | None = None) -> int:
    """Press every width and print how time grows."""
    parser = argparse.ArgumentParser(description="Press perceptrons of growing width.")
    parser.add_argument("--widths", type=numbers, default=WIDTHS, help="separated by commas")
    parser.add_argument("--effort", default="quick", help="as for compress")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    runs = {width: pressed(width, options.effort) for width in options.widths}
    rows = [
        [
            str(width),
            f"{LAYERS * width**2:,}",
            "failed" if run.exit else f"{run.seconds:.1f}",
            "-" if run.peak_bytes is None else f"{run.peak_bytes / 1e6:,.0f}",
            "-" if run.report is None else f"{run.report['distance']['relative']:.3g}",
        ]
        for width, run in runs.items()
    ]
    slope = slope_of(runs)
    met = slope is not None and slope <= MOST_SLOPE
    if slope is None:
        verdict = f"The slope takes widths {SLOPE_FROM} and {max(WIDTHS)}: not decided."
    else:
        verdict = (
            f"From {SLOPE_FROM} to {max(WIDTHS)} wide, time grows as weights^{slope:.2f}; allowed "
            f"is {MOST_SLOPE}: {'met' if met else '**not met**'}."
        )
    pieces = [
        "# How time grows with width",
        f"`compress --sparsity {SPARSITY} --effort {options.effort}`, {LAYERS} layers, "
        f"{SAMPLES} samples. {where('onnx', 'onnxruntime', 'torch')}",
        table(("width", "weights", "seconds", "peak MB", "d reported"), rows),
        verdict,
    ]
    publish("\n\n".join(pieces), options.out)
    return 0 if met else 1


def numbers(text: str) -> tuple[int, ...]:
    """Split at commas."""
    return tuple(map(int, text.split(",")))


def slope_of(runs: dict[int, Run]) -> float | None:
    """Give the growth of log seconds over log weights, None where an end is missing."""
    low, high = runs.get(SLOPE_FROM), runs.get(max(WIDTHS))
    if low is None or high is None or low.exit or high.exit:
        return None
    return log(high.seconds / low.seconds) / (2 * log(max(WIDTHS) / SLOPE_FROM))


def pressed(width: int, effort: str) -> Run:
    """Press one width."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(perceptron(width), folder / "model.onnx")
        rng = np.random.default_rng(width)
        hidden = rng.normal(size=(SAMPLES, DIMENSIONS)) @ rng.normal(size=(DIMENSIONS, width))
        inputs = hidden / DIMENSIONS**0.5 + NOISE * rng.normal(size=(SAMPLES, width))
        np.savez(folder / "data.npz", x=inputs.astype(np.float32))
        words: list[object] = [
            "compress",
            folder / "model.onnx",
            folder / "out.onnx",
            "--sparsity",
            SPARSITY,
        ]
        words += ["--effort", effort, "--data", folder / "data.npz", "--json", "-q"]
        run = run_command(words, folder)
        if run.exit:
            print(f"{width}: {run.stderr.strip()}", file=sys.stderr)
        return run


def perceptron(width: int) -> ModelProto:
    """Draw square layers with ReLU between them."""
    draft = Draft(width)
    value = "x"
    for layer in range(LAYERS):
        value = draft.linear(value, width, width)
        if layer + 1 < LAYERS:
            value = draft.add("Relu", value)
    inputs = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    output = helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(draft.nodes, "perceptron", [inputs], [output], draft.tensors)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


if __name__ == "__main__":
    sys.exit(main())
