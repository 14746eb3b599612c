"""``onnxpress densify``: a plain file, for tools that do not read sparse or packed tensors."""

from __future__ import annotations

from pathlib import Path

import click

from onnxpress.cli.options import FILE
from onnxpress.cli.output import check_target


@click.command("densify")
@click.argument("model", metavar="IN", type=FILE)
@click.argument("out", metavar="OUT", type=FILE)
def densify_command(model: Path, out: Path) -> None:
    """Write IN to OUT without sparse or packed tensors.

    OUT computes the same bits. Data in files beside IN goes into OUT itself.
    """
    check_target(out, model)
    from onnxpress_adapters.read import read_model
    from onnxpress_exporters.densify import densify
    from onnxpress_exporters.write import write

    size_bytes = write(densify(read_model(model)), out)
    click.echo(f"{out}: {size_bytes:,} bytes")
