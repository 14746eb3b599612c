"""The claim: files judged by other sources than they were pressed with hold on other inputs.

For every zoo model whose calibration samples go round few sources (crops of six photographs, two
lines of text moved sideways), `compress --tolerance 1%` and `--recipe fastest`, with samples shared
out at random (`--sources none`) and with sources kept apart (`--sources auto`). Evaluation inputs
come from other sources than all of these. The claim is that the recipe `fastest`, which keeps them
apart by itself, is within the tolerance there. What zeros alone come to stands beside it, without
a claim.

    python benchmarks/sources.py [--models a,b] [--cache out/sources] [--again | --no-runs]
        [--out benchmarks/sources.md]

Needs ../shared/zoo. What the table in the repository was made of is beside it (sources.json).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from onnxpress.sources import round_of
from onnxpress_exporters.densify import densify
from pruning_cells import Cache, Cell, revision
from pruning_ours import run_command
from tables import ROOT, chosen_models, load_zoo, publish, table, where
from zoo_measures import calibration_count, save_calibration, worth

RECORDS = Path(__file__).with_suffix(".json")
TOLERANCE = 0.01
TASKS: Mapping[str, tuple[str, ...]] = {"tolerance": (), "fastest": ("--recipe", "fastest")}
SIDES = {"random": "none", "apart": "auto"}
HEAD = (
    "model", "sources", "asked", "at random: gone", "judge", "evaluation", "kept apart: gone",
    "judge", "evaluation", "pressed at",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Press what is missing and print the table."""
    parser = argparse.ArgumentParser(description="Press zoo models with sources kept apart or not.")
    parser.add_argument("--models", help="names, separated by commas; all by default")
    parser.add_argument("--cache", type=Path, default=ROOT / "out" / "sources", help="a folder")
    parser.add_argument("--again", action="store_true", help="press anew what is there already")
    parser.add_argument("--no-runs", action="store_true", help="press nothing, print the table")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    zoo = load_zoo()
    if zoo is None:
        return 0
    cache = Cache(options.cache, RECORDS)
    rows: list[tuple[str, ...]] = []
    far: list[str] = []
    for name in chosen_models(parser, zoo, options.models):
        entry = zoo.entry(name)
        sources = sources_in(entry)
        for task in TASKS if sources else ():
            cells = {side: Cell(name, side, task) for side in SIDES}
            for side, cell in cells.items():
                if not options.no_runs and (options.again or cache.get(cell) is None):
                    cache.put(cell, pressed(entry, side, task))
            found = {side: cache.get(cell) for side, cell in cells.items()}
            rows.append((name, str(sources), task, *laid_out(found)))
            apart = found["apart"] or {}
            if task == "fastest" and not apart.get("distance", 1.0) <= TOLERANCE:
                far.append(name)
    if not rows:
        print("nothing was measured yet")
        return 1
    pieces = [
        "# Sources kept apart",
        f"Written by benchmarks/sources.py: {'met' if not far else 'not met'}.",
        where("torch", "onnxruntime"),
        "Within the tolerance on evaluation inputs, by the recipe fastest with sources kept apart: "
        + (f"not {', '.join(far)}." if far else "all."),
        table(HEAD, rows),
        "Gone is the share of the prunable weights that are zero or have left; judge and "
        "evaluation are d on those inputs. Where nothing could go the file has the original's "
        "weights.",
    ]
    publish("\n\n".join(pieces), options.out)
    if options.out is not None:
        cache.write_records(options.out.with_suffix(".json"))
    return 1 if far else 0


def sources_in(entry: Any) -> int:
    """Say how many sources the calibration samples of a model go round; 0 for none."""
    feeds = entry.inputs(calibration_count(entry), "calibration")
    found = round_of({name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]})
    return 0 if found is None else found.count


def pressed(entry: Any, side: str, task: str) -> Mapping[str, Any]:
    """Press a model and look at what was written."""
    with TemporaryDirectory() as folder:
        data, out = Path(folder) / "data.npz", Path(folder) / "out.onnx"
        save_calibration(entry, data)
        promise = (*TASKS[task], "--tolerance", f"{TOLERANCE:.0%}", "--sources", SIDES[side])
        words = ["compress", entry.path, out, *promise, "--data", data, "--json", "-q"]
        run = run_command(words, Path(folder))
        today = datetime.now(UTC).date().isoformat()
        found = {"exit": run.exit, "seconds": run.seconds, "date": today, "revision": revision()}
        print(entry.name, side, task, f"{run.seconds:.0f} s", file=sys.stderr, flush=True)
        if not out.exists():
            return found
        reported = (run.report or {})["distance"]["relative"]
        moved = worth(entry, onnx.load(entry.path), densify(onnx.load(out)), out)
        return {**found, "reported": reported, **moved}


def laid_out(found: Mapping[str, Mapping[str, Any] | None]) -> tuple[str, ...]:
    """Lay out both sides."""
    cells: list[str] = []
    for side in SIDES:
        cell = found[side]
        if cell is None:
            cells += ["not measured", "", ""]
        elif "distance" not in cell:
            cells += ["nothing written", "", ""]
        else:
            gone = f"{cell['sparsity']:.1%}" if "sparsity" in cell else "-"
            cells += [gone, f"{cell['reported']:.3%}", f"{cell['distance']:.3%}"]
    return (*cells, ", ".join(sorted({cell["revision"] for cell in found.values() if cell})))


if __name__ == "__main__":
    sys.exit(main())
