"""Which converter runs an operator: ``(domain, operator, version)`` to a function.

A converter is a plain function. It takes the node's attributes and context first, then the node's
inputs as tensors in the order of the ONNX specification (``None`` for an input left out), and
returns a tensor or a tuple of tensors in the order of the outputs:

    @converter("Gemm")
    def gemm(node: NodeView, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor: ...

Inputs named in ``host`` arrive as numpy arrays instead (shapes, axes, pads: what decides the shape
of the result); a converter that needs them never synchronises a GPU in the common case, because
shape arithmetic runs on the host anyway. A *raw* converter takes its inputs as they stand
(tensors, arrays, and lists for sequences) and its results stay in the lane they come in: it is for
operators that hand values on or look at their shapes only.

A converter must be pure, differentiable in its floating-point tensors where the operator is, and
free of data-dependent Python control flow, so that ``torch.vmap`` can run it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from onnxpress_adapters.errors import AdapterError

Converter = Callable[..., Any]

LATEST = 1 << 30


@dataclass(frozen=True)
class Entry:
    """One row of the table: a converter and the opset versions it holds for, both ends included."""

    convert: Converter
    since: int
    until: int
    host: tuple[int, ...]
    raw: bool = False


@dataclass
class Registry:
    """A table of converters that refuses duplicates."""

    rows: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)

    def converter(
        self,
        *operators: str,
        domain: str = "",
        since: int = 1,
        until: int = LATEST,
        host: tuple[int, ...] = (),
        raw: bool = False,
    ) -> Callable[[Converter], Converter]:
        """Register a function for operators of a domain, for opsets ``since`` to ``until``.

        Args:
            operators: ONNX operator names, exact.
            domain: ``""`` for ai.onnx.
            since: first opset version the function is right for.
            until: last opset version the function is right for.
            host: places of the inputs that arrive as numpy arrays. A negative place counts for
                every input from ``-place - 1`` on: ``(-1,)`` is all inputs.
            raw: whether the function takes values as they stand.

        Raises:
            AdapterError: the versions overlap those of a registered function.
        """

        def register(convert: Converter) -> Converter:
            for operator in operators:
                rows = self.rows.setdefault((domain, operator), [])
                for row in rows:
                    if since <= row.until and row.since <= until:
                        raise AdapterError(f"{domain or 'ai.onnx'}::{operator} is registered twice")
                rows.append(Entry(convert, since, until, host, raw))
            return convert

        return register

    def find(self, domain: str, operator: str, version: int) -> Entry | None:
        """Give the row for an operator at an opset version, or None where there is none."""
        domain = "" if domain == "ai.onnx" else domain
        for row in self.rows.get((domain, operator), ()):
            if row.since <= version <= row.until:
                return row
        return None


REGISTRY = Registry()
converter = REGISTRY.converter
