"""The claim: the recipe smallest leaves 15 % of a file at a tolerance of 1 %.

Over the zoo's models with prunable weights, the geometric mean of the written file's size over the
original's is at most 15 %, and every one of them is within the tolerance on evaluation inputs.

    python benchmarks/smallest.py [--models a,b] [--freeze] [--cache out/smallest]
        [--again | --no-runs] [--out benchmarks/smallest.md]

`compress --recipe smallest --tolerance 1% --data …` runs in a process of its own, and the zoo's
functions measure the file it wrote. What was found is kept in the cache, a file per model, and is
not measured again, so that the work can be interrupted and continued. With --freeze the command is
given that flag too (for files that list weights among their inputs), in cells of their own. A model
of which nothing is written counts with its whole size. Exits 1 where the claim is not met. Needs
../shared/zoo.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from math import exp, log
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from types import ModuleType
from typing import Any

import onnx

from onnxpress_adapters.read import read_model
from pruning_cells import SOURCES, Cache, Cell
from tables import ROOT, chosen_models, load_zoo, publish, table, where
from zoo_measures import save_calibration, worth, zeros_and_elements

TOLERANCE = "1%"
MOST_DISTANCE = 0.01
MOST_SHARE = 0.15
AMBITION = 0.10
PATIENCE = 3600
HEAD = (
    "model", "bytes", "share", "zeros", "d reported", "upper bound", "d on evaluation inputs",
    "verdict", "judged", "stored as", "seconds",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Press what is missing and print the table."""
    parser = argparse.ArgumentParser(description="Press zoo models as small as they get.")
    parser.add_argument("--models", help="names, separated by commas; all by default")
    parser.add_argument("--freeze", action="store_true", help="give the command --freeze as well")
    parser.add_argument("--cache", type=Path, default=ROOT / "out" / "smallest", help="a folder")
    parser.add_argument("--again", action="store_true", help="press anew what is there already")
    parser.add_argument("--no-runs", action="store_true", help="press nothing, print the table")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    zoo = load_zoo()
    if zoo is None:
        return 0
    chosen = chosen_models(parser, zoo, options.models)
    cache, side = Cache(options.cache), "frozen" if options.freeze else "smallest"
    rows = {}
    for name in chosen:
        cell = Cell(name, side, "tolerance")
        found = cache.get(cell)
        if not options.no_runs and (found is None or options.again):
            found = measured(zoo, name, freeze=options.freeze)
            cache.put(cell, found)
            print(name, " ".join(cells(found)), file=sys.stderr, flush=True)
        if found is not None and found.get("elements"):
            rows[name] = found
    if not rows:
        print("nothing was measured yet")
        return 1
    share = exp(sum(log(row["share"]) for row in rows.values()) / len(rows))
    kept = sum(row["distance"] is None or row["distance"] <= MOST_DISTANCE for row in rows.values())
    met = share <= MOST_SHARE and kept == len(rows)
    flag = " --freeze" if options.freeze else ""
    pieces = [
        f"# The smallest files at {TOLERANCE}",
        f"Claim: over the zoo, `compress --recipe smallest --tolerance {TOLERANCE}{flag}` leaves a "
        f"geometric mean of at most {MOST_SHARE:.0%} of a file (ambition: {AMBITION:.0%}), and "
        f"each is within the tolerance on evaluation inputs. Written by benchmarks/smallest.py: "
        f"{share:.1%} over {len(rows)} models, {kept} within: {'met' if met else 'not met'}.",
        where("torch", "onnxruntime"),
        table(HEAD, [(name, *cells(row)) for name, row in rows.items()]),
        *(f"{name}: {row['complaint']}" for name, row in rows.items() if row["complaint"]),
    ]
    publish("\n\n".join(pieces), options.out)
    return 0 if met else 1


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Lay out a row of the table."""
    before, after = row["size_bytes"]
    if after is None:
        return (f"{before:,}", *["-"] * 6, row["verdict"], "-", "-", f"{row['seconds']:.0f}")
    return (
        f"{before:,} -> {after:,}",
        f"{row['share']:.1%}",
        f"{row['sparsity']:.1%}",
        *(f"{value:.3%}" for value in row["reported"]),
        f"{row['distance']:.3%}",
        row["verdict"],
        str(row["judged"]),
        row["stored"],
        f"{row['seconds']:.0f}",
    )


def measured(zoo: ModuleType, name: str, *, freeze: bool) -> Mapping[str, Any]:
    """Press one model and look at what was written."""
    entry = zoo.entry(name)
    original = read_model(entry.path)
    before = entry.path.stat().st_size
    found: dict[str, Any] = {
        "elements": zeros_and_elements(original)[1],
        "size_bytes": (before, None),
        "share": 1.0,
        "distance": None,
        "verdict": "-",
        "complaint": "",
        "seconds": 0.0,
    }
    if not found["elements"]:
        return found
    with TemporaryDirectory() as folder:
        data, out = Path(folder) / "data.npz", Path(folder) / "out.onnx"
        save_calibration(entry, data)
        words = [
            *(sys.executable, "-m", "onnxpress", "compress", str(entry.path), str(out)),
            *("--recipe", "smallest", "--tolerance", TOLERANCE, "--data", str(data)),
            *(["--freeze"] if freeze else []),
            *("--json", "--quiet"),
        ]
        folders = os.pathsep.join(str(ROOT / source) for source in SOURCES)
        start = monotonic()
        try:
            done = subprocess.run(
                words,
                env={**os.environ, "PYTHONPATH": folders},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {**found, "seconds": float(PATIENCE), "complaint": "was stopped"}
        found["seconds"] = monotonic() - start
        if not done.stdout.strip():
            return {**found, "complaint": done.stderr.strip()}
        report = json.loads(done.stdout)
        found["verdict"] = report["verdict"]
        if not out.exists():
            return {**found, "complaint": report["reason"]}
        after = out.stat().st_size
        seen = worth(entry, original, read_model(out), out)
        onnx.checker.check_model(str(out))
        return {
            **found,
            "size_bytes": (before, after),
            "share": after / before,
            "sparsity": seen["sparsity"],
            "distance": seen["distance"],
            "reported": (
                report["distance"]["relative"],
                report["distance"]["interval"]["relative"][1],
            ),
            "judged": report["judged"],
            "stored": stored(report["notes"]),
        }


def stored(notes: Sequence[str]) -> str:
    """Shorten what the report says of how values are stored."""
    told = [note for note in notes if note.startswith("the values of ")]
    return (
        told[0].removeprefix("the values of ").replace(" are rounded to", ":") if told else "fp32"
    )


if __name__ == "__main__":
    sys.exit(main())
