"""Which input of a model a word means, and what shape one run of the model takes.

A *feed* is one run of the model: arrays in the model's own input shapes, with a batch dimension of
1 where the first dimension is a batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.specs import InputSpec

Shape = tuple[int, ...]


def matching(pattern: str, specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """Find the inputs a name or a pattern (``*``, ``?``, ``[…]``) means.

    An exact name wins over a pattern, because ONNX names may hold any character.

    Returns:
        At least one input, in the order of the model.

    Raises:
        MisuseError: none is called so.
    """
    exact = tuple(spec for spec in specs if spec.name == pattern)
    found = exact or tuple(spec for spec in specs if fnmatchcase(spec.name, pattern))
    if not found:
        raise MisuseError(unknown_input(pattern, specs))
    return found


def unknown_input(name: str, specs: Sequence[InputSpec]) -> str:
    """Say that the model has no such input, which one may be meant, and which there are."""
    close = get_close_matches(name, [spec.name for spec in specs], n=1)
    meant = f" (did you mean '{close[0]}'?)" if close else ""
    return f"the model has no input '{name}'{meant}; it takes {listed(specs)}"


def listed(specs: Sequence[InputSpec]) -> str:
    """Name inputs with their types and shapes, in one line."""
    return ", ".join(spec.describe() for spec in specs) or "no inputs"


def parse_shapes(texts: Sequence[str], specs: Sequence[InputSpec]) -> dict[str, Shape]:
    """Read ``--shape NAME=1,3,224,224``.

    Args:
        texts: one per flag; NAME may be a pattern.
        specs: the inputs of the model.

    Returns:
        The shape of a feed for each input that a flag names.

    Raises:
        MisuseError: a text does not read, names no input, names one twice, or contradicts the
            model.
    """
    shapes: dict[str, Shape] = {}
    for text in texts:
        read = re.fullmatch(r"(?P<name>.+)=(?P<dims>\d+(, ?\d+)*)", text)
        dims = tuple(map(int, read["dims"].split(","))) if read else ()
        if read is None or 0 in dims:
            raise MisuseError(
                f"--shape {text} does not read as NAME=SIZES with sizes from 1 on; write it like "
                f"{specs[0].name if specs else 'input'}=1,3,224,224"
            )
        for spec in matching(read["name"], specs):
            if spec.name in shapes:
                raise MisuseError(f"two --shape flags fix the input '{spec.name}'; keep one")
            if spec.ranked and not fits(dims, spec.shape):
                raise MisuseError(
                    f"--shape {text} contradicts the model, which takes {spec.describe()}"
                )
            shapes[spec.name] = dims
    return shapes


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether a shape agrees with one that may leave sizes open.

    >>> fits((1, 3, 8), (None, 3, None)), fits((3, 8), (None, 3, None))
    (True, False)
    """
    return len(shape) == len(wanted) and all(
        want in (None, size) for size, want in zip(shape, wanted, strict=True)
    )


def feed_shape(spec: InputSpec, shapes: Mapping[str, Shape]) -> Shape:
    """Give the shape of one feed of an input.

    An open first dimension is a batch, and one sample is a batch of 1; any other open size must be
    fixed by ``shapes``.

    Raises:
        MisuseError: a size stays open.
    """
    if spec.name in shapes:
        return shapes[spec.name]
    sizes = [1 if size is None and place == 0 else size for place, size in enumerate(spec.shape)]
    known = tuple(size for size in sizes if size is not None)
    if len(known) < len(sizes) or not spec.ranked:
        raise MisuseError(
            f"the model leaves sizes of the input {spec.describe()} open; fix them, for example "
            f"with --shape {spec.name}={','.join(map(str, example_shape(spec)))}"
        )
    return known


def example_shape(spec: InputSpec) -> Shape:
    """Give a shape that fits the model, with 32 for what it leaves open, to show in messages."""
    if not spec.ranked:
        return (1, 32)
    return tuple(
        size if size is not None else (1 if place == 0 else 32)
        for place, size in enumerate(spec.shape)
    )
