"""What holds for every converter: it can be vectorised, differentiated and run without values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from one_node import Prepared


def copies(value: Tensor) -> Tensor:
    """Stack three tensors of one shape: the one given, another, and the one given."""
    if value.dtype.itemsize == 1 or not value.is_floating_point():
        return torch.stack([value, value, value])
    return torch.stack([value, value * 0.9, value])


def check_vmap(prepared: Prepared, places: Sequence[int] | None = None) -> None:
    """Compare ``torch.vmap`` over each tensor a converter takes with the loop.

    Args:
        prepared: a converter and its arguments.
        places: the arguments to vectorise over; all tensors where None.
    """
    for place in prepared.tensors() if places is None else places:
        stacked = copies(prepared.arguments[place])

        def one(value: Tensor, place: int = place) -> tuple[Tensor, ...]:
            return prepared.with_({place: value})

        vectorised = torch.vmap(one)(stacked)
        looped = [torch.stack(parts) for parts in zip(*map(one, stacked), strict=True)]
        for fast, slow in zip(vectorised, looped, strict=True):
            if not (fast.is_floating_point() and fast.dtype.itemsize == 1):
                torch.testing.assert_close(fast, slow, equal_nan=True, rtol=1e-4, atol=1e-5)


def run_on(device: str, prepared: Prepared) -> tuple[list[Tensor], list[Tensor]]:
    """Run a converter on the CPU and on another device."""
    changes = {place: prepared.arguments[place].to(device) for place in prepared.tensors()}
    return list(prepared.with_({})), list(prepared.with_(changes))


def check_meta(prepared: Prepared) -> None:
    """Ask for shapes and types on the device ``meta``, whose tensors hold no values.

    Whatever reads a value on the host, or mixes devices, fails there.
    """
    for here, there in zip(*run_on("meta", prepared), strict=True):
        assert (there.shape, there.dtype) == (here.shape, here.dtype)
        assert there.device.type == "meta" or not prepared.tensors()


def floats(prepared: Prepared) -> list[int]:
    """Give the places of the arguments that can have a derivative."""
    chosen = []
    for place in prepared.tensors():
        value = prepared.arguments[place]
        if value.is_floating_point() and value.dtype.itemsize > 1:
            chosen.append(place)
    return chosen


def moved(value: Tensor, seed: int) -> Tensor:
    """Give a float64 tensor just off the given one, and so off its kinks and ties."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
    return value.to(torch.float64) + 0.01 * noise + 0.001


def check_gradient(prepared: Prepared, places: Sequence[int]) -> bool:
    """Compare derivatives with difference quotients; False where no output has one."""
    constants = {
        place: value.to(torch.float64)
        for place, value in enumerate(prepared.arguments)
        if isinstance(value, Tensor) and value.is_floating_point()
    }

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        results = prepared.with_({**constants, **dict(zip(places, values, strict=True))})
        return tuple(r for r in results if r.is_floating_point() and r.requires_grad)

    values = [moved(prepared.arguments[p], p).requires_grad_() for p in places]
    if not outputs(*values):
        return False
    return torch.autograd.gradcheck(outputs, values, fast_mode=True, atol=1e-4)
