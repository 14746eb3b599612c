"""``onnxpress pick``: another point of the curve a trace holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxpress.cli.options import (
    FILE,
    form_option,
    freeze_option,
    input_options,
    quiet_option,
    report_options,
    require_option,
    share,
)
from onnxpress.cli.output import check_target, hand_over, progress


@click.command(
    "pick",
    epilog="""\b
For example:
  onnxpress compress model.onnx --tolerance 1% --data inputs.npz --trace model.trace
  onnxpress pick model.trace smaller.onnx --tolerance 2% --data inputs.npz
""",
)
@click.argument("trace", type=FILE)
@click.argument("out", metavar="[OUT]", type=FILE, required=False)
@click.option(
    "--tolerance",
    metavar="TOL",
    help="How far outputs may move: 2% of their variance, or 1e-3 absolute, as in the run.",
)
@click.option(
    "--sparsity",
    callback=share,
    metavar="SHARE",
    help="Take the candidate with the nearest share of zeros; with a tolerance, only if it keeps "
    "it.",
)
@input_options
@click.option("--judge", type=FILE, metavar="PATH", help="Other inputs for the verdict, like DATA.")
@click.option("--model", type=FILE, metavar="PATH", help="The original, if it has moved.")
@form_option
@require_option
@freeze_option
@report_options
@quiet_option
def pick_command(
    trace: Path,
    out: Path | None,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    **fields: Any,
) -> None:
    """Write another candidate of a search that kept a TRACE, in seconds.

    `onnxpress compress --trace` keeps one. The candidate is the sparsest within the tolerance, as
    far as the search could tell, and it is written to OUT (<model>.pressed.onnx unless named) only
    when onnxruntime agrees on inputs the search never saw. Give the data of the run: it is shared
    out as it was then.
    """
    check_target(out, trace)
    check_target(report, trace)
    from onnxpress.picking import PickJob, pick

    with progress(quiet) as show:
        found = pick(PickJob(trace, out, **fields), progress=show)
    hand_over(found, report, as_json)
