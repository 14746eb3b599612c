"""The command line: parse, make one library call, print one report.

Nothing here imports torch, onnx or onnxruntime before a command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import click

from onnxpress import __version__
from onnxpress.cli.bench import bench_command
from onnxpress.cli.compress import compress_command, run_command
from onnxpress.cli.densify import densify_command
from onnxpress.cli.friendly import Friendly
from onnxpress.cli.inspect import inspect_command
from onnxpress.cli.pick import pick_command
from onnxpress.cli.verify import verify_command


@click.group(
    cls=Friendly,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="onnxpress")
def main() -> None:
    """Make ONNX models smaller while their outputs stay within a tolerance you name.

    Exit codes: 0 within the tolerance; 1 failed; 2 the call is wrong; 3 outside the tolerance or
    undecided, nothing written; 130 interrupted, nothing written.
    """


main.add_command(compress_command)
main.add_command(run_command)
main.add_command(pick_command)
main.add_command(verify_command)
main.add_command(bench_command)
main.add_command(inspect_command)
main.add_command(densify_command)
