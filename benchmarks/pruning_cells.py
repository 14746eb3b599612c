"""The cells behind benchmarks/pruning.py: one measurement each, one process each, kept in a file.

A cell that was measured is not measured again, so that hours of work can be interrupted and
continued. One that failed or was stopped is kept as well, and says why.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rivals import FIRST, NAMES
from tables import ROOT

HERE = Path(__file__).resolve().parent
SOURCES = ("pipeline", "exporters", "adapters")
PATIENCE = 1800
RIVAL_PATIENCE = 900
FEWER = 8
"""A rival stopped for time tries again with so many times fewer inputs, twice at most."""

Found = Mapping[str, Any]


@dataclass(frozen=True, order=True)
class Cell:
    """A measurement.

    Attributes:
        model: of the zoo.
        side: ``dense``, ``ours``, ``peer`` or the name of a rival's method.
        task: a sparsity in percent or ``tolerance``; ``as-it-is`` for the dense model.
    """

    model: str
    side: str
    task: str

    def __str__(self) -> str:
        """Name it, as its file is named."""
        return f"{self.model}.{self.side}.{self.task}"

    @property
    def is_rival(self) -> bool:
        """Whether another tool does it."""
        return self.side in NAMES

    @property
    def is_simplified(self) -> bool:
        """Whether another tool does it, and simplifies the model first."""
        return self.side.startswith(FIRST)


class Cache:
    """A folder with one JSON file per cell, and before it what was found elsewhere and kept."""

    def __init__(self, folder: Path, records: Path | None = None) -> None:
        """Use a folder, and make it when the first cell is kept.

        Args:
            folder: with a file per cell.
            records: a file of cells, as ``write_records`` makes it; it need not exist.
        """
        self.folder = folder
        known = records is not None and records.exists()
        self.records: dict[str, Found] = (
            json.loads(records.read_text(encoding="utf-8")) if records and known else {}
        )

    def file(self, cell: Cell) -> Path:
        """Name the file of a cell."""
        return self.folder / f"{cell}.json"

    def get(self, cell: Cell) -> Found | None:
        """Give what was found, here or else in the records; None where nobody looked yet."""
        file = self.file(cell)
        if not file.exists():
            return self.records.get(str(cell))
        found: Found = json.loads(file.read_text(encoding="utf-8"))
        return found

    def put(self, cell: Cell, found: Found) -> None:
        """Keep what was found, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.file(cell)
        draft = file.with_suffix(".part")
        draft.write_text(json.dumps(found, indent=1), encoding="utf-8")
        draft.replace(file)

    def write_records(self, file: Path) -> None:
        """Write everything known into one file, a line a cell, for another machine to go on from.

        Of our own reports only the distances are kept.
        """
        paths = self.folder.glob("*.json") if self.folder.is_dir() else ()
        found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
        lines = []
        for label, cell in sorted({**self.records, **found}.items()):
            kept = {name: value for name, value in cell.items() if name != "report"}
            if distance := (cell.get("report") or {}).get("distance"):
                said = {name: distance[name] for name in ("relative", "fitted")}
                kept["report"] = {"distance": said}
            lines.append(f"{json.dumps(label)}: {json.dumps(kept)}")
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def measured(cell: Cell, rival_python: str | None, inputs: int) -> Found:
    """Measure a cell in a process of its own.

    Args:
        cell: which.
        rival_python: the interpreter that has onnxsim; only a rival's cell needs it.
        inputs: how many calibration inputs a rival gets; with 0 it is not even tried.
    """
    found: Found = {"inputs": 0, "error": "not tried: it takes too long"}
    if cell.is_rival:
        words = [str(rival_python), str(HERE / "rivals.py"), cell.model, cell.side]
        share = str(float(cell.task) / 100)
        for count in (inputs, inputs // FEWER, inputs // FEWER**2):
            if count:
                found = _run([*words, share, str(count)], {}, RIVAL_PATIENCE)
            if not found.get("stopped"):
                break
    else:
        words = [cell.model, cell.side, cell.task]
        folders = [str(ROOT / source) for source in SOURCES]
        paths = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
        words = [sys.executable, str(HERE / "pruning_ours.py"), *words]
        found = _run(words, {"PYTHONPATH": paths}, PATIENCE)
    return {
        **found,
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "revision": None if cell.is_rival else revision(),
    }


def rival_in(python: str, words: Sequence[str]) -> Found:
    """Let the rival prune a model in a process of its own.

    Args:
        python: the interpreter that has onnxsim.
        words: as ``rivals.py`` takes them.
    """
    return _run([python, str(HERE / "rivals.py"), *words], {}, RIVAL_PATIENCE)


def _run(words: Sequence[str], extra: Mapping[str, str], patience: float) -> Found:
    """Run a process that prints JSON, and whatever it starts, for so many seconds at most."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        words,
        env={**plain, **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            return {"stopped": True, "inputs": 0, "error": f"stopped after {patience:.0f} s"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        reason = stderr.strip() or f"exit code {process.returncode}"
        return {"error": reason.splitlines()[-1]}
    found: Found = json.loads(stdout.strip().splitlines()[-1])
    return found


def revision() -> str | None:
    """Name the commit that is measured, None outside a checkout."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
