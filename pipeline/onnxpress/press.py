"""Read, press, write, compare, report: the one orchestration.

(The function is called ``compress``; its module is not, because ``onnxpress.compress`` names the
function.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from onnxpress.beginning import first_state, free_weights, problem_of, samples_of
from onnxpress.candidates import BEYOND, Candidate, hunt
from onnxpress.cost import full_precision, one_thread_spared
from onnxpress.fastest import choose_way, ways_for
from onnxpress.job import FAITHFUL, FASTEST, SMALLEST, Job, check_job, parse_time
from onnxpress.making import changed_by, told_of_frozen, told_of_settable
from onnxpress.pattern import Pattern
from onnxpress.plans import Plan, default_plan, faithful_plan
from onnxpress.problem import Problem, Progress, Tolerance, silent
from onnxpress.provenance import Provenance
from onnxpress.report import Closest, CurvePoint, Report, SampleCounts
from onnxpress.require import parse_requirements, timed
from onnxpress.samples import (
    Samples,
    count,
    marks_of,
)
from onnxpress.search import Point
from onnxpress.shrinking import Slim, merged, slimmed, subject_of, wants_groups, with_groups
from onnxpress.smallest import at_least, choose, storages_for
from onnxpress.state import State
from onnxpress.step import Chain, Step, is_open
from onnxpress.storage import told_of
from onnxpress.task import check_labels
from onnxpress.trace import Origin, digest_of, save_trace
from onnxpress.verify import Judgement, judge, read_tolerance
from onnxpress.weighing import weigh
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.read import read_model
from onnxpress_adapters.specs import check_plain, specs
from onnxpress_exporters.compare import check_runs
from onnxpress_exporters.external_data import check_apart, room
from onnxpress_exporters.latency import Race
from onnxpress_exporters.write import Form, Patched, patch, write

if TYPE_CHECKING:
    from onnx import ModelProto

CLOCK_SECONDS = 1.0
"""About how long a rough candidate and the original run in turns."""

KEPT = (
    "what may leave within the tolerance makes nothing faster: the file has the original's weights"
)

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
    free = free_weights(job, model)
    samples = samples_of(job, inputs)
    with one_thread_spared(), full_precision():
        problem = problem_of(job, model, samples, tolerance, progress)
    check_runs(model, samples.judge)  # refused now, not after all the work
    state = first_state(job, model, problem, free)
    plan = _plan(job, problem, searched=tolerance is not None)
    if wants_groups(plan.final) or job.recipe == FASTEST:
        problem = with_groups(problem, model)
    enough = Pattern.parse(job.pattern).most > 0  # n:m says by itself how far to go
    if job.sparsity is None and tolerance is None and is_open(plan.final) and not enough:
        raise MisuseError(
            "nothing says how far to go: give a tolerance such as --tolerance 1%, a sparsity such "
            "as --sparsity 90%, a pattern such as --pattern 2:4, or a recipe whose steps have a "
            "sparsity"
        )
    with one_thread_spared(), full_precision():
        check_labels(plan.final, problem)
    deadline = None if job.time is None else start + JUDGING_SHARE * parse_time(job.time)
    known: Sequence[Point] = ()
    sparsity = job.sparsity
    notes: list[str] = []
    judged: list[_Judged] = []

    def look(candidate: Candidate) -> float:
        judged.append(_judged(job, model, problem, samples, candidate))
        return judged[-1].excess(tolerance)

    def refused(one: _Judged) -> bool:
        return one.judgement.decision.verdict != "within"

    def size_of(found: State) -> int:
        changed = changed_by(found, job, model, problem)
        made = patch(model, changed, job.written, found.storage, freeze=job.frozen)
        return int(made.model.ByteSize())

    def clock(found: State, form: Form) -> float:
        made = _made(replace(job, form=form), model, problem, found)[1](freeze=job.frozen)
        return timed(model, made.model, samples.choose, CLOCK_SECONDS).ratio

    storages = storages_for(model, state.free, freeze=job.frozen)
    with one_thread_spared(), full_precision():
        if job.recipe == SMALLEST:
            choice = choose(
                storages,
                state,
                problem,
                size_of,
                pattern=job.pattern,
                sparsity=job.sparsity,
                deadline=deadline,
            )
            plan, known = choice.plan, choice.points
            notes.append(choice.told)
        if job.recipe == FASTEST:
            fastest = choose_way(
                ways_for(state, problem),
                state,
                problem,
                clock,
                sparsity=job.sparsity,
                deadline=deadline,
            )
            notes.append(fastest.told)
            if fastest.way is None:
                plan, sparsity = Plan.of(Chain(())), None  # which leaves the original as it is
            else:
                plan, known = fastest.way.plan, fastest.points
                job = replace(job, form=fastest.way.form)
        points = hunt(
            plan,
            state,
            problem,
            look,
            sparsity=sparsity,
            deadline=deadline,
            beyond=() if job.trace is None else BEYOND,
            known=known,
        )
        if job.recipe == SMALLEST and job.sparsity is None and all(map(refused, judged)):
            safe = at_least(storages, state, problem)
            if safe is not None:
                look(safe)
    last = min(judged, key=lambda one: one.judgement.rank)
    if job.recipe == FASTEST and not last.is_faster:
        kept = Candidate(state, Chain(()), (KEPT,))
        last = _judged(job, model, problem, samples, kept, as_it_is=True)
    report = _report(job, model, problem, samples, judged, last)
    if report.exit_code == 0:
        progress("writing", 1.0, str(job.target))
        write(last.patched.model, job.target, room(job.model))
        report = replace(report, out=job.target)
    if job.trace is not None:
        origin = _origin(job, model, problem, samples, state, plan.final)
        seen = [mark for part in (samples.fit, samples.choose) for mark in marks_of(part)]
        taken = save_trace(
            job.trace, origin, points, problem.reference, () if job.data is None else seen
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
    latency: Race | None = None

    @property
    def is_faster(self) -> bool:
        """Whether the file was timed, and runs faster than the original for sure."""
        return self.latency is not None and self.latency.interval[1] < 1

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


def _plan(job: Job, problem: Problem, *, searched: bool) -> Plan:
    if job.recipe is not None and not isinstance(job.recipe, str):
        return Plan.of(job.recipe)
    if job.recipe == FAITHFUL:
        return faithful_plan()
    return default_plan(problem, searched=searched, values=job.values).following(job.pattern)


def _judged(
    job: Job,
    model: ModelProto,
    problem: Problem,
    samples: Samples,
    candidate: Candidate,
    *,
    as_it_is: bool = False,
) -> _Judged:
    """Make the file's model and let onnxruntime judge it."""
    problem.progress("judging", 0.95, f"sparsity {candidate.state.sparsity:.3f} in onnxruntime")
    slim, made = _made(job, model, problem, candidate.state, as_it_is=as_it_is)
    patched = made(freeze=job.frozen)
    judgement = judge(model, patched.model, samples.judge, problem.tolerance, job.seed)
    latency = None
    asked = job.recipe == FASTEST or parse_requirements(job.require).latency is not None
    if asked and judgement.decision.verdict == "within":
        problem.progress("judging", 0.98, "latency in onnxruntime")
        latency = timed(model, patched.model, samples.judge)
    told = told_of_settable(patched, partial(made, freeze=True))
    if job.recipe == FASTEST:
        told = (*told, *told_of_frozen(model, patched))
    return _Judged(candidate, patched, judgement, slim, told, latency)


def _made(
    job: Job, model: ModelProto, problem: Problem, state: State, *, as_it_is: bool = False
) -> tuple[Slim, Callable[..., Patched]]:
    """Give what a state puts into which model, and what writes it there.

    For the fastest file products with nothing between them are merged, unless all is to stay.
    """
    slim = Slim(model, changed_by(state, job, model, problem), state.storage)
    if (subject := subject_of(model, problem)) is not None:
        supports = {key: state.weights[key].support for key in state.free}
        slim = slimmed(subject, supports, slim.changed, state.storage)
    if job.recipe == FASTEST and not as_it_is:
        slim = merged(slim, sparse=job.form == "gathered", freeze=job.frozen)
    return slim, partial(patch, slim.model, slim.changed, job.written, slim.storage)


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
        unmet=required.unmet(*outcome.sizes.size_bytes, last.latency),
        latency=last.latency,
        steps=steps,
        log=last.candidate.state.log,
        notes=(*_notes(problem, samples, last), *last.notes),
    )


def _origin(
    job: Job, model: ModelProto, problem: Problem, samples: Samples, state: State, chain: Step
) -> Origin:
    """Say what identifies the run."""
    kept = job.kept_apart
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
        share=problem.share,
        sequence=job.sequence,
        sources=kept if isinstance(kept, str) else str(kept.resolve()),
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
    if samples.sources is not None:
        notes.append(str(samples.sources))
    if samples.seen is not None:
        notes.append(
            f"the samples seem to come from {samples.seen.count} sources ({samples.seen.told}), "
            "and the judge sees the same ones; --sources auto lets it see others"
        )
    if samples.duplicates:
        notes.append(f"{samples.duplicates} samples of the data repeat another one")
    unused = count(samples.fit) - len(problem.fit[0])
    if unused:
        notes.append(
            f"{unused} of {count(samples.fit)} samples to fit were left out to keep the work "
            "within the effort; --effort best uses more"
        )
    return tuple(notes)
