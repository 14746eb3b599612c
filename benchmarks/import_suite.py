"""The claim: onnx's own backend test-suite passes, all but a few cases that are named.

Of the 1,378 node cases of ai.onnx at least 1,370 pass, and 1,200 where nothing may run in onnx's
reference implementation; 21 of the 23 simple models, and every one of the 35 + 82 models that torch
exported and of the 9 real ones; of what onnxruntime passes at most 4 cases are missed.

    python benchmarks/import_suite.py [--importers a,b] [--python NAME=PATH] [--out import_suite.md]

Other importers stand beside it for comparison: `pip install 'onnxpress[peers]'`, in an environment
of its own if need be, which --python names. One that is missing is shown as such. The runner, its
tolerances and its way to call each of them are those of ../shared/backend_suite.py, a process per
importer. Exits 1 where the claim is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tables import ROOT, publish, table, where

RUNNER = ROOT.parent / "shared" / "backend_suite.py"
SOURCES = ("pipeline", "exporters", "adapters")
RIGHT = frozenset({"pass", "dtype"})
GROUPS = (
    "ai.onnx", "expanded", "ai.onnx.ml", "simple", "pytorch-operator", "pytorch-converted", "real",
)  # fmt: skip
MOST_MISSED = 4
PROBE = """
import sys
from importlib import import_module, metadata
module = import_module(sys.argv[1])
print(getattr(module, "__version__", None) or metadata.version(sys.argv[1]))
print(metadata.version("onnx"), metadata.version("torch"))
"""

Case = Mapping[str, Any]


@dataclass(frozen=True)
class Importer:
    """Whoever runs ONNX models.

    Attributes:
        name: what the table calls it.
        module: what Python imports, and whose version counts.
        spec: what the runner calls it.
        least: how many cases of a group must pass.
    """

    name: str
    module: str
    spec: str
    least: Mapping[str, int] = field(default_factory=dict)


OURS = Importer(
    "onnxpress",
    "onnxpress",
    "onnxpress_adapters.testing:importer",
    {"ai.onnx": 1370, "simple": 21, "pytorch-operator": 35, "pytorch-converted": 82, "real": 9},
)
ALONE = Importer(
    "onnxpress without the reference",
    "onnxpress",
    "onnxpress_adapters.testing:importer_without_reference",
    {"ai.onnx": 1200},
)
RUNTIME = Importer("onnxruntime", "onnxruntime", "ort")
RIVALS = tuple(Importer(name, name, name) for name in ("onnx2pytorch", "onnx2fx", "onnx2torch"))
IMPORTERS = (OURS, ALONE, *RIVALS, RUNTIME)


@dataclass(frozen=True)
class Found:
    """What was found for one importer.

    Attributes:
        importer: which.
        version: its own, or why there is none.
        cases: what the runner says of each case; empty where it could not run.
        remark: why it could not, or which environment of its own it ran in.
    """

    importer: Importer
    version: str
    cases: Sequence[Case] = ()
    remark: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite against every importer and print the table."""
    parser = argparse.ArgumentParser(description="Run onnx's backend test-suite, rivals beside.")
    parser.add_argument("--importers", help="names, separated by commas; all unless given")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        type=named_path,
        metavar="NAME=PATH",
        help="the Python of an importer that has an environment of its own",
    )
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    if not RUNNER.exists():
        print("skipped: the runner (../shared/backend_suite.py) is not beside this checkout")
        return 0
    pythons = dict(options.python)
    known = {importer.name for importer in IMPORTERS}
    names = set(options.importers.split(",")) if options.importers else known
    if odd := (names | set(pythons)) - known:
        parser.error(f"no importer is called {', '.join(sorted(odd))}; there are {sorted(known)}")
    results = []
    for importer in IMPORTERS:
        if importer.name in names:
            results.append(measure(importer, pythons.get(importer.name)))
            print(importer.name, results[-1].version, file=sys.stderr, flush=True)
    runtime = {key(case) for r in results if r.importer == RUNTIME for case in passed(r.cases)}
    unmet = [sentence for result in results for sentence in shortfalls(result, runtime)]
    totals = next((Counter(map(group, found.cases)) for found in results if found.cases), Counter())
    head = [f"{name} of {totals[name]:,}" for name in GROUPS]
    pieces = [
        "# onnx's own backend test-suite",
        "Claim: where onnx's reference implementation runs what has no converter, at least these "
        f"pass: {requirement(OURS)}, and all but {MOST_MISSED} of the cases onnxruntime passes; "
        f"without it, {requirement(ALONE)}. Written by benchmarks/import_suite.py: "
        f"{'not met' if unmet else 'met'}.",
        where("onnx", "onnxruntime", "torch"),
        "A case passes where every output has the right shape and is right to a relative error of "
        "1e-3; an expanded case is one whose operator is replaced by its definition. onnxruntime "
        "may run opsets that are not released. The last column counts, over the whole suite, what "
        "onnxruntime passes and the importer does not.",
        table(
            ["importer", "version", *head, f"missed of {len(runtime):,}"],
            [line(result, runtime) for result in results],
        ),
        *(f"{result.importer.name}: {result.remark}" for result in results if result.remark),
        *(failures(r, runtime) for r in results if r.importer == OURS),
        *(refusals(r) for r in results if r.importer == ALONE),
        *unmet,
    ]
    publish("\n\n".join(pieces), options.out)
    return 1 if unmet else 0


def named_path(word: str) -> tuple[str, str]:
    """Split ``NAME=PATH``."""
    name, sign, path = word.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{word!r} is not NAME=PATH")
    return name, path


def measure(importer: Importer, own: str | None) -> Found:
    """Run the suite in a process of its own, unless the importer is missing there.

    Args:
        importer: which.
        own: the Python of its own environment, if it has one.
    """
    python = own or sys.executable
    folders = [str(ROOT / source) for source in SOURCES]
    paths = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    surroundings = {**os.environ, "PYTHONPATH": paths, "ALLOW_RELEASED_ONNX_OPSET_ONLY": "0"}
    probe = subprocess.run(
        [python, "-c", PROBE, importer.module],
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        reason = (probe.stderr.strip() or f"exit code {probe.returncode}").splitlines()[-1]
        if reason == f"ModuleNotFoundError: No module named '{importer.module}'":
            return Found(importer, "not installed")
        return Found(importer, "does not load", remark=reason)
    version, onnx, torch = probe.stdout.split()
    remark = f"ran in an environment of its own, with onnx {onnx}, torch {torch}." if own else ""
    with TemporaryDirectory() as folder:
        subprocess.run(
            [python, str(RUNNER), "--importer", importer.spec, "--out", folder],
            env=surroundings,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        (written,) = Path(folder).glob("*.cases.json")
        return Found(importer, version, json.loads(written.read_text()), remark)


def key(case: Case) -> tuple[str, str]:
    """Tell a case from all others: a node and a model may have the same name."""
    return case["kind"], case["name"]


def group(case: Case) -> str:
    """Say which column counts a case; node cases of ai.onnx's previews have none."""
    if case["kind"] != "node":
        return str(case["kind"])
    return "expanded" if case["expanded"] else str(case["domain"])


def passed(cases: Sequence[Case]) -> list[Case]:
    """Give the cases that are right; numbers that are may come in another type."""
    return [case for case in cases if case["status"] in RIGHT]


def failed(cases: Sequence[Case]) -> list[Case]:
    """Give the cases that are not right."""
    return [case for case in cases if case["status"] not in RIGHT]


def missed(result: Found, runtime: set[tuple[str, str]]) -> int:
    """Count the cases that onnxruntime passes and this importer does not."""
    return sum(key(case) in runtime for case in failed(result.cases))


def line(result: Found, runtime: set[tuple[str, str]]) -> list[str]:
    """Lay out one importer as cells."""
    if not result.cases:
        return [result.importer.name, result.version, *["-"] * (len(GROUPS) + 1)]
    counts = Counter(map(group, passed(result.cases)))
    last = f"{missed(result, runtime):,}" if runtime else "-"
    return [result.importer.name, result.version, *(f"{counts[g]:,}" for g in GROUPS), last]


def requirement(importer: Importer) -> str:
    """Say what an importer must pass."""
    return ", ".join(f"{name} {least:,}" for name, least in importer.least.items())


def shortfalls(result: Found, runtime: set[tuple[str, str]]) -> list[str]:
    """Say what of the claim an importer does not meet."""
    name, counts = result.importer.name, Counter(map(group, passed(result.cases)))
    found = [
        f"Not met: {name} passes {counts[column]:,} of {column}, {least:,} are needed."
        for column, least in result.importer.least.items()
        if counts[column] < least
    ]
    if result.importer == OURS and missed(result, runtime) > MOST_MISSED:
        found.append(
            f"Not met: {name} misses {missed(result, runtime)} cases that onnxruntime passes, "
            f"{MOST_MISSED} are allowed."
        )
    if result.importer == OURS and not runtime:
        found.append(f"Not met: without onnxruntime's answers nobody knows which {name} misses.")
    return found


def failures(result: Found, runtime: set[tuple[str, str]]) -> str:
    """Name every case that is not right, with what the runner says of it."""
    rows = [
        (
            f"`{case['name']}`",
            ("passes" if key(case) in runtime else "does not") if runtime else "-",
            f"{case['status']}: {' '.join(case['message'].split())}",
        )
        for case in failed(result.cases)
    ]
    head = (f"what {result.importer.name} does not pass", "onnxruntime", "what it says")
    return table(head, rows) if rows else f"{result.importer.name} passes every case."


def refusals(result: Found) -> str:
    """Count the node cases that were refused, by operator."""
    counts = Counter(
        f"{case['op']} ({case['domain']})"
        for case in result.cases
        if case["status"] == "convert" and case["kind"] == "node" and not case["expanded"]
    )
    listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f"Without the reference, node cases of these are refused at import: {listed or 'none'}."


if __name__ == "__main__":
    sys.exit(main())
