"""``onnxpress compress`` and ``onnxpress run``: press a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxpress.cli.options import (
    FILE,
    embeddings_option,
    form_option,
    freeze_option,
    input_options,
    promise_options,
    quiet_option,
    report_options,
    require_option,
    seed_option,
    share,
)
from onnxpress.cli.output import check_target, hand_over, progress
from onnxpress_adapters.errors import MisuseError

if TYPE_CHECKING:
    from onnxpress.job import BuiltIn, Job
    from onnxpress.sources import Said
    from onnxpress.step import Chain


def _said(ctx: click.Context, param: click.Parameter, value: str | None) -> Said | None:
    """Read ``--sources``."""
    from onnxpress.sources import said_as

    return None if value is None else said_as(value)


@click.command(
    "compress",
    epilog="""\b
For example:
  onnxpress compress model.onnx --tolerance 1% --data inputs.npz
  onnxpress compress model.onnx --tolerance 1% --domain image=uniform:0,1
""",
)
@click.argument("model", metavar="IN", type=FILE)
@click.argument("out", metavar="[OUT]", type=FILE, required=False)
@click.option(
    "--tolerance",
    metavar="TOL",
    help="How far outputs may move: 1% of their variance, or 1e-3 absolute.",
)
@click.option(
    "--sparsity",
    callback=share,
    metavar="SHARE",
    help="Share of zeros over the prunable weights; with a tolerance, the least that is taken.",
)
@input_options
@click.option(
    "--labels",
    type=FILE,
    metavar="FILE",
    help="What is right for each sample of DATA, for steps that minimise the loss of a task: a "
    ".npy, .npz or .csv of class numbers, 0 and 1, or targets.",
)
@click.option("--judge", type=FILE, metavar="PATH", help="Other inputs for the verdict, like DATA.")
@click.option("--sequence", is_flag=True, help="The data is a sequence: share it out in blocks.")
@click.option(
    "--sources",
    callback=_said,
    metavar="FILE|auto|none",
    help="Let sources judge (photographs that samples are crops of, recordings) that nothing was "
    "pressed with: a .npy, .npz or .csv with the source's number for each sample; or auto, which "
    "looks whether every so many samples are alike, and is the recipe fastest's own choice.",
)
@promise_options
@click.option(
    "--recipe",
    type=FILE,
    metavar="FILE.yaml|smallest|fastest|faithful",
    help="The steps to run; or smallest or fastest: whatever makes the smallest file within the "
    "tolerance, or the one onnxruntime runs fastest; or faithful: weight by weight, each time the "
    "one whose loss moves the outputs least, for models of a few thousand weights.",
)
@click.option(
    "--pattern",
    default="none",
    show_default=True,
    metavar="N:M",
    help="Which weights may stay together: 2:4, block:4x8, rows:32 or even:32.",
)
@click.option(
    "--values",
    type=click.Choice(["fp32", "fp16", "int8", "int6", "int5", "int4", "palette"]),
    default="fp32",
    show_default=True,
    help="How the values of weights are stored; the rounding counts as distance.",
)
@click.option(
    "--effort",
    type=click.Choice(["quick", "default", "best"]),
    default="default",
    show_default=True,
    help="How much work to spend.",
)
@click.option("--time", metavar="TIME", help="Begin nothing new after this time, such as 10m.")
@form_option
@freeze_option
@require_option
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the steps run.",
)
@click.option("--include", multiple=True, metavar="PATTERN", help="Press only these weights.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave these weights alone.")
@embeddings_option
@seed_option
@click.option(
    "--trace", type=FILE, metavar="FILE", help="Keep every candidate, for onnxpress pick."
)
@report_options
@quiet_option
def compress_command(
    model: Path,
    out: Path | None,
    recipe: Path | None,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    **fields: Any,
) -> None:
    """Press the model IN and write it to OUT if it keeps the promise.

    OUT is IN.pressed.onnx unless named. It is written only when its outputs, as onnxruntime
    computes them on inputs nothing else has seen, are within the tolerance.
    """
    check_target(out, model)
    check_target(report, model)
    check_target(fields["trace"], model)
    from onnxpress.job import Job

    steps = None if recipe is None else _steps(recipe)
    _press(Job(model=model, out=out, recipe=steps, **fields), report, as_json, quiet)


@click.command(
    "run",
    epilog="""\b
For example:
  model: model.onnx
  data: inputs.npz
  tolerance: 1%
  steps:
    - greedy: {}
    - repair: {method: adam}
""",
)
@click.argument("recipe", metavar="RECIPE", type=FILE)
@report_options
@quiet_option
def run_command(recipe: Path, report: Path | None, as_json: bool, quiet: bool) -> None:
    """Press the model that a recipe names.

    A recipe is a YAML file: the steps, and whatever else a flag of compress could say, under the
    flag's name. Paths in it are relative to it.
    """
    from onnxpress.job import Job
    from onnxpress.recipe import load_recipe

    read = load_recipe(recipe)
    settings = dict(read.settings)
    page = settings.pop("report", None)
    if "model" not in settings:
        raise MisuseError(f"{recipe} names no model; add a line such as `model: model.onnx`")
    page = page if report is None else report
    check_target(settings.get("out"), settings["model"])
    check_target(page, settings["model"])
    check_target(settings.get("trace"), settings["model"])
    _press(Job(recipe=read.steps, **settings), page, as_json, quiet)


def _steps(recipe: Path) -> Chain | BuiltIn | None:
    """Read the steps of a recipe that flags say everything else about."""
    from onnxpress.recipe import built_in, load_recipe

    if known := built_in(str(recipe)):
        return known
    read = load_recipe(recipe)
    if read.settings:
        raise MisuseError(
            f"{recipe} says {', '.join(read.settings)} as well as steps; leave that to flags, or "
            f"call `onnxpress run {recipe}`"
        )
    return read.steps


def _press(job: Job, page: Path | None, as_json: bool, quiet: bool) -> None:
    from onnxpress.press import compress

    with progress(quiet) as show:
        report = compress(job, progress=show)
    hand_over(report, page, as_json)
