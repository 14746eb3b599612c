"""The claim: gates close four fifths of LeNet-300-100, for half a point of accuracy at most.

    python benchmarks/l0.py [--seeds 5] [--out benchmarks/l0.md]
    python benchmarks/l0.py --zoo mnist_fc_256x4,cifar_resnet_2b [--out benchmarks/l0_zoo.md]

Five times LeNet-300-100 is trained on 4,000 of the zoo's 5,000 labelled MNIST images and written as
ONNX; the step `L0` presses it with the same images (3,000 to fit, 1,000 to choose), and onnxruntime
reads the other 1,000 with both files. Beside it, what the closed form of the expected L0 norm and
100,000 samples of the gates say of the same locations. Exits 1 where a line is not met.

With --zoo: published networks, pressed with nothing but inputs, by L0, by magnitude and by Greedy,
which have as much work for their repair as L0 has in all. Needs ../shared/zoo.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array
from torch import Tensor, nn

from onnxpress.gates import HardConcrete
from onnxpress.job import Job
from onnxpress.press import compress
from onnxpress.step import Chain
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.l0 import L0
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from tables import ZOO, load_zoo, publish, table, where
from zoo_measures import save_calibration

IMAGES = "mnist_t10k_0_4999.npz"
TRAIN, FIT, TEST = 4000, 3000, 1000
SIZES = (784, 300, 100, 10)
EPOCHS, BATCH, RATE = 20, 100, 1e-3
SAMPLES = 100_000

LEAST_SPARSITY = 0.8
MOST_LOST = 0.5
MOST_APART = 0.01

WORK, SETTLE = 10.0, 4.0
"""Units of work for the gates and for the repair: half of what ``L0`` takes by itself."""

SETTLED = Repair(method="adam", work=SETTLE, rate=0.02)

WAYS: Mapping[str, L0] = {
    "cross-entropy, 80 %": L0(0.8, objective="cross-entropy", work=WORK, settle=SETTLED),
    "cross-entropy, 95 %": L0(0.95, objective="cross-entropy", work=WORK, settle=SETTLED),
    "distance, 80 %": L0(0.8, work=WORK, settle=SETTLED),
}
CLAIMED = "cross-entropy, 80 %"

ZOO_SPARSITIES = (0.8, 0.9)
EVALUATED = 512


@dataclass(frozen=True)
class Trained:
    """A dense network as a file, and the images it was trained on and is tested with."""

    model: Path
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="L0 on LeNet-300-100, or on zoo models.")
    parser.add_argument("--seeds", type=int, default=5, help="how many networks are trained")
    parser.add_argument("--zoo", help="names of zoo models, separated by commas, instead")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    zoo = load_zoo()
    if zoo is None:
        return 0
    if options.zoo:
        publish(zoo_page(zoo_rows(zoo, options.zoo.split(","))), options.out)
        return 0
    text, met = lenet_page(options.seeds)
    publish(text, options.out)
    return 0 if met else 1


def lenet_page(seeds: int) -> tuple[str, bool]:
    """Lay out what was found on LeNet-300-100, and whether the claim holds."""
    rows, sparsities = [], []
    for seed in range(seeds):
        with TemporaryDirectory() as folder:
            found, sparsity = lenet(seed, Path(folder))
        rows.append(found)
        sparsities.append(sparsity)
        print(seed, *found, file=sys.stderr, flush=True)
    mean = np.mean(rows, 0)
    lost = 100 * (mean[0] - mean[1 + list(WAYS).index(CLAIMED)])
    least = min(sparsities)
    apart = samples_apart()
    claims = [
        ["weights gated off, the fewest", f"{LEAST_SPARSITY:.0%} or more", f"{least:.2%}"],
        ["accuracy lost, mean", f"{MOST_LOST} points or less", f"{lost:+.2f} points"],
        [
            f"expected L0 against {SAMPLES:,} samples of 25 gates",
            f"{MOST_APART:.0%} or less",
            f"{apart:.3%}",
        ],
    ]
    met = [least >= LEAST_SPARSITY, lost <= MOST_LOST, apart <= MOST_APART]
    pieces = [
        "# L0 by hard-concrete gates on LeNet-300-100",
        where("torch", "onnxruntime", "numpy"),
        f"{TRAIN:,} of the zoo's 5,000 labelled MNIST images to train ({FIT:,} of them to fit when "
        f"pressing, the rest to choose), {TEST:,} to test; accuracy of the files in onnxruntime. "
        f"{WORK:g} + {SETTLE:g} units of work a network. Trained on so few images, the dense "
        "network overfits: what gates take away does not always cost accuracy.",
        table(
            ("seed", "dense", *WAYS),
            [
                *([str(seed), *(f"{value:.1%}" for value in row)] for seed, row in enumerate(rows)),
                ["mean", *(f"{value:.2%}" for value in mean)],
            ],
        ),
        f"The claim is about `{CLAIMED}`:",
        table(
            ("what", "asked", "measured", "met"),
            [[*row, "yes" if good else "no"] for row, good in zip(claims, met, strict=True)],
        ),
    ]
    return "\n\n".join(pieces), all(met)


def lenet(seed: int, folder: Path) -> tuple[list[float], float]:
    """Train and press one network: its accuracies, dense first, and the sparsity of the claim."""
    trained = train(seed, folder)
    np.savez(folder / "train.npz", x=trained.train[0])
    np.savez(folder / "test.npz", x=trained.test[0])
    np.save(folder / "labels.npy", trained.train[1])
    right = [accuracy(trained.model, trained.test)]
    sparsity = 0.0
    for name, step in WAYS.items():
        out = folder / "out.onnx"
        report = compress(
            Job(
                trained.model,
                out,
                data=folder / "train.npz",
                labels=folder / "labels.npy" if step.objective != "distance" else None,
                judge=folder / "test.npz",
                recipe=Chain((step,)),
                seed=seed,
            )
        )
        right.append(accuracy(out, trained.test))
        sparsity = report.sparsity if name == CLAIMED else sparsity
    return right, sparsity


def train(seed: int, folder: Path) -> Trained:
    """Train the dense network in torch and write it as ONNX."""
    with np.load(ZOO / "data" / IMAGES) as data:
        order = np.random.default_rng(seed).permutation(len(data["x"]))
        images = (data["x"][order].reshape(-1, SIZES[0]) / 255).astype(np.float32)
        labels = data["y"][order].astype(np.int64)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(SIZES):
        layers += [nn.Linear(before, after), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    fit(network, torch.from_numpy(images[:TRAIN]), torch.from_numpy(labels[:TRAIN]))
    write(network, folder / "dense.onnx")
    test = slice(TRAIN, TRAIN + TEST)
    return Trained(
        folder / "dense.onnx", (images[:TRAIN], labels[:TRAIN]), (images[test], labels[test])
    )


def fit(network: nn.Sequential, images: Tensor, labels: Tensor) -> None:
    """Train by Adam along a cosine."""
    adam = torch.optim.Adam(network.parameters(), lr=RATE)
    for epoch in range(EPOCHS):
        adam.param_groups[0]["lr"] = RATE * 0.5 * (1 + cos(pi * epoch / EPOCHS))
        for batch in torch.randperm(len(images)).split(BATCH):
            adam.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            adam.step()


def write(network: nn.Sequential, path: Path) -> None:
    """Build the graph by hand."""
    nodes, tensors, value = [], [], "x"
    for place, layer in enumerate(network):
        after = "y" if place == len(network) - 1 else f"h{place}"
        if isinstance(layer, nn.Linear):
            given = [value, f"w{place}", f"b{place}"]
            parameters = (layer.weight, layer.bias)
            for name, parameter in zip(given[1:], parameters, strict=True):
                tensors.append(from_array(parameter.detach().numpy(), name))
            nodes.append(helper.make_node("Gemm", given, [after], name=f"fc{place}", transB=1))
        else:
            nodes.append(helper.make_node("Relu", [value], [after], name=f"relu{place}"))
        value = after
    specs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("x", SIZES[0]), ("y", SIZES[-1]))
    ]
    graph = helper.make_graph(nodes, "lenet", specs[:1], specs[1:], tensors)
    opset = helper.make_opsetid("", 17)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path)


def accuracy(model: Path, test: tuple[np.ndarray, np.ndarray]) -> float:
    """Say what share of the images onnxruntime reads right with a file."""
    zoo: Any = load_zoo()
    (scores,) = zoo.make_run(model)({"x": test[0]})
    return float((scores.argmax(1) == test[1]).mean())


def samples_apart() -> float:
    """Say by what share the expected L0 norm differs from the mean over samples."""
    gates, locations = HardConcrete(), torch.linspace(-6.0, 6.0, 25)
    generator = torch.Generator().manual_seed(0)
    noise = gates.noise(torch.Size((SAMPLES, len(locations))), generator)
    counted = float((gates.sample(locations, noise) != 0).double().sum(1).mean())
    return abs(counted / float(gates.chance(locations).double().sum()) - 1)


def zoo_rows(zoo: ModuleType, names: Sequence[str]) -> list[list[str]]:
    """Press zoo models in every way."""
    rows = []
    for name in names:
        for sparsity in ZOO_SPARSITIES:
            for way, chain in zoo_ways(sparsity).items():
                rows.append([name, f"{sparsity:.0%}", way, *pressed(zoo, name, chain)])
                print("\t".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


def zoo_page(rows: Sequence[Sequence[str]]) -> str:
    """Lay out what was found on zoo models."""
    distances = {tuple(row[:3]): float(row[3]) for row in rows}
    cells = sorted({key[:2] for key in distances})
    magnitude, ours, greedy = (
        [distances[*cell, way] for cell in cells] for way in zoo_ways(ZOO_SPARSITIES[0])
    )
    closer = sum(a < b for a, b in zip(ours, magnitude, strict=True))
    closest = sum(a < b for a, b in zip(ours, greedy, strict=True))
    pieces = [
        "# L0 beside magnitude and Greedy on published networks",
        where("torch", "onnxruntime", "numpy"),
        "No labels: every step minimises the distance to the original, on the zoo's calibration "
        f"inputs. The distance is `zoo.distances` of the written file on {EVALUATED} evaluation "
        "inputs, a share of the outputs' variance; the score is the zoo's. L0 spends "
        f"{WORK:g} units of work on gates and {SETTLE:g} on the repair; magnitude and Greedy have "
        "all of them for the repair, and Greedy its own work besides. The seconds are those of a "
        "machine with other work to do.",
        table(("model", "zeros", "way", "distance", "score", "seconds"), rows),
        f"L0 is closer to the original than magnitude in {closer} of {len(cells)} cases, and "
        f"closer than Greedy in {closest}: to learn by sampling which gates to close takes more "
        "steps than a press has, and curvature says it at once. It is the step for labels and for "
        "penalties.",
    ]
    return "\n\n".join(pieces)


def zoo_ways(sparsity: float) -> Mapping[str, Chain]:
    """Give the chains that are compared."""
    repair = Repair(method="adam", work=WORK + SETTLE)
    return {
        "magnitude, repair": Chain((Magnitude(sparsity, scope="global"), repair)),
        "L0": Chain((L0(sparsity, work=WORK, settle=SETTLED),)),
        "Greedy, repair": Chain((Greedy(sparsity), repair)),
    }


def pressed(zoo: ModuleType, name: str, chain: Chain) -> list[str]:
    """Press one model by a chain and measure the file from outside."""
    entry = zoo.entry(name)
    with TemporaryDirectory() as folder:
        data, out = Path(folder) / "data.npz", Path(folder) / "out.onnx"
        save_calibration(entry, data)
        start = monotonic()
        compress(Job(entry.path, out, data=data, recipe=chain))
        seconds = monotonic() - start
        run = zoo.make_run(out)
        found = zoo.distances(entry.session(), run, entry.inputs(EVALUATED, "evaluation"))
        score = entry.score(run)
    return [f"{found['relative']:.4f}", "-" if score is None else f"{score:.3f}", f"{seconds:.0f}"]


if __name__ == "__main__":
    sys.exit(main())
