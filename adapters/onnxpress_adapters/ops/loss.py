"""Losses against class labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.registry import converter


def likelihood_loss(node: NodeView, logs: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    """Give the weighted negative log-probability of the labels, reduced as the node says.

    Args:
        node: with ``reduction`` and ``ignore_index``.
        logs: log-probabilities ``[samples, classes, ...]``.
        labels: ``[samples, ...]``; a label that is ignored may lie outside the classes.
        weight: one number per class, or None for ones.

    Raises:
        AdapterError: the reduction is unknown.
    """
    places = labels.to(torch.int64)
    classes = places.clamp(0, logs.shape[1] - 1)
    loss = -torch.gather(logs, 1, classes.unsqueeze(1)).squeeze(1)
    if weight is None:
        shares = torch.ones_like(loss)
    else:
        shares = torch.index_select(weight, 0, classes.reshape(-1)).reshape(classes.shape)
    if node.get("ignore_index") is not None:
        ignored = places == node.get("ignore_index")
        shares, loss = torch.where(ignored, 0.0, shares), torch.where(ignored, 0.0, loss)
    loss = loss * shares
    match node.get("reduction", "mean"):
        case "none":
            return loss
        case "sum":
            return loss.sum()
        case "mean":
            return loss.sum() / shares.sum()
        case other:
            raise AdapterError(f"{node} has the unknown reduction '{other}'; use none, sum or mean")


@converter("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(
    node: NodeView, x: Tensor, labels: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Take the input as log-probabilities of the classes."""
    working = torch.promote_types(x.dtype, torch.float32)
    shares = None if weight is None else weight.to(working)
    return likelihood_loss(node, x.to(working), labels, shares).to(x.dtype)


@converter("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(
    node: NodeView, x: Tensor, labels: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take the input as scores of the classes; also give their log-probabilities."""
    working = torch.promote_types(x.dtype, torch.float32)
    logs = functional.log_softmax(x.to(working), 1)
    shares = None if weight is None else weight.to(working)
    return likelihood_loss(node, logs, labels, shares).to(x.dtype), logs.to(x.dtype)
