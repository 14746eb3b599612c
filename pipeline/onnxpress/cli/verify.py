"""``onnxpress verify``: judge any two models against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxpress.cli.options import (
    FILE,
    embeddings_option,
    input_options,
    promise_options,
    report_options,
    seed_option,
)
from onnxpress.cli.output import check_target, hand_over


@click.command("verify")
@click.argument("original", type=FILE)
@click.argument("pressed", type=FILE)
@click.option(
    "--tolerance",
    metavar="TOL",
    required=True,
    help="How far outputs may move: 1% of their variance, or 1e-3 absolute.",
)
@input_options
@promise_options
@embeddings_option
@seed_option
@report_options
def verify_command(
    original: Path, pressed: Path, report: Path | None, as_json: bool, **fields: Any
) -> None:
    """Measure how far PRESSED is from ORIGINAL, whoever made it."""
    check_target(report, original, pressed)
    from onnxpress.verify import VerifyJob, verify

    hand_over(verify(VerifyJob(original, pressed, **fields)), report, as_json)
