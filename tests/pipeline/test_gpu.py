"""CUDA does what the CPU does, and asking for a GPU that is not there is said so."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from checkout import ROOT
from models import Case, case_of
from onnxpress.cli import main
from onnxpress.objective import objective_of
from onnxpress.shrinking import with_groups
from onnxpress.state import State
from onnxpress.step import Best, Only, Step, checked
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.iht import Iht
from onnxpress.steps.l0 import L0
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.polish import Polish
from onnxpress.steps.repair import Repair
from onnxpress.steps.store import Store, Values
from onnxpress.storage import rounding
from onnxpress_adapters.read import read_model
from onnxpress_adapters.weights import Dense
from onnxpress_exporters.values import Half, Palette, Scaled, Storage, rounded

EXAMPLES = ROOT / "examples"
NAMES = ("digits_cnn", "digits_fc")
DEVICE = torch.device("cuda")
STEPS: dict[str, tuple[Step, ...]] = {
    "magnitude": (Magnitude(0.8),),
    "greedy": (Greedy(0.8),),
    "greedy in blocks": (Greedy(0.8, layerwise=0.75),),
    "greedy, even rows": (Greedy(0.8, pattern="even:8"),),
    "greedy, exact": (
        Only("[13568].weight", Greedy(0.05, score="exact", per_round=4096, hours=9.0)),
    ),
    "magnitude, theorem": (Magnitude(scope="theorem", alpha=0.1),),
    "iht": (Iht(0.8, rounds=10),),
    "iht, at once, by layer": (Iht(0.8, rounds=10, gradual=0.0, scope="layer"),),
    "iht, paper": (Iht(0.8, rounds=2, step="paper", simulations=2),),
    "iht, adam": (Iht(0.8, rounds=10, step="adam", gradual=0.0),),
    "l0": (L0(0.8),),
    "l0 of units": (L0(0.5, gates="unit", work=5.0),),
    "repair, adam": (Magnitude(0.8), Repair("adam")),
    "repair, lbfgs": (Magnitude(0.8), Repair("lbfgs")),
    "polish": (Magnitude(0.8), Polish()),
    "greedy, last entries after a repair": (Greedy(0.8, spare=0.15),),
    "the better of two": (Best((Magnitude(0.8), Greedy(0.8))), Repair("adam")),
}
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep convolutions from rounding to the 10 bits of TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@cache
def on_the_cpu(name: str) -> Case:
    """Give an example with its real inputs, one image per feed."""
    images = torch.from_numpy(np.load(EXAMPLES / "digits_train.npz")["image"])[:, None]
    case = case_of(read_model(EXAMPLES / f"{name}.onnx"), [images[:512]], effort=0.02)
    problem = replace(case.problem, choose=[images[512:768]])
    return replace(case, problem=with_groups(problem, case.model))


def moved(case: Case, device: torch.device) -> Case:
    """Give the same case on a device, with nothing remembered."""
    old = case.problem
    reference = {key: value.to(device) for key, value in old.reference.items()}
    problem = replace(
        old,
        reference=reference,
        fit=[value.to(device) for value in old.fit],
        choose=[value.to(device) for value in old.choose],
        device=device,
        memo={},
    )
    forms = {key: Dense(reference[key], reference[key] != 0) for key in case.state.weights}
    extras = {key: reference[key] for key in case.state.extras}
    return Case(case.model, problem, State(forms, extras, case.state.free))


def ran(steps: tuple[Step, ...], case: Case) -> State:
    state = case.state
    for step in steps:
        state = checked(step, state, case.problem)
    return state


def distance(case: Case, state: State) -> float:
    return objective_of(case.problem).measure_choose(state.tensors).value


def share(here: Tensor, there: Tensor) -> float:
    """Give the largest difference as a share of the largest magnitude."""
    return float((here - there.cpu()).abs().max() / here.abs().max())


@pytest.mark.gpu
@on_cuda
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", STEPS)
def test_a_step_does_on_cuda_what_it_does_on_the_cpu(name: str, steps: str) -> None:
    cpu = moved(on_the_cpu(name), torch.device("cpu"))
    cuda = moved(cpu, DEVICE)
    here, there = ran(STEPS[steps], cpu), ran(STEPS[steps], cuda)
    entries = differing = 0
    for key, form in here.weights.items():
        other = there.weights[key]
        assert other.values.device.type == DEVICE.type
        entries += form.support.numel()
        differing += int((form.support != other.support.cpu()).sum())
    assert differing < 0.005 * entries
    assert there.zeros == here.zeros
    assert distance(cuda, there) == pytest.approx(distance(cpu, here), rel=1e-3)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize(
    "storage",
    [
        Half(),
        Scaled(np.array(0.013, np.float16)),
        Scaled(np.linspace(0.01, 0.03, 60)[:, None].astype(np.float16)),
        Palette(np.linspace(-2, 2.3, 16).astype(np.float32)),
    ],
    ids=str,
)
def test_values_are_rounded_to_the_same_bits(storage: Storage) -> None:
    values = torch.randn(60, 500, generator=torch.Generator().manual_seed(0))
    values[:, ::3] = 0.0
    found = rounding(storage, DEVICE)(values.to(DEVICE)).cpu()
    assert found.numpy().tobytes() == rounded(values.numpy(), storage).tobytes()


@pytest.mark.gpu
@on_cuda
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("values", ["fp16", "int8", "palette"])
def test_values_are_stored_alike(name: str, values: Values) -> None:
    cpu = moved(on_the_cpu(name), torch.device("cpu"))
    cuda = moved(cpu, DEVICE)
    steps = (Magnitude(0.8), Store(values))
    here, there = ran(steps, cpu), ran(steps, cuda)
    assert {str(k): str(s) for k, s in there.storage.items()} == {
        str(k): str(s) for k, s in here.storage.items()
    }
    # A value halfway between two codes may take the other one, and the rest of its row with it.
    assert distance(cuda, there) == pytest.approx(distance(cpu, here), rel=0.02)
    for key, storage in there.storage.items():
        array = there.weights[key].values.cpu().numpy()
        assert array.tobytes() == rounded(array, storage).tobytes()


@pytest.mark.gpu
@on_cuda
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_agree(name: str) -> None:
    cpu = moved(on_the_cpu(name), torch.device("cpu"))
    cuda = moved(cpu, DEVICE)
    slopes = []
    for case in (cpu, cuda):
        pruned = Magnitude(0.5)(case.state, case.problem)
        slopes.append(objective_of(case.problem).gradient(pruned.tensors, sorted(pruned.free)))
    (value, here), (other, there) = slopes
    assert other == pytest.approx(value, rel=1e-4)
    assert max(share(here[key], there[key]) for key in here) <= 1e-4
    outputs = [objective_of(case.problem).reference(case.problem.fit) for case in (cpu, cuda)]
    assert max(share(a, b) for a, b in zip(*outputs, strict=True)) <= 1e-4


@pytest.mark.gpu
@on_cuda
def test_the_command_line_presses_on_cuda(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    model, data = EXAMPLES / "digits_cnn.onnx", EXAMPLES / "digits_train.npz"
    promise = ["--tolerance", "1%", "--data", str(data), "--effort", "quick"]
    words = ["compress", str(model), str(out), *promise, "--device", "cuda", "--json", "--quiet"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["device"] == "cuda"
    assert report["verdict"] == "within"
    assert report["sparsity"] > 0.9
    assert out.stat().st_size < model.stat().st_size


def test_without_a_cuda_device_asking_for_one_is_misuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "out.onnx"
    data = EXAMPLES / "digits_train.npz"
    promise = ["--tolerance", "1%", "--data", str(data), "--device", "cuda"]
    words = ["compress", str(EXAMPLES / "digits_fc.onnx"), str(out), *promise]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        "Error: torch sees no CUDA device; leave out --device, or install a CUDA build of torch"
    )
    assert not out.exists()
