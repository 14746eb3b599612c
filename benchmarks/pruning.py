"""The claim: at equal sparsity our distance is far below onnxsim's, and a tolerance alone will do.

Over the zoo's models with fewer than 20 % original zeros, on its evaluation inputs: the geometric
mean of our distance over that of onnxsim's best method is at most 1/6 at 70 % sparsity of all
prunable weights and 1/8 at 90 %, and 1/3 at 90 % over brain surgery in every layer with shares from
dynamic programming and nothing after (the fair peer). Every model gets there, none worse than by
onnxsim. At 80 % six of ten classifiers stay within one point of accuracy and all within three. A
tolerance of 1 % alone is enough for every model, is kept on evaluation inputs, leaves
mnist_fc_256x4 at most 15 % of its weights, and takes no longer than LIMITS allow, each of those
within 3 GB.

    python benchmarks/pruning.py [--models a,b] [--tasks 70,90,80,tolerance] [--sides ours,rivals]
        [--cache out/pruning] [--again | --no-runs] [--rival-python PATH] [--out pruning.md]

Each measurement is a process of its own and a file in the cache; what is there already is not
measured again, and the table is made of all that is there. What was measured for the table that is
in the repository is beside it (pruning.json), and counts as there, so that a cell can be measured
again without the others; with --out everything known is written beside the table. Rivals get as
many calibration inputs as we do (`pip install 'onnxpress[peers]'`, in an environment of its own if
need be, which --rival-python names); without it, what the zoo's authors recorded stands in, marked
so. Exits 1 where the claim is not met or not all of it was measured. Needs ../shared/zoo.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pruning_cells import Cache, Cell, measured
from pruning_tables import (
    MOST_OF_PEER,
    TASKS,
    Measurements,
    accuracy,
    at_sparsity,
    by_tolerance,
    verdicts,
)
from rivals import BLIND, FIRST, NAMES
from tables import ROOT, ZOO, load_zoo, publish
from zoo_measures import CLASSIFIERS

SIDES = ("ours", "peer", "rivals")
RECORDS = Path(__file__).with_name("pruning.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description="Prune the zoo, rivals beside, and measure.")
    parser.add_argument("--models", type=listed, help="names, separated by commas")
    parser.add_argument("--tasks", type=listed, default=TASKS, help=f"among {','.join(TASKS)}")
    parser.add_argument("--sides", type=listed, default=SIDES, help=f"among {','.join(SIDES)}")
    parser.add_argument("--cache", type=Path, default=ROOT / "out" / "pruning", help="a folder")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--no-runs", action="store_true", help="measure nothing, print the tables")
    parser.add_argument("--rival-python", metavar="PATH", help="an interpreter that has onnxsim")
    parser.add_argument("--out", type=Path, help="write the tables here as well")
    options = parser.parse_args(arguments)
    zoo = load_zoo()
    if zoo is None:
        return 0
    names = [entry.name for entry in zoo.entries()]
    for given, known in ((options.models or (), names), (options.tasks, TASKS)):
        if odd := set(given) - set(known):
            parser.error(f"there is no {', '.join(sorted(odd))}; there are {', '.join(known)}")
    if odd := set(options.sides) - set(SIDES):
        parser.error(f"there is no {', '.join(sorted(odd))}; there are {', '.join(SIDES)}")
    cache = Cache(options.cache, RECORDS)
    recorded = json.loads((ZOO / "peers_onnxsim.json").read_text(encoding="utf-8"))
    if not options.no_runs:
        dense = [Cell(name, "dense", "as-it-is") for name in options.models or names]
        run(cache, dense, options.rival_python, again=False)
        chosen = list(cells(cache, names, options.models, options.tasks, options.sides))
        own = [cell for cell in chosen if not cell.is_rival]
        plain = [cell for cell in chosen if cell.is_rival and not cell.is_simplified]
        if options.rival_python is not None:
            run(cache, plain, options.rival_python, again=options.again)
            found = Measurements.of(cache, names, recorded)
            missed = [cell for cell in chosen if cell.is_simplified and not reached(found, cell)]
            run(cache, missed, options.rival_python, again=options.again)
        run(cache, own, options.rival_python, again=options.again)
    found = Measurements.of(cache, names, recorded)
    sections = [at_sparsity(found, "70"), at_sparsity(found, "90"), accuracy(found)]
    sections.append(by_tolerance(found, with_weights(cache, names)))
    claims = [claim for section in sections for claim in section.claims]
    met = sum(claim.met is True for claim in claims)
    pieces = [
        "# Pruning the zoo, beside onnxsim and beside brain surgery alone",
        f"Written by benchmarks/pruning.py: {met} of {len(claims)} claims met.",
        found.provenance(),
        verdicts(claims),
        *(section.text for section in sections),
    ]
    publish("\n\n".join(pieces), options.out)
    if options.out is not None:
        cache.write_records(options.out.with_suffix(".json"))
    return 0 if met == len(claims) else 1


def listed(text: str) -> tuple[str, ...]:
    """Split at commas."""
    return tuple(filter(None, text.split(",")))


def cells(
    cache: Cache,
    names: Sequence[str],
    models: Sequence[str] | None,
    tasks: Sequence[str],
    sides: Sequence[str],
) -> Iterator[Cell]:
    """Name what there is to measure: the quick ones of a task first.

    Args:
        cache: knows which models there is something to prune in.
        names: all models, in order.
        models: the chosen ones; None for those a task asks for.
        tasks: the chosen ones.
        sides: the chosen ones.
    """
    eligible = Measurements.of(cache, names, []).models
    for task in tasks:
        if task == "tolerance":
            pressed = [n for n in with_weights(cache, names) if models is None or n in models]
            yield from (Cell(name, "ours", task) for name in pressed if "ours" in sides)
            continue
        chosen = [name for name in eligible if models is None or name in models]
        if task == "80":
            chosen = [name for name in chosen if name in CLASSIFIERS]
        if "rivals" in sides:
            yield from (Cell(name, side, task) for side in NAMES for name in chosen)
        if task in MOST_OF_PEER and "peer" in sides:
            yield from (Cell(name, "peer", task) for name in chosen)
        if "ours" in sides:
            yield from (Cell(name, "ours", task) for name in chosen)


def with_weights(cache: Cache, names: Sequence[str]) -> tuple[str, ...]:
    """Name the models that have prunable weights, those with many zeros already too."""
    dense = {name: cache.get(Cell(name, "dense", "as-it-is")) or {} for name in names}
    return tuple(name for name, cell in dense.items() if cell.get("elements"))


def run(cache: Cache, wanted: Sequence[Cell], rival_python: str | None, *, again: bool) -> None:
    """Measure cells that are not in the cache, or all of them again."""
    missing = [cell for cell in wanted if again or cache.get(cell) is None]
    for place, cell in enumerate(missing, start=1):
        found = measured(cell, rival_python, inputs(cache, cell))
        cache.put(cell, found)
        shown = {name: found.get(name) for name in ("sparsity", "distance", "seconds", "error")}
        told = " ".join(f"{name} {value}" for name, value in shown.items() if value is not None)
        label = f"{cell.model} {cell.side} {cell.task}"
        print(f"{place}/{len(missing)} {label}: {told}", file=sys.stderr, flush=True)


def reached(found: Measurements, cell: Cell) -> bool:
    """Say whether the rival gets to a cell's sparsity without simplifying the model first.

    Where it does, simplifying changed nothing in what the zoo's authors recorded.
    """
    return found.best(cell.model, cell.task, simplified=False) is not None


def inputs(cache: Cache, cell: Cell) -> int:
    """Say how many calibration inputs a cell gets: as many as we do, or what there was time for.

    A rival's method takes as long at one sparsity as at another, so one that was cut to fewer
    inputs before, or to none, needs no second proof of it.
    """
    dense = cache.get(Cell(cell.model, "dense", "as-it-is")) or {}
    ours = int(dense.get("inputs", 0))
    base = cell.side.removeprefix(FIRST)
    if base in BLIND:
        return ours
    others = [Cell(cell.model, side, task) for side in {cell.side, base} for task in TASKS]
    known = [cache.get(other) or {} for other in others if other != cell]
    return min([ours, *(int(found.get("inputs", ours)) for found in known)])


if __name__ == "__main__":
    sys.exit(main())
