"""Where the inputs of a model come from when no data is given: regions to draw from.

One domain describes one input of the model; a draw is one feed, in the input's shape and type.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxpress.arrays import read_npy
from onnxpress.inputs import Shape, example_shape, feed_shape, listed, matching
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.specs import InputSpec, kind, whole_range

Array = NDArray[Any]


class Domain(Protocol):
    """A region of inputs that can be drawn from."""

    def draw(self, rng: np.random.Generator, count: int, /) -> Array:
        """Draw ``count`` independent feeds: ``[count, *shape]``, in the input's type."""
        ...


@dataclass(frozen=True, eq=False)
class Box:
    """Inputs drawn uniformly between two corners.

    Attributes:
        shape: of one feed.
        dtype: a real type.
        lower: finite, broadcastable to ``shape``.
        upper: likewise, nowhere below ``lower``.
    """

    shape: Shape
    dtype: np.dtype[Any]
    lower: Array
    upper: Array

    def draw(self, rng: np.random.Generator, count: int, /) -> Array:
        """Draw ``[count, *shape]``."""
        work = _work_type(self.dtype)
        lower, upper = self.lower.astype(work), self.upper.astype(work)
        drawn = rng.random((count, *self.shape), dtype=work)
        drawn *= upper - lower
        drawn += lower
        np.clip(drawn, lower, upper, out=drawn)  # the last rounding may step over a corner
        return drawn.astype(self.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Ball:
    """Inputs drawn uniformly in volume from a Euclidean ball around 0.

    Attributes:
        shape: of one feed; the ball lives in as many dimensions as a feed has entries.
        dtype: a real type.
        radius: positive and finite.
    """

    shape: Shape
    dtype: np.dtype[Any]
    radius: float

    def draw(self, rng: np.random.Generator, count: int, /) -> Array:
        """Draw ``[count, *shape]``."""
        work = _work_type(self.dtype)
        entries = int(np.prod(self.shape, dtype=np.int64))
        drawn = rng.standard_normal((count, entries), dtype=work)
        norms = np.linalg.norm(drawn, axis=1, keepdims=True)
        # A volume grows with the power `entries` of its radius.
        radii = self.radius * rng.random((count, 1)) ** (1 / entries)
        drawn *= (radii / np.maximum(norms, np.finfo(work).tiny)).astype(work)
        return drawn.reshape(count, *self.shape).astype(self.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Normal:
    """Inputs with independent normal entries.

    Attributes:
        shape: of one feed.
        dtype: a real type.
        mean: finite, broadcastable to ``shape``.
        std: likewise, nowhere negative.
    """

    shape: Shape
    dtype: np.dtype[Any]
    mean: Array
    std: Array

    def draw(self, rng: np.random.Generator, count: int, /) -> Array:
        """Draw ``[count, *shape]``."""
        work = _work_type(self.dtype)
        drawn = rng.standard_normal((count, *self.shape), dtype=work)
        drawn *= self.std.astype(work)
        drawn += self.mean.astype(work)
        return drawn.astype(self.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Inputs with independent whole entries, each value from ``lower`` to ``upper`` equally likely.

    Attributes:
        shape: of one feed.
        dtype: a type of whole numbers, or bool.
        lower: int64, broadcastable to ``shape``.
        upper: likewise, nowhere below ``lower``; it is drawn too.
    """

    shape: Shape
    dtype: np.dtype[Any]
    lower: Array
    upper: Array

    def draw(self, rng: np.random.Generator, count: int, /) -> Array:
        """Draw ``[count, *shape]``."""
        size = (count, *self.shape)
        return rng.integers(self.lower, self.upper, size=size, endpoint=True).astype(self.dtype)


def parse_domains(
    texts: Sequence[str], specs: Sequence[InputSpec], shapes: Mapping[str, Shape]
) -> dict[str, Domain]:
    """Read all ``--domain`` flags of a call.

    A flag with an exact name wins over one with a pattern.

    Args:
        texts: as ``parse_domain`` reads them, at least one.
        specs: the inputs of the model.
        shapes: sizes the call fixes, by input.

    Returns:
        A domain for every input, in the order of the model.

    Raises:
        MisuseError: a text is wrong, two speak of the same input, or an input has none.
    """
    names = {spec.name for spec in specs}
    exact: dict[str, Domain] = {}
    loose: dict[str, Domain] = {}
    for text in texts:
        found = parse_domain(text, specs, shapes)
        known = exact if _split(text)[0] in names else loose
        for name in found:
            if name in known:
                raise MisuseError(f"two --domain flags speak of the input '{name}'; keep one")
        known.update(found)
    domains = {**loose, **exact}
    missing = [spec for spec in specs if spec.name not in domains]
    if missing:
        raise MisuseError(
            f"no --domain says where the input{'s' * (len(missing) > 1)} {listed(missing)} "
            f"come{'s' * (len(missing) == 1)} from; add for example "
            + " ".join(f"--domain {_example(spec)}" for spec in missing)
        )
    return {spec.name: domains[spec.name] for spec in specs}


def parse_domain(
    text: str, specs: Sequence[InputSpec], shapes: Mapping[str, Shape]
) -> dict[str, Domain]:
    """Read one domain, for every input its name or pattern means.

    ``NAME=uniform:LO,HI`` (numbers, or .npy files that broadcast to the shape of a feed),
    ``NAME=normal:MEAN,STD`` (likewise), ``NAME=ball:RADIUS``, ``NAME=tokens:LO,HI`` (both ends are
    drawn). ``uniform`` on an input of whole numbers draws whole numbers.

    Args:
        text: one of these.
        specs: the inputs of the model.
        shapes: sizes the call fixes, by input.

    Raises:
        MisuseError: the text does not read, names no input, does not suit the input's type, or
            leaves sizes of it open.
    """
    pattern, word, values = _split(text)
    if word not in _MAKERS:
        raise MisuseError(
            f"--domain {text}: '{word}' is not a kind of domain; there are "
            + ", ".join(sorted(_MAKERS))
        )
    wanted = 1 if word == "ball" else 2
    pieces = values.split(",")
    if len(pieces) != wanted:
        raise MisuseError(
            f"--domain {text}: {word} takes {wanted} value{'s' * (wanted > 1)} "
            f"after the colon, not {len(pieces)}"
        )
    found = matching(pattern, specs)
    arrays = [_value(piece, text) for piece in pieces]
    domains: dict[str, Domain] = {}
    for spec in found:
        shape = feed_shape(spec, shapes)
        for piece, array in zip(pieces, arrays, strict=True):
            if not _broadcasts(array.shape, shape):
                raise MisuseError(
                    f"--domain {text}: {piece} has shape {list(array.shape)}, which does not "
                    f"broadcast to the {list(shape)} of the input '{spec.name}'"
                )
        try:
            domains[spec.name] = _MAKERS[word](spec, shape, *arrays)
        except MisuseError as error:
            raise MisuseError(f"--domain {text}: {error}") from None
    return domains


def no_domain_error(
    specs: Sequence[InputSpec], *files: str, command: str = "compress"
) -> MisuseError:
    """Build the error for a call that says nothing about inputs: what there is, a line to copy.

    Args:
        specs: the inputs of the model.
        files: what the call names, the model first.
        command: of the call.
    """
    return MisuseError(
        f"{files[0]}: say which inputs matter, with --data FILE (real ones, best) or with "
        "--domain for each input\nThe model takes\n"
        + "".join(f"  {spec.describe()}\n" for spec in specs)
        + f"for example\n  {call_line(specs, *files, command=command)}"
    )


def call_line(specs: Sequence[InputSpec], *files: str, command: str = "compress") -> str:
    """Write a call that works on a model, to be copied and changed.

    Args:
        specs: the inputs of the model.
        files: what the call names, the model first.
        command: ``compress``, ``verify``, ``pick`` or ``bench``.
    """
    words = ["onnxpress", command, *files]
    words += [] if command == "bench" else ["--tolerance", "1%"]
    for spec in specs:
        words += ["--domain", _example(spec)]
        if not spec.ranked or None in spec.shape[1:]:
            words += ["--shape", f"{spec.name}={','.join(map(str, example_shape(spec)))}"]
    return shlex.join(words)


def _example(spec: InputSpec) -> str:
    return f"{spec.name}={'uniform' if spec.kind == 'float' else 'tokens'}:0,1"


def _split(text: str) -> tuple[str, str, str]:
    """Cut ``NAME=KIND:VALUES``; the name may hold colons, and equals signs too."""
    read = re.fullmatch(r"(?P<name>.+)=(?P<kind>[^=:]*):(?P<values>.+)", text)
    if read is None:
        raise MisuseError(
            f"--domain {text} does not read as NAME=KIND:VALUES; write it like input=uniform:0,1"
        )
    return read["name"], read["kind"].strip(), read["values"]


def _value(piece: str, text: str) -> Array:
    """Read a number or a .npy file as a finite float64 array; whole numbers stay exact."""
    if piece.strip().endswith(".npy"):
        array = read_npy(Path(piece.strip()))
        if kind(array.dtype) not in ("float", "integer"):
            raise MisuseError(f"--domain {text}: {piece} holds {array.dtype}, not numbers")
    else:
        try:
            number = float(piece)
        except ValueError:
            raise MisuseError(
                f"--domain {text}: '{piece}' is neither a number nor a .npy file"
            ) from None
        array = np.asarray(int(piece) if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", piece) else number)
    if not np.isfinite(array).all():
        raise MisuseError(f"--domain {text}: {piece} is not finite")
    return array


def _broadcasts(shape: Shape, to: Shape) -> bool:
    return len(shape) <= len(to) and all(
        size in (1, want) for size, want in zip(reversed(shape), reversed(to), strict=False)
    )


def _work_type(dtype: np.dtype[Any]) -> Any:
    """Give the type to draw in: float32 for all that is no wider, to save memory."""
    return np.float64 if dtype == np.float64 else np.float32


def _uniform(spec: InputSpec, shape: Shape, lower: Array, upper: Array) -> Domain:
    if spec.kind in ("integer", "bool"):
        return _tokens(spec, shape, lower, upper)
    _must_be_real(spec, "uniform")
    _must_be_ordered(lower, upper)
    with np.errstate(over="ignore", invalid="ignore"):
        width = upper.astype(spec.dtype) - lower.astype(spec.dtype)
    if not np.isfinite(width).all():
        raise MisuseError(f"the box is too wide for the {spec.dtype} of the input '{spec.name}'")
    return Box(shape, spec.dtype, lower, upper)


def _ball(spec: InputSpec, shape: Shape, radius: Array) -> Domain:
    _must_be_real(spec, "ball")
    if radius.ndim or radius <= 0:
        raise MisuseError("the radius of a ball is one number above 0")
    return Ball(shape, spec.dtype, float(radius))


def _normal(spec: InputSpec, shape: Shape, mean: Array, std: Array) -> Domain:
    _must_be_real(spec, "normal")
    if (std < 0).any():
        raise MisuseError("a standard deviation cannot be below 0")
    return Normal(shape, spec.dtype, mean, std)


def _tokens(spec: InputSpec, shape: Shape, lower: Array, upper: Array) -> Domain:
    if spec.kind not in ("integer", "bool"):
        raise MisuseError(
            f"the input '{spec.name}' holds {spec.dtype}, not whole numbers; use uniform instead"
        )
    if (lower != np.floor(lower)).any() or (upper != np.floor(upper)).any():
        raise MisuseError(f"the input '{spec.name}' holds {spec.dtype}: both ends must be whole")
    _must_be_ordered(lower, upper)
    least, most = whole_range(spec.dtype)
    least, most = max(least, -(2**63)), min(most, 2**63 - 1)  # what int64, and so we, can draw
    if lower.min() < least or upper.max() > most:
        raise MisuseError(
            f"the input '{spec.name}' holds {spec.dtype}, which goes from {least} to {most}"
        )
    return Tokens(shape, spec.dtype, lower.astype(np.int64), upper.astype(np.int64))


def _must_be_real(spec: InputSpec, word: str) -> None:
    if spec.kind != "float":
        raise MisuseError(
            f"the input '{spec.name}' holds {spec.dtype}; {word} draws real numbers, use tokens"
        )


def _must_be_ordered(lower: Array, upper: Array) -> None:
    if (lower > upper).any():
        raise MisuseError("the lower end lies above the upper end; swap them")


_MAKERS: dict[str, Callable[..., Domain]] = {
    "uniform": _uniform,
    "ball": _ball,
    "normal": _normal,
    "tokens": _tokens,
}
