"""The claim: every form of every model of the zoo is sound, loads everywhere, and goes back.

    python benchmarks/forms.py [MODEL ...] [--python PATH ...] [--sparsity .5 .9] [--out FILE.md]

Weights are pruned by magnitude over each file and written dense, as sparse tensors wherever that is
legal, and packed with values as they are, as fp16, as int8 and as palettes. Of each file:

- the ONNX checker passes at the strongest level its form allows: with shape inference where the
  original passes that, but for sparse tensors, which shape inference does not read;
- onnxruntime loads it and answers a real input of the zoo with the same bits as the dense file with
  the same values; with this interpreter's onnxruntime and with those of PATH, such as the oldest
  version we declare (a fresh environment with onnxruntime==1.18.0 and numpy<2). A model whose
  weights a caller may set is packed with `freeze`: then onnxruntime folds more than in the dense
  file, and answers may differ by 1e-5 of the largest;
- `densify` gives the same bits back in every constant.

A model whose original a version does not load is named and left out there. Exits 1 where anything
fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from onnxpress_adapters.checker import check
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.read import read_model
from onnxpress_adapters.walk import constants, graphs
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.densify import densify
from onnxpress_exporters.values import rounded
from onnxpress_exporters.write import Form, Patched, patch, write
from packed import VALUES, pruned, storage_of
from tables import load_zoo, publish, table, where

SLACK = 1e-5

RUN = """
import json, sys
import numpy, onnxruntime
folder, names = sys.argv[1], sys.argv[2:]
feed = dict(numpy.load(folder + "/feed.npz"))
found = {"": onnxruntime.__version__}
for name in names:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = folder + "/" + name + ".onnx"
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        wanted = {entry.name for entry in session.get_inputs()}
        given = {key: value for key, value in feed.items() if key in wanted}
        answers = session.run(None, given)
        found[name] = [[str(a.dtype), list(a.shape), a.tobytes().hex()] for a in answers]
    except Exception as error:  # onnxruntime's errors have no common root, and none is to be missed
        found[name] = str(error).splitlines()[0][:160]
with open(folder + "/answers.json", "w") as file:
    json.dump(found, file)
"""
"""Loads and runs files in another interpreter, which has numpy and onnxruntime and no more."""


@dataclass(frozen=True)
class Written:
    """One file: what it is called, what it is, and the dense file with the same values."""

    name: str
    patched: Patched
    twin: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, check, load and densify every form, and print the table."""
    parser = argparse.ArgumentParser(description="Check every form of every model of the zoo.")
    parser.add_argument("models", nargs="*", help="names in the zoo; all by default")
    parser.add_argument("--python", nargs="*", default=[], help="other interpreters that load")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.9])
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    zoo = load_zoo()
    if zoo is None:
        return 1
    rows, complaints, versions = [], [], dict[str, None]()
    for entry in zoo.entries():
        if options.models and entry.name not in options.models:
            continue
        with TemporaryDirectory() as place:
            folder = Path(place)
            files = _files(entry, folder, options.sparsity)
            wrong = list(_unsound(entry, files))
            loaded = []
            for python in (sys.executable, *options.python):
                settable = _settable(onnx.load(entry.path))
                version, bad = _answers(python, folder, files, slack=SLACK if settable else 0.0)
                versions[version] = None
                loaded.append("original refused" if bad is None else f"{len(files) - len(bad)}")
                wrong += [f"onnxruntime {version}: {line}" for line in bad or ()]
        packed = sum(form.startswith("packed") for f in files for form in f.patched.forms.values())
        rows.append([entry.name, str(len(files)), *loaded, str(packed), str(len(wrong))])
        complaints += [f"- {entry.name}: {line}" for line in wrong]
        print(rows[-1], *complaints[-len(wrong) or len(complaints) :], file=sys.stderr, flush=True)
    head = ["model", "files", *(f"load in {v}" for v in versions), "packed weights", "wrong"]
    text = "\n\n".join(
        [
            where("onnx", "onnxruntime", "numpy"),
            table(head, rows),
            "\n".join(complaints) or "Nothing is wrong.",
        ]
    )
    publish(text, options.out)
    return 1 if complaints else 0


def _files(entry: Any, folder: Path, sparsities: Sequence[float]) -> list[Written]:
    """Write every form of a model, its original and an input."""
    original = read_model(entry.path)
    (folder / "original.onnx").write_bytes(Path(entry.path).read_bytes())
    np.savez(folder / "feed.npz", **entry.inputs(1, "evaluation")[0])
    weights = {
        weight.key: numpy_helper.to_array(weight.tensor)
        for weight in prunable(original)
        if weight.is_float and weight.elements
    }
    files = []
    for sparsity in sparsities if weights else ():
        thin = pruned(weights, sparsity)
        for values in VALUES:
            storage = {key: storage_of(array, values) for key, array in thin.items()}
            stored = {key: rounded(array, storage[key]) for key, array in thin.items()}
            twin = f"dense-{values}-{sparsity:g}"
            forms: tuple[Form, ...] = ("dense", "sparse") if values == "fp32" else ("dense",)
            for form in (*forms, "packed"):
                patched = patch(original, stored, form, storage, freeze=True)
                files.append(Written(f"{form}-{values}-{sparsity:g}", patched, twin))
                write(patched.model, folder / f"{files[-1].name}.onnx")
    return files


def _unsound(entry: Any, files: Sequence[Written]) -> Iterator[str]:
    """Say what the checker or `densify` finds wrong."""
    strict = _passes(onnx.load(entry.path))
    twins = {file.name: _values(file.patched.model) for file in files if file.name == file.twin}
    for file in files:
        model = file.patched.model
        if strict and not model.graph.sparse_initializer and not _passes(model):
            yield f"{file.name}: not sound with shape inference, which the original is"
        try:
            check(model)
        except onnx.checker.ValidationError as error:
            yield f"{file.name}: {str(error).splitlines()[0]}"
        if _values(densify(model)) != twins[file.twin]:
            yield f"{file.name}: densify gives other bits"


def _passes(model: ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def _values(made: ModelProto) -> Mapping[WeightKey, bytes]:
    return {
        WeightKey(path, name): numpy_helper.to_array(tensor).tobytes()
        for path, graph in graphs(made)
        for name, tensor in constants(graph)
    }


def _settable(model: ModelProto) -> bool:
    """Say whether a caller may set what the file has values for."""
    held = {tensor.name for tensor in model.graph.initializer}
    return model.ir_version > 3 and any(value.name in held for value in model.graph.input)


def _answers(
    python: str, folder: Path, files: Sequence[Written], slack: float
) -> tuple[str, list[str] | None]:
    """Load and run every file with an interpreter; say its version and what went wrong.

    None where it refuses the original as well. Answers are the same to ``slack`` of the largest.
    """
    names = ["original", *(file.name for file in files)]
    subprocess.run([python, "-c", RUN, str(folder), *names], check=True)
    found = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    if isinstance(found["original"], str):
        return found[""], None
    wrong = []
    for file in files:
        if isinstance(found[file.name], str):
            wrong.append(f"{file.name}: {found[file.name]}")
        elif (apart := _apart(found[file.name], found[file.twin])) > slack:
            wrong.append(
                f"{file.name}: answers otherwise than {file.twin}, {apart:.2g} of the largest"
            )
    return found[""], wrong


def _apart(answers: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Give the largest difference as a share of the largest answer; 0 where all bits agree."""
    most = 0.0
    for one, other in zip(answers, wanted, strict=True):
        if one == other:
            continue
        if one[:2] != other[:2]:
            return float("inf")
        a, b = (np.frombuffer(bytes.fromhex(each[2]), each[0]) for each in (one, other))
        most = max(most, float(np.abs(a - b).max() / np.abs(b).max()))
    return most


if __name__ == "__main__":
    sys.exit(main())
