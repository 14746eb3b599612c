"""What does a GPU gain? Every GPU measurement of onnxpress in one call under 10 minutes.

    python benchmarks/gpu.py [--out benchmarks/gpu.md] [--carry FOLDER] [--self-check]

CPU and CUDA side by side, on models built here and on every pair NAME.onnx + NAME.npz in FOLDER:
a forward pass, a gradient, the layer Hessians, the removal costs of optimal brain surgery, Greedy
at 80 %, Repair, L0 at 80 %, and 30 steps of Iht in each of its ways. For each: seconds, the ratio,
the floor and how well the results agree.

The *floor* is the least time for the operations torch was asked for: each takes the longer of its
floating-point operations at the rate of a large matrix product and its bytes at the rate of a large
copy, both measured in the same run on the same device. Factorisations count by their bytes alone.

Without a CUDA device it says so and exits 0; ``--self-check`` then tries the harness on small
models, CPU against CPU. It needs torch, onnx and numpy: neither ../shared nor pydantic, scipy,
click or onnxruntime.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gpu_models import mlp, resnet, transformer
from onnxpress import obs
from onnxpress.exact import exact_macs, exact_rises
from onnxpress.layerwise import hessians_of
from onnxpress.objective import objective_of
from onnxpress.problem import Problem, Tolerance
from onnxpress.samples import load_data
from onnxpress.state import State
from onnxpress.step import Step
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.iht import Iht
from onnxpress.steps.l0 import L0
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress_adapters.extras import extras
from onnxpress_adapters.layers import Layer
from onnxpress_adapters.network import import_network
from onnxpress_adapters.prunable import prunable
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import Dense, WeightKey
from tables import publish, table, where

SPARSITY = 0.8
FIT, CHOOSE = 1024, 256
SURGERY_MACS = 2e11
"""Work of the removal costs that are measured: the cheapest layers up to this."""

NEIGHBOUR_MACS = 4e11
"""Work of the neighbours that are measured: of the cheapest weights up to this."""

ENOUGH_SECONDS = 450.0
"""After this time no measurement is begun: the call must end within 10 minutes."""

CPU = torch.device("cpu")
Shape = tuple[int, ...]
HEAD = (
    "model", "operation", "CPU s", "CUDA s", "CPU / CUDA", "floor s", "CUDA / floor",
    "d differs by", "values differ by",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """A model and inputs for it."""

    name: str
    model: ModelProto
    fit: Sequence[Tensor]
    choose: Sequence[Tensor]
    effort: float = 1.0


@dataclass(frozen=True, eq=False)
class Result:
    """What an operation computed: tensors to compare, and d where it has one."""

    values: Mapping[Any, Tensor]
    distance: float | None = None


Work = Callable[[], Result]


@dataclass(frozen=True, eq=False)
class Setting:
    """A case on a device."""

    case: Case
    problem: Problem
    state: State

    @classmethod
    def of(cls, case: Case, device: torch.device) -> Setting:
        """Lay out the problem as ``compress`` does; nothing is remembered from another one."""
        network, weights = import_network(case.model)
        reference = {key: value.to(device) for key, value in weights.items()}
        fit, choose = ([value.to(device) for value in part] for part in (case.fit, case.choose))
        places = enumerate(network.outputs)
        problem = Problem(
            network=network.proven(reference, [value[:64] for value in fit]),
            reference=reference,
            fit=fit,
            choose=choose,
            judged=tuple(place for place, spec in places if spec.kind == "float"),
            tolerance=Tolerance(0.01),
            device=device,
            seed=0,
            effort=case.effort,
        )
        keys = [weight.key for weight in prunable(case.model) if weight.key in reference]
        forms = {key: Dense(reference[key], reference[key] != 0) for key in keys}
        adapting = {key: reference[key] for key in extras(case.model) if key in reference}
        return cls(case, problem, State(forms, adapting, frozenset(forms)))


def forward(setting: Setting) -> Work:
    """Run the fit set through the network."""
    objective = objective_of(setting.problem)
    return lambda: Result(dict(enumerate(objective.reference(setting.problem.fit))))


def gradient(setting: Setting) -> Work:
    """Differentiate d on the fit set, at a pruned state where it is not zero."""
    objective = objective_of(setting.problem)
    pruned = Magnitude(SPARSITY)(setting.state, setting.problem)

    def work() -> Result:
        value, slopes = objective.gradient(pruned.tensors, sorted(pruned.free))
        return Result(slopes, value)

    return work


def hessians(setting: Setting) -> Work:
    """Average X Xᵀ for every layer."""
    objective = objective_of(setting.problem)
    return lambda: Result(hessians_of(objective, setting.state.free, {}))


def removal(setting: Setting) -> Work:
    """Order the entries of the cheapest layers as a surgeon would, given their Hessians."""
    found = hessians_of(objective_of(setting.problem), setting.state.free, {})
    layers = [layer for layer in setting.problem.network.layers if layer.key in found]
    chosen = list(affordable(layers, SURGERY_MACS * setting.case.effort))
    matrices = {x.key: x.matrix(setting.state.weights[x.key].values) for x in chosen}
    return lambda: Result({k: obs.removal_costs(w, found[k]) for k, w in matrices.items()})


def affordable(layers: Sequence[Layer], most: float) -> Iterator[Layer]:
    """Give the cheapest layers, at least one, as long as their work stays below a sum."""
    spent = 0.0
    for place, layer in enumerate(sorted(layers, key=price)):
        spent += price(layer)
        if spent > most and place:
            return
        yield layer


def price(layer: Layer) -> float:
    """Count the multiply-adds of a layer's removal costs."""
    shapes = {"groups": layer.groups, "rows": layer.rows, "columns": layer.columns}
    return obs.operation_cost(shapes)


def neighbours(setting: Setting) -> Work:
    """Measure every neighbour in the weights where that is cheapest, at a pruned state."""
    objective = objective_of(setting.problem)
    pruned = Magnitude(SPARSITY)(setting.state, setting.problem)
    macs = exact_macs(objective, pruned.tensors, sorted(pruned.free))
    samples = len(setting.problem.fit[0])
    prices = {key: macs[key] * pruned.weights[key].nonzeros * samples for key in macs}
    chosen: list[WeightKey] = []
    spent = 0.0
    for key in sorted(prices, key=lambda key: prices[key]):
        spent += prices[key]
        if spent > NEIGHBOUR_MACS * setting.case.effort and chosen:
            break
        chosen.append(key)
    return lambda: Result(exact_rises(objective, pruned.tensors, chosen))


def theorem(setting: Setting) -> Work:
    """Prune by the theorem and look for the largest change over the unit ball."""
    return stepped(setting, Magnitude(scope="theorem", alpha=0.1), setting.state)


def greedy(setting: Setting) -> Work:
    """Prune to 80 % with Greedy."""
    return stepped(setting, Greedy(SPARSITY), setting.state)


def repair(setting: Setting) -> Work:
    """Repair what Magnitude left at 80 %."""
    return stepped(setting, Repair(), Magnitude(SPARSITY)(setting.state, setting.problem))


def l0(setting: Setting) -> Work:
    """Train gates to 80 %."""
    return stepped(setting, L0(SPARSITY), setting.state)


def iht(setting: Setting, step: Literal["trajectory", "paper", "adam"]) -> Work:
    """Take steps of hard thresholding down to 80 %."""
    return stepped(setting, Iht(SPARSITY, rounds=30, step=step, simulations=10), setting.state)


def stepped(setting: Setting, step: Step, state: State) -> Work:
    """Run a step and measure d of what it makes."""
    objective = objective_of(setting.problem)

    def work() -> Result:
        found = step(state, setting.problem)
        values = {key: form.values for key, form in found.weights.items()}
        return Result(values, objective.measure_choose(found.tensors).value)

    return work


OPERATIONS: Mapping[str, Callable[[Setting], Work]] = {
    "forward": forward,
    "gradient": gradient,
    "layer Hessians": hessians,
    "removal costs": removal,
    "exact neighbours": neighbours,
    "Magnitude, theorem": theorem,
    "Greedy at 80 %": greedy,
    "Repair": repair,
    "L0 at 80 %": l0,
    "Iht, trajectory": partial(iht, step="trajectory"),
    "Iht, paper": partial(iht, step="paper"),
    "Iht, adam": partial(iht, step="adam"),
}
"""By name: what prepares an operation, untimed, and gives the work itself."""


@dataclass(frozen=True)
class Rates:
    """What a device does at best: floating-point operations and copied bytes per second."""

    flops: float
    bytes: float

    @classmethod
    def of(cls, device: torch.device, size: int) -> Rates:
        """Measure a product of two ``[size, size]`` float32 matrices and a copy of 16 such."""
        left, right = torch.randn(2, size, size, device=device)
        source = torch.randn(16, size, size, device=device)
        target = torch.empty_like(source)
        product = min(timed(device, lambda: left @ right)[0] for _ in range(5))
        copied = min(timed(device, lambda: target.copy_(source))[0] for _ in range(5))
        return cls(2 * size**3 / product, 2 * source.nbytes / copied)


@dataclass(eq=False)
class Floor(TorchDispatchMode):
    """Adds up the least time for every operation that runs while it is entered."""

    rates: Rates
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Begin as a dispatch mode does."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it open

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count it; a view costs nothing."""
        named = kwargs or {}
        result = func(*args, **named)
        read, made = list(tensors((args, named))), list(tensors(result))
        is_view = getattr(func, "is_view", False)
        moved = 0 if is_view else sum(value.nbytes for value in (*read, *made))
        counter = flop_registry.get(func._overloadpacket)
        flops = counter(*args, **named, out_val=result) if counter is not None else 0
        self.seconds += max(flops / self.rates.flops, moved / self.rates.bytes)
        return result


def tensors(values: object) -> Iterator[Tensor]:
    """Find the tensors in nested arguments."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)


def timed(device: torch.device, run: Callable[[], Any]) -> tuple[float, Any]:
    """Time a call, in seconds, with the device idle before and after."""
    wait(device)
    start = perf_counter()
    result = run()
    wait(device)
    return perf_counter() - start, result


def wait(device: torch.device) -> None:
    """Wait until a device has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(case: Case, name: str, device: torch.device, rates: Rates) -> tuple[str, ...]:
    """Run one operation on the CPU and on the device, each on a problem of its own."""
    prepare, floor = OPERATIONS[name], Floor(rates)
    work = prepare(Setting.of(case, device))
    with floor:  # also warms the device up
        work()
    cpu_seconds, here = timed(CPU, prepare(Setting.of(case, CPU)))
    seconds, there = timed(device, prepare(Setting.of(case, device)))
    return (
        case.name,
        name,
        f"{cpu_seconds:.3g}",
        f"{seconds:.3g}",
        f"{cpu_seconds / seconds:.1f}",
        f"{floor.seconds:.2g}",
        f"{seconds / floor.seconds:.1f}",
        differs(here, there),
        f"{largest_difference(here.values, there.values):.1e}",
    )


def differs(here: Result, there: Result) -> str:
    """Say by what share of it two values of d differ."""
    if here.distance is None or there.distance is None:
        return "-"
    return f"{abs(here.distance - there.distance) / max(abs(here.distance), 1e-30):.1e}"


def largest_difference(here: Mapping[Any, Tensor], there: Mapping[Any, Tensor]) -> float:
    """Give the largest difference of two sets of tensors, as a share of each tensor's largest."""
    worst = 0.0
    for key, value in here.items():
        difference = (value.double() - there[key].cpu().double()).abs().max()
        worst = max(worst, float(difference / value.abs().max().clamp_min(1e-30)))
    return worst


def built(small: bool) -> Iterator[Case]:
    """Give the models made here, with normal inputs."""
    models: dict[str, tuple[Callable[[], ModelProto], ModelProto, Shape, Shape]] = {
        "MLP 784-512-512-10": (mlp, mlp((12, 8, 4)), (784,), (12,)),
        "ResNet, 1.0 M weights": (resnet, resnet((4, 6)), (3, 32, 32), (3, 32, 32)),
        "transformer block": (transformer, transformer(16, 8, 2), (32, 64), (8, 64)),
    }
    fit, choose = (24, 12) if small else (FIT, CHOOSE)
    for name, (make, little, shape, little_shape) in models.items():
        model = little if small else make()
        drawn = torch.Generator().manual_seed(0)
        wanted = little_shape if small else shape
        inputs = torch.randn(fit + choose, 1, *wanted, generator=drawn)
        called = f"small {name.split()[0].rstrip(',')}" if small else name
        yield Case(called, model, [inputs[:fit]], [inputs[fit:]], 0.01 if small else 1.0)


def carried(folder: Path | None, small: bool) -> Iterator[Case]:
    """Give every pair of a model and its inputs in a folder: a fifth of them to choose with."""
    for path in sorted(folder.glob("*.onnx")) if folder is not None else ():
        model = read_model(path)
        network, _ = import_network(model)
        data = load_data(path.with_suffix(".npz"), network.inputs)
        inputs = [torch.from_numpy(np.array(data[spec.name])) for spec in network.inputs]
        fit = min(FIT, len(inputs[0]) * 4 // 5)
        choose = slice(fit, min(len(inputs[0]), fit + CHOOSE))
        yield Case(
            path.stem,
            model,
            [value[:fit] for value in inputs],
            [value[choose] for value in inputs],
            0.01 if small else 1.0,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description="Measure CPU and CUDA side by side.")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    parser.add_argument("--carry", type=Path, help="folder of NAME.onnx with NAME.npz")
    parser.add_argument("--self-check", action="store_true", help="small models, CPU against CPU")
    options = parser.parse_args(arguments)
    if not options.self_check and not torch.cuda.is_available():
        print("no CUDA device: not measured")
        return 0
    start = perf_counter()
    torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa would drown the parity
    device = CPU if options.self_check else torch.device("cuda")
    rates = Rates.of(device, 256 if options.self_check else 4096)
    rows = []
    for case in (*built(options.self_check), *carried(options.carry, options.self_check)):
        for name in OPERATIONS:
            if perf_counter() - start > ENOUGH_SECONDS:
                rows.append((case.name, name, *["not measured: out of time"] * 7))
            else:
                rows.append(measure(case, name, device, rates))
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    publish(page(device, rates, rows), options.out)
    return 0


def page(device: torch.device, rates: Rates, rows: Sequence[Sequence[str]]) -> str:
    """Lay the result out."""
    called = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    pieces = [
        "# CPU and CUDA side by side" if device.type == "cuda" else "# Self check: CPU and CPU",
        where("torch", "onnx", "numpy"),
        f"Device: {called}, {rates.flops / 1e12:.3g} Tflop/s in a float32 matrix product, "
        f"{rates.bytes / 1e9:.3g} GB/s in a copy; CPU: {torch.get_num_threads()} threads. "
        f"{FIT:,} samples to fit at most, {CHOOSE} to choose; TF32 is off.",
        table(HEAD, rows),
    ]
    return "\n\n".join(pieces)


if __name__ == "__main__":
    sys.exit(main())
