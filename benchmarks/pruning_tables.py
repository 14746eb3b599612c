"""Tables and claims of benchmarks/pruning.py, made of what is in its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log
from statistics import fmean

from pruning_cells import Cache, Cell, Found
from rivals import BLIND, FIRST, NAMES
from tables import table
from zoo_measures import CLASSIFIERS

TASKS = ("70", "90", "80", "tolerance")
MOST_ZEROS = 0.2
SLACK = 0.005
"""A model counts as brought to a sparsity that it misses by so little."""

FLOOR = 1e-4
"""Distances below it count as it: there is nothing to gain from being nearer."""

MOST_OF_RIVAL = {"70": 1 / 6, "90": 1 / 8}
MOST_OF_PEER = {"90": 1 / 3}
POINTS = ((0.01, 6), (0.03, len(CLASSIFIERS)))
"""Accuracy that may be lost, and how many classifiers must keep within it."""

LIMITS = {
    "mnist_fc_256x4": 120.0,
    "cifar_resnet_2b": 120.0,
    "magika_v3_3": 240.0,
    "ppocr_v3_det": 300.0,
}
"""Seconds a model may take at a tolerance of 1 %."""

SPARSITIES = {"mnist_fc_256x4": 0.85}
MOST_DISTANCE = 0.01
MOST_BYTES = 3e9
Pairs = Sequence[tuple[float, float]]
"""Our distance and another's."""

UNSEEN = "not measured"
LABELS = {
    "magnitude": "magnitude",
    "magnitude_global": "global magnitude",
    "wanda": "Wanda",
    "wanda_global": "global Wanda",
    "sparsegpt": "SparseGPT",
}


@dataclass(frozen=True)
class Claim:
    """A sentence, and whether it holds; None where not enough was measured to say so."""

    sentence: str
    met: bool | None


@dataclass(frozen=True)
class Section:
    """A heading with its table and remarks, and the claims about it."""

    text: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Rival:
    """What a rival's method made of a model, with the sparsity it really reached."""

    method: str
    sparsity: float
    distance: float
    score: float | None
    remark: str

    def reaches(self, task: str) -> bool:
        """Whether it is at the sparsity asked, and answers with numbers."""
        return self.sparsity >= int(task) / 100 - SLACK and isfinite(self.distance)

    def __str__(self) -> str:
        """Name the method and what is special about the number."""
        label = LABELS[self.method.removeprefix(FIRST)]
        first = "simplified, " if self.method.startswith(FIRST) else ""
        return f"{first}{label}{self.remark}"


@dataclass(frozen=True)
class Measurements:
    """Everything known.

    Attributes:
        cache: the cells.
        models: those with something to prune, in the order of the zoo.
        unknown: how many models of the zoo nobody looked at yet.
        recorded: what the zoo's authors recorded of the rival.
    """

    cache: Cache
    models: tuple[str, ...]
    unknown: int
    recorded: Sequence[Found]

    @classmethod
    def of(cls, cache: Cache, names: Sequence[str], recorded: Sequence[Found]) -> Measurements:
        """Read which models have something to prune."""
        dense = {name: cache.get(Cell(name, "dense", "as-it-is")) for name in names}
        known = {name: found for name, found in dense.items() if found and "error" not in found}
        models = tuple(
            name
            for name, found in known.items()
            if found["movable"] and found["zeros"] < MOST_ZEROS * found["elements"]
        )
        return cls(cache, models, len(names) - len(known), recorded)

    def get(self, model: str, side: str, task: str) -> Found | None:
        """Give a cell, None where it is not measured."""
        return self.cache.get(Cell(model, side, task))

    def rivals(self, model: str, task: str) -> list[Rival]:
        """Give the rival's methods that were measured: rerun, or else as they are recorded."""
        inputs = (self.get(model, "dense", "as-it-is") or {}).get("inputs")
        found = []
        for method in NAMES:
            cell, remark = self.get(model, method, task), ""
            if cell is None:
                cell, remark = self._recorded(model, method, int(task) / 100), " (recorded)"
            elif method.removeprefix(FIRST) not in BLIND and cell.get("inputs") != inputs:
                remark = f" ({cell.get('inputs')} inputs)"
            if cell is not None and cell.get("distance") is not None:
                sparsity = (
                    cell["sparsity"] if not remark.endswith("recorded)") else cell["achieved"]
                )
                score = cell.get("score")
                found.append(Rival(method, sparsity, cell["distance"], score, remark))
        return found

    def _recorded(self, model: str, method: str, sparsity: float) -> Found | None:
        for record in self.recorded:
            key = (record["model"], record["method"], record.get("sparsity"))
            if key == (model, method, sparsity):
                return record
        return None

    def best(self, model: str, task: str, *, simplified: bool = True) -> Rival | None:
        """Give the rival's nearest network among those at the sparsity asked."""
        candidates = [
            rival
            for rival in self.rivals(model, task)
            if rival.reaches(task) and (simplified or not rival.method.startswith(FIRST))
        ]
        return min(candidates, key=lambda rival: rival.distance, default=None)

    def provenance(self) -> str:
        """Say when and on what the cells were measured."""
        cells = [
            cell
            for side in ("ours", "peer", *NAMES)
            for task in TASKS
            for model in self.models
            if (cell := self.get(model, side, task)) is not None
        ]
        if not cells:
            return "Nothing of ours is measured yet."
        dates = sorted({cell["date"] for cell in cells})
        revisions = sorted({cell["revision"] for cell in cells if cell.get("revision")})
        threads = sorted({str(cell["threads"] or "unset") for cell in cells})
        versions = sorted(
            {f"{k} {v}" for cell in cells for k, v in cell.get("versions", {}).items()}
        )
        return (
            f"Measured from {dates[0]} to {dates[-1]} on {cells[0]['cores']} cores "
            f"(OMP_NUM_THREADS {', '.join(threads)}). Revisions of ours: "
            f"{', '.join(revisions) or 'none'}. Rivals: {', '.join(versions) or 'as recorded'}."
        )


def verdicts(claims: Sequence[Claim]) -> str:
    """List the claims with what became of each."""
    words = {True: "met", False: "**not met**", None: "not decided"}
    return "\n".join(f"- {words[claim.met]}: {claim.sentence}" for claim in claims)


@dataclass(frozen=True)
class Line:
    """One model at one sparsity: us and what stands beside us."""

    model: str
    task: str
    ours: Found | None
    peer: Found | None
    best: Rival | None
    plain: Rival | None

    @classmethod
    def of(cls, found: Measurements, model: str, task: str) -> Line:
        """Collect what is known."""
        return cls(
            model,
            task,
            found.get(model, "ours", task),
            found.get(model, "peer", task),
            found.best(model, task),
            found.best(model, task, simplified=False),
        )

    @property
    def distance(self) -> float | None:
        """Our distance; None where we are not measured or not at the sparsity."""
        return _distance(self.ours, self.task)

    @property
    def failed(self) -> bool:
        """Whether we were measured and did not get there."""
        return self.ours is not None and self.distance is None

    @property
    def worse(self) -> bool:
        """Whether onnxsim is nearer."""
        if self.distance is None or self.best is None:
            return False
        return max(self.distance, FLOOR) > max(self.best.distance, FLOOR)

    def cells(self) -> list[str]:
        """Lay out a row."""
        peer = _distance(self.peer, self.task)
        best = _rival_distance(self.best)
        return [
            self.model,
            _number(self.ours, "sparsity", "{:.1%}"),
            _value(self.ours, "distance"),
            *_reported(self.ours),
            "none gets there" if best is None else f"{best:.3g}",
            "-" if self.best is None else str(self.best),
            _ratio(self.distance, best),
            _value(self.peer, "distance"),
            _ratio(self.distance, peer),
            _number(self.ours, "seconds", "{:.0f}"),
            _megabytes(self.ours),
        ]


def at_sparsity(found: Measurements, task: str) -> Section:
    """Compare at equal sparsity: a row per model."""
    head = (
        "model", "sparsity", "d", "reported", "fitted", "onnxsim's best d", "by", "ratio",
        "fair peer's d", "ratio", "seconds", "MB",
    )  # fmt: skip
    lines = [Line.of(found, model, task) for model in found.models]
    unmeasured = found.unknown + sum(line.ours is None for line in lines)
    unreached = [line.model for line in lines if line.best is None]
    failed = [line.model for line in lines if line.failed]
    worse = [line.model for line in lines if line.worse]
    complete = not unmeasured and not failed
    best = _pairs(lines, lambda line: _rival_distance(line.best))
    plain = _pairs(lines, lambda line: _rival_distance(line.plain))
    capped = [(ours, min(theirs, 1.0)) for ours, theirs in best]
    peers = _pairs(lines, lambda line: _distance(line.peer, task))
    asked, most = f"at {task} %", MOST_OF_RIVAL[task]
    claims = [
        _mean_claim(f"{asked}, ours over onnxsim's best", best, most, complete),
        _mean_claim(
            f"{asked}, ours over onnxsim's best without its simplification", plain, most, complete
        ),
        Claim(
            f"{asked}, every model is brought there, also the {len(unreached)} that onnxsim does "
            f"not bring there{_names(failed, '; not these')}",
            False if failed else True if complete else None,
        ),
        Claim(
            f"{asked}, no model is worse than onnxsim's best{_names(worse, '; these are')}",
            False if worse else True if complete else None,
        ),
    ]
    if task in MOST_OF_PEER:
        there = complete and len(peers) == len(lines)
        text = f"{asked}, ours over the fair peer"
        claims.append(_mean_claim(text, peers, MOST_OF_PEER[task], there))
    pieces = [
        f"## At {task} % sparsity of all prunable weights",
        table(head, [line.cells() for line in lines]),
        f"onnxsim brings {len(lines) - len(unreached)} of {len(lines)} models there"
        f"{_names(unreached, ', not')}. Where a distance of onnxsim's above 1, that of the mean "
        f"answer, counts as 1, the mean ratio is {_mean(capped)}.",
        *_complaints({line.model: line.ours for line in lines}),
    ]
    return Section("\n\n".join(pieces), tuple(claims))


def accuracy(found: Measurements) -> Section:
    """Compare the accuracy of the classifiers at 80 %."""
    rows, losses = [], {}
    for model in CLASSIFIERS:
        dense, cell = found.get(model, "dense", "as-it-is"), found.get(model, "ours", "80")
        rivals = [
            rival
            for rival in found.rivals(model, "80")
            if rival.reaches("80") and rival.score is not None
        ]
        best = max(rivals, key=lambda rival: rival.score or 0.0, default=None)
        before = None if dense is None else dense.get("score")
        after = None if cell is None or _distance(cell, "80") is None else cell.get("score")
        if before is not None and cell is not None:
            losses[model] = inf if after is None else before - after
        theirs = None if best is None else best.score
        rows.append(
            [
                model,
                _percent(before),
                _value(cell, "score", "{:.2%}"),
                _points(before, after),
                UNSEEN if theirs is None else f"{theirs:.2%}",
                "-" if best is None else str(best),
                _points(before, theirs),
                _value(cell, "distance"),
            ]
        )
    head = (
        "classifier", "dense", "ours", "points", "onnxsim's best", "by", "points", "our d",
    )  # fmt: skip
    claims = []
    for allowed, least in POINTS:
        within = sum(loss <= allowed + 1e-9 for loss in losses.values())
        known = len(losses) == len(CLASSIFIERS)
        sentence = (
            f"at 80 %, at least {least} of {len(CLASSIFIERS)} classifiers stay within "
            f"{100 * allowed:.0f} points of dense: {within} of the {len(losses)} measured do"
        )
        enough = within >= least
        claims.append(Claim(sentence, True if enough else False if known else None))
    text = "\n\n".join(["## Accuracy at 80 %", table(head, rows)])
    return Section(text, tuple(claims))


def by_tolerance(found: Measurements, models: Sequence[str]) -> Section:
    """Show what a tolerance alone does, how long it takes and in how much memory."""
    seen = [name for name in found.models if found.get(name, "ours", "tolerance") is not None]
    names = [*models, *(name for name in seen if name not in models)]
    cells = {name: found.get(name, "ours", "tolerance") for name in names}
    rows = [
        [
            name,
            _number(cell, "exit", "{}"),
            _number(cell, "sparsity", "{:.1%}"),
            _value(cell, "distance"),
            *_reported(cell),
            _number(cell, "seconds", "{:.0f}"),
            f"{LIMITS[name]:.0f}" if name in LIMITS else "-",
            _megabytes(cell),
        ]
        for name, cell in cells.items()
    ]
    head = (
        "model", "exit", "sparsity", "d on evaluation inputs", "reported", "fitted",
        "seconds", "allowed", "MB",
    )  # fmt: skip
    claims = [_sparsity_claim(name, least, cells[name]) for name, least in SPARSITIES.items()]
    for name, seconds in LIMITS.items():
        cell = cells[name]
        took = None if cell is None else cell.get("seconds", inf)
        text = f"at a tolerance of 1 %, {name} takes at most {seconds:.0f} s"
        claims.append(Claim(text, None if took is None else took <= seconds))
    measured = [cell for cell in cells.values() if cell is not None]
    timed = [cells[name] for name in LIMITS]
    peaks = [cell["peak_bytes"] for cell in timed if cell is not None and cell.get("peak_bytes")]
    most = max(peaks, default=0)
    claims.append(
        Claim(
            f"at a tolerance of 1 %, each of these within 3 GB: at most {most / 1e9:.2f} GB",
            False if most > MOST_BYTES else True if len(peaks) == len(timed) else None,
        )
    )
    unable = [name for name, cell in cells.items() if cell is not None and cell.get("exit") != 0]
    claims.append(
        Claim(
            f"at a tolerance of 1 %, no model needs a hint{_names(unable, '; these failed')}",
            False if unable else True if len(measured) == len(cells) else None,
        )
    )
    far = [
        name
        for name, cell in cells.items()
        if cell is not None and cell.get("distance", 0.0) > MOST_DISTANCE
    ]
    claims.append(
        Claim(
            f"at a tolerance of 1 %, all within it on evaluation inputs{_names(far, '; beyond')}",
            False if far else True if len(measured) == len(cells) else None,
        )
    )
    text = "\n\n".join(["## `--tolerance 1%` alone", table(head, rows), *_complaints(cells)])
    return Section(text, tuple(claims))


def _sparsity_claim(name: str, least: float, cell: Found | None) -> Claim:
    text = (
        f"at a tolerance of 1 %, {name} has at least {least:.0%} zeros and is at most "
        f"{MOST_DISTANCE:.0%} away on the evaluation inputs"
    )
    if cell is None:
        return Claim(text, None)
    near = cell.get("distance", inf) <= MOST_DISTANCE
    return Claim(text, near and cell.get("sparsity", 0.0) >= least)


def _pairs(lines: Sequence[Line], other: Callable[[Line], float | None]) -> Pairs:
    """Pair our distance with another's, for the models that both bring to the sparsity."""
    both = [(line.distance, other(line)) for line in lines]
    return [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]


def _rival_distance(rival: Rival | None) -> float | None:
    return None if rival is None else rival.distance


def _mean_claim(what: str, pairs: Pairs, most: float, complete: bool) -> Claim:
    """Hold the geometric mean of some ratios to a limit."""
    text = (
        f"{what}: the geometric mean over {len(pairs)} models is {_mean(pairs)}, "
        f"allowed is 1/{1 / most:.0f}"
    )
    return Claim(text, _log_mean(pairs) <= log(most) if complete and pairs else None)


def _log_mean(pairs: Pairs) -> float:
    """Average log(ours / theirs), both floored."""
    return fmean(log(max(ours, FLOOR) / max(theirs, FLOOR)) for ours, theirs in pairs)


def _mean(pairs: Pairs) -> str:
    return _fraction(exp(_log_mean(pairs))) if pairs else UNSEEN


def _fraction(ratio: float) -> str:
    return f"1/{1 / ratio:.3g}" if ratio < 1 else f"{ratio:.3g}"


def _ratio(ours: float | None, theirs: float | None) -> str:
    if ours is None or theirs is None:
        return "-"
    return _fraction(max(ours, FLOOR) / max(theirs, FLOOR))


def _distance(cell: Found | None, task: str) -> float | None:
    """Give the distance of a cell; None where not measured, not at the sparsity or no number."""
    if cell is None or cell.get("sparsity", 0.0) < int(task) / 100 - SLACK:
        return None
    distance: float = cell["distance"]
    return distance if isfinite(distance) else None


def _complaints(cells: Mapping[str, Found | None]) -> list[str]:
    return [f"{name}: {cell['error']}" for name, cell in cells.items() if cell and "error" in cell]


def _names(models: Iterable[str], before: str) -> str:
    listed = ", ".join(models)
    return f"{before}: {listed}" if listed else ""


def _reported(cell: Found | None) -> tuple[str, str]:
    """Give what our own report says, held out and fitted."""
    if cell is None:
        return UNSEEN, UNSEEN
    distance = (cell.get("report") or {}).get("distance")
    return _number(distance, "relative", "{:.3g}"), _number(distance, "fitted", "{:.3g}")


def _value(cell: Found | None, name: str, form: str = "{:.3g}") -> str:
    """Show a number of a cell; say so where it is not measured or has failed."""
    if cell is None:
        return UNSEEN
    value = cell.get(name)
    return "failed" if value is None else form.format(value)


def _number(cell: Found | None, name: str, form: str) -> str:
    value = (cell or {}).get(name)
    return "-" if value is None else form.format(value)


def _megabytes(cell: Found | None) -> str:
    peak = (cell or {}).get("peak_bytes")
    return "-" if peak is None else f"{peak / 1e6:.0f}"


def _percent(value: float | None) -> str:
    return UNSEEN if value is None else f"{value:.2%}"


def _points(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{100 * (after - before):+.2f}"
