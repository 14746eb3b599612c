"""What the prunable weights of a model take in each form, beside what no code could go below.

The figures of a form hold all it needs in a file: indices, decoders, scales, codebooks.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from onnxpress.sizes import GZIP_FORMAT, GZIP_LEVEL, FileSize
from onnxpress_adapters.prunable import Prunable, prunable
from onnxpress_adapters.walk import STANDARD_DOMAINS
from onnxpress_exporters.packed import Item, pack, why_not_packed
from onnxpress_exporters.packed_codes import all_codes, nonzero
from onnxpress_exporters.sparse import framed_bytes, to_sparse, why_not_sparse
from onnxpress_exporters.values import Plain, Scaled, Storage

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxpress_adapters.weights import WeightKey

MOST_MEASURED = 1 << 22
"""Entries of the largest weight that is measured as a whole."""

PIECE_BYTES = 1 << 18
GZIP_LEAD = 0.03
MOST_GZIPPED_BYTES = 8 << 20
"""Bytes of a form that gzip sees at most; of larger ones pieces from all over, and a share."""


@dataclass(frozen=True)
class WeightBytes:
    """What the prunable weights of a model take.

    Attributes:
        elements: how many there are.
        forms: ``"dense"``, ``"sparse"`` and ``"packed"``, each weight that cannot take a form
            dense; as it is, and after gzip at level 6.
        entropy_bytes: the entropy of where the nonzeros are, weight by weight, and of their values:
            all bits of a float, or the entropy of codes and of at most 255 values.
    """

    elements: int
    forms: Mapping[str, FileSize]
    entropy_bytes: float

    def json(self) -> dict[str, Any]:
        """Give bytes per prunable weight."""
        each = max(1, self.elements)
        forms = {
            name: {"raw": size.size_bytes / each, "gzip": size.gzip_bytes / each}
            for name, size in self.forms.items()
        }
        return {**forms, "entropy": self.entropy_bytes / each}

    def scaled(self, elements: int) -> WeightBytes:
        """Give what more of the same would take."""
        factor = elements / max(1, self.elements)
        forms = {
            name: FileSize(round(factor * size.size_bytes), round(factor * size.gzip_bytes))
            for name, size in self.forms.items()
        }
        return WeightBytes(elements, forms, factor * self.entropy_bytes)

    @property
    def gzip_wins(self) -> str:
        """Say so where gzip of dense weights does better than packing them, by over 3 %."""
        dense, packed = self.forms["dense"], self.forms["packed"]
        packs = packed.size_bytes < dense.size_bytes
        if not packs or dense.gzip_bytes >= (1 - GZIP_LEAD) * packed.size_bytes:
            return ""
        each = max(1, self.elements)
        return (
            f"gzip of dense weights takes {dense.gzip_bytes / each:.3f} bytes each, less than the "
            f"{packed.size_bytes / each:.3f} of packed ones"
        )

    def cells(self) -> list[list[str]]:
        """Give a row per form and one for the entropy: as it is, and after gzip."""
        each = max(1, self.elements)
        rows = [
            [f"{size.size_bytes / each:.3f}", f"{size.gzip_bytes / each:.3f}"]
            for size in self.forms.values()
        ]
        return [*rows, [f"{self.entropy_bytes / each:.3f}", "-"]]


def weight_bytes(
    model: ModelProto,
    storage: Mapping[WeightKey, Storage] | None = None,
    *,
    tables: bool = False,
) -> WeightBytes:
    """Measure the prunable weights of a model in every form.

    Of a weight with more than ``MOST_MEASURED`` entries an even share of slices is measured.

    Args:
        model: dense, as ``read_model`` gives it; untouched.
        storage: how values were rounded, where that is known.
        tables: whether the tables of Gather count as prunable.
    """
    weights = [weight for weight in prunable(model, tables=tables) if weight.elements]
    known = storage or {}
    opset = max((o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS), default=1)
    small = [weight for weight in weights if weight.elements <= MOST_MEASURED]
    found = [_together(opset, small, known)] if small or not weights else []
    for weight in weights:
        if weight.elements > MOST_MEASURED:
            part, form = _share(weight, known.get(weight.key, Plain()))
            found.append(_together(opset, [part], {weight.key: form}).scaled(weight.elements))
    return WeightBytes(
        sum(one.elements for one in found),
        {
            form: FileSize(
                sum(one.forms[form].size_bytes for one in found),
                sum(one.forms[form].gzip_bytes for one in found),
            )
            for form in found[0].forms
        },
        sum(one.entropy_bytes for one in found),
    )


def _together(
    opset: int, weights: Sequence[Prunable], storage: Mapping[WeightKey, Storage]
) -> WeightBytes:
    """Measure some weights as if they were all of a model."""
    bits = 0.0
    dense_bytes = sparse_bytes = 0
    for weight in weights:
        array = numpy_helper.to_array(weight.tensor)
        bits += _entropy_bits(array, storage.get(weight.key, Plain()))
        dense_bytes += array.nbytes
        sparse_bytes += int(np.count_nonzero(array)) * (array.itemsize + 8)
    packed = _packed(opset, weights, storage)
    return WeightBytes(
        sum(weight.elements for weight in weights),
        {
            "dense": _measured((w.tensor.SerializeToString() for w in weights), dense_bytes),
            "sparse": _measured(map(_sparse, weights), sparse_bytes),
            "packed": _measured(packed, sum(map(len, packed))),
        },
        bits / 8,
    )


def _share(weight: Prunable, storage: Storage) -> tuple[Prunable, Storage]:
    """Take slices from all over a large weight, and the scales that go with them."""
    array = numpy_helper.to_array(weight.tensor)
    axis = int(np.argmax(array.shape))
    extent = array.shape[axis]
    count = max(1, MOST_MEASURED * extent // array.size)
    kept = np.arange(count) * extent // count
    name = weight.tensor.name
    part = numpy_helper.from_array(np.ascontiguousarray(array.take(kept, axis)), name)
    if isinstance(storage, Scaled):
        scales = storage.scales
        if scales.ndim == array.ndim and scales.shape[axis] == extent:
            storage = Scaled(scales.take(kept, axis))
    return replace(weight, tensor=part), storage


def table(sides: Sequence[tuple[str, WeightBytes]]) -> list[list[str]]:
    """Lay out one or two models side by side, a head and a row per form."""
    head = ["bytes per weight"]
    for name, _ in sides:
        head += [name, f"{name}, gzipped"]
    forms = [*sides[0][1].forms, "entropy"]
    columns = [side.cells() for _, side in sides]
    rows = [
        [form, *(cell for cells in columns for cell in cells[place])]
        for place, form in enumerate(forms)
    ]
    return [head, *rows]


def _entropy_bits(array: np.ndarray, storage: Storage) -> float:
    """Bound the bits that tell the places of nonzeros and their values."""
    kept = nonzero(np.ascontiguousarray(array).reshape(-1))
    count = int(kept.sum())
    if not count:
        return 0.0
    values = min(
        _value_bits(codes.flat[kept])
        if codes.is_scaled or codes.kind == "palette"
        else float(codes.bits)
        for codes in all_codes(array, storage)
    )
    return kept.size * _entropy(np.array([count, kept.size - count])) + count * values


def _value_bits(codes: np.ndarray) -> float:
    return _entropy(np.bincount(codes.view(np.uint8)))


def _entropy(counts: np.ndarray) -> float:
    """Give the entropy of a distribution in bits.

    >>> _entropy(np.array([1, 1, 2, 0]))
    1.5
    """
    total = int(counts.sum())
    return sum(int(c) / total * log2(total / int(c)) for c in counts if c)


def _sparse(weight: Prunable) -> bytes:
    tensor = weight.tensor
    if why_not_sparse(tensor.data_type, tensor.dims):
        return bytes(tensor.SerializeToString())
    sparse = to_sparse(tensor.name, numpy_helper.to_array(tensor))
    return bytes(sparse.SerializeToString())


def _packed(
    opset: int, weights: Sequence[Prunable], storage: Mapping[WeightKey, Storage]
) -> list[bytes]:
    """Pack the weights, graph by graph; give all there is to write."""
    graphs: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    written = []
    plain: dict[tuple[tuple[str, ...], str], Prunable] = {}
    for weight in weights:
        tensor = weight.tensor
        plain[weight.key.path, weight.key.name] = weight
        if not why_not_packed(opset, tensor.data_type, weight.elements):
            array = numpy_helper.to_array(tensor)
            form = storage.get(weight.key, Plain())
            graphs[weight.key.path].append(Item(weight.key.name, array, form, framed_bytes(tensor)))
    for path, items in graphs.items():
        packing = pack(items, opset, "~")
        written += [bytes(part.SerializeToString()) for part in packing.tensors]
        written += [bytes(part.SerializeToString()) for part in packing.nodes]
        for name in packing.forms:
            del plain[path, name]
    return [*written, *(bytes(one.tensor.SerializeToString()) for one in plain.values())]


def _measured(parts: Iterable[bytes], about_bytes: int) -> FileSize:
    """Count bytes, and squeeze all of them or an even share of pieces."""
    stride = max(1, -(-about_bytes // MOST_GZIPPED_BYTES))
    squeeze = zlib.compressobj(GZIP_LEVEL, wbits=GZIP_FORMAT)
    size = seen = squeezed = place = 0
    for part in parts:
        size += len(part)
        for start in range(0, len(part), PIECE_BYTES):
            if place % stride == 0:
                piece = part[start : start + PIECE_BYTES]
                seen += len(piece)
                squeezed += len(squeeze.compress(piece))
            place += 1
    squeezed += len(squeeze.flush())
    return FileSize(size, round(squeezed * size / seen) if stride > 1 else squeezed)
