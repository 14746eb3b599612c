"""The claim: every zoo model imports and answers like onnxruntime, sample by sample and batched.

All 38 agree to a largest error of 1e-4 of the output's largest magnitude (1e-3 where the model
holds fp16 or is quantised) on 16 real inputs each, and 36 or more without onnx's reference
implementation on the way of any weight.

    python benchmarks/import_zoo.py [--models a,b] [--split evaluation] [--out …/import_zoo.md]

Where onnxruntime is further from the same model in float64 than the network is, the difference is
its own rounding: the column beside says how far. Times are those of the same run, one after the
other on one thread each: onnxruntime one input at a time, the network looped over the inputs, and
the network batched the way it proved. Exits 1 where the claim is not met. Needs ../shared/zoo.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from onnxpress_adapters.batching import LOOP
from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.network import import_network
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import WeightKey
from tables import load_zoo, publish, table, where

INPUTS = 16
ROUNDS = 3
MOST_FALLBACKS = 2
COARSE = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8, TensorProto.UINT8})
HEAD = (
    "model", "largest error, loop", "largest error, batched", "onnxruntime from float64", "allowed",
    "batching", "in the reference", "ms looped", "ms batched", "ms onnxruntime", "agrees",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """What was found for one model."""

    cells: tuple[str, ...]
    agrees: bool
    explained: bool
    blocked: bool
    complaint: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Import every model and print the table."""
    parser = argparse.ArgumentParser(description="Import zoo models, compare with onnxruntime.")
    parser.add_argument("--models", help="names, separated by commas; all unless given")
    parser.add_argument("--split", choices=["calibration", "evaluation"], default="calibration")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    zoo = load_zoo()
    if zoo is None:
        return 0
    torch.set_num_threads(1)
    chosen = [
        entry
        for entry in zoo.entries()
        if options.models is None or entry.name in options.models.split(",")
    ]
    lines = []
    for entry in chosen:
        lines.append(measure(entry, options.split))
        print(" ".join(lines[-1].cells), lines[-1].complaint, file=sys.stderr, flush=True)
    agreeing = sum(line.agrees for line in lines)
    explained = sum(line.explained for line in lines)
    blocked = sum(line.blocked for line in lines)
    pieces = [
        f"# Importing the zoo: {options.split} inputs",
        "Claim: all models import and agree with onnxruntime to a largest error of 1e-4 of the "
        f"output's largest magnitude (1e-3 for fp16 and quantised) on {INPUTS} real inputs each. "
        f"Written by benchmarks/import_zoo.py: {agreeing} of {len(lines)} agree, {explained} more "
        "are nearer to the model in float64 than onnxruntime is, and "
        f"{blocked} have a weight whose gradient ends in the reference implementation.",
        where("torch", "onnxruntime"),
        "Times are per input, on one thread, the fastest of three rounds in one run.",
        table(HEAD, [line.cells for line in lines]),
        *(f"{line.cells[0]}: {line.complaint}" for line in lines if line.complaint),
    ]
    publish("\n\n".join(pieces), options.out)
    return 0 if agreeing + explained == len(lines) and blocked <= MOST_FALLBACKS else 1


def measure(entry: Any, split: str) -> Line:
    """Import one model and compare its answers with onnxruntime's."""
    try:
        model = read_model(entry.path)
        network, weights = import_network(model)
    except AdapterError as error:
        cells = (entry.name, *["-"] * (len(HEAD) - 2), "no")
        return Line(cells, False, False, False, str(error))
    ask = entry.session()
    feeds = entry.inputs(INPUTS, split)
    samples = [
        torch.from_numpy(np.stack([feed[spec.name] for feed in feeds])) for spec in network.inputs
    ]
    with torch.no_grad():
        proven = network.proven(weights, samples)
        answers = [ask(feed) for feed in feeds]
        expected = list(zip(*answers, strict=True))
        looped = LOOP.run(network, weights, samples).outputs
        batched = proven.batched(weights, samples)
        times = [
            fastest(lambda: LOOP.run(network, weights, samples)),
            fastest(lambda: proven.batched(weights, samples)),
            fastest(lambda: [ask(feed) for feed in feeds]),
        ]
        exact = in_double(model, weights, samples)
    allowed = 1e-3 if any(t.data_type in COARSE for t in model.graph.initializer) else 1e-4
    errors = [largest_error(expected, found) for found in (looped, batched)]
    own = None if exact is None else largest_error(expected, exact)
    agrees = max(errors) <= allowed
    explained = (
        not agrees
        and exact is not None
        and own is not None
        and largest_error(exact, looped) < min(own, allowed)
    )
    cells = (
        entry.name,
        *(f"{error:.1e}" for error in errors),
        "-" if own is None else f"{own:.1e}",
        f"{allowed:.0e}",
        proven.batching.mode,
        str(len(network.program.fallbacks)),
        *(f"{1e3 * seconds / len(feeds):.2f}" for seconds in times),
        "yes" if agrees else "rounding" if explained else "no",
    )
    away = f"{max(errors):.1e} away"
    if own is not None:
        away = f"{away}, and onnxruntime {own:.1e} from float64"
    return Line(cells, agrees, explained, bool(network.program.blocked), "" if agrees else away)


def in_double(
    model: ModelProto, weights: Mapping[WeightKey, Tensor], samples: Sequence[Tensor]
) -> Sequence[Any] | None:
    """Run the model in float64, also where it would cast to float32.

    None where it makes float32 constants of its own, which do not mix.
    """
    wide = ModelProto()
    wide.CopyFrom(model)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    network, _ = import_network(wide)
    exact = {key: weight.double() for key, weight in weights.items()}
    inputs = [value.double() if value.is_floating_point() else value for value in samples]
    try:
        return LOOP.run(network, exact, inputs).outputs
    except AdapterError:
        return None


def fastest(run: Callable[[], object]) -> float:
    """Time the fastest of a few rounds, in seconds."""
    seconds = []
    for _ in range(ROUNDS):
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return min(seconds)


def largest_error(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """Give the largest error of any output, as a share of that output's largest magnitude."""
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        mine, wanted = (np.concatenate(list(numbers(side))) for side in (ours, theirs))
        if mine.shape != wanted.shape:
            return float("inf")
        share = float(np.abs(mine - wanted).max()) / max(float(np.abs(wanted).max()), 1e-30)
        worst = max(worst, share if np.isfinite(share) else float("inf"))
    return worst


def numbers(value: Any) -> Iterator[np.ndarray]:
    """Give all numbers of an output, sample by sample, sequences and maps included."""
    if isinstance(value, Mapping):
        yield from (part for name in sorted(value) for part in numbers(value[name]))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from numbers(entry)
    else:
        array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
        yield array.astype(np.float64).reshape(-1)


if __name__ == "__main__":
    sys.exit(main())
