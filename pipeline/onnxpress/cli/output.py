"""What commands print and where: reports to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from onnxpress_adapters.errors import MisuseError

if TYPE_CHECKING:
    from pathlib import Path

    from onnxpress.report import Report

Progress = Callable[[str, float, str], None]
"""Takes a stage, how much of it is done (0 to 1), and a note."""


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def hand_over(report: Report, page: Path | None, as_json: bool) -> None:
    """Print a report, write its page where one was asked for, and exit with its code."""
    if page is not None:
        try:
            page.write_text(report.html(), encoding="utf-8")
        except OSError as error:
            raise MisuseError(f"cannot write {page}: {error.strerror or error}") from error
    if as_json:
        print_json(report.json())
    else:
        click.echo(report.text())
    click.get_current_context().exit(report.exit_code)


def check_target(target: Path | None, *sources: Path) -> None:
    """Refuse, before any work, a file that could not or should not be written.

    Raises:
        MisuseError: its folder is missing, it is a folder, or it is one of the sources.
    """
    if target is None:
        return
    if target.is_dir():
        raise MisuseError(f"cannot write {target}: it is a folder; name a file in it")
    if not target.parent.is_dir():
        raise MisuseError(f"cannot write {target}: there is no folder {target.parent}; make it")
    if any(target.resolve() == source.resolve() for source in sources):
        raise MisuseError(f"{target} would be written over the original; give it another name")


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Show how far the work is: a bar on a terminal, else a line per stage, or nothing."""
    if quiet:
        yield lambda stage, done, note: None
    elif sys.stderr.isatty():
        yield from _bar()
    else:
        yield _Lines()


class _Lines:
    """A line on stderr for each new stage and each new note."""

    def __init__(self) -> None:
        self._last = ("", "")

    def __call__(self, stage: str, done: float, note: str) -> None:
        if (stage, note) != self._last:
            self._last = (stage, note)
            click.echo(f"{stage}: {note}" if note else stage, err=True)


def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=1.0)

        def show(stage: str, done: float, note: str) -> None:
            text = f"{stage}: {note}" if note else stage
            bars.update(task, completed=done, description=escape(text))

        yield show
