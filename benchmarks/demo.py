"""What does `make demo` reach? It presses examples/digits_cnn.onnx at a tolerance of 1 %.

    python benchmarks/demo.py [--out benchmarks/demo.md]

Runs the line of `make demo`, then compares the written file with the original on the images of
examples/digits_test.npz, which the run has not seen, and checks that a second run gives the same
bytes. Exits 1 where the file is not within the tolerance there or the bytes differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tables import ROOT, publish, table, where

MODEL = "examples/digits_cnn.onnx"
TOLERANCE = "1%"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo twice and print the table."""
    parser = argparse.ArgumentParser(description="Press the digit classifier of `make demo`.")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        first, second = Path(folder, "first.onnx"), Path(folder, "second.onnx")
        report, _ = press(first), press(second, "--quiet")
        same = first.read_bytes() == second.read_bytes()
        seen = onnxpress(
            "verify", MODEL, first, "--tolerance", TOLERANCE,
            "--data", "examples/digits_test.npz", "--json",
        )  # fmt: skip
    test = json.loads(seen.stdout)
    rows = [
        ["zeros", f"{report['sparsity']:.1%} of the prunable weights"],
        ["file", shrunk(report["size_bytes"], "original", "pressed")],
        ["file, gzipped", shrunk(report["size_bytes"], "original_gzip", "pressed_gzip")],
        ["judged on held-out images", moved(report)],
        ["on the test images", moved(test)],
        ["time", f"{report['seconds']:.0f} s"],
        ["a second run gives the same bytes", "yes" if same else "no"],
    ]
    flags = f"--tolerance {TOLERANCE} --data examples/digits_train.npz"
    met = same and test["distance"]["relative"] <= 0.01
    pieces = [
        "# The demo",
        f"`onnxpress compress {MODEL} OUT {flags}`, written by benchmarks/demo.py: "
        f"{'met' if met else 'NOT met'}.",
        where("torch", "onnxruntime"),
        table(["what", "measured"], rows),
    ]
    publish("\n\n".join(pieces), options.out)
    return 0 if met else 1


def press(out: Path, *flags: str) -> dict[str, Any]:
    """Run the demo's line and give its report."""
    done = onnxpress(
        "compress", MODEL, out, "--tolerance", TOLERANCE,
        "--data", "examples/digits_train.npz", "--json", *flags,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"exit code {done.returncode}: {done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def onnxpress(*words: object) -> subprocess.CompletedProcess[str]:
    """Run the command line from the root of the checkout."""
    command = [sys.executable, "-m", "onnxpress", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def shrunk(sizes: dict[str, int], before: str, after: str) -> str:
    """Say how much smaller a file is."""
    old, new = sizes[before], sizes[after]
    return f"{old:,} -> {new:,} bytes ({new / old:.0%})"


def moved(report: dict[str, Any]) -> str:
    """Say how far the outputs moved, and on how many images."""
    upper = report["distance"]["interval"]["relative"][1]
    return f"{report['words']}; at most {upper:.2%} ({report['distance']['samples']} images)"


if __name__ == "__main__":
    sys.exit(main())
