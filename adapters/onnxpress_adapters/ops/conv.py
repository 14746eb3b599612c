"""Convolutions in one, two and three dimensions, and transposed ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.ops.activation import MICROSOFT, fused_activation
from onnxpress_adapters.registry import converter

FORWARD: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@dataclass(frozen=True)
class Window:
    """How a kernel moves over the spatial axes; one number per axis.

    Attributes:
        kernel: sizes.
        strides: steps between places of the kernel.
        dilations: steps between its entries.
        begins: zeros before the input; negative ones cut.
        ends: zeros after it.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """How many entries the dilated kernel spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window(node: NodeView, spatial: Sequence[int], kernel: Sequence[int]) -> Window:
    """Read kernel, strides, dilations and pads of a node.

    Args:
        node: a convolution or a pooling.
        spatial: sizes of the input without batch and channels.
        kernel: used where the node names no kernel shape.

    Raises:
        AdapterError: ``auto_pad`` is none of the four ONNX knows.
    """
    rank = len(spatial)
    kernel = tuple(node.get("kernel_shape") or kernel)
    strides = tuple(node.get("strides") or (1,) * rank)
    dilations = tuple(node.get("dilations") or (1,) * rank)
    pads = tuple(node.get("pads") or (0,) * (2 * rank))
    begins, ends = pads[:rank], pads[rank:]
    mode = node.get("auto_pad", "NOTSET")
    if mode == "VALID":
        begins = ends = (0,) * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        bare = Window(kernel, strides, dilations, (0,) * rank, (0,) * rank)
        totals = [
            max(0, (-(-size // stride) - 1) * stride + reach - size)
            for size, stride, reach in zip(spatial, strides, bare.reach, strict=True)
        ]
        small = tuple(total // 2 for total in totals)
        large = tuple(total - total // 2 for total in totals)
        begins, ends = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode != "NOTSET":
        raise AdapterError(f"{node} has the unknown auto_pad '{mode}'; ONNX has no such mode")
    return Window(kernel, strides, dilations, begins, ends)


def bordered(x: Tensor, begins: Sequence[int], ends: Sequence[int], fill: float = 0.0) -> Tensor:
    """Pad the last axes of a tensor; negative widths cut."""
    # torch counts axes from the last one.
    pairs = zip(reversed(begins), reversed(ends), strict=True)
    flat = [width for pair in pairs for width in pair]
    return functional.pad(x, flat, value=fill) if any(flat) else x


def of_rank(
    node: NodeView, table: dict[int, Callable[..., Tensor]], rank: int
) -> Callable[..., Tensor]:
    """Pick torch's function for a number of spatial axes.

    Raises:
        AdapterError: torch has none.
    """
    if rank not in table:
        raise AdapterError(
            f"{node} works on {rank} spatial axes; onnxpress knows one, two and three"
        )
    return table[rank]


@converter("Conv")
def conv(node: NodeView, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve ``x`` ``[batch, in, ...]`` with ``w`` ``[out, in / groups, ...]``."""
    convolve = of_rank(node, FORWARD, x.dim() - 2)
    place = window(node, x.shape[2:], w.shape[2:])
    padding = place.begins
    if place.begins != place.ends or min(place.begins) < 0:
        x = bordered(x, place.begins, place.ends)
        padding = (0,) * len(padding)
    return convolve(x, w, bias, place.strides, padding, place.dilations, node.get("group", 1))


@converter("FusedConv", domain=MICROSOFT)
def fused_conv(
    node: NodeView,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    summand: Tensor | None = None,
) -> Tensor:
    """Conv, then ``+ summand`` where there is one, then an activation."""
    result = conv(node, x, w, bias)
    if summand is not None:
        result = result + summand
    return fused_activation(node, result, node.get("activation_params") or [])


@converter("ConvTranspose")
def conv_transpose(node: NodeView, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed convolution with ``w`` ``[in, out / groups, ...]``.

    The full result, ``stride (size - 1) + reach`` long, is cut by the pads at both ends and grown
    by ``output_padding`` at the far one.
    """
    rank = x.dim() - 2
    convolve = of_rank(node, TRANSPOSED, rank)
    grown = tuple(node.get("output_padding") or (0,) * rank)
    place = transposed_window(node, x.shape[2:], w.shape[2:], grown)
    groups, strides, dilations = node.get("group", 1), place.strides, place.dilations
    fits = all(g < max(s, d) for g, s, d in zip(grown, strides, dilations, strict=True))
    if fits and place.begins == place.ends and min(place.begins) >= 0:
        return convolve(x, w, bias, strides, place.begins, grown, groups, dilations)
    full = convolve(x, w, None, strides, 0, 0, groups, dilations)
    tails = [g - end for g, end in zip(grown, place.ends, strict=True)]
    cut = bordered(full, [-begin for begin in place.begins], tails)
    return cut if bias is None else cut + bias.reshape((-1,) + (1,) * rank)


def transposed_window(
    node: NodeView, spatial: Sequence[int], kernel: Sequence[int], grown: Sequence[int]
) -> Window:
    """Read a transposed convolution's window; a wanted output shape decides the pads.

    Where the full result is too short for an ``output_shape``, it grows at its end; for
    ``auto_pad`` it stays short. The specification is silent here, and onnxruntime does so.
    """
    place = window(node, spatial, kernel)
    mode = node.get("auto_pad", "NOTSET")
    asked = node.get("output_shape")
    wanted = asked
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(spatial, place.strides, strict=True)]
    if wanted is None:
        return place
    surplus = [
        stride * (size - 1) + more + reach - want
        for stride, size, more, reach, want in zip(
            place.strides, spatial, grown, place.reach, wanted[-len(spatial) :], strict=True
        )
    ]
    totals = [max(0, total) for total in surplus]
    missing = [max(0, -total) if asked else 0 for total in surplus]
    small = [total // 2 for total in totals]
    large = [total - total // 2 for total in totals]
    begins, ends = (small, large) if mode == "SAME_UPPER" else (large, small)
    ends = [end - more for end, more in zip(ends, missing, strict=True)]
    return Window(place.kernel, place.strides, place.dilations, tuple(begins), tuple(ends))
