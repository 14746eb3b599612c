"""Can iterative hard thresholding find sparse networks as good as dense ones? The IRIS study.

    python examples/iris_iht.py [--runs 1000] [--levels 5,8,12] [--converge] [--plot iris.png]

A linear softmax network on Fisher's irises has 15 parameters. For s = 1 to 14 nonzeros, 1,000 runs
each, and 1,000 dense ones: θ ← H_s(θ - γ∇f(θ)) with γ = 1 / L̂_2s, until the training loss is .05 or
10,000 steps are done. A run has three seeds: of the split (120 flowers to train on, standardised,
and 30 to test with), of the first values, and of the first support. All runs of a level advance as
one batch, from which finished ones drop out.

With ``--converge`` no loss ends a run: it goes on until inequality 8 holds and no slope on the
support is left (max|g_S| ≤ 1e-5). Runs that are not there after 10,000 steps are finished by
Newton's method on their support and must then stay where they are under hard thresholding.

Source: seeds/learning_sparse_network_iht.txt, section IV. Needs scikit-learn for the flowers, and
matplotlib for ``--plot`` (``pip install onnxpress[examples]``).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import comb, inf
from pathlib import Path
from time import process_time

import torch
from torch import Tensor

from iris_softmax import PARAMETERS, Softmax, has_a_minimum, polished, seeded
from onnxpress.certificate import SLOPE, parts
from onnxpress.smoothness import SIMULATIONS, sampled_smoothness, threshold
from onnxpress.support import keep_largest_each

LEVELS = tuple(range(1, PARAMETERS + 1))
WIDTH = 0.5
"""Uniform first values lie below this: 1 / √4, as a linear layer of torch with 4 inputs begins."""

CROWD = 0.85
"""Finished runs leave the batch once fewer than this share of it goes on."""

CLEARLY = 0.9
"""Share of the slope that counts as none at which a run ends: float32 is a little off."""

FINISHES, MORE_STEPS = 20, 500
"""Where the end Newton found is not one H_s would keep: so many more steps, so many times."""


@dataclass(frozen=True)
class Study:
    """What is run.

    Attributes:
        runs: of every level.
        steps: at most.
        stop: training loss at which a run ends; -1 to run to convergence.
        normal: first values from the standard normal distribution and not the uniform one.
        simulations: pairs behind L̂_2s.
        seed: of all seeds.
    """

    runs: int = 1000
    steps: int = 10_000
    stop: float = 0.05
    normal: bool = False
    simulations: int = SIMULATIONS
    seed: int = 0

    def seeds(self, purpose: int) -> list[int]:
        """Draw one seed for each run."""
        drawn = seeded(self.seed * 1_000_003 + purpose)
        return [int(seed) for seed in torch.randint(2**31, (self.runs,), generator=drawn)]

    def values(self, generator: torch.Generator, runs: int) -> Tensor:
        """Draw first values ``[runs, 15]``."""
        if self.normal:
            return torch.randn(runs, PARAMETERS, generator=generator)
        return WIDTH * (2 * torch.rand(runs, PARAMETERS, generator=generator) - 1)


@dataclass(frozen=True, eq=False)
class Level:
    """The ends of all runs with so many nonzeros; each tensor ``[runs]``.

    Attributes:
        count: s; 15 is the dense network.
        rate: γ.
        steps: of hard thresholding.
        train, test: the losses.
        train_right, test_right: the shares of flowers named right.
        least, pull: the two sides of inequality 8.
        slope: max|g_S|.
        alone: max|g_S| when the steps of hard thresholding ended.
        moved: entries of the last support that were not in the first.
        attained: whether the training loss has a smallest value on the support; all true where
            runs end at a loss.
        seconds: of processor time for all of it.
    """

    count: int
    rate: Tensor
    steps: Tensor
    train: Tensor
    test: Tensor
    train_right: Tensor
    test_right: Tensor
    least: Tensor
    pull: Tensor
    slope: Tensor
    alone: Tensor
    moved: Tensor
    attained: Tensor
    seconds: float

    @property
    def holds(self) -> Tensor:
        """Whether inequality 8 does."""
        return self.least >= self.pull

    def reached(self, loss: float) -> float:
        """Give the share of runs that ended at a training loss, or below."""
        return share(self.train <= loss)


def share(which: Tensor) -> float:
    """Give the share that is true; 1 of none."""
    return float(which.double().mean()) if which.numel() else 1.0


def level(study: Study, count: int) -> Level:
    """Run all runs of one level."""
    began = process_time()
    exact = Softmax.of(study.seeds(1))
    quick = exact.to(torch.float32)
    keep = partial(keep_largest_each, count=count)
    generator = seeded(study.seed * 1_000_003 + 100 + count)
    smoothness = sampled_smoothness(
        quick.gradient,
        partial(study.values, generator, study.runs),
        keep,
        generator,
        study.simulations,
    )
    rate = 1 / smoothness
    values = torch.cat([study.values(seeded(seed), 1) for seed in study.seeds(2)])
    order = torch.stack(
        [torch.rand(PARAMETERS, generator=seeded(seed)) for seed in study.seeds(200 + count)]
    )
    first = torch.where(keep(order), values, 0.0)
    points, steps = iterated(quick, first, rate, keep, study.steps, study.stop)
    last = points.double()
    alone = measured(exact, last, count)[2]
    attained = torch.ones(study.runs, dtype=torch.bool)
    if study.stop < 0:
        last, more = finished(exact, last, rate.double(), keep, count)
        steps = steps + more
        supports = enumerate(last != 0)
        attained = torch.tensor([has_a_minimum(exact, run, on) for run, on in supports])
    least, off, slope = measured(exact, last, count)
    test, train_right, test_right = exact.judged(last)
    return Level(
        count=count,
        rate=rate.double(),
        steps=steps,
        train=exact.descent(last)[0],
        test=test,
        train_right=train_right,
        test_right=test_right,
        least=least,
        pull=rate.double() * off,
        slope=slope,
        alone=alone,
        moved=((last != 0) & (first == 0)).sum(1),
        attained=attained,
        seconds=process_time() - began,
    )


def iterated(
    loss: Softmax,
    points: Tensor,
    rate: Tensor,
    keep: Callable[[Tensor], Tensor],
    steps: int,
    stop: float,
) -> tuple[Tensor, Tensor]:
    """Take steps of hard thresholding, every run with its own γ.

    Args:
        loss: of all runs.
        points: where they begin, ``[runs, 15]``.
        rate: γ ``[runs]``.
        keep: of H_s.
        steps: at most.
        stop: training loss at which a run ends; below 0, it ends HT-stable.

    Returns:
        Where they end, and how many steps each took.
    """
    ends, taken = points.clone(), torch.full((len(points),), steps)
    going, part, here, length = torch.arange(len(points)), loss, points, rate[:, None]
    out = torch.zeros(len(points), dtype=torch.bool)
    for step in range(steps + 1):
        value, gradient = part.descent(here)
        if stop >= 0:
            done = value <= stop
        else:
            least, off, on = parts(here, gradient, 0)
            done = (on <= CLEARLY * SLOPE) & (least >= length[:, 0] * off)
        fresh = done & ~out
        if bool(fresh.any()):
            ends[going[fresh]], taken[going[fresh]] = here[fresh], step
            out = out | fresh
        if step == steps or bool(out.all()):
            break
        if share(~out) <= CROWD:
            stay = (~out).nonzero()[:, 0]
            part, going = part.take(stay), going[stay]
            here, gradient, length = here[stay], gradient[stay], length[stay]
            out = torch.zeros(len(stay), dtype=torch.bool)
        here = threshold(here - length * gradient, keep)
    ends[going[~out]] = here[~out]
    return ends, taken


def finished(
    loss: Softmax, points: Tensor, rate: Tensor, keep: Callable[[Tensor], Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """Go on to where hard thresholding would stay: Newton on the support, more steps if need be.

    Returns:
        Where the runs end, and how many more steps of hard thresholding each took.
    """
    points, more = points.clone(), torch.zeros(len(points), dtype=torch.long)
    left = torch.arange(len(points))
    for _ in range(FINISHES):
        part = loss.take(left)
        points[left] = polished(part, points[left], SLOPE / 10)
        least, off, on = measured(part, points[left], count)
        left = left[(on > SLOPE) | (least < rate[left] * off)]
        if not len(left):
            break
        more[left] += MORE_STEPS
        moved, _ = iterated(loss.take(left), points[left], rate[left], keep, MORE_STEPS, stop=-1.0)
        points[left] = moved
    return points, more


def measured(loss: Softmax, points: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give the smallest kept entry, the largest slope off the support and the largest on it."""
    return parts(points, loss.gradient(points), count)


HEAD = (
    "s", "supports", "γ", "train loss", "test loss", "train right", "test right", "gap to dense",
    "gap ≤ .01", "at the loss", "steps", "moved in", "smallest kept", "γ max|g_off|", "(8) holds",
    "max|g_S|", "≤ 1e-5", "seconds",
)  # fmt: skip
LEGEND = (
    "γ and shares right: means; losses, gap, steps, kept, off and on the support: medians; moved "
    "in: entries of the last support that were not in the first; (8): smallest kept ≥ γ max|g_off|"
)


def row(found: Level, dense: Level | None, study: Study) -> list[str]:
    """Lay a level out."""
    gap = "-", "-"
    if dense is not None and found.count < PARAMETERS:
        apart = found.train - dense.train
        gap = f"{apart.median():.4f}", f"{share(apart <= 0.01):.1%}"
    return [
        str(found.count) if found.count < PARAMETERS else "dense",
        f"{comb(PARAMETERS, found.count):,}",
        f"{found.rate.mean():.3f}",
        f"{found.train.median():.4f}",
        f"{found.test.median():.4f}",
        f"{found.train_right.mean():.4f}",
        f"{found.test_right.mean():.4f}",
        *gap,
        f"{found.reached(study.stop):.1%}" if study.stop >= 0 else "-",
        f"{found.steps.median():,}",
        f"{found.moved.double().mean():.2f}",
        f"{found.least.median():.3f}",
        f"{found.pull.median():.4f}",
        f"{share(found.holds):.1%}",
        f"{found.slope.median():.0e}",
        f"{share(found.slope <= SLOPE):.1%}",
        f"{found.seconds:.0f}",
    ]


def lined(cells: Sequence[str]) -> str:
    return "  ".join(cell.rjust(len(name)) for cell, name in zip(cells, HEAD, strict=True))


def curves(done: Sequence[Level]) -> list[tuple[str, list[Tensor]]]:
    """Name what is plotted over s."""
    dense = next((one for one in done if one.count == PARAMETERS), None)
    kinds = [
        ("learning rate", [one.rate for one in done]),
        ("training loss", [one.train for one in done]),
        ("test loss", [one.test for one in done]),
        ("training accuracy", [one.train_right for one in done]),
        ("test accuracy", [one.test_right for one in done]),
        ("smallest kept / (γ max|g| off the support)", [one.least / one.pull for one in done]),
        ("max|g_S|", [one.slope for one in done]),
    ]
    if dense is not None:
        kinds.append(("gap to dense", [one.train - dense.train for one in done]))
    return kinds


def plotted(done: Sequence[Level], path: Path) -> None:
    """Draw medians, quartiles and means over s.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install onnxpress[examples]") from None
    figure = Figure(figsize=(16, 8), layout="constrained")
    for place, (name, values) in enumerate(curves(done), start=1):
        axes = figure.add_subplot(2, 4, place)
        shown = [value[value.isfinite()].double() for value in values]
        counts = [one.count for one, value in zip(done, shown, strict=True) if value.numel()]
        shown = [value for value in shown if value.numel()]
        middle = [float(value.median()) for value in shown]
        low = [float(value.quantile(0.25)) for value in shown]
        high = [float(value.quantile(0.75)) for value in shown]
        axes.fill_between(counts, low, high, alpha=0.3, label="middle half")
        axes.plot(counts, middle, marker="o", label="median")
        axes.plot(counts, [float(value.mean()) for value in shown], "--", label="mean")
        if "max" in name:
            axes.set_yscale("log")
        axes.set_title(name)
        axes.set_xlabel("nonzeros s")
    figure.axes[0].legend()
    figure.savefig(path, dpi=100)


def summary(done: Sequence[Level], study: Study) -> str:
    """Say in a line whether what was looked for was found."""
    runs = sum(len(one.rate) for one in done)
    least = min((share(one.holds) for one in done), default=1.0)
    enough = [float(one.test_right.mean()) for one in done if one.count >= 8]
    right = f"; mean test accuracy from s = 8 on at least {min(enough):.3f}" if enough else ""
    still = torch.cat([one.slope[one.attained] for one in done])
    end = f"training loss {study.stop:g} or {study.steps:,} steps"
    if study.stop < 0:
        end = "convergence"
        right += f"; no slope left in {share(still <= SLOPE):.1%} of those with a minimum"
    seconds = sum(one.seconds for one in done)
    return (
        f"{runs:,} runs to {end} in {seconds:.0f} s of one core: inequality 8 holds in at least "
        f"{least:.1%} of every level{right}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Iterative hard thresholding on the irises.")
    known = {field.name: field.default for field in fields(Study)}
    parser.add_argument("--runs", type=int, default=known["runs"], help="of every level")
    parser.add_argument("--levels", default="", help="such as 5,8,12,15; all unless given")
    parser.add_argument("--steps", type=int, default=known["steps"])
    parser.add_argument("--loss", type=float, default=known["stop"], help="where a run ends")
    parser.add_argument("--converge", action="store_true", help="run on, whatever the loss")
    parser.add_argument("--normal", action="store_true", help="standard normal first values")
    parser.add_argument("--simulations", type=int, default=known["simulations"])
    parser.add_argument("--seed", type=int, default=known["seed"])
    parser.add_argument("--plot", type=Path, help="write a picture here")
    options = parser.parse_args(arguments)
    counts = counted(parser, options.levels)
    if min(options.runs, options.steps, options.simulations) < 1 or not 0 <= options.loss < inf:
        parser.error("runs, steps and simulations begin at 1, and a loss at 0")
    study = Study(
        options.runs,
        options.steps,
        -1.0 if options.converge else options.loss,
        options.normal,
        options.simulations,
        options.seed,
    )
    print(LEGEND)
    print(lined(HEAD))
    done: list[Level] = []
    dense = level(study, PARAMETERS) if PARAMETERS in counts else None
    for count in (count for count in counts if count < PARAMETERS):
        found = level(study, count)
        done.append(found)
        print(lined(row(found, dense, study)), flush=True)
    if dense is not None:
        done.append(dense)
        print(lined(row(dense, dense, study)))
    if options.plot is not None:
        plotted(done, options.plot)
    print(summary(done, study))


def counted(parser: argparse.ArgumentParser, text: str) -> list[int]:
    """Read levels such as 5,8,12."""
    if not text:
        return list(LEVELS)
    given = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) in LEVELS for part in given):
        parser.error(f"levels are numbers from 1 to {PARAMETERS} (dense), such as 5,8,12: {text}")
    return sorted({int(part) for part in given})


if __name__ == "__main__":
    main()
