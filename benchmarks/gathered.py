"""The claim: rows that share their columns make a layer smaller and really faster.

    python benchmarks/gathered.py [--seconds 2] [--out benchmarks/gathered.md]

One MatMul of n x n, a tenth or a quarter of its weights left in groups of rows that share their
columns, against the same model with the zeros in a dense weight: both in stock onnxruntime, one
thread, run in turns; the ratio is a median with its interval. At n = 2048, 128 rows a group and a
density of .1 it is at least 3 times as fast at batch 1 and 2 times at batch 8, with at most .42
bytes per weight. Exits 1 where that is not met.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.compare import Runner
from onnxpress_exporters.latency import race
from onnxpress_exporters.write import patch
from tables import publish, table, where

KEY = WeightKey((), "w")
CASES = ((512, 128), (1024, 128), (2048, 128), (2048, 32), (4096, 128))
DENSITIES = (0.25, 0.1)
BATCHES = (1, 8, 64)
MOST_BYTES = 0.42
LEAST = {(2048, 128, 0.1, 1): 3.0, (2048, 128, 0.1, 8): 2.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every layer and print the table."""
    parser = argparse.ArgumentParser(description="Time gathered weights against dense ones.")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each race")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    rows, met = [], True
    for side, height in CASES:
        for density in DENSITIES:
            array = _shared(side, height, density)
            dense = patch(_layer(side), {KEY: array}, "dense").model
            patched = patch(_layer(side), {KEY: array}, "gathered")
            size = patched.model.ByteSize() / side**2
            runners = Runner(dense, threads=1), Runner(patched.model, threads=1)
            cells = []
            for batch in BATCHES:
                x = np.random.default_rng(batch).normal(size=(batch, side)).astype(np.float32)
                found = race(*runners, [{"x": x}], options.seconds)
                low, high = found.interval
                cells.append(f"{1 / found.ratio:.1f} ({1 / high:.1f} to {1 / low:.1f})")
                least = LEAST.get((side, height, density, batch), 0.0)
                met = met and 1 / found.ratio >= least
            if (side, height, density, 1) in LEAST:
                met = met and size <= MOST_BYTES
            rows.append(
                [str(side), str(height), f"{density:g}", patched.forms[KEY], f"{size:.3f}", *cells]
            )
            print(rows[-1], file=sys.stderr, flush=True)
    head = ["n", "rows a group", "density", "form", "bytes per weight"]
    head += [f"times as fast, batch {batch}" for batch in BATCHES]
    asked = (
        "Asked at n = 2048, 128 rows, density .1: 3 times at batch 1, 2 times at batch 8, "
        f"{MOST_BYTES} bytes per weight. {'Met.' if met else 'Not met.'}"
    )
    publish("\n\n".join([where("onnxruntime", "numpy"), table(head, rows), asked]), options.out)
    return 0 if met else 1


def _shared(side: int, height: int, density: float) -> np.ndarray:
    """Draw a weight ``[columns, rows]`` whose rows share their columns in groups."""
    rng = np.random.default_rng(side)
    array = np.zeros((side, side), np.float32)
    kept = round(density * side)
    for start in range(0, side, height):
        own = rng.permutation(side)[:kept]
        array[own, start : start + height] = rng.normal(size=(kept, height)) / side**0.5
    return array


def _layer(side: int) -> ModelProto:
    ends = [helper.make_tensor_value_info(name, 1, ["N", side]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.zeros((side, side), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "layer", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    sys.exit(main())
