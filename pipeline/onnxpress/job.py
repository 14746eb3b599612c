"""What a call of ``compress`` is told, and whether that can work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from re import fullmatch
from typing import Literal, get_args

from onnxpress.pattern import Pattern
from onnxpress.require import parse_requirements
from onnxpress.sources import AUTO, NONE, Said
from onnxpress.step import Step
from onnxpress.steps.store import Values
from onnxpress_adapters.errors import MisuseError
from onnxpress_exporters.write import Form

BuiltIn = Literal["smallest", "fastest", "faithful"]
"""Recipes that need no file."""

SMALLEST: BuiltIn = "smallest"
FASTEST: BuiltIn = "fastest"
FAITHFUL: BuiltIn = "faithful"

EFFORTS: Mapping[str, float] = {"quick": 0.3, "default": 1.0, "best": 4.0}
"""What the work of every step is multiplied by."""


@dataclass(frozen=True)
class Job:
    """A call of ``compress``; every field is what the flag of that name takes.

    Attributes:
        model: the ONNX file.
        out: what to write; ``<model>.pressed.onnx`` unless given.
        tolerance: ``1%`` of the output's variance, ``1e-3`` absolute, or None.
        sparsity: zeros over all prunable weights, 0 to 1; with a tolerance, the least to accept.
        data: inputs, as ``samples.load_data`` reads them.
        labels: one for each sample of ``data``, as ``labels.read_labels`` reads them: for steps
            whose ``objective`` is the loss of a task.
        domain: regions to draw inputs from, instead of ``data``.
        shape: sizes of inputs the model leaves open.
        judge: inputs for the verdict alone.
        sequence: whether neighbouring samples of the data belong together.
        sources: which samples of the data are of one source and go to one set: a file as
            ``labels.read_labels`` reads them, ``none``, or ``auto``, which looks whether every so
            many samples are alike. None for what the recipe needs: ``"fastest"`` looks, as units
            that leave take more with them than zeros do; else a report says what is found.
        recipe: the steps, those of ``default_plan()`` unless given; or ``"smallest"``, which packs
            and chooses how values are stored, for the smallest file within the tolerance; or
            ``"fastest"``, which removes units or lets rows share their columns, whichever
            onnxruntime runs faster; or ``"faithful"``, the greedy that measures every neighbour.
        pattern: what may stay together in each weight: ``none``, ``2:4`` or any n:m,
            ``block:4x8``, ``rows:32``, ``even:32``; goes without a recipe, whose steps have
            patterns of their own.
        values: how those of weights are stored: ``fp32`` (as they are), ``fp16``, ``int8`` to
            ``int4`` with scales, ``palette`` (16 values a weight, zero included); goes without a
            recipe, as ``pattern`` does.
        output: outputs that count, all unless given; ``NAME=TOL`` gives one its own tolerance.
        flips: the largest share of changed answers, such as ``0.5%``.
        form: how weights are written.
        freeze: whether weights that are inputs of the model as well are none any more: they can be
            packed and folded then, and callers cannot set them. None for what the recipe needs:
            ``"fastest"`` does, nothing else.
        require: what the file has to reach as well, such as ``size=-50%`` or
            ``latency=-10%``, else nothing is written.
        device: ``auto``, ``cpu`` or ``cuda``.
        include: patterns of the weights that may change, all unless given.
        exclude: patterns of weights that may not.
        embeddings: whether the tables that Gather looks rows up in count as prunable weights.
        effort: ``quick``, ``default`` or ``best``.
        time: after which nothing new is begun, such as ``10m``; the result then depends on the
            machine.
        trace: where to keep every candidate that was tried, for ``pick``.
        seed: the only source of chance.
    """

    model: Path
    out: Path | None = None
    tolerance: str | None = None
    sparsity: float | None = None
    data: Path | None = None
    labels: Path | None = None
    domain: tuple[str, ...] = ()
    shape: tuple[str, ...] = ()
    judge: Path | None = None
    sequence: bool = False
    sources: Said | None = None
    recipe: Step | BuiltIn | None = None
    pattern: str = "none"
    values: Values = "fp32"
    output: tuple[str, ...] = ()
    flips: str | None = None
    form: Form = "auto"
    freeze: bool | None = None
    require: tuple[str, ...] = ()
    device: str = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    embeddings: bool = False
    effort: str = "default"
    time: str | None = None
    trace: Path | None = None
    seed: int = 0

    @property
    def written(self) -> Form:
        """The form of weights: the built-in recipe packs them."""
        return "packed" if self.recipe == SMALLEST else self.form

    @property
    def kept_apart(self) -> Said:
        """Which samples go together."""
        if self.sources is None:
            return AUTO if self.recipe == FASTEST else NONE
        return self.sources

    @property
    def frozen(self) -> bool:
        """Whether no constant may be an input."""
        return self.recipe == FASTEST if self.freeze is None else self.freeze

    @property
    def target(self) -> Path:
        """The file to write."""
        return self.out or self.model.with_suffix(".pressed.onnx")


def check_job(job: Job) -> None:
    """Refuse what cannot work, before anything is read."""
    if job.effort not in EFFORTS:
        raise MisuseError(f"there is no effort '{job.effort}'; there are {', '.join(EFFORTS)}")
    if isinstance(job.recipe, str):
        _check_built_in(job)
    elif not Pattern.parse(job.pattern).is_free and job.recipe is not None:
        raise MisuseError(
            "--pattern is for the steps onnxpress chooses; with a recipe, write it into the steps, "
            f'such as `greedy: {{pattern: "{job.pattern}"}}`'
        )
    if job.values not in get_args(Values):
        known = ", ".join(get_args(Values))
        raise MisuseError(f"values are not stored as '{job.values}'; there are {known}")
    if job.values != "fp32" and job.recipe not in (None, SMALLEST):
        raise MisuseError(
            "--values is for the steps onnxpress chooses; with a recipe, write it into the steps, "
            f"such as `store: {{values: {job.values}}}`"
        )
    parse_requirements(job.require)
    if isinstance(job.sources, Path) and (job.data is None or job.sequence):
        raise MisuseError(
            "--sources says which samples of --data belong together"
            + (", and --sequence that neighbours do; give one of them" if job.sequence else "")
            + ("; give --data as well" if job.data is None else "")
        )
    if job.labels is not None and job.data is None:
        raise MisuseError("--labels says what is right for each sample of --data; give both")
    if job.sparsity is not None and not 0 < job.sparsity < 1:
        raise MisuseError(f"a sparsity lies between 0 and 1, not at {job.sparsity:g}")
    if job.target.exists() and job.model.exists() and job.target.samefile(job.model):
        raise MisuseError(f"{job.target} would be written over the original; name another file")
    for file in (job.target, job.trace or job.target):
        if not file.parent.is_dir():
            raise MisuseError(f"there is no folder {file.parent} to write to; make it first")
    if job.trace is not None:
        if job.trace.is_dir():
            raise MisuseError(f"cannot write {job.trace}: it is a folder; name a file in it")
        if job.trace.resolve() in (job.model.resolve(), job.target.resolve()):
            raise MisuseError(f"{job.trace} is the name of a model; give the trace another")


def _check_built_in(job: Job) -> None:
    if job.recipe not in get_args(BuiltIn):
        raise MisuseError(
            f"there is no built-in recipe '{job.recipe}'; there are {', '.join(get_args(BuiltIn))}"
        )
    if job.recipe == FAITHFUL:
        if not Pattern.parse(job.pattern).is_free:
            raise MisuseError(
                "the recipe faithful looks at single weights, which keep to no pattern; leave out "
                "--pattern"
            )
        return
    Pattern.parse(job.pattern)
    if job.tolerance is None:
        raise MisuseError(
            f"the recipe {job.recipe} goes as far as a tolerance lets it; give one, such as "
            "--tolerance 1%"
        )
    if job.recipe == FASTEST:
        given = [
            flag
            for flag, free in (
                ("--values", job.values == "fp32"),
                ("--pattern", Pattern.parse(job.pattern).is_free),
                ("--form", job.form == "auto"),
            )
            if not free
        ]
        if given:
            raise MisuseError(
                "the recipe fastest chooses what leaves and how weights are written; leave out "
                f"{' and '.join(given)}"
            )
        return
    if job.values != "fp32":
        raise MisuseError(
            "the recipe smallest chooses how values are stored; leave out --values, or leave out "
            "--recipe and ask for --form packed"
        )
    if job.form not in ("auto", "packed"):
        raise MisuseError(f"the recipe smallest packs weights; leave out --form {job.form}")


def parse_time(text: str) -> float:
    """Read ``90s``, ``10m`` or ``1h``."""
    match = fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if match is None:
        raise MisuseError(f"'{text}' is no time; write it like 90s, 10m or 1h")
    return float(match[1]) * {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]
