"""The claim: a network runs at most 1.5 times as long as the same one in eager torch.

And its peak memory is at most 1.2 times as large: on a ResNet-18 and on six blocks of BERT, with
and without the gradient of all weights.

    python benchmarks/speed.py [--rounds 15] [--out benchmarks/speed.md]

Both answer alike before anything is timed. Times are medians of interleaved runs in one process on
one thread. Memory is counted by torch's own allocator, weights not included, so it is exact. Exits
1 where the claim is not met.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from onnxpress_adapters.network import import_network
from speed_models import MODELS, TURNED, Pair
from tables import publish, table, where

MOST_TIME = 1.5
MOST_MEMORY = 1.2
HEAD = (
    "model", "batch", "pass", "ms eager", "ms ours", "time ratio",
    "MB eager", "MB ours", "memory ratio", "met",
)  # fmt: skip
PASSES = ("forward", "forward and backward")
SIDES = ("eager", "ours")

Work = Callable[[], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Time and measure every model and print the table."""
    parser = argparse.ArgumentParser(description="Compare our networks with eager torch.")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each side")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, met = [], True
    for name, make in MODELS.items():
        pair = make()
        _check(name, pair)
        for which in PASSES:
            works = {side: _work(pair, which, side) for side in SIDES}
            times = _times(works, options.rounds)
            peaks = {side: _peak_bytes(work) for side, work in works.items()}
            time_ratio = times["ours"] / times["eager"]
            memory_ratio = peaks["ours"] / peaks["eager"]
            good = time_ratio <= MOST_TIME and memory_ratio <= MOST_MEMORY
            met = met and good
            rows.append(
                [
                    name,
                    str(len(pair.x)),
                    which,
                    *(f"{1000 * times[side]:.1f}" for side in SIDES),
                    f"{time_ratio:.2f}",
                    *(f"{peaks[side] / 1e6:.0f}" for side in SIDES),
                    f"{memory_ratio:.2f}",
                    "yes" if good else "no",
                ]
            )
    asked = f"Asked: at most {MOST_TIME} times the time and {MOST_MEMORY} times the memory."
    publish("\n\n".join([where("torch", "onnx"), table(HEAD, rows), asked]), options.out)
    return 0 if met else 1


def _check(name: str, pair: Pair) -> None:
    """Refuse to time two networks that are not the same."""
    network, weights = import_network(pair.model)
    with torch.no_grad():
        (ours,) = network(weights, pair.x)
        theirs = pair.module(pair.x)
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    if error > 1e-4:
        raise SystemExit(f"{name}: the two networks differ by {error:.1e}")


def _work(pair: Pair, which: str, side: str) -> Work:
    """Give one run of one side."""
    gradient = which != "forward"
    x = pair.x
    if side == "eager":
        module = pair.module
        leaves: list[Tensor] = list(module.parameters())

        def answer() -> Tensor:
            return module(x)  # type: ignore[no-any-return]
    else:
        network, weights = import_network(pair.model)
        # The graph's scalars and statistics are constants; those of the module are no parameters.
        trained = {name for name, _ in pair.module.named_parameters()}
        leaves = [v for k, v in weights.items() if k.name.removesuffix(TURNED) in trained]
        for leaf in leaves:
            leaf.requires_grad_(gradient)

        def answer() -> Tensor:
            return network(weights, x)[0]

    def run() -> None:
        with torch.set_grad_enabled(gradient):
            output = answer()
            if gradient:
                torch.autograd.grad(output.square().sum(), leaves)

    return run


def _times(works: dict[str, Work], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {side: [] for side in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for side, work in works.items():
            start = perf_counter()
            work()
            seconds[side].append(perf_counter() - start)
    return {side: median(found) for side, found in seconds.items()}


def _peak_bytes(work: Work) -> int:
    """Give how many bytes torch holds at the most crowded moment of a run, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


if __name__ == "__main__":
    sys.exit(main())
