"""Errors as a person wants to read them."""

from __future__ import annotations

from typing import Any

import click

from onnxpress_adapters.errors import OnnxpressError

FAILED = 1
INTERRUPTED = 130


class Friendly(click.Group):
    """Show our own errors as one message on stderr, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and translate how it ends into a message and an exit code."""
        try:
            return super().invoke(ctx)
        except OnnxpressError as error:
            message = "\n".join([str(error), *getattr(error, "__notes__", [])])
            code = error.exit_code
        except MemoryError:
            message, code = "there is not enough memory; give fewer samples", FAILED
        except KeyboardInterrupt:
            message, code = "interrupted; nothing was written", INTERRUPTED
        click.echo(f"Error: {message}", err=True)
        ctx.exit(code)
