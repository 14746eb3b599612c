"""Gates on a network: which entries hang on which gate, and the L0 norm expected of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from onnxpress.gates import HardConcrete
from onnxpress.support import keep_largest_overall
from onnxpress_adapters.axes import Role
from onnxpress_adapters.errors import SparsityError

if TYPE_CHECKING:
    from onnxpress_adapters.groups import Group, Member
    from onnxpress_adapters.weights import WeightKey

MARGIN = 0.1
"""How far above the border a gate lies that is opened at the end: 0.9 % of its value pass."""

LEAST = 1e-3
"""Sizes below this share of the mean count as this much, where a gate's start depends on them."""


class Gated(Protocol):
    """The free weights of a state with gates on them.

    Attributes:
        gates: their distribution.
        locations: log alpha of the gates, leaves of the training.
        entries: how many entries are on the supports.
    """

    gates: HardConcrete
    locations: list[Tensor]
    entries: int

    def through(
        self, values: Mapping[WeightKey, Tensor], noise: Sequence[Tensor] | None
    ) -> dict[WeightKey, Tensor]:
        """Send values through the gates: sampled ones, or deterministic ones without noise."""
        ...

    def chances(self) -> dict[WeightKey, Tensor]:
        """Give the chance of every entry to stay, 0 off the supports; differentiable.

        Their sum is the expected L0 norm (Louizos et al. 2018, equations 12 and, for groups, 4).
        """
        ...

    def settle(self, count: int | None) -> dict[WeightKey, Tensor]:
        """End the training: give the supports, and move the locations to where these are open.

        Args:
            count: entries that may stay; None for what the deterministic gates leave open.
        """
        ...

    def told(self, supports: Mapping[WeightKey, Tensor]) -> str:
        """Say in a few words which gates stay."""
        ...


def noise_of(gated: Gated, generator: torch.Generator) -> list[Tensor]:
    """Draw what one sample of all gates is made of."""
    return [gated.gates.noise(at.shape, generator, at.device) for at in gated.locations]


class WeightGates:
    """A gate on every entry of the supports."""

    def __init__(
        self,
        gates: HardConcrete,
        values: Mapping[WeightKey, Tensor],
        supports: Mapping[WeightKey, Tensor],
        start: float,
        spread: float,
    ) -> None:
        """Lay out the gates.

        Args:
            gates: their distribution.
            values: of the free weights.
            supports: bool, in their shapes: what was pruned has no gate.
            start: the location of a gate on an entry of the size usual in its weight.
            spread: how much larger it is where the entry is e times as large.
        """
        self.gates = gates
        self.supports = dict(supports)
        self.entries = sum(int(support.sum()) for support in supports.values())
        self.locations: list[Tensor] = []
        for key, support in supports.items():
            size = values[key].abs()
            usual = size[support].square().mean().sqrt() if bool(support.any()) else size.sum()
            self.locations.append(_first(size / usual.clamp_min(1e-30), start, spread))

    def through(
        self, values: Mapping[WeightKey, Tensor], noise: Sequence[Tensor] | None
    ) -> dict[WeightKey, Tensor]:
        """Send values through the gates: sampled ones, or deterministic ones without noise."""
        gated = dict(values)
        for place, key in enumerate(self.supports):
            gated[key] = values[key] * _opened(self.gates, self.locations, noise, place)
        return gated

    def chances(self) -> dict[WeightKey, Tensor]:
        """Give the chance of every entry to stay."""
        return {
            key: self.gates.chance(location) * support
            for (key, support), location in zip(self.supports.items(), self.locations, strict=True)
        }

    def settle(self, count: int | None) -> dict[WeightKey, Tensor]:
        """Keep the entries whose gates have the highest locations, ties to the lower index."""
        with torch.no_grad():
            border = self.gates.border
            placed = {
                key: torch.where(support, location, -torch.inf)
                for (key, support), location in zip(
                    self.supports.items(), self.locations, strict=True
                )
            }
            if count is None:
                return {key: location > border for key, location in placed.items()}
            found = keep_largest_overall(placed, min(count, self.entries))
            lowest = min(
                (float(at[found[key]].min()) for key, at in placed.items() if found[key].any()),
                default=border,
            )
            _lift(self.locations, lowest, border)
            return found

    def told(self, supports: Mapping[WeightKey, Tensor]) -> str:
        """Say how many gates stay."""
        kept = sum(int(support.sum()) for support in supports.values())
        return f"{kept:,} of {self.entries:,} gates stay"


class UnitGates:
    """A gate on every unit of the groups: all that reads the unit goes through it.

    With a unit leaves what makes it too, so an entry counts as long as every unit it belongs to
    stays. (An entry that makes and reads the same unit counts twice in that; recurrent weights have
    as many of those as units.)
    """

    def __init__(
        self,
        gates: HardConcrete,
        values: Mapping[WeightKey, Tensor],
        supports: Mapping[WeightKey, Tensor],
        groups: Sequence[Group],
        start: float,
        spread: float,
    ) -> None:
        """Lay out the gates.

        Args:
            gates: their distribution.
            values: of the free weights.
            supports: bool, in their shapes.
            groups: of units, as ``removable`` gives them.
            start: the location of a gate on a unit that is read as much as is usual in its group.
            spread: how much larger it is where the unit is read e times as much.
        """
        self.gates = gates
        self.groups = tuple(groups)
        self.supports = dict(supports)
        self.entries = sum(int(support.sum()) for support in supports.values())
        self.locations: list[Tensor] = []
        squares = {key: values[key].square() for key in supports}
        for group in groups:
            size = group.sums(squares, Role.READ)
            # The units nothing reads are gone already.
            at = _first((size / size.mean().clamp_min(1e-30)).sqrt(), start, spread)
            self.locations.append(torch.where(size > 0, at, -torch.inf))

    def through(
        self, values: Mapping[WeightKey, Tensor], noise: Sequence[Tensor] | None
    ) -> dict[WeightKey, Tensor]:
        """Send values through the gates: sampled ones, or deterministic ones without noise."""
        gated = dict(values)
        for place, group in enumerate(self.groups):
            opened = _opened(self.gates, self.locations, noise, place)
            for member in group.members:
                if member.role & Role.READ and member.key in self.supports:
                    gated[member.key] = gated[member.key] * _along(
                        member, opened, gated[member.key].ndim
                    )
        return gated

    def chances(self) -> dict[WeightKey, Tensor]:
        """Give the chance of every entry to stay."""
        found = {key: support.float() for key, support in self.supports.items()}
        for group, location in zip(self.groups, self.locations, strict=True):
            chance = self.gates.chance(location)
            for member in group.members:
                if member.key in found:
                    found[member.key] = found[member.key] * _along(
                        member, chance, found[member.key].ndim
                    )
        return found

    def settle(self, count: int | None) -> dict[WeightKey, Tensor]:
        """Close the gates with the lowest locations; one unit of each group stays.

        Raises:
            SparsityError: more entries stay than asked for with one unit in every group.
        """
        with torch.no_grad():
            border = self.gates.border
            flat = torch.cat([location.cpu() for location in self.locations])
            last = torch.cat([_best(location.cpu()) for location in self.locations])
            order = torch.where(last, torch.inf, flat).sort(stable=True).indices
            most = int((~last).sum())
            if count is None:
                closed = int(((flat <= border) & ~last).sum())
            else:
                closed = self._enough(order, most, count)
            alive = torch.ones(len(flat), dtype=torch.bool)
            alive[order[:closed]] = False
            if count is not None:
                _lift(self.locations, float(flat[alive & flat.isfinite()].min()), border)
            return self._without(alive)

    def told(self, supports: Mapping[WeightKey, Tensor]) -> str:
        """Say how many units of each group stay."""
        ones = {key: support.float() for key, support in supports.items()}
        return "units left: " + ", ".join(
            f"{int((group.sums(ones, Role.READ) > 0).sum())} of {group.units} '{group.name}'"
            for group in self.groups
        )

    def _enough(self, order: Tensor, most: int, count: int) -> int:
        """Find the fewest units that have to leave for so many entries to stay."""

        def kept(closed: int) -> int:
            alive = torch.ones(len(order), dtype=torch.bool)
            alive[order[:closed]] = False
            return sum(int(support.sum()) for support in self._without(alive).values())

        low, high = 0, most
        if (fewest := kept(high)) > count:
            share = 1 - fewest / max(1, sum(s.numel() for s in self.supports.values()))
            raise SparsityError(
                f"with one unit left in every group only {share:.0%} of the weights are zero; ask "
                "for less, or let other steps go further"
            )
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if kept(middle) <= count else (middle + 1, high)
        return low

    def _without(self, alive: Tensor) -> dict[WeightKey, Tensor]:
        """Give the supports with all that belongs to units that left taken out."""
        found = dict(self.supports)
        parts = alive.split([group.units for group in self.groups])
        for group, part in zip(self.groups, parts, strict=True):
            for member in group.members:
                if member.key in found:
                    support = found[member.key]
                    stays = _along(member, part.to(support.device), support.ndim)
                    found[member.key] = support & stays
        return found


def _first(size: Tensor, start: float, spread: float) -> Tensor:
    """Give the locations at which training begins, as leaves."""
    return (start + spread * size.clamp_min(LEAST).log()).detach()


def _opened(
    gates: HardConcrete, locations: Sequence[Tensor], noise: Sequence[Tensor] | None, place: int
) -> Tensor:
    if noise is None:
        return gates.settled(locations[place])
    return gates.sample(locations[place], noise[place])


def _along(member: Member, values: Tensor, axes: int) -> Tensor:
    """Lay what each unit has along the axis of a constant; 1 for positions of no unit."""
    places = torch.from_numpy(member.units).to(values.device)
    padded = torch.cat([values.new_ones(1), values])[places + 1]
    shape = [1] * axes
    shape[member.axis] = -1
    return padded.reshape(shape)


def _best(locations: Tensor) -> Tensor:
    """Mark the unit of a group that stays in any case."""
    mask = torch.zeros(len(locations), dtype=torch.bool)
    mask[locations.argmax()] = True
    return mask


def _lift(locations: Sequence[Tensor], lowest: float, border: float) -> None:
    """Move all gates together, where the lowest that stays would be closed.

    That is what a slightly smaller penalty would have done to all of them.
    """
    if lowest <= border:
        for location in locations:
            location += border + MARGIN - lowest
