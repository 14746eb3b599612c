"""Counts of n-grams against onnxruntime."""

import random
from typing import Any

import numpy as np
import pytest

from beside_runtime import Row, check, row
from one_node import make
from onnxpress_adapters.errors import AdapterError

dice = random.Random(0)


def drawn() -> Row:
    words = range(dice.randint(2, 6))
    pool: list[int] = []
    starts, seen = [], 0
    for size in range(1, dice.randint(1, 3) + 1):
        starts.append(len(pool))
        grams = {tuple(dice.choice(words) for _ in range(size)) for _ in range(dice.randint(0, 5))}
        pool += [word for gram in sorted(grams) for word in gram]
        seen += len(grams)
    if not seen:
        pool, starts, seen = [0], [0], 1
    least = dice.randint(1, len(starts))
    shape = dice.choice([(dice.randint(1, 9),), (dice.randint(1, 3), dice.randint(1, 9))])
    x = np.array([dice.choice(words) for _ in range(int(np.prod(shape)))]).reshape(shape)
    weighted = dice.random() < 0.5
    indexes = dice.sample(range(seen if weighted else seen + 2), seen)
    how: dict[str, Any] = {
        "mode": dice.choice(["TF", "IDF", "TFIDF"]),
        "pool_int64s": pool,
        "ngram_counts": starts,
        "ngram_indexes": indexes,
        "min_gram_length": least,
        "max_gram_length": dice.randint(least, len(starts)),
        "max_skip_count": dice.randint(0, 4),
    }
    if weighted:
        how["weights"] = [dice.uniform(0, 3) for _ in indexes]
    return row("TfIdfVectorizer", 9, x.astype(dice.choice([np.int32, np.int64])), **how)


def test_answers_as_onnxruntime() -> None:
    for _ in range(200):
        check(drawn())


def test_unknown_weighing_is_refused() -> None:
    how = {"mode": "odd", "pool_int64s": [1], "ngram_counts": [0], "ngram_indexes": [0]}
    lengths = {"min_gram_length": 1, "max_gram_length": 1, "max_skip_count": 0}
    _, node = make("TfIdfVectorizer", [np.array([1])], how | lengths)
    with pytest.raises(AdapterError, match=r"^TfIdfVectorizer 'here' weighs n-grams by 'odd'"):
        node.run()
