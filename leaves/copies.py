"""Rows that are one ask over and over: a thousand copies of it are not a domain.

In a crowd of near-copies every neighbour of a copy is another copy, so the kNN graph cuts it off
from all that is like it, and any clusterer calls it a cluster.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .grid import RADIUS, Graph, Grid
from .rounding import BLOCK_ROWS

COPY_COSINE = 0.97  # the same ask with another number or name in it


def originals(grid: Grid, graph: Graph, crowd_min: int) -> NDArray[np.int64]:
    """Return the row that stands for each row: itself, or the first row of its crowd.

    graph: neighbours of the rows, by whatever measure, at least `crowd_min` - 1 of each. A crowd
    is linked by neighbours nearer than COPY_COSINE on `grid`, and has `crowd_min` rows or more.
    Smaller ones do no harm: their rows have other neighbours as well.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count, width = graph.rows.shape
    rows = np.arange(count)
    if width < crowd_min:
        return rows
    inside = np.flatnonzero(_cosines(grid, rows, graph.rows[:, crowd_min - 1]) >= COPY_COSINE)
    if len(inside) < crowd_min:
        return rows
    one = np.repeat(inside, width - 1)
    other = graph.rows[inside, 1:].ravel()
    near = _cosines(grid, one, other) >= COPY_COSINE
    links = coo_matrix((np.ones(int(near.sum())), (one[near], other[near])), (count, count))
    crowds, crowd_of = connected_components(links, directed=False)
    first = np.full(crowds, count)
    np.minimum.at(first, crowd_of, rows)
    large = np.bincount(crowd_of) >= crowd_min
    stands_for: NDArray[np.int64] = np.where(large[crowd_of], first[crowd_of], rows)
    return stands_for


def _cosines(grid: Grid, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    cosines = np.empty(len(one))
    for start in range(0, len(one), BLOCK_ROWS):
        left = np.asarray(grid[one[start : start + BLOCK_ROWS]], np.float64)
        right = np.asarray(grid[other[start : start + BLOCK_ROWS]], np.float64)
        cosines[start : start + BLOCK_ROWS] = (left * right).sum(axis=1) / RADIUS**2
    return cosines
