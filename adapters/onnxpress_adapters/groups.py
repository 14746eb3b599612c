"""Units of a model that can leave: channels, hidden units, heads, and all that leaves with each.

A *unit* is a set of positions along axes of constants that must leave together: a row of a weight,
the entry of a bias, the channel of a norm, the column of the next weight. Units on the same axes of
the same values are a *group*: as long as one of them stays, no axis becomes empty. ``groups_find``
finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.axes import Role
from onnxpress_adapters.axes_numbers import Ledger
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.weights import WeightKey

Units = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of a constant some of whose positions belong to the units of a group.

    Attributes:
        key: the constant.
        axis: of its shape in the file.
        units: int64 ``[size of the axis]``, the unit of the group each position belongs to, -1
            where it belongs to none of this group.
        role: what the entries there do for the unit.
        weight: whether the constant is a prunable weight that steps can change.
    """

    key: WeightKey
    axis: int
    units: Units
    role: Role
    weight: bool

    def sums(self, score: Tensor, count: int) -> Tensor:
        """Add up a score of every entry, unit by unit.

        Args:
            score: real, in the shape of the constant.
            count: how many units the group has.

        Returns:
            ``[count]`` on the device of the score.
        """
        others = [axis for axis in range(score.ndim) if axis != self.axis]
        along = score.sum(others) if others else score
        places = torch.from_numpy(self.units).to(score.device)
        found = torch.zeros(count + 1, dtype=along.dtype, device=score.device)
        # What belongs to no unit is added up in front and left out.
        return found.index_add_(0, places + 1, along)[1:]


@dataclass(frozen=True, eq=False)
class Group:
    """Units of one kind, each of which can leave alone.

    Attributes:
        name: of the first weight that makes them.
        units: how many there are.
        first: the number of the first unit among the units of all groups.
        members: all that leaves with them.
    """

    name: str
    units: int
    first: int
    members: tuple[Member, ...]

    def sums(self, scores: Mapping[WeightKey, Tensor], roles: Role | None = None) -> Tensor:
        """Add up the scores of all entries that leave with each unit.

        An entry that leaves with either of two units (of one hidden layer to the next, or within a
        recurrent layer) counts for both.

        Args:
            scores: real, one per entry, in the shapes of the constants; further keys are ignored,
                and so are members without a score.
            roles: only members that do one of these; all by default.

        Returns:
            ``[units]``, zeros where no member has a score.
        """
        total: Tensor | None = None
        for member in self.members:
            if member.key in scores and (roles is None or member.role & roles):
                found = member.sums(scores[member.key], self.units)
                total = found if total is None else total + found
        return torch.zeros(self.units) if total is None else total


@dataclass(frozen=True, eq=False)
class Groups:
    """All groups of a model.

    Attributes:
        groups: in the order of the graph; their units are numbered through.
        reasons: of every prunable weight none of whose units can leave, why not.
        axes: of every value of the main graph with units on an axis: per axis int64 ``[size]``, the
            number of the unit each position belongs to, -1 where it belongs to none.
        ledger: where the whole numbers that tell shapes come from.
    """

    groups: tuple[Group, ...]
    reasons: Mapping[WeightKey, str]
    axes: Mapping[str, tuple[Units, ...]] = field(default_factory=dict, repr=False)
    ledger: Ledger = field(default_factory=lambda: Ledger({}, {}), repr=False)

    @property
    def units(self) -> int:
        """How many units all groups have."""
        return sum(group.units for group in self.groups)

    def gone(self, removed: Sequence[Sequence[bool] | np.ndarray | Tensor]) -> np.ndarray:
        """Number the removed units through.

        Args:
            removed: for each group which of its units leave, bool ``[units]``.

        Returns:
            bool ``[units of all groups]``.

        Raises:
            MisuseError: the lengths do not fit, or a group would lose all its units.
        """
        if len(removed) != len(self.groups):
            raise MisuseError(
                f"there are {len(self.groups)} groups, and removed units for {len(removed)}"
            )
        parts = []
        for group, each in zip(self.groups, removed, strict=True):
            mask = np.asarray(each.cpu() if isinstance(each, Tensor) else each, bool)
            if mask.shape != (group.units,):
                raise MisuseError(
                    f"group '{group.name}' has {group.units} units, "
                    f"and its removed ones are given as {list(mask.shape)}"
                )
            if mask.all():
                raise MisuseError(
                    f"group '{group.name}' would lose all of its {group.units} units; keep one"
                )
            parts.append(mask)
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    def places(self, name: str, gone: np.ndarray) -> tuple[np.ndarray, ...] | None:
        """Say which positions along each axis of a value leave.

        Args:
            name: of a value of the main graph, constants included.
            gone: as ``gone`` gives it.

        Returns:
            Per axis bool ``[size]``; None where nothing leaves.
        """
        if name not in self.axes or not len(gone):
            return None
        found = tuple((units >= 0) & gone[units] for units in self.axes[name])
        return found if any(mask.any() for mask in found) else None

    def masked(
        self,
        values: Mapping[WeightKey, np.ndarray],
        gone: np.ndarray,
        unread: np.ndarray | None = None,
    ) -> dict[WeightKey, np.ndarray]:
        """Zero what makes removed units: the reference a shrunk model is held to.

        The weights that make a unit, its biases, and scale and shift of its norms become zero, so
        that what enters its activation is zero. The weights that read it stay: a sigmoid of zero is
        one half, and that is still read.

        Args:
            values: of the constants, by key; of a quantised weight the whole numbers, whose zero is
                0.
            gone: as ``gone`` gives it.
            unread: bool likewise, the units among them whose readers become zero as well, because
                what they still say could not be said by a bias; none by default.

        Returns:
            Copies of the constants that change; for keys in ``values`` only.
        """
        made: dict[WeightKey, np.ndarray] = {}
        for group in self.groups:
            units = slice(group.first, group.first + group.units)
            for member in group.members:
                if member.key not in values:
                    continue
                leaving = np.zeros(group.units, bool)
                if member.role & (Role.MADE | Role.SHIFT):
                    leaving |= gone[units]
                if member.role & Role.READ and unread is not None:
                    leaving |= gone[units] & unread[units]
                places = (member.units >= 0) & leaving[member.units]
                if places.any():
                    array = made.setdefault(member.key, values[member.key].copy())
                    np.moveaxis(array, member.axis, 0)[places] = 0
        return made
