"""The claim: large models go through reading, writing and densify in a few copies of their weights.

A chain of square layers is generated with its weights in a data file. Each step runs in a fresh
process, which says how much memory it took at most (VmHWM). Beyond what its imports took that is
no more than three copies of all weights and three of the largest one. 3.2 GB, more than protobuf
can write:

    python benchmarks/large.py [--side 5000] [--layers 1] [--forms dense sparse packed] [--out FILE]
    python benchmarks/large.py --side 16384 --layers 3 --forms dense sparse
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxpress.inspection import inspect_model
from onnxpress.sizes import file_bytes
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.compare import Runner
from onnxpress_exporters.external_data import room
from onnxpress_exporters.write import Form, patch, write
from tables import publish, table, where

KEPT = 0.1
MOST_COPIES = 3
"""How often a step may hold all weights, and the largest of them once more each time."""

ORIGINAL, DATA = "original.onnx", "original.data"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, print the table; 1 where one takes more than it should or a file is wrong."""
    parser = argparse.ArgumentParser(description="Read, write and load a large model.")
    parser.add_argument("--side", type=int, default=5000, help="of the square weights")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--forms", nargs="+", default=["dense", "sparse", "packed"])
    parser.add_argument("--folder", type=Path, help="where to put the models meanwhile")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    if options.step:
        print(json.dumps(_measured(Path(options.step[0]), options.step[1])))
        return 0
    weights_bytes = 4 * options.layers * options.side**2
    with TemporaryDirectory(dir=options.folder) as folder:
        generate(Path(folder), options.side, options.layers)
        steps = ["inspect", "load original"]
        for form in options.forms:
            steps += [f"press {form}", f"load {form}", f"densify {form}", f"compare {form}"]
        rows, met = [], True
        for step in steps:
            seconds, before, peak, note = _in_fresh_process(Path(folder), step)
            copies = (peak - before) / weights_bytes
            good = copies <= MOST_COPIES * (1 + 1 / options.layers) and note != "differs"
            met = met and good
            rows.append(
                [
                    step,
                    f"{seconds:.1f}",
                    f"{peak / 2**20:,.0f}",
                    f"{copies:.2f}",
                    note,
                    "yes" if good else "no",
                ]
            )
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    head = ["step", "s", "peak MiB", "copies of the weights", "", "met"]
    about = f"{options.layers} x {options.side}^2 float32, {weights_bytes:,} bytes of weights."
    told = [where("onnx", "onnxruntime", "numpy"), about, table(head, rows)]
    publish("\n\n".join(told), options.out)
    return 0 if met else 1


def generate(folder: Path, side: int, layers: int) -> None:
    """Write a chain of layers whose weights lie in a data file, a few rows at a time."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph([], "chain", [_value("x0", side)], [_value(f"x{layers}", side)])
    with (folder / DATA).open("xb") as file:
        for layer in range(layers):
            graph.node.append(
                helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"x{layer + 1}"])
            )
            tensor = graph.initializer.add(
                name=f"w{layer}",
                dims=[side, side],
                data_type=TensorProto.FLOAT,
                data_location=TensorProto.EXTERNAL,
            )
            places = {"location": DATA, "offset": file.tell(), "length": 4 * side * side}
            for key, place in places.items():
                tensor.external_data.add(key=key, value=str(place))
            for _ in range(side):
                row = rng.standard_normal(side, np.float32) / np.float32(np.sqrt(side))
                file.write(row.tobytes())
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / ORIGINAL).write_bytes(made.SerializeToString())


def _value(name: str, side: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side])


def _in_fresh_process(folder: Path, step: str) -> tuple[float, int, int, str]:
    words = [sys.executable, __file__, "--step", str(folder), step]
    ran = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    seconds, before, peak, note = json.loads(ran.stdout.splitlines()[-1])
    return float(seconds), int(before), int(peak), str(note)


def _measured(folder: Path, step: str) -> tuple[float, int, int, str]:
    """Run a step; give seconds, bytes held before and at most, and what there is to say."""
    what, _, which = step.partition(" ")
    before = _held("VmRSS")
    start = monotonic()
    note = STEPS[what](folder, which)
    return monotonic() - start, before, _held("VmHWM"), note


def _held(word: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))


def _inspect(folder: Path, _: str) -> str:
    found = inspect_model(folder / ORIGINAL)
    return f"{sum(row.elements for row in found.weights):,} prunable"


def _press(folder: Path, which: str) -> str:
    form: Form = "sparse" if which == "sparse" else "packed" if which == "packed" else "dense"
    model = read_model(folder / ORIGINAL)
    patched = patch(model, _thinned(model), form)
    path = folder / f"{which}.onnx"
    size = write(patched.model, path, room(folder / ORIGINAL))
    return f"{size:,} bytes; {', '.join(sorted(set(patched.forms.values())))}"


def _thinned(model: ModelProto) -> dict[WeightKey, np.ndarray]:
    """Keep about a tenth of every weight."""
    found = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        least = np.quantile(np.abs(array.reshape(-1)[: 1 << 20]), 1 - KEPT)
        for row in array:
            row[np.abs(row) < least] = 0
        found[WeightKey((), tensor.name)] = array
    return found


def _load(folder: Path, which: str) -> str:
    runner = Runner(folder / f"{which}.onnx", threads=1)
    (name,) = runner.inputs
    (answer,) = runner.run({name: _feed(runner)})
    np.save(folder / f"{which}.npy", answer)
    return ""


def _feed(runner: Runner) -> np.ndarray:
    side = next(iter(runner.inputs.values()))[1]
    return np.random.default_rng(1).standard_normal((1, side or 1), np.float32)


def _densify(folder: Path, which: str) -> str:
    original = folder / f"{which}.onnx"
    size = write(read_model(original), folder / f"{which}.plain.onnx", room(original))
    return f"{size:,} bytes"


def _compare(folder: Path, which: str) -> str:
    """Run the densified file: the same bits as the pressed one, or not."""
    _load(folder, f"{which}.plain")
    same = np.array_equal(np.load(folder / f"{which}.npy"), np.load(folder / f"{which}.plain.npy"))
    plain = folder / f"{which}.plain.onnx"
    note = f"the same bits as {which}; {file_bytes(plain):,} bytes" if same else "differs"
    for path in folder.glob(f"{which}.*"):
        path.unlink()  # disks are finite too
    return note


STEPS: dict[str, Callable[[Path, str], str]] = {
    "inspect": _inspect,
    "press": _press,
    "load": _load,
    "densify": _densify,
    "compare": _compare,
}


if __name__ == "__main__":
    sys.exit(main())
