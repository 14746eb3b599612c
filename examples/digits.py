"""Where do the demo's models come from? Train two digit classifiers and write them as ONNX.

    python examples/digits.py [--epochs 60] [--out examples]

Needs scikit-learn (``pip install onnxpress[examples]``) for its 1,797 images of 8 x 8 pixels. Both
models take ``image float32[batch,1,8,8]`` with values from 0 to 1 and give ``scores``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train two digit classifiers, write them as ONNX.")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args(arguments)
    images, labels = load_digits(return_X_y=True)
    shaped = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    train, test, train_labels, test_labels = train_test_split(
        shaped, labels, test_size=0.2, random_state=0, stratify=labels
    )
    np.savez_compressed(options.out / "digits_train.npz", image=train)
    np.savez_compressed(options.out / "digits_test.npz", image=test)
    for name, layers in models().items():
        fit(layers, torch.from_numpy(train), torch.from_numpy(train_labels), options.epochs)
        layers.eval()
        right = layers(torch.from_numpy(test)).argmax(1) == torch.from_numpy(test_labels)
        write(layers, options.out / f"{name}.onnx")
        weights = sum(p.numel() for p in layers.parameters() if p.ndim > 1)
        print(f"{name}: {weights} weights, {right.double().mean():.1%} of the test images right")


def models() -> dict[str, nn.Sequential]:
    torch.manual_seed(0)
    return {
        "digits_cnn": nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        ),
        "digits_fc": nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        ),
    }


def fit(layers: nn.Sequential, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(layers.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layers(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()


def write(layers: nn.Sequential, path: Path) -> None:
    """Build the graph by hand: six kinds of layer need no exporter."""
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    value = "image"
    for place, layer in enumerate(layers):
        given = [value]
        for kind, parameter in layer.named_parameters():
            given.append(f"{place}.{kind}")
            weights.append(numpy_helper.from_array(parameter.detach().numpy(), given[-1]))
        value = "scores" if place == len(layers) - 1 else f"value_{place}"
        match layer:
            case nn.Conv2d():
                node = helper.make_node("Conv", given, [value], pads=[1, 1, 1, 1])
            case nn.Linear():
                node = helper.make_node("Gemm", given, [value], transB=1)
            case nn.MaxPool2d():
                node = helper.make_node(
                    "MaxPool", given, [value], kernel_shape=[2, 2], strides=[2, 2]
                )
            case nn.Flatten():
                node = helper.make_node("Flatten", given, [value])
            case nn.ReLU():
                node = helper.make_node("Relu", given, [value])
            case _:
                raise NotImplementedError(f"no ONNX operator is known here for {layer}")
        node.name = f"{place}.{node.op_type}"
        nodes.append(node)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, path.stem, [image], [scores], weights)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


if __name__ == "__main__":
    main()
