"""The judge: two files, the same inputs, onnxruntime's answers, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnxpress.domain import Domain, no_domain_error, parse_domains
from onnxpress.inputs import parse_shapes
from onnxpress.problem import Tolerance, parse_amount
from onnxpress.provenance import Provenance, weights_digest
from onnxpress.report import Report, SampleCounts
from onnxpress.samples import count, from_domains, load_data
from onnxpress.sizes import FileSize, Sizes
from onnxpress.verdict import Decision, decide
from onnxpress.weighing import layer_rows
from onnxpress.weight_bytes import weight_bytes
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.prunable import count_zeros
from onnxpress_adapters.read import read_model
from onnxpress_adapters.specs import check_plain, specs
from onnxpress_exporters.compare import CPU, compare

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnx import ModelProto

    from onnxpress_adapters.distance import Distance
    from onnxpress_adapters.specs import InputSpec, OutputSpec, ValueSpec

DRAWS = 2048
FEWEST_DRAWS = 64
DRAWN_BYTES = 256 << 20
"""Memory the inputs drawn for a verdict may take; with large inputs there are fewer of them."""


class Judgement(NamedTuple):
    """What the judge found.

    Attributes:
        distance: over all samples, of the outputs that count.
        decision: the verdict.
        providers: what onnxruntime ran both models with.
    """

    distance: Distance
    decision: Decision
    providers: tuple[str, ...]

    @property
    def rank(self) -> tuple[bool, float]:
        """Order: within the tolerance first, then the nearest."""
        return self.decision.verdict != "within", self.decision.relative[1]


@dataclass(frozen=True)
class VerifyJob:
    """A call of ``verify``; every field is what the flag of that name takes.

    Attributes:
        original: the reference.
        pressed: the candidate, whoever made it.
        tolerance: ``1%`` of the output's variance, or ``1e-3`` absolute.
        data: inputs to judge on, all of them.
        domain: regions to draw inputs from, instead of ``data``.
        shape: sizes of inputs the model leaves open.
        output: outputs that count, all unless given; ``NAME=TOL`` gives one its own tolerance.
        flips: the largest share of changed answers.
        embeddings: whether the tables that Gather looks rows up in count as prunable weights.
        seed: of what is drawn.
    """

    original: Path
    pressed: Path
    tolerance: str
    data: Path | None = None
    domain: tuple[str, ...] = ()
    shape: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    flips: str | None = None
    embeddings: bool = False
    seed: int = 0


def verify(job: VerifyJob) -> Report:
    """Measure how far one model is from another, and judge it.

    Returns:
        The report; nothing is written.

    Raises:
        AdapterError: a model cannot be read.
        MisuseError: the models do not take and give the same, or the call does not fit them.
        ExportError: onnxruntime cannot run one of them.
    """
    start = monotonic()
    original, pressed = read_model(job.original), read_model(job.pressed)
    inputs, outputs = specs(original)
    check_plain(inputs, ())
    check_alike(job.original, job.pressed, (inputs, outputs), specs(pressed))
    tolerance = read_tolerance(job.tolerance, job.output, job.flips, outputs)
    arrays = _inputs(job, inputs)
    distance, decision, providers = judge(job.original, job.pressed, arrays, tolerance, job.seed)
    zeros_before, elements_before = count_zeros(original, tables=job.embeddings)
    zeros, elements = count_zeros(pressed, tables=job.embeddings)
    notes = []
    if elements != elements_before:
        notes.append(
            f"the pressed model has {elements:,} prunable weights where the original has "
            f"{elements_before:,}; the share of zeros is over its own"
        )
    if (provenance := Provenance.read(pressed)) is not None:
        if provenance.changed(pressed):
            notes.append(f"the weights of {job.pressed} are not those onnxpress wrote it with")
        if provenance.original != weights_digest(original):
            notes.append(f"{job.pressed} was pressed from other weights than {job.original} has")
    return Report(
        model=job.original,
        pressed=job.pressed,
        out=None,
        decision=decision,
        distance=distance,
        tolerance=tolerance,
        sparsity=zeros / elements if elements else 0.0,
        original_sparsity=zeros_before / elements_before if elements_before else 0.0,
        sizes=Sizes(FileSize.of(job.original), FileSize.of(job.pressed)),
        seconds=monotonic() - start,
        seed=job.seed,
        device="",
        providers=providers,
        samples=SampleCounts(0, 0, count(arrays)),
        layers=layer_rows(original, pressed, tables=job.embeddings),
        weight_bytes=(
            weight_bytes(original, tables=job.embeddings),
            weight_bytes(pressed, tables=job.embeddings),
        ),
        notes=tuple(notes),
    )


def judge(
    original: ModelProto | bytes | Path,
    pressed: ModelProto | bytes | Path,
    arrays: Mapping[str, np.ndarray],
    tolerance: Tolerance | None,
    seed: int,
    providers: Sequence[str] = (CPU,),
) -> Judgement:
    """Run two models in onnxruntime and judge what lies between them.

    Args:
        original: the reference; a path must be one that ``read_model`` took.
        pressed: the candidate, with the same inputs and outputs.
        arrays: by input ``[samples, *feed shape]``; nothing else may have seen them.
        tolerance: the promise, or None to measure only. Where it names outputs, no others are run.
        seed: of the resampling behind the verdict.
        providers: of onnxruntime.

    Raises:
        MisuseError: the tolerance does not fit the outputs.
        ExportError: onnxruntime refuses or fails to run a model.
    """
    chosen = [name for name, _ in tolerance.outputs] if tolerance is not None else []
    compared = compare(original, pressed, arrays, chosen or None, providers)
    decision = decide(compared.distance, tolerance, seed)
    return Judgement(compared.distance, decision, compared.providers)


def read_tolerance(
    text: str | None, output: Sequence[str], flips: str | None, outputs: Sequence[OutputSpec]
) -> Tolerance | None:
    """Read ``--tolerance``, ``--output NAME[=TOL]`` and ``--flips`` together.

    Args:
        text: ``1%``, ``1e-3``, or None.
        output: names of outputs, some with a tolerance.
        flips: a share such as ``0.5%``, or None.
        outputs: of the model.

    Returns:
        The promise, outputs in the order of the model; None where no tolerance is given.

    Raises:
        MisuseError: something does not read, names no output, or does not fit the rest.
    """
    if text is None:
        if output or flips is not None:
            flag = "--output" if output else "--flips"
            raise MisuseError(f"{flag} says more about a tolerance; add --tolerance, such as 1%")
        return None
    tolerance = Tolerance.parse(text)
    known = {spec.name: spec for spec in outputs}
    own: dict[str, float | None] = {}
    for word in output:
        name, own_text = (word, "") if word in known else _cut(word)
        if name not in known:
            close = get_close_matches(name, known, n=1)
            meant = f" (did you mean '{close[0]}'?)" if close else ""
            raise MisuseError(
                f"the model has no output '{name}'{meant}; it gives {_listed(outputs)}"
            )
        if known[name].kind != "float":
            raise MisuseError(
                f"the output {known[name].describe()} holds no real numbers, so it has no distance"
            )
        if name in own:
            raise MisuseError(f"two --output flags name '{name}'; keep one")
        value, absolute = parse_amount(own_text) if own_text else (None, tolerance.absolute)
        if absolute != tolerance.absolute:
            raise MisuseError(
                f"--output {word} and --tolerance {text} are of two kinds; write both with %, "
                "or both without"
            )
        own[name] = value
    chosen = tuple((name, own[name]) for name in known if name in own)
    limit = None if flips is None else parse_amount(flips)[0]
    if limit is not None and limit > 1:
        raise MisuseError(f"--flips {flips} is more than all answers; write a share such as 0.5%")
    return Tolerance(tolerance.value, tolerance.absolute, chosen, limit)


def _cut(word: str) -> tuple[str, str]:
    """Cut ``NAME=TOL``; the name may hold equals signs too."""
    name, equals, text = word.rpartition("=")
    return (name, text) if equals else (word, "")


def _inputs(job: VerifyJob, inputs: Sequence[InputSpec]) -> Mapping[str, np.ndarray]:
    """Load or draw what the models are run on."""
    shapes = parse_shapes(job.shape, inputs)
    if job.data is not None and job.domain:
        raise MisuseError("give --data or --domain, not both")
    if job.data is not None:
        return load_data(job.data, inputs, shapes)
    if not job.domain:
        files = str(job.original), str(job.pressed)
        raise no_domain_error(inputs, *files, command="verify")
    domains = parse_domains(job.domain, inputs, shapes)
    return from_domains(domains, (0, 0, draws(domains)), job.seed).judge


def draws(domains: Mapping[str, Domain]) -> int:
    """Say how many inputs to draw for a verdict: ``DRAWS``, fewer where they are large."""
    one = sum(domain.draw(np.random.default_rng(0), 1).nbytes for domain in domains.values())
    return max(FEWEST_DRAWS, min(DRAWS, DRAWN_BYTES // max(1, one)))


def check_alike(
    original: Path,
    pressed: Path,
    old_border: Sequence[Sequence[ValueSpec]],
    new_border: Sequence[Sequence[ValueSpec]],
) -> None:
    """Refuse models that cannot be run on the same inputs and compared output by output.

    Args:
        original: what messages call the first model.
        pressed: and the second.
        old_border: the inputs and the outputs of the first.
        new_border: likewise of the second.

    Raises:
        MisuseError: names every difference.
    """
    differences = []
    for role, old, new in zip(("input", "output"), old_border, new_border, strict=True):
        ours, theirs = ({spec.name: spec for spec in side} for side in (old, new))
        for name in {**ours, **theirs}:
            if name not in theirs:
                differences.append(f"{pressed} has no {role} '{name}'")
            elif name not in ours:
                differences.append(f"{original} has no {role} '{name}'")
            elif not _alike(ours[name], theirs[name]):
                differences.append(
                    f"the {role} {ours[name].describe()} is {theirs[name].describe()} there"
                )
    if differences:
        raise MisuseError(f"{original} and {pressed} cannot be compared: " + "; ".join(differences))


def _alike(old: ValueSpec, new: ValueSpec) -> bool:
    """Whether two values can stand for each other; an open size fits any."""
    if (old.dtype, old.holds) != (new.dtype, new.holds):
        return False
    if not old.ranked or not new.ranked:
        return True
    return len(old.shape) == len(new.shape) and all(
        a is None or b is None or a == b for a, b in zip(old.shape, new.shape, strict=True)
    )


def _listed(outputs: Sequence[OutputSpec]) -> str:
    return ", ".join(spec.describe() for spec in outputs) or "nothing"
