"""Constants that decode themselves: streams of bytes, and standard operators that read them.

onnxruntime folds the operators when it loads a model, so a session runs as it would with plain
constants. Each constant is written in whichever way takes the fewest bytes, decoder included; small
ones share one. ``onnxpress_adapters.packed_tensors`` reads them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, StringStringEntryProto, TensorProto

from onnxpress_exporters.packed_codes import Codes, all_codes
from onnxpress_exporters.packed_parts import Parts, common_parts
from onnxpress_exporters.packed_places import FIELDS, GAPS, WAYS, Layout, Placed
from onnxpress_exporters.values import Plain, Scaled, Storage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

FIRST_OPSET = 8
"""The first one that has Expand; only from 11 on is there a CumSum."""

SCATTER = 9
"""The first one with operators that put values in given places: gaps need one."""

PACKED_TYPES = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE),
        *(TensorProto.INT8, TensorProto.UINT8),
    }
)

MOST_ENTRIES = 2**31 - 1
"""Places are counted in int32."""

SHARING = 1 << 18
"""Entries of the largest constant that shares a decoder; above, its own is worth its bytes."""

MOST_SHARING = 100
"""Constants that share a decoder, at most: with more, their lengths would take over 1024 bytes and
other tools move such a tensor to a data file, where onnxruntime's shape inference does not look."""

DECODER_BYTES = 1024
"""More than any decoder takes beside its streams."""

SHARE_BYTES = 100
"""About what a constant takes in a shared decoder beside its streams."""

LONG_SCALES = 32
"""Scales from which on a Cast takes fewer bytes than float32 in place of float16."""


@dataclass(frozen=True, eq=False)
class Item:
    """A constant to pack.

    Attributes:
        name: of the constant.
        array: its values, in its own type and shape.
        storage: how they were rounded.
        dense_bytes: what it takes as it is.
        node: the Constant node it is; None for an initializer.
        doc_string: of the tensor.
        notes: its metadata.
    """

    name: str
    array: np.ndarray
    storage: Storage
    dense_bytes: int
    node: NodeProto | None = None
    doc_string: str = ""
    notes: tuple[StringStringEntryProto, ...] = ()


@dataclass(frozen=True, eq=False)
class Packing:
    """What constants of one graph became.

    Attributes:
        tensors: initializers to add.
        nodes: to put in front of all others.
        in_place: what a Constant node becomes, by the constant's name.
        forms: how each packed constant is written, for people, by name. What is missing here
            takes fewer bytes as it is.
    """

    tensors: Sequence[TensorProto]
    nodes: Sequence[NodeProto]
    in_place: dict[str, NodeProto]
    forms: dict[str, str]


@dataclass(frozen=True, eq=False)
class _Decoder:
    """The parts that make some constants.

    Attributes:
        parts: all of them.
        items: what they make.
        form: for people.
    """

    parts: Parts
    items: tuple[Item, ...]
    form: str


@dataclass(frozen=True, eq=False)
class _Choice:
    """A constant, and the ways to write it.

    Attributes:
        item: the constant.
        place: its number in the graph.
        layout: its counts.
        codes: the ways to write its values.
    """

    item: Item
    place: int
    layout: Layout
    codes: Sequence[Codes]

    def options(self, ways: Collection[str]) -> list[tuple[int, Codes, str]]:
        """Give bytes of payload, codes and way, the fewest bytes first."""
        found = [
            (self.layout.payload_bytes(codes, way), codes, way)
            for codes in self.codes
            for way in self.layout.ways
            if way in ways and (codes.kind, way) != ("plain", "dense")
        ]
        return sorted(found, key=lambda option: option[0])


def why_not_packed(opset: int, data_type: int, entries: int) -> str:
    """Say why a constant cannot be packed, or ``""`` where it can.

    Args:
        opset: of the model.
        data_type: ONNX element type of the constant.
        entries: how many it has.
    """
    if opset < FIRST_OPSET:
        return f"opset {opset} lacks operators to decode it with; opset {FIRST_OPSET} has them"
    if data_type not in PACKED_TYPES:
        return f"{TensorProto.DataType.Name(data_type).lower()} numbers are not packed"
    if not 0 < entries <= MOST_ENTRIES:
        return "it has no entries" if not entries else "it has 2^31 entries or more"
    return ""


def pack(items: Sequence[Item], opset: int, prefix: str) -> Packing:
    """Pack constants of one graph, where that takes fewer bytes.

    Args:
        items: the constants; ``why_not_packed`` has nothing against them.
        opset: of the model.
        prefix: of every new name.

    Returns:
        The parts, which are the same whenever the constants are.
    """
    choices = [
        _Choice(item, place, Layout.of(item.array.reshape(-1)), all_codes(item.array, item.storage))
        for place, item in enumerate(items)
    ]
    # Tables are paid once, so whether they are worth it all constants together say.
    ways = WAYS.keys() - ({*GAPS, *FIELDS} if opset < SCATTER else set())
    plans = [
        _plan(choices, opset, prefix, ways - without)
        for without in ({"bitmask", *FIELDS}, {*FIELDS}, {"bitmask"}, set[str]())
    ]
    decoders, common, _ = min(plans, key=lambda plan: plan[2])
    in_place: dict[str, NodeProto] = {}
    forms: dict[str, str] = {}
    for decoder in decoders:
        _hand_on_notes(decoder)
        nodes = {node.output[0]: node for node in decoder.parts.nodes}
        for item in decoder.items:
            forms[item.name] = decoder.form
            if item.node is not None:
                # onnxruntime refuses two nodes of the same name.
                nodes[item.name].name = item.node.name or f"{prefix}{len(in_place)}"
                in_place[item.name] = nodes[item.name]
    everything = (common, *(decoder.parts for decoder in decoders)) if decoders else ()
    return Packing(
        [tensor for parts in everything for tensor in parts.tensors],
        [n for parts in everything for n in parts.nodes if n.output[0] not in in_place],
        in_place,
        forms,
    )


def _hand_on_notes(decoder: _Decoder) -> None:
    """Let the node that makes a constant say what the constant did."""
    nodes = {node.output[0]: node for node in decoder.parts.nodes}
    for item in decoder.items:
        node = nodes[item.name]
        if item.doc_string:
            node.doc_string = item.doc_string
        node.metadata_props.extend(item.notes)


def _plan(
    choices: Sequence[_Choice], opset: int, prefix: str, ways: Collection[str]
) -> tuple[list[_Decoder], Parts, int]:
    """Choose decoders; give them, what they share, and the bytes of all constants together."""
    alone = {choice.place: _alone(choice, opset, prefix, ways) for choice in choices}
    shared: list[_Decoder] = []
    for alike in _alike(choices, ways):
        best: list[_Decoder] = []
        saved = 0
        for groups in ([alike], _by_way(alike, ways)):
            joint = [_together(group, opset, prefix, ways) for group in groups]
            found = [
                (decoder, gain)
                for decoder, group in zip(joint, groups, strict=True)
                if decoder is not None
                and (
                    gain := sum(_size(alone[c.place], c) for c in group) - decoder.parts.size_bytes
                )
                > 0
            ]
            if sum(gain for _, gain in found) > saved:
                best, saved = [decoder for decoder, _ in found], sum(gain for _, gain in found)
        shared += best
    joined = {id(item) for decoder in shared for item in decoder.items}
    alone = {c.place: alone[c.place] for c in choices if id(c.item) not in joined}
    decoders = [*shared, *(decoder for decoder in alone.values() if decoder is not None)]
    needs = set(chain.from_iterable(decoder.parts.needs for decoder in decoders))
    common = common_parts(needs, prefix, opset)
    packed = {id(item) for decoder in decoders for item in decoder.items}
    left = sum(c.item.dense_bytes for c in choices if id(c.item) not in packed)
    total = left + common.size_bytes + sum(decoder.parts.size_bytes for decoder in decoders)
    return decoders, common, total


def _size(decoder: _Decoder | None, choice: _Choice) -> int:
    return choice.item.dense_bytes if decoder is None else decoder.parts.size_bytes


def _alone(choice: _Choice, opset: int, prefix: str, ways: Collection[str]) -> _Decoder | None:
    """Give the smallest decoder of one constant; None where dense is smaller."""
    options = choice.options(ways)
    least = options[0][0] if options else 0
    best: _Decoder | None = None
    for payload, codes, way in options:
        if payload > least + DECODER_BYTES or payload >= choice.item.dense_bytes:
            break
        parts = Parts(f"{prefix}{choice.place}.", prefix, opset)
        _write_one(parts, choice.item, codes, way)
        if parts.size_bytes < _size(best, choice):
            best = _Decoder(parts, (choice.item,), _form(codes, way))
    return best


def _alike(choices: Iterable[_Choice], ways: Collection[str]) -> list[list[_Choice]]:
    """Put small constants together whose values are best written alike."""
    groups: dict[tuple[str, str], list[_Choice]] = defaultdict(list)
    for choice in choices:
        options = choice.options(ways)
        if choice.layout.size > SHARING or not options:
            continue
        payload, codes, way = options[0]
        if way != "zeros" and payload + SHARE_BYTES < choice.item.dense_bytes:
            groups[str(codes.dtype), codes.kind].append(choice)
    return [
        group[start : start + MOST_SHARING]
        for group in groups.values()
        for start in range(0, len(group), MOST_SHARING)
    ]


def _by_way(alike: Sequence[_Choice], ways: Collection[str]) -> list[list[_Choice]]:
    """Part constants by how their places are best written."""
    groups: dict[str, list[_Choice]] = defaultdict(list)
    for choice in alike:
        groups[choice.options(ways)[0][2]].append(choice)
    return list(groups.values())


def _together(
    group: Sequence[_Choice], opset: int, prefix: str, ways: Collection[str]
) -> _Decoder | None:
    """Give one decoder for constants whose values are best written alike; None if there is none."""
    if len(group) < 2:
        return None
    kind = group[0].options(ways)[0][1].kind
    items = tuple(choice.item for choice in group)
    own = [next(codes for codes in c.codes if codes.kind == kind) for c in group]
    if own[0].is_scaled:
        codes = replace(own[0], flat=np.concatenate([one.flat for one in own]))
    else:
        flat = np.concatenate([item.array.reshape(-1) for item in items])
        alike = [codes for codes in all_codes(flat, Plain()) if codes.kind == kind]
        if not alike:  # too many values for one codebook
            return None
        codes = alike[0]
    joint = _Choice(items[0], group[0].place, Layout.of(codes.flat), [codes])
    _, codes, way = joint.options(ways)[0]
    parts = Parts(f"{prefix}{group[0].place}.", prefix, opset)
    _write_many(parts, items, codes, way)
    return _Decoder(parts, items, f"{_form(codes, way)}, shared")


def _form(codes: Codes, way: str) -> str:
    kind = {"plain": str(codes.dtype), "palette": f"palette of {codes.bits} bits"}
    return (
        f"packed: {way}" if way == "zeros" else f"packed: {way}, {kind.get(codes.kind, codes.kind)}"
    )


def _write_one(parts: Parts, item: Item, codes: Codes, way: str) -> None:
    """Write one constant."""
    shape = item.array.shape
    if way == "zeros":
        parts.zeros(shape, item.array.dtype, "z")
        parts.call_last(item.name)
        return
    if way == "dense" and codes.bits >= 8:
        placed = WAYS[way](parts, replace(codes, flat=codes.flat.reshape(shape)))
        name = placed.name
    else:
        placed = WAYS[way](parts, codes)
        name = placed.name
        if placed.length > codes.flat.size:
            name = _own(parts, placed, [codes.flat.size])[0]
        name = parts.node(
            "Reshape", [name, parts.constant("shape", np.array(shape, np.int64))], "shaped"
        )
    name = codes.finish(parts, name, placed.data_type)
    if codes.is_scaled:
        _scale(parts, name, item.storage, "")
    parts.call_last(item.name)


def _write_many(parts: Parts, items: Sequence[Item], codes: Codes, way: str) -> None:
    """Write several constants as one, and cut that into pieces."""
    placed = WAYS[way](parts, codes)
    name = codes.finish(parts, placed.name, placed.data_type)
    whole = Placed(name, placed.data_type, placed.length, placed.flat)
    pieces = _own(parts, whole, [item.array.size for item in items])
    shapes: dict[tuple[int, ...], str] = {}
    for place, (piece, item) in enumerate(zip(pieces, items, strict=False)):
        shape = item.array.shape
        if shape not in shapes:
            shapes[shape] = parts.constant(f"shape{len(shapes)}", np.array(shape, np.int64))
        name = parts.node("Reshape", [piece, shapes[shape]], f"r{place}")
        if codes.is_scaled:
            _scale(parts, name, item.storage, str(place))
        parts.call_last(item.name)


def _own(parts: Parts, placed: Placed, lengths: Sequence[int]) -> list[str]:
    """Cut a value into pieces; what is left over is filling."""
    name = placed.name
    if not placed.flat:
        name = parts.node("Reshape", [name, parts.common("flat")], "flat")
    rest = placed.length - sum(lengths)
    return parts.split(name, [*lengths, rest] if rest else lengths, "p")


def _scale(parts: Parts, name: str, storage: Storage, number: str) -> None:
    """Multiply codes by their scales, in float32."""
    if not isinstance(storage, Scaled):
        raise TypeError(f"{storage} has no scale")
    scales = storage.scales
    if scales.dtype == np.float16 and scales.size <= LONG_SCALES:
        scales = scales.astype(np.float32)
    factor = parts.constant(f"scale{number}", scales)
    if scales.dtype != np.float32:
        factor = parts.cast(factor, f"factor{number}", TensorProto.FLOAT)
    parts.node("Mul", [name, factor], f"m{number}")
