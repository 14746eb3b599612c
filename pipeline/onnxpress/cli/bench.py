"""``onnxpress bench``: how fast two models are, side by side."""

from __future__ import annotations

from typing import Any

import click

from onnxpress.cli.options import FILE, input_options, json_option, quiet_option, seed_option
from onnxpress.cli.output import print_json, progress


@click.command(
    "bench",
    epilog="""\b
For example:
  onnxpress bench model.onnx model.pressed.onnx --data inputs.npz --threads 4
""",
)
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@input_options
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Samples that run together.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Threads of an operator; 0 is onnxruntime's own choice.",
)
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="What onnxruntime runs both models on.",
)
@click.option(
    "--time",
    default="5s",
    show_default=True,
    metavar="TIME",
    help="About how long the two run in turns.",
)
@click.option(
    "--load/--no-load",
    default=True,
    help="Measure what loading takes, in fresh processes (the default), or not.",
)
@seed_option
@quiet_option
@json_option
def bench_command(as_json: bool, quiet: bool, **fields: Any) -> None:
    """Run FIRST and SECOND in turns and say which is faster, and how sure that is.

    Each turn runs both models on the same inputs; the ratio is the median over all turns, with an
    interval of 95 %. Without --data or --domain, inputs of real numbers are drawn from a standard
    normal distribution.
    """
    from onnxpress.bench import BenchJob, bench

    with progress(quiet) as show:
        found = bench(BenchJob(**fields), progress=show)
    if as_json:
        print_json(found.json())
    else:
        click.echo(found.text())
