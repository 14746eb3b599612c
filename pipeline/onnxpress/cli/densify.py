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

    OUT computes the same bits. It is one file, and one with its data beside it where IN has that
    too and OUT is over 256 MiB, or where OUT is over the 2 GiB one file can hold.
    """
    check_target(out, model)
    from onnxpress_adapters.read import read_model
    from onnxpress_exporters.external_data import check_apart, room
    from onnxpress_exporters.write import write

    plain = read_model(model)  # which makes all of it dense
    check_apart(model, out)
    size_bytes = write(plain, out, room(model))
    click.echo(f"{out}: {size_bytes:,} bytes")
