"""What it takes to load a model: time and memory of a process that has done nothing else.

A process remembers: libraries stay loaded, freed memory is used again. So each measurement is one
of a fresh process, which imports onnxruntime, looks at its memory, makes the session, and looks
again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from onnxpress_adapters.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCRIPT = """
import json, sys, time
import onnxruntime

def held(word):
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            lines = dict(line.split(":", 1) for line in status)
        return int(lines[word].split()[0]) * 1024
    except (OSError, KeyError):
        return None

path, threads, providers = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.inter_op_num_threads = 1
options.intra_op_num_threads = threads
try:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as marks:
        marks.write("5")  # the peak begins again here
except OSError:
    pass
before = held("VmRSS")
start = time.perf_counter()
onnxruntime.InferenceSession(path, options, providers=[tuple(each) for each in providers])
seconds = time.perf_counter() - start
peak = held("VmHWM")
found = None if before is None or peak is None else max(0, peak - before)
print(json.dumps([seconds, found]))
"""


@dataclass(frozen=True)
class Loading:
    """What loading a model takes: medians over fresh processes.

    Attributes:
        seconds: to make the session.
        peak_bytes: most memory beyond what the process held before; None where the system does not
            say.
    """

    seconds: float
    peak_bytes: int | None


def loadings(
    models: Sequence[Path],
    threads: int,
    providers: Sequence[tuple[str, dict[str, str]]],
    rounds: int,
) -> list[Loading]:
    """Load models in turns, each time in a process of its own.

    Args:
        models: files that ``read_model`` took.
        threads: of an operator; 0 is onnxruntime's own choice.
        providers: of onnxruntime, with their options.
        rounds: how often each is loaded.

    Raises:
        ExportError: one cannot be loaded.
    """
    found: list[list[tuple[float, int | None]]] = [[] for _ in models]
    for _ in range(rounds):
        for place, model in enumerate(models):
            found[place].append(_load(model, threads, providers))
    return [
        Loading(
            median(seconds for seconds, _ in each),
            None
            if any(peak is None for _, peak in each)
            else int(median(p for _, p in each if p is not None)),
        )
        for each in found
    ]


def _load(
    model: Path, threads: int, providers: Sequence[tuple[str, dict[str, str]]]
) -> tuple[float, int | None]:
    """Load a model once, in a fresh process."""
    words = [sys.executable, "-c", SCRIPT, str(model), str(threads), json.dumps(list(providers))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise ExportError(f"a fresh process cannot load {model}: {last}")
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), None if peak is None else int(peak)
