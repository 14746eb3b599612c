"""The claim: half of the units of a model can leave its file, and it answers as the masked one.

On every model of the zoo that has removable units: the file passes the checker in full, onnxruntime
runs it, and its answers are those of the masked model to 1e-5 of the largest answer. Four models
become faster by as much as is asked for.

    python benchmarks/shrink.py [--rounds 60] [--model NAME ...] [--out benchmarks/shrink.md]

Of every group the half leaves whose weights are smallest. Times are medians of interleaved runs at
batch 1 on one thread, on a calibration input: the processor's time, so that whatever else a machine
does is not counted. An error is relative to the largest answer of the masked or the original model:
where masking leaves next to nothing of an output, only its rounding would be measured. Exits 1
where the claim is not met.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from onnx.numpy_helper import to_array

from onnxpress_adapters.axes import Role
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.groups import Groups
from onnxpress_adapters.groups_find import find_groups
from onnxpress_adapters.network import import_network
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.read import read_model
from onnxpress_adapters.walk import constants
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.shrink import Subject, settle, shrink
from onnxpress_exporters.write import patch
from tables import load_zoo, publish, table, where
from timing import Run, interleaved

MOST_ERROR = 1e-5
MOST_LATENCY = {
    "ultraface_rfb_320": 0.40,
    "ppocr_v3_det": 0.55,
    "mnist_fc_256x4": 0.60,
    "cifar_wide_kw": 0.65,
}
"""Latency of the shrunk model as a share of the original's, where it is promised."""

EVALUATED = 4
HEAD = (
    "model", "groups", "units", "left", "weights they hold", "kB", "kB left", "full check", "error",
    "ms", "latency", "frozen", "met",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One model, measured."""

    cells: tuple[str, ...]
    met: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Shrink every model and print the table."""
    parser = argparse.ArgumentParser(description="Halve the units of every zoo model.")
    parser.add_argument("--rounds", type=int, default=60, help="timed runs of each file")
    parser.add_argument("--model", action="append", help="only these")
    parser.add_argument("--out", type=Path, help="write the tables here as well")
    options = parser.parse_args(arguments)
    zoo = load_zoo()
    if zoo is None:
        return 0
    torch.set_num_threads(1)
    rows, nothing, met = [], [], True
    for entry in sorted(zoo.entries(), key=lambda e: str(e.name)):
        if options.model and entry.name not in options.model:
            continue
        subject = _subject(entry)
        if isinstance(subject, str) or not subject.groups.groups:
            reasons = [subject] if isinstance(subject, str) else _reasons(subject.groups)
            nothing.append([entry.name, "; ".join(reasons)])
            continue
        row = _measure(zoo, entry, subject, options.rounds)
        print(" | ".join(row.cells), file=sys.stderr, flush=True)
        rows.append(row.cells)
        met = met and row.met
    asked = ", ".join(f"{ratio:.2f} {name}" for name, ratio in MOST_LATENCY.items())
    publish(
        "\n\n".join(
            [
                where("torch", "onnx", "onnxruntime"),
                table(HEAD, rows),
                f"Asked: error at most {MOST_ERROR:.0e}, a full check that passes, latency at most "
                f"{asked}. *frozen*: latency beside the original whose constants are no inputs "
                "that a caller may set, either: onnxruntime fuses more then.",
                "Models nothing can leave:",
                table(("model", "why"), nothing),
            ]
        ),
        options.out,
    )
    return 0 if met else 1


def _subject(entry: Any) -> Subject | str:
    """Import a model and find its groups; say why that fails."""
    model = read_model(entry.path)
    try:
        network, reference = import_network(model)
    except AdapterError as error:
        return str(error).splitlines()[0]
    feed = entry.inputs(1, "calibration")[0]
    inputs = [
        torch.from_numpy(feed[spec.name]) if feed[spec.name].dtype.kind == "f" else feed[spec.name]
        for spec in network.inputs
    ]
    return Subject(
        model, network, reference, find_groups(model, network, reference, inputs), inputs
    )


def _reasons(groups: Groups) -> list[str]:
    if not groups.reasons:
        return ["it has no prunable weights"]
    return list(dict.fromkeys(groups.reasons.values()))


def _measure(zoo: Any, entry: Any, subject: Subject, rounds: int) -> Row:
    groups = subject.groups
    gone = groups.gone([_smaller_half(subject, place) for place in range(len(groups.groups))])
    values = {WeightKey((), name): to_array(t) for name, t in constants(subject.model.graph)}
    changed = settle(subject, values, gone)
    masked = patch(subject.model, changed, "dense").model
    shrunk = shrink(subject, changed, gone, freeze=True)
    sound = _full_check(shrunk.model)
    free = shrink(subject, {}, np.zeros_like(gone), freeze=True).model
    runs = [zoo.make_run(model) for model in (subject.model, shrunk.model, free)]
    error = _error(zoo.make_run(masked), runs[1], runs[0], entry.inputs(EVALUATED, "evaluation"))
    times = interleaved(runs, entry.inputs(1, "calibration")[0], rounds)
    latency = times[1] / times[0]
    good = (
        not sound
        and error <= MOST_ERROR
        and latency <= MOST_LATENCY.get(entry.name, np.inf)
        and not shrunk.stays
    )
    cells = (
        entry.name,
        str(len(groups.groups)),
        str(groups.units),
        str(groups.units - int(shrunk.removed.sum())),
        f"{100 * _held(subject):.0f} %",
        f"{subject.model.ByteSize() / 1000:.0f}",
        f"{shrunk.model.ByteSize() / 1000:.0f}",
        sound or "passes",
        f"{error:.0e}",
        f"{1000 * times[0]:.3g}",
        f"{latency:.2f}",
        f"{times[1] / times[2]:.2f}",
        "yes" if good else "no",
    )
    return Row(cells, good)


def _smaller_half(subject: Subject, place: int) -> np.ndarray:
    """Mark the half of a group's units whose weights are smallest."""
    group = subject.groups.groups[place]
    squares = {m.key: subject.reference[m.key].double() ** 2 for m in group.members if m.weight}
    order = np.argsort(group.sums(squares, Role.MADE).numpy())
    mask = np.zeros(group.units, bool)
    mask[order[: group.units // 2]] = True
    return mask


def _held(subject: Subject) -> float:
    """Give the share of the prunable entries that leave with some unit."""
    held = total = 0
    for weight in prunable(subject.model):
        total += weight.elements
        axes = subject.groups.axes.get(weight.key.name) if not weight.key.path else None
        if axes is not None:
            held += weight.elements - int(np.prod([int((units < 0).sum()) for units in axes]))
    return held / max(1, total)


def _full_check(model: ModelProto) -> str:
    """Say what the checker finds; empty where nothing."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def _error(masked: Run, shrunk: Run, original: Run, feeds: Sequence[Any]) -> float:
    """Give the largest error of an output, relative to its largest answer."""
    worst: dict[int, float] = {}
    size: dict[int, float] = {}
    for feed in feeds:
        answers = zip(masked(feed), shrunk(feed), original(feed), strict=True)
        for place, (one, other, first) in enumerate(answers):
            if isinstance(one, np.ndarray) and one.dtype.kind == "f" and one.size:
                gap = float(np.abs(one.astype(np.float64) - other).max())
                most = float(max(np.abs(one).max(), np.abs(first).max()))
                worst[place] = max(worst.get(place, 0.0), gap)
                size[place] = max(size.get(place, 0.0), most)
    return max((worst[place] / max(size[place], 1e-30) for place in worst), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
