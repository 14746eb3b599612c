"""The claim: the order in which neighbours are predicted to hurt agrees with the true one.

A neighbour of a network has one more zero. All of them are tried, d is measured for each, and the
ranks are compared (Spearman) with -w·g + w²·h: with the diagonal h that steps draw, with the exact
one, and without the linear term; and with magnitude. In three states: dense, pruned by magnitude
and not repaired, and repaired after it.

    python benchmarks/neighbours.py [--out benchmarks/neighbours.md]

One network is that of examples/; two come from the zoo, where it is there. Exits 1 where the drawn
diagonal reaches less than .98, but for the network that is there to show where no diagonal does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from onnx import ModelProto
from scipy.stats import spearmanr
from torch import Tensor

from onnxpress.cost import one_thread_spared
from onnxpress.curvature import gauss_newton, predicted_rise
from onnxpress.neighbours import exact_gauss_newton, rises
from onnxpress.objective import objective_of
from onnxpress.problem import Problem
from onnxpress.state import State
from onnxpress.steps.greedy import DRAWS
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress_adapters.extras import extras
from onnxpress_adapters.network import import_network
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import Dense, WeightKey
from tables import ROOT, load_zoo, publish, table, where

LEAST_AGREEMENT = 0.98
SAMPLES = 96
"""Inputs that make the brute force bearable; as many others choose."""

SPARSITY = 0.6
BENT = "acasxu_1_1"
"""Six small hidden layers over five inputs: one weight turns many units on or off."""

ZOO_NAMES = ("convnet_maxpool", BENT)
HEAD = (
    "model", "state", "d", "neighbours", "nearer", "drawn", "exact h", "first 1 %",
    "no linear term", "magnitude", "tried per second",
)  # fmt: skip
TEXT = f"""# The order of neighbours, predicted and true

Spearman's rank correlation between the true rise of d at every neighbour (one more zero, tried one
by one on {SAMPLES} inputs) and predictions of it. *Drawn* is -w·g + w²·h as steps compute it;
*first 1 %*, how much of the hundredth it would remove first truly belongs there. Pruned are
{SPARSITY:.0%} by magnitude; repaired is that network after a short repair. *Nearer*: neighbours
that are nearer to the original than the network itself.

`{BENT}` is here to show the limit: six layers of 50 units over five inputs, where setting one
weight to zero turns units on and off all the way down. The exact diagonal does no better than the
drawn one: it is the slope at the weight that differs from the mean slope on the way to zero.
"""

Values = Mapping[WeightKey, Tensor]


@dataclass(frozen=True, eq=False)
class Net:
    """A network, its inputs, and where it begins."""

    name: str
    problem: Problem
    state: State


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all neighbours and print the table."""
    parser = argparse.ArgumentParser(description="Compare predicted and true orders of removal.")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    rows, met = [], True
    with one_thread_spared():
        for net in nets():
            pruned = Magnitude(SPARSITY)(net.state, net.problem)
            repaired = Repair("lbfgs", work=2.0)(pruned, net.problem)
            for which, state in (
                ("dense", net.state),
                ("not repaired", pruned),
                ("repaired", repaired),
            ):
                cells, agreement = compared(net.problem, state)
                rows.append([net.name, which, *cells])
                met = met and (agreement >= LEAST_AGREEMENT or net.name == BENT)
    text = "\n".join([TEXT, where("torch", "scipy"), "", table(HEAD, rows)])
    publish(text, options.out)
    return 0 if met else 1


def nets() -> Iterator[Net]:
    """Give the networks, one after the other."""
    images = np.load(ROOT / "examples" / "digits_train.npz")["image"][:, None]
    yield net("digits_fc", read_model(ROOT / "examples" / "digits_fc.onnx"), [images])
    zoo = load_zoo()
    for name in ZOO_NAMES if zoo is not None else ():
        entry = zoo.entry(name)  # type: ignore[union-attr]  # there is a zoo where there are names
        feeds = entry.inputs(2 * SAMPLES, "calibration")
        yield net(name, read_model(entry.path), [np.stack(list(x)) for x in _columns(feeds)])


def _columns(feeds: Sequence[Mapping[str, np.ndarray]]) -> list[list[np.ndarray]]:
    return [[feed[name] for feed in feeds] for name in feeds[0]]


def net(name: str, model: ModelProto, inputs: Sequence[np.ndarray]) -> Net:
    """Lay out a problem.

    Args:
        name: for the table.
        model: any whose outputs are all floating-point.
        inputs: ``[samples, *feed shape]`` each, twice ``SAMPLES`` of them or more.
    """
    network, reference = import_network(model)
    fit = [torch.from_numpy(value[:SAMPLES]) for value in inputs]
    choose = [torch.from_numpy(value[SAMPLES : 2 * SAMPLES]) for value in inputs]
    problem = Problem(
        network=network.proven(reference, fit),
        reference=reference,
        fit=fit,
        choose=choose,
        judged=tuple(range(len(network.outputs))),
        tolerance=None,
        device=torch.device("cpu"),
        seed=0,
    )
    weights = {w.key: Dense(reference[w.key], reference[w.key] != 0) for w in prunable(model)}
    moving = {place: reference[place] for place in extras(model)}
    return Net(name, problem, State(weights, moving, frozenset(weights)))


def compared(problem: Problem, state: State) -> tuple[list[str], float]:
    """Give the cells of a row, and the correlation that must hold."""
    objective, free, tensors = objective_of(problem), sorted(state.free), state.tensors
    start = perf_counter()
    found = rises(objective, tensors, free)
    seconds = perf_counter() - start
    level, gradient = objective.gradient(tensors, free)
    drawn = gauss_newton(objective, tensors, free, DRAWS, problem.generator("benchmark"))
    exact = exact_gauss_newton(objective, tensors, free)
    still = {key: torch.zeros_like(value) for key, value in gradient.items()}

    def kept(values: Values) -> np.ndarray:
        return torch.cat([values[k][state.weights[k].support].double() for k in free]).numpy()

    def predicted(slopes: Values, curvature: Values) -> np.ndarray:
        return kept({k: predicted_rise(tensors[k], slopes[k], curvature[k]) for k in free})

    truth, ours = kept(found), predicted(gradient, drawn)
    orders = (
        ours,
        predicted(gradient, exact),
        predicted(still, exact),
        kept({k: tensors[k].abs() for k in free}),
    )
    numbers = [float(spearmanr(order, truth).statistic) for order in orders]
    first = max(1, len(truth) // 100)
    last = np.partition(truth, first - 1)[first - 1]
    same = np.mean(truth[np.argsort(ours)[:first]] <= last)  # ties are equally good
    shown = [f"{number:.4f}" for number in numbers]
    cells = [
        *(f"{level:.3g}", f"{len(truth):,}", f"{np.mean(truth < 0):.0%}"),
        *(shown[0], shown[1], f"{same:.2f}", shown[2], shown[3]),
        f"{len(truth) / seconds:,.0f}",
    ]
    return cells, numbers[0]


if __name__ == "__main__":
    sys.exit(main())
