"""What a run is asked: fixed before the first step and never changed after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.groups import Groups
from onnxpress_adapters.network import Network
from onnxpress_adapters.weights import WeightKey

Progress = Callable[[str, float, str], None]
"""Takes a stage, how much of it is done (0 to 1), and a note."""


def silent(stage: str, done: float, note: str) -> None:
    """Say nothing."""


SURE = 0.9
"""Share of the tolerance an upper bound may use: the judge draws other samples."""

RESERVE = 0.6
"""Share of the tolerance used where data, not a domain, says what matters.

Samples of a data set are related: crops of one photograph, chunks of one recording. Held-out ones
are then closer to the fitted ones than new inputs will be. Over the zoo, d on inputs from other
sources was up to 1.6 times d on held-out ones, where it was not another kind of input altogether.
"""

FEW_RESERVE = 0.4
"""Likewise where few sources are held out: one photograph lies far off, the next one does not."""


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may move.

    Attributes:
        value: E‖F-F'‖² if absolute, else its share of the output's variance (0.01 is 1 %).
        absolute: which of the two.
        outputs: output name to its own tolerance, or None for ``value``; empty for all outputs.
        flips: the largest share of changed answers, 0 to 1, or None.
    """

    value: float
    absolute: bool = False
    outputs: tuple[tuple[str, float | None], ...] = ()
    flips: float | None = None

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """Read ``1%`` (relative) or ``1e-3`` (absolute).

        Raises:
            MisuseError: it is neither, or not above zero.

        >>> Tolerance.parse("1%")
        Tolerance(value=0.01, absolute=False, outputs=(), flips=None)
        """
        value, absolute = parse_amount(text)
        return cls(value, absolute)

    def __str__(self) -> str:
        """Write it as people would, ``1 %`` or ``0.001``."""
        return f"{self.value:g}" if self.absolute else f"{100 * self.value:g} %"


def parse_amount(text: str) -> tuple[float, bool]:
    """Read ``1%`` as (0.01, False) and ``1e-3`` as (0.001, True).

    Raises:
        MisuseError: it is neither, or not a number above zero.
    """
    stripped = text.strip()
    try:
        if stripped.endswith("%"):
            value, absolute = float(stripped[:-1]) / 100, False
        else:
            value, absolute = float(stripped), True
    except ValueError:
        raise MisuseError(
            f"'{text}' is no tolerance; write a share of the output's variance such as 1%, "
            "or an absolute distance such as 1e-3"
        ) from None
    if not 0 < value < float("inf"):
        raise MisuseError(f"a tolerance is a number above zero, not '{text}'")
    return value, absolute


@dataclass(frozen=True, eq=False)
class Problem:
    """A network, its reference weights and the inputs that matter.

    Attributes:
        network: imported and proven (``Network.proven``).
        reference: every constant of the network, on ``device``.
        fit: what steps optimise on: one tensor ``[samples, *feed shape]`` per graph input.
        choose: what searches, allocations and early stopping judge on; disjoint from ``fit``.
        judged: places of the outputs that count, all floating-point ones unless selected.
        tolerance: the promise; None when only a sparsity is asked for.
        device: where everything is computed.
        seed: the only source of chance.
        effort: scales how much work steps do; 1 is the default.
        share: of the tolerance that a search may use: ``SURE``, ``RESERVE`` or ``FEW_RESERVE``.
        labels: of fit and of choose, on ``device``: int64 or float32 ``[samples, ...]``, for steps
            that minimise the loss of a task (``task.goal_of``); None where there are none.
        groups: which units leave together; None where no step asks for it.
        progress: told how far the work is.
        memo: what depends on nothing but the problem and is worth computing once (the scales of
            the outputs, the layer Hessians of the reference).
    """

    network: Network
    reference: Mapping[WeightKey, Tensor]
    fit: Sequence[Tensor]
    choose: Sequence[Tensor]
    judged: tuple[int, ...]
    tolerance: Tolerance | None
    device: torch.device
    seed: int
    effort: float = 1.0
    share: float = SURE
    labels: tuple[Tensor, Tensor] | None = None
    groups: Groups | None = None
    progress: Progress = field(default=silent, repr=False)
    memo: dict[object, object] = field(default_factory=dict, repr=False)

    def generator(self, purpose: str) -> torch.Generator:
        """Give a fresh CPU generator that depends on the seed and the purpose only."""
        stirred = sum(ord(letter) * 131**place for place, letter in enumerate(purpose))
        return torch.Generator().manual_seed((self.seed * 1_000_003 + stirred) % 2**63)
