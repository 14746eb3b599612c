"""Another point of a curve that a trace holds: chosen, judged and written, without a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import torch
from onnx import numpy_helper

from onnxpress.candidates import MOST_JUDGED
from onnxpress.domain import no_domain_error, parse_domains
from onnxpress.inputs import parse_shapes
from onnxpress.problem import Progress, Tolerance, silent
from onnxpress.provenance import Provenance
from onnxpress.report import Closest, CurvePoint, Report, SampleCounts
from onnxpress.require import parse_requirements, timed
from onnxpress.samples import Arrays, count, from_data, from_domains, load_data, marks_of
from onnxpress.search import bound_of
from onnxpress.shrinking import Slim, imported, slimmed
from onnxpress.sources import said_as, sources_of
from onnxpress.trace import Stored, Trace, digest_of, load_trace
from onnxpress.verify import Judgement, draws, judge, read_tolerance
from onnxpress.weighing import weigh
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.read import read_model
from onnxpress_adapters.specs import InputSpec, OutputSpec, check_plain, specs
from onnxpress_exporters.external_data import check_apart, room
from onnxpress_exporters.write import Form, Patched, patch, write

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    from onnxpress_adapters.weights import WeightKey


@dataclass(frozen=True)
class PickJob:
    """A call of ``pick``; every field is what the flag of that name takes.

    Attributes:
        trace: the file a run kept.
        out: what to write; ``<model>.pressed.onnx`` unless given.
        tolerance: ``2%`` of the output's variance, or ``1e-3`` absolute, as in the run; or None.
        sparsity: take the candidate with the nearest share of zeros, whatever it costs.
        data: the inputs of the run, shared out as it did; only the judge's share is used.
        domain: regions to draw inputs from, instead of ``data``.
        shape: sizes of inputs the model leaves open.
        judge: inputs for the verdict alone, instead of a share of ``data``.
        model: the original, where it is no longer where it was.
        form: how weights are written.
        require: what the file has to reach as well, as for ``compress``.
        freeze: whether weights that are inputs of the model as well are none any more.
    """

    trace: Path
    out: Path | None = None
    tolerance: str | None = None
    sparsity: float | None = None
    data: Path | None = None
    domain: tuple[str, ...] = ()
    shape: tuple[str, ...] = ()
    judge: Path | None = None
    model: Path | None = None
    form: Form = "auto"
    require: tuple[str, ...] = ()
    freeze: bool | None = None


def pick(job: PickJob, progress: Progress = silent) -> Report:
    """Write the sparsest candidate of a trace that is within a tolerance.

    Returns:
        The report, with the curve of the run. Nothing is at ``out`` that was not there before
        unless its verdict is ``within``.

    Raises:
        AdapterError: the model cannot be read.
        MisuseError: the trace cannot be read or is of another model, or the call does not fit it.
        ExportError: the model cannot be written or run.
    """
    start = monotonic()
    trace = load_trace(job.trace)
    origin = trace.origin
    path = job.model or Path(origin.model)
    target = job.out or path.with_suffix(".pressed.onnx")
    _check(job, path, target)
    progress("reading", 0.0, str(path))
    model = _original(trace, path)
    check_apart(path, target)
    inputs, outputs = specs(model)
    check_plain(inputs, outputs)
    tolerance, notes = _tolerance(job, trace, outputs)
    arrays = _samples(job, trace, inputs)
    judged: list[tuple[int, Patched, Slim, Judgement]] = []
    for place in _order(trace, tolerance, job.sparsity):
        progress("judging", 0.5, f"sparsity {trace.candidates[place].sparsity:.3f} in onnxruntime")
        slim = Slim(model, _changed(trace, place, model), trace.storage(place))
        if "Units(" in trace.candidates[place].steps:
            slim = _without_units(slim, trace, arrays)
        patched = patch(slim.model, slim.changed, job.form, slim.storage, freeze=bool(job.freeze))
        found = judge(model, patched.model, arrays, tolerance, origin.seed)
        judged.append((place, patched, slim, found))
        if found.decision.verdict == "within":
            break
    chosen, patched, slim, found = min(judged, key=lambda one: one[3].rank)
    candidate = trace.candidates[chosen]
    counts = SampleCounts(*origin.samples, count(arrays))
    seen = (counts.fit, counts.choose, counts.judge)
    provenance = Provenance.of(
        model, patched.model, found.decision, candidate.steps, seen, origin.seed
    )
    provenance.stamp(patched.model)
    within = found.decision.verdict == "within"
    outcome = weigh(path, model, patched, slim.storage, target, tables=origin.embeddings)
    required = parse_requirements(job.require)
    latency = None
    if required.latency is not None and within:
        progress("judging", 0.9, "latency in onnxruntime")
        latency = timed(model, patched.model, arrays)
    unmet = required.unmet(*outcome.sizes.size_bytes, latency)
    written = within and not unmet
    if written:
        progress("writing", 1.0, str(target))
        write(patched.model, target, room(path))
    closest = None
    if not within:
        absolute = tolerance is not None and tolerance.absolute
        decision = found.decision
        value = decision.absolute[0] if absolute else decision.relative[0]
        closest = Closest(candidate.sparsity, value)
    return Report(
        model=path,
        pressed=target,
        out=target if written else None,
        decision=found.decision,
        distance=found.distance,
        tolerance=tolerance,
        **outcome._asdict(),
        seconds=monotonic() - start,
        seed=origin.seed,
        device="",
        providers=found.providers,
        samples=counts,
        judged=len(judged),
        closest=closest,
        unmet=unmet,
        latency=latency,
        curve=_curve(trace, candidate),
        steps=candidate.steps,
        log=candidate.log,
        notes=(*notes, *slim.notes),
    )


def _without_units(slim: Slim, trace: Trace, arrays: Arrays) -> Slim:
    """Take the units out that a candidate has only zeros for."""
    origin = trace.origin
    subject = imported(slim.model, arrays, tables=origin.embeddings)
    supports = {
        key: torch.from_numpy(slim.changed[key] != 0) for key in origin.free if key in slim.changed
    }
    return slimmed(subject, supports, slim.changed, slim.storage)


def _check(job: PickJob, path: Path, target: Path) -> None:
    """Refuse what cannot work, before the model is read."""
    if job.tolerance is None and job.sparsity is None:
        raise MisuseError(
            "nothing says which candidate to take: give a tolerance such as --tolerance 2%, or a "
            "sparsity such as --sparsity 80%"
        )
    parse_requirements(job.require)
    if job.sparsity is not None and not 0 < job.sparsity < 1:
        raise MisuseError(f"a sparsity lies between 0 and 1, not at {job.sparsity:g}")
    if target.resolve() in (path.resolve(), job.trace.resolve()):
        raise MisuseError(f"{target} is the original or the trace; name another file")
    if not target.parent.is_dir():
        raise MisuseError(f"there is no folder {target.parent} to write to; make it first")


def _original(trace: Trace, path: Path) -> ModelProto:
    """Read the model the trace is of.

    Raises:
        MisuseError: its weights are others.
    """
    if not path.exists():
        raise MisuseError(
            f"{trace.path} is of {path}, which is no longer there; say where it is with --model"
        )
    model = read_model(path)
    if digest_of(model) != trace.origin.digest:
        raise MisuseError(
            f"{trace.path} is of a model with other weights than {path} has; say with --model "
            "which one it is of, or compress again"
        )
    return model


def _tolerance(
    job: PickJob, trace: Trace, outputs: Sequence[OutputSpec]
) -> tuple[Tolerance | None, tuple[str, ...]]:
    """Read the tolerance in the terms of the run, and say what else it holds to.

    The stored distances of outputs with a tolerance of their own are scaled by its share of the
    general one, so these shares stay.
    """
    if job.tolerance is None:
        return None, ()
    origin = trace.origin
    asked = Tolerance.parse(job.tolerance)
    ran = read_tolerance(origin.tolerance, origin.output, origin.flips, outputs)
    if asked.absolute != (ran is not None and ran.absolute):
        kind = "shares of the variance" if asked.absolute else "mean squared errors"
        example = "2%" if asked.absolute else "1e-3"
        raise MisuseError(
            f"the distances in {trace.path} are {kind}; give a tolerance such as {example}"
        )
    if ran is None:
        return asked, ()
    own = tuple(
        (name, None if value is None else value * (asked.value / ran.value))
        for name, value in ran.outputs
    )
    notes = []
    if asked.value != ran.value:
        told = [
            f"{name} {Tolerance(value, asked.absolute)}" for name, value in own if value is not None
        ]
        if told:
            notes.append(
                "outputs with a tolerance of their own keep its share of the general one: "
                + ", ".join(told)
            )
    return Tolerance(asked.value, asked.absolute, own, ran.flips), tuple(notes)


def _samples(job: PickJob, trace: Trace, inputs: Sequence[InputSpec]) -> Arrays:
    """Load or draw what the run has neither fitted on nor chosen with."""
    shapes = parse_shapes(job.shape, inputs)
    seed = trace.origin.seed
    if job.domain and (job.data or job.judge):
        raise MisuseError("give --data or --domain, not both")
    if job.domain:
        domains = parse_domains(job.domain, inputs, shapes)
        return from_domains(domains, (0, 0, draws(domains)), seed).judge
    if job.judge is not None:
        arrays: Arrays = load_data(job.judge, inputs, shapes)
    elif job.data is not None:
        data = load_data(job.data, inputs, shapes)
        origin = trace.origin
        sources = (
            None if origin.sequence else sources_of(said_as(origin.sources), data, count(data))
        )
        arrays = from_data(data, seed, sequence=origin.sequence, sources=sources).judge
    else:
        raise no_domain_error(inputs, str(job.trace), command="pick")
    seen = sum(mark in trace.seen for mark in marks_of(arrays))
    if seen:
        raise MisuseError(
            f"the run behind {trace.path} has seen {seen} of the {count(arrays)} samples to judge "
            "on; give it the data it had, or others with --judge"
        )
    return arrays


def _order(trace: Trace, tolerance: Tolerance | None, sparsity: float | None) -> list[int]:
    """Give the places of the candidates worth judging, the most wanted first."""
    stored = trace.candidates
    places = range(len(stored))
    if sparsity is not None:
        return [min(places, key=lambda place: abs(stored[place].sparsity - sparsity))]
    if tolerance is None:
        return []
    share = trace.origin.share
    limit = tolerance.value * share
    bounds = [bound_of(each.distance or 0.0, each.bound, share) for each in stored]
    within = [place for place in reversed(places) if bounds[place] <= limit]
    return within[:MOST_JUDGED] or [min(places, key=lambda place: bounds[place])]


def _changed(trace: Trace, place: int, model: ModelProto) -> Mapping[WeightKey, np.ndarray]:
    """Give the constants to patch; a free one without a change may be smaller in another form."""
    origin = trace.origin
    weights = prunable(model, tables=origin.embeddings)
    known = {weight.key: numpy_helper.to_array(weight.tensor) for weight in weights}
    free = {key: known[key] for key in origin.free if key in known}
    return {**free, **trace.weights(place, known)}


def _curve(trace: Trace, chosen: Stored) -> tuple[CurvePoint, ...]:
    def number(value: float | None) -> float:
        return float("nan") if value is None else value

    return tuple(
        CurvePoint(
            stored.sparsity,
            number(stored.fitted),
            number(stored.distance),
            stored.bound,
            stored is chosen,
        )
        for stored in trace.candidates
    )
