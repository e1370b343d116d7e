"""How far two divisions of the same rows agree: the two indices that discovery needs.

Both are symmetric, do not care how labels are numbered, and are exact for any order of the rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .grid import Labels

Counts = NDArray[np.float64]


def adjusted_rand(one: Labels, other: Labels) -> float:
    """Return the adjusted Rand index (Hubert and Arabie 1985): 1 is equal, 0 is chance.

    one, other: labels ≥ 0 of the same rows. Two trivial divisions agree.
    """
    table = contingency(one, other)
    pairs = _pairs(table).sum()
    rows, columns = _pairs(table.sum(axis=1)).sum(), _pairs(table.sum(axis=0)).sum()
    chance = rows * columns / max(_pairs(np.float64(len(one))), 1.0)
    most = (rows + columns) / 2
    return 1.0 if most == chance else float((pairs - chance) / (most - chance))


def information(one: Labels, other: Labels) -> tuple[float, float]:
    """Return what two divisions tell of each other, and what each tells alone, in nats.

    The first is their mutual information; the second the mean of their entropies, and never less.
    """
    table = contingency(one, other)
    rows, columns = _entropy(table.sum(axis=1)), _entropy(table.sum(axis=0))
    return rows + columns - _entropy(table.ravel()), (rows + columns) / 2


def contingency(one: Labels, other: Labels) -> Counts:
    """Return how many rows have each pair of labels, shape (labels of one, labels of other)."""
    width = int(other.max()) + 1
    height = int(one.max()) + 1
    counts = np.bincount(one * width + other, minlength=height * width)
    return counts.reshape(height, width).astype(np.float64)


def _pairs(counts: Counts | np.float64) -> Counts:
    pairs: Counts = np.asarray(counts * (counts - 1) / 2)
    return pairs


def _entropy(counts: Counts) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
