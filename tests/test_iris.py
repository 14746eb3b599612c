"""The IRIS study of examples/: its counts, its derivatives and what holds where its runs end."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from itertools import combinations
from math import comb
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_iris
from torch import Tensor
from torch.nn.functional import cross_entropy

from checkout import ROOT, environment
from iris_iht import HEAD, Level, Study, iterated, level, plotted, row, summary
from iris_softmax import PARAMETERS, SLICE, Softmax, has_a_minimum, polished, seeded
from onnxpress.certificate import SLOPE
from onnxpress.support import keep_largest_each

TABLE_I = (15, 105, 455, 1365, 3003, 5005, 6435, 6435, 5005, 3003, 1365, 455, 105, 15)
"""Supports of 15 parameters for s = 1 to 14, as the paper has them."""


def points(runs: int, seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(runs, PARAMETERS, generator=drawn, dtype=torch.float64)


def reference(loss: Softmax, run: int, point: Tensor) -> Tensor:
    """Give the training loss of a run as one would write it down."""
    features, labels = (torch.from_numpy(part) for part in load_iris(return_X_y=True))
    chosen = loss.trained[:, run] > 0
    mean, spread = features[chosen].mean(0), features[chosen].std(0, correction=0)
    scores = ((features[chosen] - mean) / spread) @ point[:12].view(3, 4).T + point[12:]
    return cross_entropy(scores, labels[chosen].long())


def test_table_1_is_what_can_be_counted() -> None:
    for count, wanted in enumerate(TABLE_I, start=1):
        assert comb(PARAMETERS, count) == wanted
        assert sum(1 for _ in combinations(range(PARAMETERS), count)) == wanted


@pytest.mark.parametrize("run", range(3))
def test_the_batched_loss_and_its_derivatives_are_those_of_each_run(run: int) -> None:
    loss, given = Softmax.of([3, 5, 8]), points(3)
    value, slopes = loss.descent(given)
    at = partial(reference, loss, run)
    leaf = given[run].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(at(leaf), leaf)
    assert float(value[run]) == pytest.approx(float(at(given[run])), rel=1e-12)
    torch.testing.assert_close(slopes[run], wanted, rtol=1e-9, atol=1e-12)
    hessian = torch.autograd.functional.hessian(at, given[run])
    torch.testing.assert_close(loss.curvature(given)[run], hessian, rtol=1e-8, atol=1e-12)


def test_splits_are_120_and_30_and_standardised_over_the_120() -> None:
    loss = Softmax.of([1, 2])
    assert ((loss.trained > 0).sum(0) == 120).all()
    assert not torch.equal(loss.trained[:, 0], loss.trained[:, 1])
    seen = loss.standardised()
    for run in range(2):
        chosen = seen[run][loss.trained[:, run] > 0]
        torch.testing.assert_close(chosen[:, :4].mean(0), torch.zeros(4).double())
        torch.testing.assert_close(chosen[:, :4].std(0, correction=0), torch.ones(4).double())
        assert (chosen[:, 4] == 1).all()


def test_many_runs_are_computed_in_slices() -> None:
    loss, given = Softmax.of(range(SLICE + 3)), points(SLICE + 3)
    value, slopes = loss.descent(given)
    last = loss.take(torch.tensor([SLICE + 2]))
    alone, slope = last.descent(given[-1:])
    torch.testing.assert_close(value[-1:], alone)
    torch.testing.assert_close(slopes[-1:], slope)


def test_what_is_judged_is_right() -> None:
    loss, given = Softmax.of([4]), points(1)
    test, train_right, test_right = loss.judged(given)
    seen = loss.standardised()[0]
    scores = seen[:, :4] @ given[0, :12].view(3, 4).T + given[0, 12:]
    chosen = loss.trained[:, 0] > 0
    right = scores.argmax(1) == loss.labels
    assert float(test) == pytest.approx(
        float(cross_entropy(scores[~chosen], loss.labels[~chosen])), rel=1e-9
    )
    assert float(train_right) == pytest.approx(float(right[chosen].double().mean()))
    assert float(test_right) == pytest.approx(float(right[~chosen].double().mean()))


def test_a_loss_has_no_minimum_where_setosa_can_be_told_from_the_rest() -> None:
    loss = Softmax.of([0])

    def support(*places: int) -> Tensor:
        mask = torch.zeros(PARAMETERS, dtype=torch.bool)
        mask[list(places)] = True
        return mask

    assert has_a_minimum(loss, 0, support(0))  # one weight cannot
    assert has_a_minimum(loss, 0, support(12))  # nor can a bias
    assert not has_a_minimum(loss, 0, support(2, 12))  # petal length and bias of setosa
    assert not has_a_minimum(loss, 0, support(*range(PARAMETERS)))
    # And without one, the loss falls for ever while its slope does as well.
    start = torch.where(support(2, 12), 1.0, 0.0)[None].double()
    end, further = polished(loss, start, 1e-4), polished(loss, start, 1e-8)
    assert float(further.norm()) > float(end.norm())
    assert float(loss.descent(further)[0]) < float(loss.descent(end)[0])
    assert float(loss.gradient(further)[0, [2, 12]].abs().max()) <= 1e-8
    assert torch.equal(further != 0, start != 0)


def test_runs_that_are_done_leave_the_batch_and_keep_their_place() -> None:
    loss = Softmax.of(range(12))
    keep = partial(keep_largest_each, count=10)
    start = torch.where(keep(points(12).abs()), points(12), 0.0)
    rate = torch.linspace(0.2, 1.4, 12, dtype=torch.float64)  # they end one after the other
    ends, taken = iterated(loss, start, rate, keep, 600, stop=0.15)
    assert len(set(taken.tolist())) > 6
    for run in range(12):
        alone, steps = iterated(
            loss.take(torch.tensor([run])),
            start[run : run + 1],
            rate[run : run + 1],
            keep,
            600,
            0.15,
        )
        assert int(steps) == int(taken[run])
        torch.testing.assert_close(ends[run], alone[0])
    done = loss.descent(ends)[0] <= 0.15
    assert bool((taken[~done] == 600).all())


@pytest.fixture(scope="module")
def stopped() -> Level:
    return level(Study(runs=40, steps=2500, simulations=20), 12)


@pytest.fixture(scope="module")
def converged() -> Level:
    return level(Study(runs=25, steps=2000, stop=-1.0, simulations=20), 3)


def test_runs_to_the_loss(stopped: Level) -> None:
    assert bool(stopped.holds.all())
    assert bool((stopped.train[stopped.steps < 2500] <= 0.05 + 1e-5).all())
    assert stopped.reached(0.05 + 1e-5) > 0.5
    assert float(stopped.test_right.mean()) > 0.94
    assert bool((stopped.moved <= PARAMETERS - 12).all())
    assert float(stopped.slope.median()) > SLOPE  # a loss is no convergence


def test_runs_to_convergence(converged: Level) -> None:
    assert bool(converged.holds.all())
    assert float(converged.slope.max()) <= SLOPE
    assert bool(converged.attained.any())
    assert bool((converged.alone <= SLOPE).any())


def test_the_same_seed_gives_the_same_runs() -> None:
    study = Study(runs=6, steps=50, simulations=3)
    one, two = level(study, 7), level(study, 7)
    assert torch.equal(one.train, two.train)
    assert torch.equal(one.rate, two.rate)
    other = level(Study(runs=6, steps=50, simulations=3, seed=1), 7)
    assert not torch.equal(one.train, other.train)
    # The split belongs to the run, whatever s is: only then can losses be compared.
    assert torch.equal(
        Softmax.of(study.seeds(1)).trained, Softmax.of(Study(runs=6).seeds(1)).trained
    )
    assert len({*study.seeds(1), *study.seeds(2), *study.seeds(207)}) == 18


def test_the_dense_network_is_level_15() -> None:
    study = Study(runs=5, steps=300, simulations=3)
    dense = level(study, PARAMETERS)
    assert bool((dense.pull == 0).all())
    assert row(dense, dense, study)[0] == "dense"
    sparse = level(study, 8)
    shown = row(sparse, dense, study)
    assert len(shown) == len(HEAD)
    assert shown[7] == f"{(sparse.train - dense.train).median():.4f}"


def test_first_values_are_those_of_torch_or_normal() -> None:
    drawn = Study().values(seeded(0), 1000)
    assert 0.49 < float(drawn.abs().max()) <= 0.5
    assert float(Study(normal=True).values(seeded(0), 1000).std()) == pytest.approx(1, abs=0.05)


def test_a_part_ends_with_one_line(tmp_path: Path) -> None:
    picture = tmp_path / "iris.png"
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", str(ROOT / "examples" / "iris_iht.py")),
            *("--runs", "8", "--levels", "5,12,15", "--steps", "200", "--simulations", "5"),
            *("--plot", str(picture)),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert [line.split()[0] for line in lines[2:5]] == ["5", "12", "dense"]
    assert lines[-1].startswith("24 runs to training loss 0.05 or 200 steps in ")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--levels", "5,16"), "levels are numbers from 1 to 15 (dense), such as 5,8,12: 5,16"),
        (("--runs", "0"), "runs, steps and simulations begin at 1, and a loss at 0"),
    ],
)
def test_a_wrong_call_is_one_message(words: tuple[str, ...], message: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "iris_iht.py"), *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith(message)


def test_a_picture_needs_what_draws_it(
    monkeypatch: pytest.MonkeyPatch, stopped: Level, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match="--plot needs matplotlib: pip install"):
        plotted([stopped], tmp_path / "x.png")


def test_the_summary_is_one_line(stopped: Level, converged: Level) -> None:
    said = summary([stopped], Study(runs=40, steps=2500))
    assert said.startswith("40 runs to training loss 0.05 or 2,500 steps in ")
    assert "inequality 8 holds in at least 100.0% of every level" in said
    assert "mean test accuracy from s = 8 on at least 0.9" in said
    assert "no slope left in 100.0% of those with a minimum" in summary(
        [converged], Study(runs=25, stop=-1.0)
    )
