"""Flags that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)  # what is missing or broken is said where it is read


def share(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read ``.9`` and ``90%`` alike, as a callback of an option."""
    if value is None:
        return None
    text = value.strip()
    try:
        found = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise click.BadParameter(f"'{value}' is no share; write it like .9 or 90%") from None
    if not 0 < found < 1:
        raise click.BadParameter(f"'{value}' does not lie between 0 and 1")
    return found


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Make one decorator of several, listed by --help in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


input_options = _together(
    click.option(
        "--data",
        type=FILE,
        metavar="PATH",
        help="Inputs: an .npz, a folder of .npy, or a folder of test_data_set_*/input_*.pb. "
        "The first axis counts samples.",
    ),
    click.option(
        "--domain",
        multiple=True,
        metavar="NAME=KIND:VALUES",
        help="Draw inputs instead: uniform:LO,HI, ball:RADIUS, normal:MEAN,STD or tokens:LO,HI. "
        "Once per input; NAME may be a pattern.",
    ),
    click.option(
        "--shape",
        multiple=True,
        metavar="NAME=SIZES",
        help="Fix sizes the model leaves open, such as image=1,3,224,224.",
    ),
)

promise_options = _together(
    click.option(
        "--output",
        multiple=True,
        metavar="NAME[=TOL]",
        help="Only these outputs count; TOL gives one its own tolerance.",
    ),
    click.option(
        "--flips", metavar="SHARE", help="Limit the share of changed answers as well, such as 0.5%."
    ),
)

form_option = click.option(
    "--form",
    type=click.Choice(["auto", "dense", "sparse", "packed", "gathered"]),
    default="auto",
    show_default=True,
    help="How weights are written: auto takes the smaller of dense and sparse, and packs values of "
    "fewer bits (--values); packed decodes itself when a runtime loads it; gathered runs faster "
    "where rows share their columns (--pattern even:64).",
)

freeze_option = click.option(
    "--freeze/--no-freeze",
    default=None,
    help="Weights that the model lists as inputs too are none any more: they can be packed and "
    "folded, and callers cannot set them. The recipe fastest does so unless told not to.",
)

require_option = click.option(
    "--require",
    multiple=True,
    metavar="WHAT=-SHARE",
    help="Write the file only if it is so much smaller or faster: size=-50%, latency=-10%.",
)

embeddings_option = click.option(
    "--embeddings", is_flag=True, help="Count the tables of Gather as prunable weights as well."
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The same seed gives the same result.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")

report_options = _together(
    click.option("--report", type=FILE, metavar="FILE.html", help="Write the report as a page."),
    json_option,
)

quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress and no log on stderr.")
