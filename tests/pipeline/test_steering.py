"""A penalty weight that finds itself: on gates that only the penalty moves, and a simple loss."""

from __future__ import annotations

from math import log

import pytest
import torch

from onnxpress.gates import HardConcrete
from onnxpress.steering import LEAST, Feeler, Ramp, Steering

GATES = HardConcrete()
STEPS = 800


class Plant:
    """Gates under Adam, each with a use of its own that holds against the penalty."""

    def __init__(self, rate: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.use = torch.rand(1000, generator=generator).square()
        self.at = torch.full((1000,), 3.0, requires_grad=True)
        self.adam = torch.optim.Adam([self.at], lr=rate, betas=(0.9, 0.99), eps=1e-16)

    def step(self, weight: float) -> None:
        """Move: closing a gate costs its use, keeping it open its share of the weight."""
        chance = GATES.chance(self.at)
        (weight * chance.mean() - (self.use * chance).mean()).backward()
        self.adam.step()
        self.adam.zero_grad()

    @property
    def share(self) -> float:
        return float(GATES.chance(self.at.detach()).mean())

    @property
    def loss(self) -> float:
        """The use of what is closed, as a share of all."""
        closed = 1 - GATES.chance(self.at.detach())
        return float((self.use * closed).sum() / self.use.sum())


@pytest.mark.parametrize("rate", [0.05, 0.1])
@pytest.mark.parametrize("target", [0.5, 0.1])
def test_the_share_comes_to_its_target(rate: float, target: float) -> None:
    plant, steering, ramp = Plant(rate), Steering(1e-2, rate), Ramp(target)
    for step in range(STEPS):
        plant.step(steering.towards(plant.share, ramp.wanted((step + 1) / STEPS)))
    assert plant.share == pytest.approx(target, rel=0.12)
    # The gates that stay are those of the most use.
    kept = plant.at.detach() > GATES.border
    assert float(plant.use[kept].min()) > 0.9 * float(plant.use[~kept].max())


@pytest.mark.parametrize("within", [0.3, 0.03])
def test_the_share_falls_until_the_loss_is_met(within: float) -> None:
    plant, steering, feeler = Plant(0.1), Steering(1e-2, 0.1), Feeler(within, 16 / STEPS)
    for _ in range(STEPS):
        plant.step(steering.towards(plant.share, feeler.wanted(plant.share, plant.loss)))
    assert plant.loss == pytest.approx(within, rel=0.6)


def test_the_weight_moves_by_so_much_a_step_and_never_to_nothing() -> None:
    steering = Steering(1.0, 0.1)
    for _ in range(10):
        before = steering.weight
        assert abs(log(steering.towards(1.0, 0.01) / before)) == pytest.approx(0.1)
    for _ in range(200):
        steering.towards(0.01, 1.0)
    assert steering.weight == LEAST
