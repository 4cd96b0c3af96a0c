"""How evenly global batches are dealt: the product's own dealing, on lengths of real rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np

from dpolish.data.pack import Sizes, even

BATCHES = (64, 128, 256, 512)
"""Global batch sizes that are usual."""
DRAWN = 50
"""Global batches of each size."""


@dataclass(frozen=True, slots=True)
class Balance:
    """The imbalance of global batches of one size: how much longer the fullest rank's share is than the mean."""

    batch: int
    ranks: int
    average: float
    worst: float
    by_rows: float
    """The average where each rank gets as many rows, in their order."""


def imbalance(loads: Sequence[int]) -> float:
    """How much the largest load is above the mean: what all ranks wait for, as a share."""
    return max(loads) / mean(loads) - 1


def loads(sizes: Sequence[int], ranks: int) -> list[int]:
    """Tokens of each rank, as the product deals rows of these sizes."""
    return [sum(sizes[index] for index in part) for part in even(Sizes.of(sizes), ranks)]


def batches(sizes: Sequence[int], batch: int, count: int) -> Iterator[list[int]]:
    """Global batches in random order, all rows once before any comes again."""
    rng = np.random.default_rng(0)
    rounds = -(-batch * count // len(sizes))
    order = np.concatenate([rng.permutation(len(sizes)) for _ in range(rounds)])
    for first in range(0, batch * count, batch):
        yield [sizes[row] for row in order[first : first + batch]]


def balance(sizes: Sequence[int], batch: int, ranks: int) -> Balance:
    """The imbalance of many global batches of rows of these sizes."""
    drawn = list(batches(sizes, batch, DRAWN))
    dealt = [imbalance(loads(rows, ranks)) for rows in drawn]
    plain = [imbalance([int(part.sum()) for part in np.array_split(np.array(rows), ranks)]) for rows in drawn]
    return Balance(batch, ranks, mean(dealt), max(dealt), mean(plain))
