"""How fast a gradient can turn where points are sparse: what step sizes rest on.

f is restricted strongly smooth with modulus L_2s where f(θ') ≤ f(θ) + ⟨∇f(θ), θ' - θ⟩ +
L_2s/2 ‖θ' - θ‖² for all θ, θ' with at most s nonzeros; γ ≤ 1 / L_2s then never makes an IHT step
rise. Both estimates here work on flat vectors ``[..., n]``: whatever stands in front of n are
problems of their own, estimated side by side.

Source: seeds/learning_sparse_network_iht.txt, sections III-A to III-G.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Gradient = Callable[[Tensor], Tensor]
"""∇f at points ``[..., n]``."""

Keep = Callable[[Tensor], Tensor]
"""Marks the entries of scores ``[..., n]``, none below zero, that may stay: the support of H_s."""

SIMULATIONS = 100
"""n_monte: pairs the paper's estimate takes the largest quotient of."""

PROBE = 1e-3
"""Length of the differences a power iteration takes, as a share of the point's norm."""

NOISE = 3.0
"""Spread of the noise around an iterate over the root mean square of what it keeps: wide, so that
partners have other supports. Only the direction between a pair is used, not its length."""


def threshold(points: Tensor, keep: Keep) -> Tensor:
    """Apply H_s: zero what is not kept, exactly, in ``[..., n]``.

    >>> from onnxpress.support import keep_largest_each
    >>> threshold(torch.tensor([1.0, -3.0, 1.0]), lambda scores: keep_largest_each(scores, 2))
    tensor([ 1., -3.,  0.])
    """
    return torch.where(keep(points.abs()), points, torch.zeros_like(points))


def sampled_smoothness(
    gradient: Gradient,
    initial: Callable[[], Tensor],
    keep: Keep,
    generator: torch.Generator,
    simulations: int = SIMULATIONS,
) -> Tensor:
    """Estimate L_2s from random sparse pairs: the paper's seven steps.

    A random point θ on a random support of s entries; δ, its smallest nonzero magnitude; and
    θ' = H_s(θ + δ d) with d standard normal. The largest ‖∇f(θ') - ∇f(θ)‖ / ‖θ' - θ‖ is L̂_2s.
    It knows the curvature where networks begin, not where they end: on a trained network it was
    hundreds of times too small (FACTS section 4).

    Args:
        gradient: ∇f.
        initial: draws a dense θ ``[..., n]``, as a network is initialised.
        keep: of H_s; given random scores it gives a random support.
        generator: on the CPU; source of supports and d.
        simulations: n_monte.

    Returns:
        L̂_2s ``[...]``; infinite where a gradient was not finite.

    Source:
        seeds/learning_sparse_network_iht.txt, section III-F, steps 1 to 7; a tie goes to the lower
        index (its footnote 2).

    >>> from onnxpress.support import keep_largest_each
    >>> drawn = torch.Generator().manual_seed(0)
    >>> curvatures = torch.tensor([3.0, 1.0, 2.0])  # f = (3 θ₁² + θ₂² + 2 θ₃²) / 2
    >>> found = sampled_smoothness(
    ...     lambda points: curvatures * points,
    ...     lambda: torch.randn(3, generator=drawn),
    ...     lambda scores: keep_largest_each(scores, 1),
    ...     drawn,
    ... )
    >>> round(float(found), 4)
    3.0
    """
    largest = None
    for _ in range(simulations):
        dense = initial()
        support = keep(_uniform(dense, generator))
        point = torch.where(support, dense, torch.zeros_like(dense))
        other = _moved(point, _least(point), keep, generator)
        quotient = _quotient(gradient(other) - gradient(point), other - point)
        largest = quotient if largest is None else torch.maximum(largest, quotient)
    if largest is None:
        raise ValueError("no simulation, no estimate")
    return largest


def trajectory_smoothness(
    gradient: Gradient,
    point: Tensor,
    keep: Keep,
    keep_both: Keep,
    generator: torch.Generator,
    pairs: int,
    rounds: int,
) -> Tensor:
    """Estimate L_2s around one sparse point: pairs, and a power iteration from each.

    A pair is H_s(θ + noise) twice. The direction v between the two has at most 2s nonzeros, and so
    has every next one: the 2s largest entries of (∇f(θ + εv) - ∇f(θ)) / ε. The largest
    |⟨v, ∇f(θ + εv) - ∇f(θ)⟩| / (ε ‖v‖²) met is the estimate: on a quadratic never above the
    largest eigenvalue of its blocks of 2s rows and columns, which is L_2s, and equal to it where
    the iteration finds the block.

    Args:
        gradient: ∇f.
        point: θ ``[..., n]``, at most s nonzeros.
        keep: of H_s.
        keep_both: of H_2s.
        generator: on the CPU; source of the noise.
        pairs: how many; each costs ``rounds`` gradients.
        rounds: of the power iteration.

    Returns:
        ``[...]``; 0 where f is flat, infinite where a gradient was not finite.

    Source:
        seeds/learning_sparse_network_iht.txt, section III-B; Yuan & Zhang 2013, algorithm 1 (the
        truncated power method).
    """
    base = gradient(point)
    kept = (point != 0).sum(-1, keepdim=True).clamp_min(1)
    size = (point.square().sum(-1, keepdim=True) / kept).sqrt()
    spread = torch.where(size > 0, NOISE * size, torch.ones_like(size))
    reach = PROBE * torch.where(size > 0, point.norm(dim=-1, keepdim=True), torch.ones_like(size))
    largest = torch.zeros_like(point[..., 0])
    for _ in range(pairs):
        one = _moved(point, spread, keep, generator)
        direction = one - _moved(point, spread, keep, generator)
        for _ in range(rounds):
            length = direction.norm(dim=-1, keepdim=True)
            unit = direction / torch.where(length > 0, length, torch.ones_like(length))
            turned = (gradient(point + reach * unit) - base) / reach
            found = (unit * turned).sum(-1).abs()
            largest = torch.maximum(largest, torch.where(found.isfinite(), found, torch.inf))
            direction = threshold(turned, keep_both)
    return largest


def _moved(point: Tensor, spread: Tensor, keep: Keep, generator: torch.Generator) -> Tensor:
    """Give H_s(θ + noise), with noise of a spread ``[..., 1]``."""
    noise = torch.randn(point.shape, generator=generator).to(point)
    return threshold(point + spread * noise, keep)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator).to(like)


def _least(point: Tensor) -> Tensor:
    """Give the smallest nonzero magnitude, ``[..., 1]``; 0 where there is none."""
    size = torch.where(point != 0, point.abs(), torch.inf).amin(-1, keepdim=True)
    return torch.where(size.isfinite(), size, torch.zeros_like(size))


def _quotient(turn: Tensor, way: Tensor) -> Tensor:
    """Give ‖turn‖ / ‖way‖ over the last dimension: 0 where nothing moved, never NaN."""
    length = way.norm(dim=-1)
    quotient = turn.norm(dim=-1) / torch.where(length > 0, length, torch.ones_like(length))
    return torch.where(quotient.isfinite(), quotient, torch.inf)
