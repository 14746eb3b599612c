"""TfIdfVectorizer on numbers: how often known n-grams come in a sequence, gaps allowed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from onnxpress_adapters.errors import AdapterError
from onnxpress_adapters.node import NodeView
from onnxpress_adapters.registry import converter


@dataclass(frozen=True, eq=False)
class Level:
    """All beginnings of one length of the known n-grams.

    A beginning is known by its place among those of its length, in sorted order.

    Attributes:
        keys: ``before * words + last``, sorted: the place of what comes before its last word among
            the beginnings one shorter, and the place of the last word among all words.
        outputs: where each is counted in the result; -1 for what only begins an n-gram.
    """

    keys: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True, eq=False)
class Trie:
    """The known n-grams: their words, sorted, and their beginnings, shortest first."""

    words: np.ndarray
    levels: tuple[Level, ...]


@lru_cache(maxsize=16)
def trie(
    pool: tuple[int, ...],
    starts: tuple[int, ...],
    indexes: tuple[int, ...],
    shortest: int,
    longest: int,
) -> Trie:
    """Sort the n-grams of a pool.

    Args:
        pool: the words of all n-grams, shorter n-grams first.
        starts: where the n-grams of each length start in the pool.
        indexes: where each n-gram is counted in the result.
        shortest: length of the shortest n-grams that count.
        longest: length of the longest ones.
    """
    grams: dict[tuple[int, ...], int] = {}
    number = 0
    for size, (start, end) in enumerate(zip(starts, (*starts[1:], len(pool)), strict=True), 1):
        for place in range(start, end - size + 1, size):
            if shortest <= size <= longest:
                grams[pool[place : place + size]] = indexes[number]
            number += 1
    words = np.unique(np.array([word for gram in grams for word in gram], np.int64))
    found = {int(word): place for place, word in enumerate(words)}
    before: dict[tuple[int, ...], int] = {(): 0}
    levels = []
    for size in range(1, max((len(gram) for gram in grams), default=0) + 1):
        keys = {
            gram[:size]: before[gram[: size - 1]] * len(words) + found[gram[size - 1]]
            for gram in grams
            if len(gram) >= size
        }
        ordered = sorted(keys, key=keys.__getitem__)
        before = {gram: place for place, gram in enumerate(ordered)}
        sorted_keys = np.array([keys[gram] for gram in ordered], np.int64)
        levels.append(Level(sorted_keys, np.array([grams.get(g, -1) for g in ordered], np.int64)))
    return Trie(words, tuple(levels))


@converter("TfIdfVectorizer")
def tf_idf_vectorizer(node: NodeView, x: Tensor) -> Tensor:
    """Count n-grams in sequences ``[length]`` or ``[batch, length]``, and weigh the counts."""
    mode, indexes = node.get("mode"), tuple(node.get("ngram_indexes"))
    shortest = node.get("min_gram_length")
    known = trie(
        tuple(node.get("pool_int64s") or ()),
        tuple(node.get("ngram_counts")),
        indexes,
        shortest,
        node.get("max_gram_length"),
    )
    counts = x.new_zeros(*x.shape[:-1], max(indexes) + 2, dtype=torch.float32)
    if known.levels:
        words = torch.as_tensor(known.words, device=x.device)
        place = _place(words, x.to(torch.int64))
        same = words[place] == x
        for step in range(1, node.get("max_skip_count") + 2):
            # Single words have no gaps; they count once.
            least = shortest if step == 1 else max(shortest, 2)
            counts = _counted(counts, known, place, same, step, least)
    counts = counts[..., :-1]
    if mode == "IDF":
        counts = counts.clamp(max=1)
    elif mode not in ("TF", "TFIDF"):
        raise AdapterError(f"{node} weighs n-grams by '{mode}'; ONNX knows TF, IDF and TFIDF")
    weights = node.get("weights")
    if mode == "TF" or not weights:
        return counts
    # A weight belongs to an n-gram, not to a place in the result: onnx's reference mixes them up.
    factors = [1.0] * counts.shape[-1]
    for index, weight in zip(indexes, weights, strict=True):
        factors[index] = weight
    return counts * torch.tensor(factors, device=x.device)


def _place(ordered: Tensor, values: Tensor) -> Tensor:
    """Give the place of values among sorted numbers, as far as they are among them."""
    places = torch.searchsorted(ordered, values.contiguous())
    return places.clamp(max=ordered.shape[0] - 1)


def _counted(
    counts: Tensor, known: Trie, word: Tensor, same: Tensor, step: int, least: int
) -> Tensor:
    """Add the n-grams whose words stand ``step`` apart.

    Args:
        counts: so far, with one place more for what is no n-gram.
        known: the n-grams.
        word: the place of each word of the sequence among the known ones.
        same: whether it is known at all.
        step: how far apart words stand.
        least: length of the shortest n-grams to count.
    """
    length, other = word.shape[-1], counts.shape[-1] - 1
    before, matches = torch.zeros_like(word), torch.ones_like(same)
    for order, level in enumerate(known.levels):
        left = length - order * step
        if left <= 0:
            break
        keys = torch.as_tensor(level.keys, device=word.device)
        outputs = torch.as_tensor(level.outputs, device=word.device)
        end = order * step + left
        wanted = before[..., :left] * len(known.words) + word[..., end - left : end]
        before = _place(keys, wanted)
        matches = matches[..., :left] & same[..., end - left : end] & (keys[before] == wanted)
        if order + 1 >= least:
            target = torch.where(matches & (outputs[before] >= 0), outputs[before], other)
            counts = counts.scatter_add(-1, target, torch.ones_like(target, dtype=counts.dtype))
    return counts
