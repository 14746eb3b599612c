"""The claim: packed weights take few bytes, and onnxruntime unpacks them fast and in little memory.

At 90 % sparsity at most .52 bytes per prunable weight with fp32 values and .22 with int8, at 50 %
2.2 and .65, decoders included, weighted by size over the zoo's models above 200,000 weights with
fewer than 20 % original zeros. Where gzip of the dense file does better than packed fp32 by more
than 3 %, a row says so. On 25 million weights, a session with gaps takes at most 3 times as long
to create as a dense one and 2.5 times the memory; with a bitmask 5 and 4 times. Once created, it
runs as fast, within 3 %.

    python benchmarks/packed.py [MODEL ...] [--sparsity .5 .9] [--side 5000] [--out FILE.md]

Weights are only pruned, by magnitude over each file: nothing is repaired or judged, as only bytes
count here. Those that are inputs as well are packed, as with --freeze. Rounding to int8 goes with
one scale a tensor. A file's bytes are those of the whole file less what it takes with all weights
without entries; scales are told apart. Memory is VmHWM of a fresh process, what it had before the
session was made taken off; time is the processor's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.compare import Runner
from onnxpress_exporters.latency import race
from onnxpress_exporters.values import Half, Palette, Plain, Scaled, Storage, rounded
from onnxpress_exporters.write import Form, patch, write
from tables import ZOO, load_zoo, publish, table, where

LARGE = 200_000
MOST_ZEROS = 0.2
VALUES = ("fp32", "fp16", "int8", "palette")
MOST_BYTES = {(0.9, "fp32"): 0.52, (0.9, "int8"): 0.22, (0.5, "fp32"): 2.2, (0.5, "int8"): 0.65}
MOST_RATIOS = {"gaps": (3.0, 2.5), "bitmask": (5.0, 4.0)}
PALETTE = 16
RUNS = 3
MOST_LATENCY = 1.03
RACING = ("mnist_fc_256x4", "cifar_wide_kw", "sri_resnet_a", "ppocr_v3_det")
RACE_SECONDS = 4.0

Weights = Mapping[WeightKey, np.ndarray]

MEASURE = """
import json, sys, time
import onnxruntime
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
before, start = peak(), time.process_time()
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(json.dumps([time.process_time() - start, peak() - before]))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Weigh the models, create the sessions, print both tables; 1 where a claim is not met."""
    parser = argparse.ArgumentParser(description="Weigh packed weights and create sessions.")
    parser.add_argument("models", nargs="*", help="names in the zoo; all large ones by default")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.9])
    parser.add_argument("--side", type=int, default=5000, help="of a square weight; 0: none")
    parser.add_argument("--out", type=Path, help="write the tables here as well")
    options = parser.parse_args(arguments)
    parts, met = [where("onnx", "onnxruntime", "numpy")], True
    models = {
        path.stem: read_model(path)
        for path in sorted((ZOO / "models").glob("*.onnx"))
        if not options.models or path.stem in options.models
    }
    if not models:
        print("skipped: the model zoo (../shared/zoo) is not beside this checkout")
    for sparsity in options.sparsity if models else ():
        text, good = _weighed(models, sparsity, chosen=bool(options.models))
        parts.append(f"Bytes per prunable weight at {sparsity:.0%} sparsity\n\n{text}")
        met = met and good
    racing = [name for name in RACING if name in models]
    if racing:
        text, good = _raced({name: models[name] for name in racing})
        parts.append(f"Runs of packed fp32 at 90 % sparsity beside dense, one thread\n\n{text}")
        met = met and good
    if options.side:
        text, good = _created(options.side)
        parts.append(f"Creating a session with {options.side**2:,} weights\n\n{text}")
        met = met and good
    publish("\n\n".join(parts), options.out)
    return 0 if met else 1


def _weighed(
    models: Mapping[str, ModelProto], sparsity: float, *, chosen: bool
) -> tuple[str, bool]:
    """Weigh every form of the models, and of all together."""
    names = ["gzip", "sparse", *(f"packed {values}" for values in VALUES)]
    names += ["bound fp32", "bound int8"]
    sums: dict[str, float] = dict.fromkeys(names, 0.0)
    rows, total = [], 0
    for model, original in models.items():
        weights = {
            weight.key: numpy_helper.to_array(weight.tensor)
            for weight in prunable(original)
            if weight.is_float
        }
        entries = sum(array.size for array in weights.values())
        zeros = sum(int((array == 0).sum()) for array in weights.values())
        small = entries < LARGE or zeros >= MOST_ZEROS * entries
        if not entries or (small and not chosen):
            continue
        found, forms = _bytes(original, pruned(weights, sparsity), entries)
        note = "gzip is smaller" if found["gzip"] * 1.03 < found["packed fp32"] else ""
        rows.append([model, f"{entries:,}", *(f"{found[n] / entries:.3f}" for n in names), forms])
        rows[-1].append(note)
        sums = {name: sums[name] + found[name] for name in names}
        total += entries
    means = {name: sums[name] / max(1, total) for name in names}
    rows.append(["all", f"{total:,}", *(f"{means[name]:.3f}" for name in names), "", ""])
    good = all(
        means[f"packed {values}"] <= most
        for (at, values), most in MOST_BYTES.items()
        if at == sparsity
    )
    return table(["model", "weights", *names, "not packed", ""], rows), good or chosen


def pruned(weights: Weights, sparsity: float) -> Weights:
    """Zero the smallest entries over all weights, of those alike the first ones."""
    sizes = np.concatenate([np.abs(array).reshape(-1) for array in weights.values()])
    gone = np.zeros(sizes.size, bool)
    gone[np.argsort(sizes, kind="stable")[: int(sparsity * sizes.size)]] = True
    parts = np.split(gone, np.cumsum([array.size for array in weights.values()])[:-1])
    return {
        key: np.where(part.reshape(array.shape), array.dtype.type(0), array)
        for (key, array), part in zip(weights.items(), parts, strict=True)
    }


def _bytes(original: ModelProto, weights: Weights, entries: int) -> tuple[dict[str, float], str]:
    """Count the bytes of the weights in each form; say also why some are not packed."""
    rest = original.ByteSize() - sum(array.nbytes for array in weights.values())
    dense = patch(original, weights, "dense").model.SerializeToString()
    empty = patch(
        original, {key: np.zeros_like(array) for key, array in weights.items()}, "dense"
    ).model
    # Zeros take a thousandth under gzip: what is left is gzip of everything else.
    gzip = len(zlib.compress(dense, 6)) - len(zlib.compress(empty.SerializeToString(), 6))
    found: dict[str, float] = {"gzip": gzip}
    found["sparse"] = patch(original, weights, "auto").model.ByteSize() - rest
    reasons: set[str] = set()
    for values in VALUES:
        storage = {key: storage_of(array, values) for key, array in weights.items()}
        stored = {key: rounded(array, storage[key]) for key, array in weights.items()}
        form: Form = "packed"
        patched = patch(original, stored, form, storage, freeze=True)
        scales = sum(s.scales.nbytes for s in storage.values() if isinstance(s, Scaled))
        found[f"packed {values}"] = patched.model.ByteSize() - rest - scales
        reasons.update(reason for reason in patched.reasons.values() if "smaller" not in reason)
    kept = sum(int((array != 0).sum()) for array in weights.values())
    share = kept / entries
    places = -sum(p * log2(p) for p in (share, 1 - share) if p) * entries / 8
    return {
        **found,
        "bound fp32": places + 4 * kept,
        "bound int8": places + kept,
    }, "; ".join(sorted(reasons))


def storage_of(array: np.ndarray, values: str) -> Storage:
    """Choose a plain storage of a weight: one scale, or the quantiles of its values."""
    if values == "fp32" or not array.any():
        return Plain()
    if values == "fp16":
        return Half()
    if values == "int8":
        return Scaled(np.array(np.abs(array).max() / 127, np.float32))
    book = np.quantile(array[array != 0], (np.arange(PALETTE - 1) + 0.5) / (PALETTE - 1))
    return Palette(np.unique(book.astype(np.float32)))


def _raced(models: Mapping[str, ModelProto]) -> tuple[str, bool]:
    """Run packed models beside dense ones with the same values, in turns."""
    zoo: Any = load_zoo()  # there is one where there are models
    rows, met = [], True
    for name, original in models.items():
        weights = {
            weight.key: numpy_helper.to_array(weight.tensor)
            for weight in prunable(original)
            if weight.is_float
        }
        thin = pruned(weights, 0.9)
        forms: tuple[Form, ...] = ("dense", "packed")
        dense, packed = (Runner(patch(original, thin, form).model, threads=1) for form in forms)
        found = race(dense, packed, zoo.entry(name).inputs(4, "evaluation"), RACE_SECONDS)
        low, high = found.interval
        good = found.ratio <= MOST_LATENCY
        met = met and good
        rows.append([name, f"{found.ratio:.3f} ({low:.3f} to {high:.3f})", "yes" if good else "no"])
    return table(["model", "packed over dense", "met"], rows), met


def _created(side: int) -> tuple[str, bool]:
    """Create sessions of one layer, in fresh processes."""
    rows, met = [], True
    base = (1.0, 1.0)
    rng = np.random.default_rng(0)
    for way, density in (("dense", 0.1), ("gaps", 0.1), ("dense", 0.5), ("bitmask", 0.5)):
        drawn = rng.normal(size=(side, side)).astype(np.float32)
        array = np.where(rng.random((side, side)) < density, drawn, np.float32(0))
        for values in ("fp32",) if way == "dense" else ("fp32", "int8"):
            storage = storage_of(array, values)
            stored = rounded(array, storage)
            form: Form = "dense" if way == "dense" else "packed"
            patched = patch(_layer(side), {KEY: stored}, form, {KEY: storage})
            with TemporaryDirectory() as folder:
                path = Path(folder) / "layer.onnx"
                size = write(patched.model, path)
                found = _median([_measured(path) for _ in range(RUNS)])
            if way == "dense":
                base = found
            ratios = found[0] / base[0], found[1] / base[1]
            most = MOST_RATIOS.get(way, (1.0, 1.0))
            good = ratios[0] <= most[0] and ratios[1] <= most[1]
            met = met and good
            rows.append(
                [
                    patched.forms[KEY],
                    f"{density:g}",
                    f"{size / side**2:.3f}",
                    f"{found[0]:.2f}",
                    f"{ratios[0]:.2f}",
                    f"{found[1] / 1024:.0f}",
                    f"{ratios[1]:.2f}",
                    "yes" if good else "no",
                ]
            )
    head = ["form", "density", "bytes per weight", "s", "ratio", "MiB", "ratio", "met"]
    return table(head, rows), met


KEY = WeightKey((), "w")


def _layer(side: int) -> ModelProto:
    ends = [helper.make_tensor_value_info(name, 1, [1, side]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.zeros((side, side), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "layer", ends[:1], ends[1:], [weight])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def _measured(path: Path) -> tuple[float, float]:
    command = [sys.executable, "-c", MEASURE, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, kilobytes = json.loads(ran.stdout)
    return seconds, kilobytes


def _median(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    seconds, kilobytes = np.median(np.array(found), axis=0)
    return float(seconds), float(kilobytes)


if __name__ == "__main__":
    sys.exit(main())
