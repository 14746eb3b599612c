"""``onnxpress inspect``: look at a model before pressing it."""

from __future__ import annotations

from pathlib import Path

import click

from onnxpress.cli.options import FILE, embeddings_option, json_option
from onnxpress.cli.output import print_json


@click.command("inspect")
@click.argument("model", metavar="IN", type=FILE)
@embeddings_option
@click.option("--all", "every", is_flag=True, help="Name every constant that is left alone.")
@json_option
def inspect_command(model: Path, embeddings: bool, every: bool, as_json: bool) -> None:
    """Show what can be pressed in IN, and why the rest cannot."""
    from onnxpress.inspection import inspect_model

    found = inspect_model(model, tables=embeddings)
    if as_json:
        print_json(found.json())
    else:
        click.echo(found.text(every=every))
