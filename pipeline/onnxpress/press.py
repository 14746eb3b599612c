"""Read, press, write, compare, report: the one orchestration.

(The function is called ``compress``; its module is not, because ``onnxpress.compress`` names the
function.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import torch
from onnx import numpy_helper

from onnxpress.candidates import BEYOND, Candidate, Plan, default_plan, hunt
from onnxpress.cost import Cost, full_precision, one_thread_spared
from onnxpress.domain import no_domain_error, parse_domains
from onnxpress.inputs import parse_shapes
from onnxpress.job import EFFORTS, SMALLEST, Job, check_job, parse_time
from onnxpress.making import changed_by, told_of_settable
from onnxpress.pattern import Pattern
from onnxpress.problem import Problem, Progress, Tolerance, silent
from onnxpress.provenance import Provenance
from onnxpress.report import Closest, CurvePoint, Report, SampleCounts
from onnxpress.require import parse_requirements, timed
from onnxpress.samples import (
    Arrays,
    Samples,
    count,
    from_data,
    from_domains,
    labels_of,
    load_data,
)
from onnxpress.search import Point
from onnxpress.shrinking import Slim, slimmed, subject_of, wants_groups, with_groups
from onnxpress.smallest import choose, storages_for
from onnxpress.state import State
from onnxpress.step import Step, is_open, matches
from onnxpress.storage import told_of
from onnxpress.trace import Origin, digest_of, save_trace
from onnxpress.verify import Judgement, draws, judge, read_tolerance
from onnxpress.weighing import weigh
from onnxpress_adapters.errors import AdapterError, MisuseError
from onnxpress_adapters.extras import extras
from onnxpress_adapters.network import import_network
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.read import read_model
from onnxpress_adapters.specs import InputSpec, check_plain, specs
from onnxpress_adapters.weights import Dense, WeightKey
from onnxpress_exporters.compare import check_runs
from onnxpress_exporters.external_data import check_apart, room
from onnxpress_exporters.write import Patched, patch, write

if TYPE_CHECKING:
    from onnx import ModelProto

PASS_UNITS = 6.0
"""Work one pass over the fit set may take; larger sets are cut to it."""

FORWARD_MACS = 2.0e10
"""Multiply-adds of forward passes in a unit of work."""

FEWEST = 64
MOST_DRAWN = 8192
JUDGING_SHARE = 0.75
"""Share of ``time`` after which no candidate is begun, to leave room for the judge."""


def compress(job: Job, progress: Progress = silent) -> Report:
    """Press a model as far as the promise allows, and write it if onnxruntime agrees.

    Args:
        job: what to do.
        progress: told how far the work is: a stage, 0 to 1, and a note.

    Returns:
        The report. Nothing is at ``job.target`` that was not there before unless its verdict is
        ``within`` and what was required of the file is met.

    Raises:
        AdapterError: the model cannot be read or run.
        MisuseError: the job does not fit the model or itself.
        StepError: a step cannot do what its recipe says.
        ExportError: the pressed model cannot be written or run.

    >>> from pathlib import Path
    >>> compress(Job(Path("no.onnx"), tolerance="1%"))
    Traceback (most recent call last):
    ...
    onnxpress_adapters.errors.BrokenModelError: cannot read no.onnx: there is no such file; ...
    """
    start = monotonic()
    check_job(job)
    progress("reading", 0.0, str(job.model))
    model = read_model(job.model)
    check_apart(job.model, job.target)
    inputs, outputs = specs(model)
    check_plain(inputs, outputs)
    tolerance = read_tolerance(job.tolerance, job.output, job.flips, outputs)
    free = _free(job, model)
    samples = _samples(job, inputs)
    with one_thread_spared(), full_precision():
        problem = _problem(job, model, samples, tolerance, progress)
    check_runs(model, samples.judge)  # refused now, not after all the work
    state = _first_state(job, model, problem, free)
    plan = _plan(job, searched=tolerance is not None)
    if wants_groups(plan.final):
        problem = with_groups(problem, model)
    enough = Pattern.parse(job.pattern).most > 0  # n:m says by itself how far to go
    if job.sparsity is None and tolerance is None and is_open(plan.final) and not enough:
        raise MisuseError(
            "nothing says how far to go: give a tolerance such as --tolerance 1%, a sparsity such "
            "as --sparsity 90%, a pattern such as --pattern 2:4, or a recipe whose steps have a "
            "sparsity"
        )
    deadline = None if job.time is None else start + JUDGING_SHARE * parse_time(job.time)
    known: Sequence[Point] = ()
    notes: list[str] = []
    judged: list[_Judged] = []

    def look(candidate: Candidate) -> float:
        judged.append(_judged(job, model, problem, samples, candidate))
        return judged[-1].excess(tolerance)

    def weigh(found: State) -> int:
        changed = changed_by(found, job, model, problem)
        made = patch(model, changed, job.written, found.storage, freeze=job.freeze)
        return int(made.model.ByteSize())

    with one_thread_spared(), full_precision():
        if job.recipe == SMALLEST:
            storages = storages_for(model, state.free, freeze=job.freeze)
            choice = choose(
                storages,
                state,
                problem,
                weigh,
                pattern=job.pattern,
                sparsity=job.sparsity,
                deadline=deadline,
            )
            plan, known = choice.plan, choice.points
            notes.append(choice.told)
        points = hunt(
            plan,
            state,
            problem,
            look,
            sparsity=job.sparsity,
            deadline=deadline,
            beyond=() if job.trace is None else BEYOND,
            known=known,
        )
    last = min(judged, key=lambda one: one.judgement.rank)
    report = _report(job, model, problem, samples, judged, last)
    if report.exit_code == 0:
        progress("writing", 1.0, str(job.target))
        write(last.patched.model, job.target, room(job.model))
        report = replace(report, out=job.target)
    if job.trace is not None:
        origin = _origin(job, model, problem, samples, state, plan.final)
        seen = [label for part in (samples.fit, samples.choose) for label in labels_of(part)]
        taken = save_trace(
            job.trace, origin, points, problem.reference, seen if problem.related else ()
        )
        many = "1 candidate" if len(points) == 1 else f"{len(points)} candidates"
        notes.append(f"{job.trace} keeps {many} for `onnxpress pick` ({taken:,} bytes)")
    return replace(
        report,
        seconds=monotonic() - start,
        curve=_curve(points, last.candidate.state),
        notes=(*report.notes, *notes),
    )


@dataclass(frozen=True, eq=False)
class _Judged:
    """A candidate, the model it makes, and what the judge says of it."""

    candidate: Candidate
    patched: Patched
    judgement: Judgement
    slim: Slim
    notes: tuple[str, ...] = ()

    def excess(self, tolerance: Tolerance | None) -> float:
        """Give the judge's bound as a share of what is allowed, the worst of them."""
        decision = self.judgement.decision
        if decision.verdict == "within" or tolerance is None:
            return 0.0
        shares = [row.upper / row.tolerance for row in decision.per_output if row.tolerance]
        if tolerance.absolute:
            shares.append(decision.absolute[1] / tolerance.value)
        if tolerance.flips and decision.flips is not None:
            shares.append(decision.flips[1] / tolerance.flips)
        return max(1.01, *shares, 1.01)


def _plan(job: Job, *, searched: bool) -> Plan:
    if job.recipe is not None and job.recipe != SMALLEST:
        return Plan.of(job.recipe)
    return default_plan(searched=searched, values=job.values).following(job.pattern)


def _free(job: Job, model: ModelProto) -> frozenset[WeightKey]:
    """Choose the weights steps may touch.

    Raises:
        MisuseError: there are none.
    """
    weights = [weight for weight in prunable(model, tables=job.embeddings) if weight.elements]
    pressed = [weight.key for weight in weights if not weight.fixed]
    if not weights:
        raise MisuseError(
            f"{job.model} has no prunable weights (constants that MatMul, Gemm, Conv, "
            "ConvTranspose, LSTM, GRU or RNN multiply by); onnxpress cannot make it sparser"
        )
    if not pressed:
        raise MisuseError(
            f"none of the {len(weights)} prunable weights of {job.model} can be changed (of the "
            f"first, {weights[0].fixed}); press the floating-point model it was made from"
        )
    for pattern in (*job.include, *job.exclude):
        if not any(matches(key, pattern) for key in pressed):
            near = get_close_matches(pattern, [str(key) for key in pressed], n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f", such as '{pressed[0]}'"
            raise MisuseError(f"no prunable weight matches '{pattern}'{hint}")
    kept = [
        key
        for key in pressed
        if (not job.include or any(matches(key, p) for p in job.include))
        and not any(matches(key, p) for p in job.exclude)
    ]
    if not kept:
        raise MisuseError("--include and --exclude together leave no weight to press")
    return frozenset(kept)


def _samples(job: Job, inputs: Sequence[InputSpec]) -> Samples:
    """Load or draw the three sets."""
    shapes = parse_shapes(job.shape, inputs)
    if job.data is not None and job.domain:
        raise MisuseError("give --data or --domain, not both")
    if job.data is not None:
        judge = None if job.judge is None else load_data(job.judge, inputs, shapes)
        data = load_data(job.data, inputs, shapes)
        return from_data(data, job.seed, sequence=job.sequence, judge=judge)
    if job.judge is not None:
        raise MisuseError("--judge goes with --data; from a domain the judge draws its own inputs")
    if not job.domain:
        raise no_domain_error(inputs, str(job.model))
    domains = parse_domains(job.domain, inputs, shapes)
    size = draws(domains)
    return from_domains(domains, (min(MOST_DRAWN, 4 * size), size, size), job.seed)


def _problem(
    job: Job,
    model: ModelProto,
    samples: Samples,
    tolerance: Tolerance | None,
    progress: Progress,
) -> Problem:
    """Import the network, prove a way to batch, and cut the sets to what can be afforded."""
    device = _device(job.device)
    effort = EFFORTS[job.effort]
    network, weights = import_network(model, tables=job.embeddings)
    reference = {key: value.to(device) for key, value in weights.items()}
    names = [spec.name for spec in network.inputs]
    probes = [torch.from_numpy(samples.fit[name][:64]).to(device) for name in names]
    network = network.proven(reference, probes)
    cost = Cost.of(network, reference, probes, effort)
    affordable = max(FEWEST, int(effort * PASS_UNITS * FORWARD_MACS / cost.macs))
    fit, choose = (
        _tensors(samples.fit, names, affordable),
        _tensors(samples.choose, names, max(FEWEST, affordable // 2)),
    )
    judged = tuple(
        place
        for place, spec in enumerate(network.outputs)
        if spec.kind == "float"
        and (tolerance is None or not tolerance.outputs or spec.name in dict(tolerance.outputs))
    )
    if not judged:
        raise AdapterError(f"{job.model} has no floating-point output to hold a distance on")
    return Problem(
        network=network,
        reference=reference,
        fit=[value.to(device) for value in fit],
        choose=[value.to(device) for value in choose],
        judged=judged,
        tolerance=tolerance,
        device=device,
        seed=job.seed,
        effort=effort,
        related=job.data is not None,
        progress=progress,
    )


def _tensors(arrays: Arrays, names: Sequence[str], most: int) -> list[torch.Tensor]:
    return [torch.from_numpy(arrays[name][:most]) for name in names]


def _device(name: str) -> torch.device:
    """Choose where the steps run.

    Raises:
        MisuseError: CUDA is asked for and torch sees none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise MisuseError(f"there is no device '{name}'; there are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MisuseError(
            "torch sees no CUDA device; leave out --device, or install a CUDA build of torch"
        )
    cuda = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def _first_state(
    job: Job, model: ModelProto, problem: Problem, free: frozenset[WeightKey]
) -> State:
    """Lay out the original weights as a state.

    Raises:
        AdapterError: the gradient of every free weight would have to pass through an operator
            torch does not run.
    """
    weights: dict[WeightKey, Dense] = {}
    zeros = entries = 0
    for weight in prunable(model, tables=job.embeddings):
        values = problem.reference.get(weight.key)
        if not weight.fixed and values is not None:
            weights[weight.key] = Dense(values, values != 0)
        else:
            array = numpy_helper.to_array(weight.tensor)
            zeros, entries = zeros + int((array == 0).sum()), entries + array.size
    blocked = problem.network.program.blocked
    adapting = {
        key: problem.reference[key]
        for key in extras(model, tables=job.embeddings)
        if key in problem.reference and key not in blocked
    }
    movable = frozenset(key for key in free & weights.keys() if key not in blocked)
    if not movable:
        names = ", ".join(sorted({blocked[key] for key in free if key in blocked}))
        raise AdapterError(
            f"no weight of {job.model} is optimisable: every gradient would have to pass through "
            f"{names}, which torch does not run; `onnxpress inspect` lists them"
            if names
            else f"no weight of {job.model} reaches a tensor made of the inputs"
        )
    return State(weights, adapting, movable, (zeros, entries))


def _judged(
    job: Job, model: ModelProto, problem: Problem, samples: Samples, candidate: Candidate
) -> _Judged:
    """Make the file's model and let onnxruntime judge it."""
    problem.progress("judging", 0.95, f"sparsity {candidate.state.sparsity:.3f} in onnxruntime")
    state = candidate.state
    slim = Slim(model, changed_by(state, job, model, problem), state.storage)
    if (subject := subject_of(model, problem)) is not None:
        supports = {key: state.weights[key].support for key in state.free}
        slim = slimmed(subject, supports, slim.changed, state.storage)
    made = partial(patch, slim.model, slim.changed, job.written, slim.storage)
    patched = made(freeze=job.freeze)
    judgement = judge(model, patched.model, samples.judge, problem.tolerance, job.seed)
    settable = told_of_settable(patched, partial(made, freeze=True))
    return _Judged(candidate, patched, judgement, slim, settable)


def _report(
    job: Job,
    model: ModelProto,
    problem: Problem,
    samples: Samples,
    judged: Sequence[_Judged],
    last: _Judged,
) -> Report:
    """Say in the model where it comes from, and lay out what was found."""
    counts = SampleCounts(len(problem.fit[0]), len(problem.choose[0]), count(samples.judge))
    steps = str(last.candidate.steps)
    Provenance.of(
        model,
        last.patched.model,
        last.judgement.decision,
        steps,
        (counts.fit, counts.choose, counts.judge),
        job.seed,
    ).stamp(last.patched.model)
    outcome = weigh(
        job.model,
        model,
        last.patched,
        last.slim.storage,
        job.target,
        tables=job.embeddings,
    )
    absolute = problem.tolerance is not None and problem.tolerance.absolute
    decision = last.judgement.decision
    closest = None
    if decision.verdict != "within":
        value = decision.absolute[0] if absolute else decision.relative[0]
        closest = Closest(last.candidate.state.sparsity, value)
    required = parse_requirements(job.require)
    latency = None
    if required.latency is not None and decision.verdict == "within":
        problem.progress("judging", 0.98, "latency in onnxruntime")
        latency = timed(model, last.patched.model, samples.judge)
    return Report(
        model=job.model,
        pressed=job.target,
        out=None,
        decision=decision,
        distance=last.judgement.distance,
        tolerance=problem.tolerance,
        **outcome._asdict(),
        seconds=0.0,
        seed=job.seed,
        device=str(problem.device),
        providers=last.judgement.providers,
        samples=counts,
        batching=problem.network.batching.mode,
        judged=len(judged),
        closest=closest,
        unmet=required.unmet(*outcome.sizes.size_bytes, latency),
        latency=latency,
        steps=steps,
        log=last.candidate.state.log,
        notes=(*_notes(problem, samples, last), *last.notes),
    )


def _origin(
    job: Job, model: ModelProto, problem: Problem, samples: Samples, state: State, chain: Step
) -> Origin:
    """Say what identifies the run."""
    return Origin(
        model=str(job.model.resolve()),
        digest=digest_of(model),
        steps=str(chain),
        seed=job.seed,
        effort=job.effort,
        tolerance=job.tolerance,
        output=job.output,
        flips=job.flips,
        embeddings=job.embeddings,
        related=problem.related,
        sequence=job.sequence,
        samples=(len(problem.fit[0]), len(problem.choose[0])),
        free=tuple(sorted(state.free)),
    )


def _curve(points: Sequence[Point], chosen: State) -> tuple[CurvePoint, ...]:
    """Lay out what was tried, the least sparse first."""
    rows = [
        CurvePoint(
            point.state.sparsity, point.fitted, point.distance, point.upper, point.state is chosen
        )
        for point in sorted(points, key=lambda point: point.sparsity)
    ]
    return tuple(sorted(rows, key=lambda row: row.sparsity))


def _notes(problem: Problem, samples: Samples, last: _Judged) -> tuple[str, ...]:
    notes = [*last.candidate.notes, *last.slim.notes]
    blocked = problem.network.program.blocked
    held = sorted({blocked[key] for key in last.candidate.state.weights if key in blocked})
    if held:
        notes.append(
            f"weights whose gradient would have to pass through {', '.join(held)} stay as they are"
        )
    if told := told_of(last.candidate.state.storage):
        notes.append(told)
    if samples.duplicates:
        notes.append(f"{samples.duplicates} samples of the data repeat another one")
    unused = count(samples.fit) - len(problem.fit[0])
    if unused:
        notes.append(
            f"{unused} of {count(samples.fit)} samples to fit were left out to keep the work "
            "within the effort; --effort best uses more"
        )
    return tuple(notes)
