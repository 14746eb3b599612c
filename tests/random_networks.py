"""Random networks over images, out of everything that passes channels on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto

from group_case import Case, made, whole
from hand_built import Array, op

SIZE = 8
BATCH = 2


@dataclass(frozen=True)
class Image:
    """A value ``[BATCH, channels, size, size]``."""

    name: str
    channels: int
    size: int


@dataclass(eq=False)
class Maker:
    """Adds one random node after another, each to an image made lately."""

    rng: np.random.Generator
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    images: list[Image] = field(default_factory=lambda: [Image("x", 3, SIZE)])

    def node(self, operator: str, *inputs: str, results: int = 1, **attributes: Any) -> list[str]:
        names = [f"v{len(self.nodes)}_{place}" for place in range(results)]
        reads = " ".join(name or "_" for name in inputs)
        self.nodes.append(op(operator, reads, " ".join(names), **attributes))
        return names

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def weight(self, *shape: int) -> str:
        drawn = self.rng.standard_normal(shape) / max(1, prod(shape[1:])) ** 0.5
        return self.constant(drawn.astype(np.float32))

    def positive(self, size: int) -> str:
        return self.constant(self.rng.uniform(0.5, 1.5, size).astype(np.float32))

    def numbers(self, *numbers: int) -> str:
        return self.constant(whole(*numbers))

    def pick(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def put(self, names: list[str], channels: int, size: int) -> None:
        self.images.append(Image(names[0], channels, size))

    def conv(self, image: Image) -> None:
        size, channels = self.pick(1, 3), int(self.pick(4, 6, 8, 12))
        border = int(self.rng.integers(0, 2)) if size == 3 else 0
        bias = [self.weight(channels)] if self.pick(True, False) else []
        weight = self.weight(channels, image.channels, size, size)
        names = self.node("Conv", image.name, weight, *bias, pads=[border] * 4)
        self.put(names, channels, image.size - size + 1 + 2 * border)

    def depthwise(self, image: Image) -> None:
        count = image.channels * int(self.pick(1, 1, 2))
        weight = self.weight(count, 1, 3, 3)
        names = self.node("Conv", image.name, weight, pads=[1] * 4, group=image.channels)
        self.put(names, count, image.size)

    def grouped(self, image: Image) -> None:
        if image.channels % 2 == 0:
            weight = self.weight(8, image.channels // 2, 1, 1)
            self.put(self.node("Conv", image.name, weight, group=2), 8, image.size)

    def transposed(self, image: Image) -> None:
        weight = self.weight(image.channels, 6, 2, 2)
        self.put(self.node("ConvTranspose", image.name, weight), 6, image.size + 1)

    def activation(self, image: Image) -> None:
        operator = self.pick("Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Softplus")
        self.put(self.node(operator, image.name), image.channels, image.size)

    def slopes(self, image: Image) -> None:
        names = self.node("PRelu", image.name, self.weight(image.channels, 1, 1))
        self.put(names, image.channels, image.size)

    def norm(self, image: Image) -> None:
        count = image.channels
        shift, mean = self.weight(count), self.weight(count)
        parts = self.positive(count), shift, mean, self.positive(count)
        self.put(self.node("BatchNormalization", image.name, *parts), count, image.size)

    def join(self, image: Image) -> None:
        """Combine with another image of the same shape, or add a constant."""
        others = [o for o in self.images if (o.channels, o.size) == (image.channels, image.size)]
        other = others[self.rng.integers(len(others))]
        if other is image:
            names = self.node("Add", image.name, self.weight(image.channels, 1, 1))
        else:
            names = self.node(self.pick("Add", "Mul", "Sub", "Max"), image.name, other.name)
        self.put(names, image.channels, image.size)

    def concat(self, image: Image) -> None:
        others = [other for other in self.images if other.size == image.size]
        chosen = [image, *(others[self.rng.integers(len(others))] for _ in range(2))]
        names = self.node("Concat", *(each.name for each in chosen), axis=1)
        self.put(names, sum(each.channels for each in chosen), image.size)

    def split(self, image: Image) -> None:
        if image.channels >= 4:
            first = int(self.rng.integers(1, image.channels - 1))
            sizes = (first, image.channels - first)
            names = self.node("Split", image.name, self.numbers(*sizes), results=2, axis=1)
            self.images += [
                Image(name, size, image.size) for name, size in zip(names, sizes, strict=True)
            ]

    def cut(self, image: Image) -> None:
        start = int(self.rng.integers(0, image.channels - 1))
        end = int(self.rng.integers(start + 1, image.channels + 1))
        bounds = self.numbers(start), self.numbers(end), self.numbers(1)
        self.put(self.node("Slice", image.name, *bounds), end - start, image.size)

    def shuffle(self, image: Image) -> None:
        count, size = image.channels, image.size
        if count % 2 == 0:
            apart = self.numbers(0, 2, count // 2, size, size)
            (name,) = self.node("Reshape", image.name, apart)
            (name,) = self.node("Transpose", name, perm=[0, 2, 1, 3, 4])
            together = self.numbers(0, self.pick(count, -1), size, size)
            self.put(self.node("Reshape", name, together), count, size)

    def gate(self, image: Image) -> None:
        (name,) = self.node("GlobalAveragePool", image.name)
        (name,) = self.node("Conv", name, self.weight(4, image.channels, 1, 1), self.weight(4))
        (name,) = self.node("Relu", name)
        (name,) = self.node("Conv", name, self.weight(image.channels, 4, 1, 1))
        (name,) = self.node("Sigmoid", name)
        self.put(self.node("Mul", image.name, name), image.channels, image.size)

    def pool(self, image: Image) -> None:
        ways: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4}
        names = self.node(self.pick("MaxPool", "AveragePool"), image.name, **ways)
        self.put(names, image.channels, image.size)

    def blocks(self, image: Image) -> None:
        if image.channels % 4 == 0:
            mode = self.pick("DCR", "CRD")
            names = self.node("DepthToSpace", image.name, blocksize=2, mode=mode)
            self.put(names, image.channels // 4, image.size * 2)

    def resize(self, image: Image) -> None:
        sizes = self.numbers(BATCH, image.channels, 4, 4)
        names = self.node("Resize", image.name, "", "", sizes, mode="nearest")
        self.put(names, image.channels, 4)

    def product(self, image: Image) -> None:
        (name,) = self.node("Transpose", image.name, perm=[0, 2, 3, 1])
        (name,) = self.node("MatMul", name, self.weight(image.channels, 8))
        (name,) = self.node("Add", name, self.weight(8))
        self.put(self.node("Transpose", name, perm=[0, 3, 1, 2]), 8, image.size)

    def close(self) -> None:
        """Read the last two images by a product each, and add what they give."""
        parts = []
        for image in self.images[-2:]:
            (flat,) = self.node("Flatten", image.name)
            weight = self.weight(image.channels * image.size**2, 5)
            parts += self.node("Gemm", flat, weight, self.weight(5))
        self.nodes.append(op("Add", " ".join(parts), "y"))


STEPS: tuple[Callable[[Maker, Image], None], ...] = (
    *[Maker.conv] * 4, *[Maker.activation] * 3, *[Maker.join] * 2, Maker.depthwise, Maker.grouped,
    Maker.transposed, Maker.slopes, Maker.norm, Maker.concat, Maker.split, Maker.cut, Maker.shuffle,
    Maker.gate, Maker.pool, Maker.blocks, Maker.resize, Maker.product,
)  # fmt: skip


def network(seed: int) -> Case:
    """Make a network of 5 to 15 random steps; its groups are not known beforehand."""
    maker = Maker(np.random.default_rng(seed))
    for _ in range(int(maker.rng.integers(5, 16))):
        lately = maker.images[-4:]
        image = lately[maker.rng.integers(len(lately))]
        if image.channels > 1:
            STEPS[maker.rng.integers(len(STEPS))](maker, image)
    maker.close()
    return made(maker.nodes, (), maker.constants, (BATCH, 3, SIZE, SIZE))
