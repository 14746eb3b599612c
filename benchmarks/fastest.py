"""The claim: within 1 % models run faster, none slower, and nearer than onnxsim's at a latency.

`compress --recipe fastest --tolerance 1%` over the zoo: the geometric mean speed-up is at least 1.3
and at least six models run at least 1.8 times as fast; each is within the tolerance on evaluation
inputs; where nothing is faster the file has all of the original's weights. Where onnxsim's
structured pruning (half of the channels, by weights and by Wanda) gives a valid and faster file, a
file of ours that is as fast or faster is nearer to the original.

    python benchmarks/fastest.py [--models a,b] [--cache out/fastest] [--again | --no-runs]
        [--rival-python PATH] [--rounds 60] [--out benchmarks/fastest.md]

Files are pressed once and kept in the cache; their times are measured anew whenever the table is
made, for all files of a model in turns, on an input of the zoo at batch 1 and one thread. What the
table in the repository was made of is beside it (fastest.json), and counts for models whose files
are not in the cache, so that one can be measured again on another machine. Exits 1 where the claim
is not met or not all of it was measured. Needs ../shared/zoo.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import exp, log
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import onnx

from onnxpress_adapters.read import read_model
from onnxpress_exporters.densify import densify
from pruning_cells import Cache, Cell, revision, rival_in
from pruning_ours import run_command
from rivals import SMALLER
from tables import ROOT, chosen_models, load_zoo, publish, table, where
from timing import interleaved
from zoo_measures import calibration_count, save_calibration, worth, zeros_and_elements

RECORDS = Path(__file__).with_suffix(".json")

TOLERANCE = 0.01
LEAST_MEAN, LEAST_FAST, FAST = 1.3, 6, 1.8
SLOWER = 1.03
"""Share of the original's time above which a file counts as slower: what two equal files differ."""

RIVAL_SHARE = 0.5
MOST_TOLERANCE = 0.5
BESIDE = {"beside": 1.0, "beside_bolder": 3.0**0.5, "beside_boldest": 3.0}
"""Files that stand beside the rival's: times the least tolerance that each gets."""

ROUNDING = 1e-6
"""A distance that is no more than this is none: kernels of other sizes add up in another order."""

ROUGH_ROUNDS = 20
NEARER = 0.9
"""Share of a rival's distance that ours gets as its tolerance."""

HEAD = (
    "model", "ms", "ms pressed", "speed-up", "bytes", "d on evaluation inputs", "reported", "way",
    "seconds",
)  # fmt: skip
RIVAL_HEAD = (
    "model", "onnxsim's time", "its d", "our time", "our d", "our tolerance", "nearer and as fast",
)  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """One model: what was pressed and how long each file takes.

    Attributes:
        name: of the model.
        cells: found for each side: ours at 1 %, those of ours beside the rival's, the rival's.
        seconds: per run of the original and of each side's file, where there is one.
    """

    name: str
    cells: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]

    def share(self, side: str) -> float:
        """Give the time of a side's file as a share of the original's."""
        return self.seconds[side] / self.seconds["original"]

    @property
    def speed_up(self) -> float:
        """How many times as fast our file is; 1 where it computes the same, or there is none."""
        same = self.cells["fastest"].get("kept") or "fastest" not in self.seconds
        return 1.0 if same else 1 / self.share("fastest")


def main(arguments: Sequence[str] | None = None) -> int:
    """Press what is missing, time all and print the tables."""
    parser = argparse.ArgumentParser(description="Press zoo models as fast as they get.")
    parser.add_argument("--models", help="names, separated by commas; all by default")
    parser.add_argument("--cache", type=Path, default=ROOT / "out" / "fastest", help="a folder")
    parser.add_argument("--again", action="store_true", help="press anew what is there already")
    parser.add_argument("--no-runs", action="store_true", help="press nothing, print the tables")
    parser.add_argument("--rival-python", metavar="PATH", help="an interpreter that has onnxsim")
    parser.add_argument("--rounds", type=int, default=60, help="timed runs of each file")
    parser.add_argument("--out", type=Path, help="write the tables here as well")
    options = parser.parse_args(arguments)
    zoo = load_zoo()
    if zoo is None:
        return 0
    chosen = chosen_models(parser, zoo, options.models)
    shop = Shop(zoo, Cache(options.cache), options.rival_python, again=options.again)
    chosen = tuple(n for n in chosen if zeros_and_elements(read_model(zoo.entry(n).path))[1])
    if not options.no_runs:
        for name in chosen:
            shop.press(name)
        for name in chosen if options.rival_python else ():
            shop.rival(name)
    known = recorded()
    rows = [
        row
        for name in chosen
        if (row := shop.timed(name, options.rounds) or known.get(name)) is not None
    ]
    if not rows:
        print("nothing was measured yet")
        return 1
    text, met = tables(rows)
    pieces = [
        f"# The fastest files at {TOLERANCE:.0%}",
        f"Written by benchmarks/fastest.py: {'met' if met else 'not met'}.",
        where("torch", "onnxruntime"),
        provenance(rows),
        text,
    ]
    publish("\n\n".join(pieces), options.out)
    if options.out is not None:
        write_records({**known, **{row.name: row for row in rows}}, options.out)
    return 0 if met else 1


def recorded() -> dict[str, Timed]:
    """Read the rows of the table in the repository."""
    if not RECORDS.exists():
        return {}
    found = json.loads(RECORDS.read_text(encoding="utf-8"))
    return {name: Timed(name, row["cells"], row["seconds"]) for name, row in found.items()}


def write_records(rows: Mapping[str, Timed], out: Path) -> None:
    """Keep rows beside the table they are of, a line a model."""
    lines = [
        f"{json.dumps(name)}: {json.dumps({'cells': row.cells, 'seconds': row.seconds})}"
        for name, row in sorted(rows.items())
    ]
    out.with_suffix(".json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def provenance(rows: Sequence[Timed]) -> str:
    """Say at which revision each model was pressed."""
    found: dict[str, list[str]] = {}
    for row in rows:
        cell = row.cells["fastest"]
        found.setdefault(f"{cell['revision']} on {cell['date']}", []).append(row.name)
    most = max(found, key=lambda label: len(found[label]))
    told = [
        f"{label}: {'the others' if label == most and len(found) > 1 else ', '.join(names)}"
        for label, names in sorted(found.items(), key=lambda item: len(item[1]))
    ]
    return f"Pressed and timed at {'; '.join(told)}."


@dataclass(frozen=True)
class Shop:
    """Where files are pressed and kept."""

    zoo: ModuleType
    cache: Cache
    rival_python: str | None
    again: bool

    def file(self, cell: Cell) -> Path:
        """Name the ONNX file of a cell."""
        return self.cache.file(cell).with_suffix(".onnx")

    def found(self, name: str, side: str) -> Mapping[str, Any] | None:
        """Give what is known of a model's side."""
        return self.cache.get(Cell(name, side, "latency"))

    def keep(self, cell: Cell, found: Mapping[str, Any]) -> None:
        """Keep what was found, and say so."""
        today = datetime.now(UTC).date().isoformat()
        self.cache.put(cell, {**found, "date": today, "revision": revision()})
        shown = {key: found.get(key) for key in ("distance", "seconds", "way", "error")}
        print(cell.model, cell.side, shown, file=sys.stderr, flush=True)

    def press(self, name: str) -> None:
        """Press a model at the tolerance, unless that was done."""
        cell = Cell(name, "fastest", "latency")
        if self.again or self.cache.get(cell) is None:
            self.keep(cell, self.pressed(cell, TOLERANCE, ()))

    def rival(self, name: str) -> None:
        """Let the rival prune a model, and press more of ours while none is better."""
        entry = self.zoo.entry(name)
        for method in SMALLER:
            cell = Cell(name, method, "latency")
            if self.again or self.cache.get(cell) is None:
                self.cache.folder.mkdir(parents=True, exist_ok=True)
                words = (name, method, str(RIVAL_SHARE), str(min(256, calibration_count(entry))))
                self.keep(cell, rival_in(str(self.rival_python), (*words, str(self.file(cell)))))
        near = [found["distance"] for found in self.moved(name)]
        if self.again:
            for side in BESIDE:
                self.cache.file(Cell(name, side, "latency")).unlink(missing_ok=True)
        # The tolerance is a bound with a margin, and what is compared is the distance itself: so
        # one that means something first, then the rival's distance, then more than that. All
        # stay: of two files of the rival's one may be held against the faster, one the nearer.
        least = min(MOST_TOLERANCE, max(NEARER * min(near, default=0.0), ROUNDING))
        for side, times in BESIDE.items() if near else ():
            row = self.timed(name, ROUGH_ROUNDS)
            behind = row is None or any(line[-1] != "yes" for line in rivals(row, slower=1.0))
            cell = Cell(name, side, "latency")
            if behind and self.cache.get(cell) is None:
                # The rival holds nothing out, and what is compared here is no promise.
                more = ("--effort", "quick", "--sources", "none")
                self.keep(cell, self.pressed(cell, times * least, more))

    def moved(self, name: str) -> list[Mapping[str, Any]]:
        """Give what the rival's valid files that changed something are worth."""
        cells = [self.found(name, method) for method in SMALLER]
        return [cell for cell in cells if cell is not None and cell.get("distance", 0.0) > 0]

    def pressed(self, cell: Cell, tolerance: float, more: Sequence[str]) -> Mapping[str, Any]:
        """Press a model to a tolerance and look at what was written."""
        entry, out = self.zoo.entry(cell.model), self.file(cell)
        self.cache.folder.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        with TemporaryDirectory() as folder:
            data = Path(folder) / "data.npz"
            save_calibration(entry, data)
            promise = ("--recipe", "fastest", "--tolerance", f"{100 * tolerance:.6g}%")
            words = ["compress", entry.path, out, *promise, "--data", data, *more, "--json", "-q"]
            run = run_command(words, Path(folder))
        report = run.report or {}
        found = {"exit": run.exit, "seconds": run.seconds, "tolerance": tolerance}
        if not out.exists():
            said = run.stderr.strip() or str(report.get("reason"))
            return {**found, "error": said.splitlines()[-1]}
        onnx.checker.check_model(str(out))
        notes = report["notes"]
        return {
            **found,
            **worth(entry, onnx.load(entry.path), densify(onnx.load(out)), out),
            "kept": any("has the original's weights" in note for note in notes)
            and not any("--no-freeze" in note for note in notes),
            "size_bytes": [entry.path.stat().st_size, out.stat().st_size],
            "reported": report["distance"]["relative"],
            "way": next((note for note in notes if note.startswith(("tried ", "no units"))), "-"),
        }

    def timed(self, name: str, rounds: int) -> Timed | None:
        """Time all files of a model in turns; None where it was not pressed here."""
        cells = {
            side: found
            for side in ("fastest", *BESIDE, *SMALLER)
            if (found := self.found(name, side)) is not None
        }
        if "fastest" not in cells:
            return None
        entry = self.zoo.entry(name)
        runs = {"original": self.zoo.make_run(entry.path)}
        for side, found in cells.items():
            file = self.file(Cell(name, side, "latency"))
            if "distance" in found and file.exists():
                runs[side] = self.zoo.make_run(file)
        feed = entry.inputs(1, "evaluation")[0]
        times = interleaved(list(runs.values()), feed, rounds)
        return Timed(name, cells, dict(zip(runs, times, strict=True)))


def tables(rows: Sequence[Timed]) -> tuple[str, bool]:
    """Lay out what was found, and say whether all is as claimed."""
    speeds = [row.speed_up for row in rows]
    mean = exp(sum(map(log, speeds)) / len(speeds))
    fast = sum(speed >= FAST for speed in speeds)
    ours = {row.name: row.cells["fastest"] for row in rows}
    far = [name for name, cell in ours.items() if cell.get("distance", 1.0) > TOLERANCE]
    slow = [row.name for row in rows if row.speed_up < 1 / SLOWER]
    beside = [line for row in rows for line in rivals(row)]
    worse = sorted({line[0] for line in beside if line[-1] != "yes"})
    claims = [
        (f"geometric mean of the speed-ups at least {LEAST_MEAN}", f"{mean:.2f}",
         mean >= LEAST_MEAN),
        (f"at least {LEAST_FAST} models at least {FAST} times as fast", str(fast),
         fast >= LEAST_FAST),
        ("within the tolerance on evaluation inputs", told(rows, far), not far),
        ("no model slower", told(rows, slow), not slow),
        ("nearer than onnxsim's structured pruning at equal latency",
         f"all {len(beside)} files" if not worse else f"not {', '.join(worse)}",
         bool(beside) and not worse),
    ]  # fmt: skip
    lines = [(asked, found, "yes" if met else "no") for asked, found, met in claims]
    text = [
        f"{len(rows)} models.",
        table(("asked", "measured", "met"), lines),
        table(HEAD, [ours_cells(row) for row in rows]),
        "Times are medians of the processor's time at batch 1 on one thread, each file's held "
        "against the original's of the same turn. A file that has all of the original's weights "
        "counts as equally fast.",
        f"## Beside onnxsim with {RIVAL_SHARE:.0%} of the channels gone",
        table(RIVAL_HEAD, beside),
        f"Times are shares of the original's; distances below {ROUNDING:g} are rounding. A model "
        "is not listed where onnxsim wrote no valid file, or one that answers exactly as before.",
        "Evaluation inputs come from other sources than those to press with. Where these go round "
        "few (crops of six photographs, two lines of text moved sideways), the judge also sees one "
        "that nothing was pressed with. Pieces of few recordings, shuffled (silero_vad_16k_op15), "
        "look like as many sources: there the judge has the same recordings.",
    ]
    return "\n\n".join(text), all(met for *_, met in claims)


def told(rows: Sequence[Timed], odd: Sequence[str]) -> str:
    """Say which models are exceptions."""
    return f"all {len(rows)}" if not odd else f"not {', '.join(odd)}"


def ours_cells(row: Timed) -> tuple[str, ...]:
    """Lay out a model at the tolerance."""
    found, before = row.cells["fastest"], f"{1e3 * row.seconds['original']:.3g}"
    if "distance" not in found:
        return (row.name, before, *["-"] * 5, found["error"], f"{found['seconds']:.0f}")
    sizes = [f"{size:,}" for size in found["size_bytes"]]
    return (
        row.name,
        before,
        f"{1e3 * row.seconds['fastest']:.3g}",
        "kept" if found["kept"] else f"{row.speed_up:.2f}",
        " -> ".join(sizes),
        f"{found['distance']:.3%}",
        f"{found['reported']:.3%}",
        str(found["way"]).removeprefix("tried "),
        f"{found['seconds']:.0f}",
    )


def rivals(row: Timed, slower: float = SLOWER) -> list[tuple[str, ...]]:
    """Lay out each of the rival's files beside ours, which may take so many times as long."""
    lines: list[tuple[str, ...]] = []
    for method in SMALLER:
        theirs = row.cells.get(method, {})
        if method not in row.seconds or theirs["distance"] == 0:
            continue
        ours = [
            (row.share(side), cell["distance"], cell["tolerance"])
            for side, cell in row.cells.items()
            if side in ("fastest", *BESIDE) and side in row.seconds
        ]
        if row.share(method) * slower >= 1:  # the original is as fast, at no distance at all
            ours.append((1.0, 0.0, 0.0))
        nearer = [one for one in ours if one[1] < max(theirs["distance"], ROUNDING)]
        best = min(nearer or ours, default=None)
        if best is None:
            cells = ("-", "-", "-", "no")
        else:
            met = bool(nearer) and best[0] <= row.share(method) * slower
            time = f"{best[0]:.2f}"
            cells = (time, f"{best[1]:.3g}", f"{best[2]:.1%}", "yes" if met else "no")
        label = f"{row.name}, {method.replace('_', ' ')}"
        lines.append((label, f"{row.share(method):.2f}", f"{theirs['distance']:.3g}", *cells))
    return lines


if __name__ == "__main__":
    sys.exit(main())
