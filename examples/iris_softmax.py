"""The network of examples/iris_iht.py: 4 inputs, 3 outputs, 15 parameters, many runs at a time.

A run is one split of the 150 flowers into 120 to train on and 30 to test with. The parameters are
``[runs, 15]``: the weights of the first class, of the second, of the third, and the three biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from sklearn.datasets import load_iris
from torch import Tensor

FLOWERS, TRAINED_ON = 150, 120
FEATURES, CLASSES = 4, 3
PARAMETERS = FEATURES * CLASSES + CLASSES

FLAT = 1e-13
"""Curvature, as a share of the largest, below which a direction counts as flat."""

SLICE = 400
"""Runs computed at a time: what they need then fits into a processor's cache."""

SHORTER = 12
"""Halvings a step of Newton's method may take."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**63)


@dataclass(frozen=True, eq=False)
class Softmax:
    """Cross-entropy of a linear network, for every run on its own split.

    All runs share the 150 flowers, so they share two matrix products: standardising is moved from
    the features into the parameters.
    """

    flowers: Tensor  # [150, 5]: the features, centred over all flowers, and a one
    labels: Tensor  # [150]
    trained: Tensor  # [150, runs]: 1 / 120 where a run trains on a flower, else 0
    mean: Tensor  # [4, runs]: of the features over the training flowers
    spread: Tensor  # [4, runs]: their standard deviation
    right: Tensor  # [5, 3, runs]: mean over the training flowers of flower times its class

    @classmethod
    def of(cls, seeds: Sequence[int]) -> Softmax:
        """Split the flowers once for every data seed, in float64."""
        features, classes = load_iris(return_X_y=True)
        values, labels = torch.from_numpy(features), torch.from_numpy(classes).long()
        values = values - values.mean(0)
        trained = torch.zeros(FLOWERS, len(seeds), dtype=torch.float64)
        for run, seed in enumerate(seeds):
            chosen = torch.randperm(FLOWERS, generator=seeded(seed))[:TRAINED_ON]
            trained[chosen, run] = 1 / TRAINED_ON
        mean = values.T @ trained
        spread = (values.square().T @ trained - mean.square()).sqrt()
        flowers = torch.cat([values, torch.ones(FLOWERS, 1, dtype=torch.float64)], 1)
        hot = torch.nn.functional.one_hot(labels, CLASSES).double()
        right = torch.einsum("if,ic,ir->fcr", flowers, hot, trained)
        return cls(flowers, labels, trained, mean, spread, right)

    def to(self, dtype: torch.dtype) -> Softmax:
        parts = (self.trained, self.mean, self.spread, self.right)
        trained, mean, spread, right = (part.to(dtype) for part in parts)
        return Softmax(self.flowers.to(dtype), self.labels, trained, mean, spread, right)

    def take(self, runs: Tensor | slice) -> Softmax:
        """Give the same for some of the runs."""
        parts = (self.trained, self.mean, self.spread, self.right)
        trained, mean, spread, right = (part[..., runs] for part in parts)
        return Softmax(self.flowers, self.labels, trained, mean, spread, right)

    def raw(self, points: Tensor) -> Tensor:
        """Give the parameters ``[5, 3, runs]`` that do the same to features not standardised."""
        runs = len(points)
        weights = points[:, : CLASSES * FEATURES].reshape(runs, CLASSES, FEATURES).permute(2, 1, 0)
        weights = weights / self.spread[:, None]
        biases = points[:, CLASSES * FEATURES :].T - (weights * self.mean[:, None]).sum(0)
        return torch.cat([weights, biases[None]])

    def scores(self, raw: Tensor) -> Tensor:
        """Give the logits of all flowers, ``[150, 3, runs]``."""
        return (self.flowers @ raw.reshape(FEATURES + 1, -1)).view(FLOWERS, CLASSES, -1)

    def descent(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Give the training loss ``[runs]`` and its gradient ``[runs, 15]``."""
        if len(points) > SLICE:
            places = [slice(start, start + SLICE) for start in range(0, len(points), SLICE)]
            sliced = [self.take(place).descent(points[place]) for place in places]
            return torch.cat([one[0] for one in sliced]), torch.cat([one[1] for one in sliced])
        raw = self.raw(points)
        scores = self.scores(raw)
        top = scores.amax(1, keepdim=True)
        powers = scores.sub_(top).exp_()
        total = powers.sum(1, keepdim=True)
        loss = ((total.log() + top)[:, 0] * self.trained).sum(0) - (raw * self.right).sum((0, 1))
        powers.mul_(self.trained[:, None] / total)
        found = (self.flowers.T @ powers.view(FLOWERS, -1)).view_as(raw) - self.right
        slopes = (found[:FEATURES] - self.mean[:, None] * found[FEATURES:]) / self.spread[:, None]
        flat = slopes.permute(2, 1, 0).reshape(len(points), -1)
        return loss, torch.cat([flat, found[FEATURES].T], 1)

    def gradient(self, points: Tensor) -> Tensor:
        """Give the gradient alone."""
        return self.descent(points)[1]

    def judged(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give the test loss, and the accuracy in training and in the test, each ``[runs]``."""
        scores = self.scores(self.raw(points))
        tested = (self.trained == 0).to(scores) / (FLOWERS - TRAINED_ON)
        which = self.labels[:, None, None].expand(FLOWERS, 1, len(points))
        loss = -scores.log_softmax(1).gather(1, which)[:, 0]
        right = (scores.argmax(1) == self.labels[:, None]).to(scores)
        return (
            (loss * tested).sum(0),
            (right * self.trained).sum(0),
            (right * tested).sum(0),
        )

    def standardised(self) -> Tensor:
        """Give the flowers as each run sees them, ``[runs, 150, 5]``."""
        values = self.flowers[None, :, :FEATURES] - self.mean.T[:, None]
        ones = torch.ones(len(values), FLOWERS, 1, dtype=values.dtype)
        return torch.cat([values / self.spread.T[:, None], ones], 2)

    def curvature(self, points: Tensor) -> Tensor:
        """Give the Hessian ``[runs, 15, 15]``."""
        runs = len(points)
        chances = self.scores(self.raw(points)).softmax(1).permute(2, 1, 0)  # [runs, 3, 150]
        flowers = self.standardised()
        between = torch.diag_embed(chances.transpose(1, 2)).permute(0, 2, 3, 1)
        between = between - chances[:, :, None] * chances[:, None]
        between = (between * self.trained.T[:, None, None]).reshape(runs, -1, FLOWERS)
        products = (flowers[..., None] * flowers[..., None, :]).reshape(runs, FLOWERS, -1)
        size = FEATURES + 1
        blocks = (between @ products).reshape(runs, CLASSES, CLASSES, size, size)
        joined = blocks.permute(0, 1, 3, 2, 4).reshape(runs, CLASSES * size, -1)
        # From class by class, bias last, to all weights first.
        place = torch.arange(CLASSES * size).reshape(CLASSES, size)
        order = torch.cat([place[:, :FEATURES].flatten(), place[:, FEATURES]])
        return joined[:, order][:, :, order]


def polished(loss: Softmax, points: Tensor, slope: float, rounds: int = 100) -> Tensor:
    """Go on by Newton's method, each run on its own support, until no slope on it is left.

    Where the loss has no smallest value, its slope still falls by about e with every round.
    """
    points = points.clone()
    for _ in range(rounds):
        value, gradient = loss.descent(points)
        support = points != 0
        held = torch.where(support, gradient, 0.0)
        moving = (held.abs().amax(1) > slope).nonzero()[:, 0]
        if not len(moving):
            break
        part, start, wanted = loss.take(moving), points[moving], held[moving]
        mask = support[moving].to(start)
        curvature = part.curvature(start) * mask[:, :, None] * mask[:, None]
        sizes, axes = torch.linalg.eigh(curvature)
        real = sizes > FLAT * sizes[:, -1:]
        inverse = torch.where(real, 1 / torch.where(real, sizes, 1.0), 0.0)
        along = (axes.transpose(1, 2) @ wanted[..., None])[..., 0] * inverse
        way = (axes @ along[..., None])[..., 0] * mask
        best, length = start, torch.ones(len(start), 1, dtype=start.dtype)
        done = torch.zeros(len(start), dtype=torch.bool)
        for _ in range(SHORTER):
            tried = start - length * way
            better = (part.descent(tried)[0] < value[moving]) & ~done
            best = torch.where(better[:, None], tried, best)
            done, length = done | better, length / 2
            if bool(done.all()):
                break
        points[moving] = best
    return points


def has_a_minimum(loss: Softmax, run: int, support: Tensor) -> bool:
    """Say whether the training loss of a run has a smallest value on a support.

    It has none where, along some direction on the support, no flower's score falls behind another
    class's and some get ahead: the loss then falls for ever. (Setosa lies apart from the other two
    flowers, so a support that can tell them apart is enough.)

    Source:
        Albert & Anderson 1984: complete and quasi-complete separation; a linear programme.
    """
    chosen = loss.trained[:, run] > 0
    values = loss.take(torch.tensor([run])).standardised()[0][chosen].numpy()
    labels, rows = loss.labels[chosen].numpy(), np.arange(TRAINED_ON)
    leads = []
    for other in range(1, CLASSES):
        lead = np.zeros((TRAINED_ON, CLASSES, FEATURES + 1))
        lead[rows, labels] += values
        lead[rows, (labels + other) % CLASSES] -= values
        flat = lead[:, :, :FEATURES].reshape(TRAINED_ON, -1)
        leads.append(np.concatenate([flat, lead[:, :, FEATURES]], 1))
    matrix = np.concatenate(leads)[:, support.numpy()]
    found = linprog(
        -matrix.sum(0), A_ub=-matrix, b_ub=np.zeros(len(matrix)), bounds=(-1, 1), method="highs"
    )
    assert found.fun is not None  # 0 is feasible, and the box bounds it
    return bool(-found.fun < 1e-6)
