"""What a run found, for people, for machines and for a browser."""

from __future__ import annotations

import html
import textwrap
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from onnxpress import __version__
from onnxpress.verdict import CONFIDENCE, Decision, OutputRow, Verdict, percent, words
from onnxpress.weight_bytes import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnxpress.problem import Tolerance
    from onnxpress.sizes import Sizes
    from onnxpress.weighing import LayerRow
    from onnxpress.weight_bytes import WeightBytes
    from onnxpress_adapters.distance import Distance
    from onnxpress_exporters.latency import Race

LINE = 100
MOST_ROWS = 12
"""Weights the text names; the JSON and the HTML name all."""

HEADLINES: Mapping[Verdict, str] = {
    "within": "within",
    "exceeded": "outside",
    "undecided": "undecided, perhaps outside",
    "nonfinite": "outside",
}


@dataclass(frozen=True)
class SampleCounts:
    """How many inputs each set held."""

    fit: int
    choose: int
    judge: int


@dataclass(frozen=True)
class Closest:
    """The candidate nearest to the tolerance, where none was within.

    Attributes:
        sparsity: zeros over all prunable weights, 0 to 1.
        distance: in the terms of the tolerance (a share of the variance, or absolute).
    """

    sparsity: float
    distance: float


@dataclass(frozen=True)
class CurvePoint:
    """One candidate a search tried; what it moves is in the terms of the tolerance.

    Attributes:
        sparsity: zeros over all prunable weights, 0 to 1.
        fitted: its distance on samples it was fitted to.
        distance: on samples held out from the fit, which the search chose with.
        upper: a bound on that one.
        chosen: whether it is the one the report is about.
    """

    sparsity: float
    fitted: float
    distance: float
    upper: float
    chosen: bool = False

    def json(self) -> dict[str, Any]:
        """Give the fields; what is not finite is None."""
        numbers = {name: _number(getattr(self, name)) for name in ("fitted", "distance", "upper")}
        return {"sparsity": self.sparsity, **numbers, "chosen": self.chosen}


@dataclass(frozen=True)
class Report:
    """Everything a run found and everything needed to run it again.

    Attributes:
        model: the original.
        pressed: the file that was judged or would have been written; None where there is no name.
        out: what was written; None where nothing was.
        decision: the verdict and what it rests on.
        distance: as onnxruntime measured it on the judge's samples.
        tolerance: the promise, or None.
        sparsity: zeros over all prunable weights of the pressed model.
        original_sparsity: likewise of the original.
        sizes: on disk.
        seconds: from start to end.
        seed: the only source of chance.
        device: where the steps ran; empty for a mere verification.
        providers: what onnxruntime ran both models with.
        samples: how many were seen.
        batching: how samples went through the network.
        judged: how many candidates the judge saw.
        closest: the nearest that could be reached, where nothing was within.
        unmet: what was required of the file and is not reached; empty where nothing is lacking.
        latency: how long the original and the file take, turn by turn; None where nobody asked.
        layers: a row per prunable weight.
        weight_bytes: what all of them take in every form, before and after.
        curve: every candidate that was tried, the least sparse first.
        steps: the chain that ran; empty for a mere verification.
        log: a line per event.
        notes: what a reader should know.
    """

    model: Path
    pressed: Path | None
    out: Path | None
    decision: Decision
    distance: Distance
    tolerance: Tolerance | None
    sparsity: float
    original_sparsity: float
    sizes: Sizes
    seconds: float
    seed: int
    device: str
    providers: tuple[str, ...]
    samples: SampleCounts
    batching: str = ""
    judged: int = 1
    closest: Closest | None = None
    unmet: str = ""
    latency: Race | None = None
    layers: tuple[LayerRow, ...] = ()
    weight_bytes: tuple[WeightBytes, WeightBytes] | None = None
    curve: tuple[CurvePoint, ...] = ()
    steps: str = ""
    log: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Give the verdict in one word."""
        return self.decision.verdict

    @property
    def exit_code(self) -> int:
        """What the command line exits with: 0 within the tolerance and all required, else 3."""
        return 0 if self.verdict == "within" and not self.unmet else 3

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, and those never left out: a file became larger, gzip beats packing."""
        notes = self.notes
        if self.weight_bytes is not None and (told := self.weight_bytes[1].gzip_wins):
            notes = (*notes, told)
        old, new = self.sizes.size_bytes
        if new <= old:
            return notes
        return (*notes, f"the file is larger than the original: {new:,} bytes, not {old:,}")

    @property
    def fitted(self) -> float | None:
        """The distance on samples the file was fitted to, beside the held-out one."""
        chosen = [_number(point.fitted) for point in self.curve if point.chosen]
        return chosen[0] if chosen else None

    def text(self) -> str:
        """Write the report for people, in plain text."""
        lines = [self._headline(), ""]
        facts = self._facts()
        wide = max(len(label) for label, _ in facts)
        for label, fact in facts:
            lines += textwrap.wrap(
                fact,
                LINE,
                initial_indent=f"  {label:<{wide}}  ",
                subsequent_indent=" " * (wide + 4),
                break_long_words=False,
                break_on_hyphens=False,
            )
        if self.layers:
            chosen = sorted(self.layers, key=lambda row: -row.elements)[:MOST_ROWS]
            shown = [row for row in self.layers if row in chosen]
            lines += ["", *aligned([_LAYER_HEAD, *map(_layer_cells, shown)])]
            if len(shown) < len(self.layers):
                lines.append(f"  and {len(self.layers) - len(shown)} smaller ones")
        if self.weight_bytes is not None:
            lines += ["", *aligned(self._weight_table())]
        if len(self.curve) > 1:
            lines += ["", *aligned([_CURVE_HEAD, *self._curve_cells()])]
        lines += [""] * bool(self.remarks) + [f"Note: {remark}." for remark in self.remarks]
        return "\n".join(lines)

    def _weight_table(self) -> list[list[str]]:
        if self.weight_bytes is None:
            return []
        return table(list(zip(("before", "after"), self.weight_bytes, strict=True)))

    def _headline(self) -> str:
        name = str(self.model) if self.pressed is None else f"{self.model} -> {self.pressed}"
        if self.tolerance is None:
            found = "done" if self.verdict == "within" else HEADLINES[self.verdict]
        else:
            found = f"{HEADLINES[self.verdict]} the tolerance of {self.tolerance}"
        if self.unmet:
            found += ", but not what was required"
        unwritten = self.steps and self.out is None
        return f"{name}: {found}{'; nothing was written' if unwritten else ''}"

    def _facts(self) -> list[tuple[str, str]]:
        """Give what is worth a line: a label and a sentence each."""
        absolute, upper = self.decision.absolute
        facts = [("distance", words(self.decision, self.distance))]
        if not self.distance.nonfinite:
            facts.append(("", f"{absolute:.3g} as a mean squared error, at most {upper:.3g}"))
        if self.fitted is not None:
            facts.append(("", f"{self._moved(self.fitted)} on samples it was fitted to"))
        facts.append(("verdict", f"{self.verdict}: {self.decision.reason}"))
        if self.unmet:
            facts.append(("required", self.unmet))
        if self.closest is not None:
            facts.append(("closest", self._closest(self.closest)))
        before = percent(self.original_sparsity, 3)
        facts += [
            ("zeros", f"{percent(self.sparsity, 3)} of the prunable weights ({before} before)"),
            ("file", _shrunk(*self.sizes.size_bytes)),
            ("gzipped", _shrunk(self.sizes.original.gzip_bytes, self.sizes.pressed.gzip_bytes)),
            *([] if self.latency is None else [("latency", _raced(self.latency))]),
            ("judged on", self._judged_on()),
            ("run", ", ".join(self._run())),
        ]
        if self.steps:
            facts.append(("steps", self.steps))
        return facts

    @property
    def _absolute(self) -> bool:
        return self.tolerance is not None and self.tolerance.absolute

    def _moved(self, distance: float) -> str:
        if self._absolute:
            return f"a mean squared error of {distance:.2g}"
        return f"{percent(distance)} of the variance"

    def _closest(self, closest: Closest) -> str:
        return (
            f"{self._moved(closest.distance)} at {percent(closest.sparsity, 3)} zeros was the "
            "closest that could be reached"
        )

    def _curve_cells(self) -> list[list[str]]:
        def shown(value: float) -> str:
            if not isfinite(value):
                return "-"
            return f"{value:.3g}" if self._absolute else percent(value, 3)

        return [
            [
                percent(point.sparsity, 3),
                *map(shown, (point.fitted, point.distance, point.upper)),
                "yes" if point.chosen else "",
            ]
            for point in self.curve
        ]

    def _judged_on(self) -> str:
        ran = ", ".join(name.removesuffix("ExecutionProvider") for name in self.providers)
        seen = f"{self.samples.judge:,} samples in onnxruntime ({ran})"
        if not self.samples.fit:
            return seen
        candidates = "1 candidate" if self.judged == 1 else f"{self.judged} candidates"
        return (
            f"{seen} that nothing else has seen, {candidates}; "
            f"{self.samples.fit:,} to fit, {self.samples.choose:,} to choose"
        )

    def _run(self) -> list[str]:
        run = [f"{self.seconds:.1f} s", f"seed {self.seed}"]
        if self.device:
            run.append(f"on {self.device}")
        if self.batching:
            run.append(f"batching: {self.batching}")
        return [*run, f"onnxpress {__version__}"]

    def json(self) -> dict[str, Any]:
        """Give the report for machines; what is not finite is None."""
        rows = {
            row.name: {
                "relative": _number(row.relative),
                "absolute": _number(row.absolute),
                "upper": _number(row.upper),
                "tolerance": row.tolerance,
                "ok": row.ok,
            }
            for row in self.decision.per_output
        }
        interval = {
            "confidence": CONFIDENCE,
            "relative": [_number(value) for value in self.decision.relative],
            "absolute": [_number(value) for value in self.decision.absolute],
            "flips": self.decision.flips and list(self.decision.flips),
        }
        return {
            "verdict": self.verdict,
            "reason": self.decision.reason,
            "unmet": self.unmet or None,
            "words": words(self.decision, self.distance),
            "model": str(self.model),
            "pressed": None if self.pressed is None else str(self.pressed),
            "out": None if self.out is None else str(self.out),
            "distance": {
                "absolute": _number(self.decision.absolute[0]),
                "relative": _number(self.decision.relative[0]),
                "fitted": self.fitted,
                "per_output": rows,
                "interval": interval,
                "flips": self.distance.flips,
                "changed_integers": self.distance.changed_integers,
                "nonfinite": self.distance.nonfinite,
                "samples": self.distance.samples,
            },
            "tolerance": _tolerance(self.tolerance),
            "sparsity": self.sparsity,
            "original_sparsity": self.original_sparsity,
            "size_bytes": self.sizes.json(),
            "latency_ratio": self.latency
            and {"median": self.latency.ratio, "interval": list(self.latency.interval)},
            "seconds": self.seconds,
            "seed": self.seed,
            "device": self.device,
            "providers": list(self.providers),
            "samples": vars(self.samples),
            "batching": self.batching,
            "judged": self.judged,
            "closest": self.closest
            and {"sparsity": self.closest.sparsity, "distance": _number(self.closest.distance)},
            "layers": [{**vars(row), "shape": list(row.shape)} for row in self.layers],
            "weight_bytes": self.weight_bytes
            and {
                name: side.json()
                for name, side in zip(("before", "after"), self.weight_bytes, strict=True)
            },
            "curve": [point.json() for point in self.curve],
            "steps": self.steps,
            "log": list(self.log),
            "notes": list(self.remarks),
            "version": __version__,
        }

    def html(self) -> str:
        """Give the report as one page that needs nothing else."""
        title = html.escape(self._headline())
        facts = [(f"<b>{html.escape(label)}</b>", html.escape(f)) for label, f in self._facts()]
        rows = [_OUTPUT_HEAD, *map(_output_cells, self.decision.per_output)]
        weights = [_LAYER_HEAD, *map(_layer_cells, self.layers)]
        curve = [_CURVE_HEAD, *self._curve_cells()]
        sizes = self._weight_table()
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.remarks)
        log = html.escape("\n".join(self.log))
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
            + _table([list(fact) for fact in facts])
            + (f"<ul>{notes}</ul>\n" if notes else "")
            + "<h2>Outputs</h2>\n"
            + _table(_escaped(rows), head=True)
            + ("<h2>Weights</h2>\n" + _table(_escaped(weights), head=True) if self.layers else "")
            + ("<h2>Forms</h2>\n" + _table(_escaped(sizes), head=True) if sizes else "")
            + ("<h2>Candidates</h2>\n" + _table(_escaped(curve), head=True) if self.curve else "")
            + (f"<h2>Log</h2>\n<pre>{log}</pre>\n" if log else "")
            + "</body></html>\n"
        )


def _raced(times: Race) -> str:
    low, high = times.interval
    return (
        f"{percent(times.ratio, 3)} of the original's ({percent(low, 3)} to {percent(high, 3)}), a "
        "sample at a time, one thread"
    )


def _shrunk(old: int, new: int) -> str:
    return f"{old:,} -> {new:,} bytes ({percent(new / old if old else 1.0)})"


def _number(value: float) -> float | None:
    return float(value) if isfinite(value) else None


def _tolerance(tolerance: Tolerance | None) -> dict[str, Any] | None:
    if tolerance is None:
        return None
    return {**vars(tolerance), "outputs": dict(tolerance.outputs)}


_LAYER_HEAD = ["weight", "operator", "shape", "zeros before", "zeros after", "written"]
_CURVE_HEAD = ["zeros", "on fitted samples", "held out", "at most", "chosen"]
_OUTPUT_HEAD = ["output", "of its variance", "mean squared", "at most", "allowed", "within"]


def _layer_cells(row: LayerRow) -> list[str]:
    shape = "x".join(map(str, row.shape))
    elements = max(1, row.elements)
    before, after = percent(row.zeros_before / elements, 3), percent(row.zeros_after / elements, 3)
    return [row.name, row.operator, shape, before, after, row.form or "-"]


def _output_cells(row: OutputRow) -> list[str]:
    allowed = "-" if row.tolerance is None else f"{row.tolerance:.3g}"
    moved = [percent(row.relative), f"{row.absolute:.3g}", f"{row.upper:.3g}"]
    return [row.name, *moved, allowed, "yes" if row.ok else "no"]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows of cells as lines with straight columns."""
    wide = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  " + "  ".join(f"{cell:<{size}}" for cell, size in zip(row, wide, strict=True)).rstrip()
        for row in rows
    ]


def _escaped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[html.escape(cell) for cell in row] for row in rows]


def _table(rows: Sequence[Sequence[str]], head: bool = False) -> str:
    """Lay out cells that are HTML already."""
    lines = []
    for place, row in enumerate(rows):
        tag = "th" if head and place == 0 else "td"
        lines.append("<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in row) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>\n"


_STYLE = (
    "body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "h1{font-size:1.3em}h2{font-size:1.1em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{text-align:left;vertical-align:top;padding:.25em .8em;border-bottom:1px solid #ddd}"
    "pre{background:#f6f6f6;padding:1em;overflow-x:auto}"
)
