"""The kNN graph of rows on the integer grid, averaging along it, and the nearest centroid.

Exact in the arithmetic whatever the search: see `rounding`. All functions take a grid of float32
or int16, go in blocks of rows, and report about once a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cells import NOTHING, Keys, cell_neighbours, cells_for, pack, unpack
from .cores import side_by_side
from .model import Matrix
from .ports import Progress, Report, silent
from .rounding import BLOCK_ROWS, rounded
from .rounding import RADIUS as RADIUS
from .rounding import Grid as Grid
from .rounding import Labels as Labels
from .rounding import centred as centred
from .rounding import sums as sums
from .rounding import to_grid as to_grid

EXACT_ROWS_MAX = 50_000  # above, exact search takes minutes; seeded cells find 95 % of neighbours
_SECOND = 20_000_000  # products of two rows that one thread makes in about a second


@dataclass(frozen=True, slots=True)
class Graph:
    """Nearest neighbours of each row: itself first, then by falling cosine, then by row.

    cosines: shape (n, k + 1), float64. rows: shape (n, k + 1), int64.
    """

    cosines: NDArray[np.float64]
    rows: NDArray[np.int64]


def neighbours(
    grid: Grid, k: int, *, exact_rows_max: int = EXACT_ROWS_MAX, report: Report = silent
) -> Graph:
    """Return the `k` nearest neighbours by cosine of each row of the grid, fewer if n is small.

    Exact and of n² cost up to `exact_rows_max` rows; above, `cells` finds 95 % of them or more.
    Copies of one vector are neighbours like any others; a row is always its own first
    neighbour, even among more than k copies.
    """
    wanted = min(k, len(grid) - 1) + 1
    if len(grid) <= exact_rows_max:
        keys = _exact(grid, wanted, report)
    else:
        keys = cell_neighbours(grid, wanted, cells_for(len(grid)), report, "cluster: neighbours")
    graph = Graph(np.empty(keys.shape, np.float64), np.empty(keys.shape, np.int64))
    for start in range(0, len(grid), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(grid))
        _sort_into(graph, start, stop, keys[start:stop])
        report(Progress("cluster: neighbours", len(grid), len(grid), "sorted"))
    return graph


def diffuse(grid: Grid, graph: Graph, steps: int, report: Report = silent) -> Grid:
    """Return the grid after averaging each row with its neighbours `steps` times, on one graph.

    This is what lets density-based clustering work in 384 dimensions: raw, it calls four fifths
    of 20,000 real titles noise. Sums of k + 1 ≤ 64 grid vectors are exact in float32 as well.
    """
    rows = graph.rows
    for _ in range(steps):
        before = grid

        def block(start: int, stop: int, before: Grid = before) -> NDArray[Any]:
            total = np.zeros((stop - start, before.shape[1]), np.float32)
            for column in range(rows.shape[1]):
                total += before[rows[start:stop, column]]
            return total.astype(np.float64)

        grid = rounded(block, len(grid), grid.shape[1], grid.dtype.type, report)
    return grid


def nearest(grid: Grid, centroids: Matrix, report: Report = silent) -> Labels:
    """Return the nearest of `centroids`, a float32 grid, for each row; the first of equals."""
    labels = np.empty(len(grid), np.int64)
    step = _step(len(centroids))

    def search(start: int) -> int:
        block = np.asarray(grid[start : start + step], np.float32)
        labels[start : start + step] = (block @ centroids.T).argmax(axis=1)
        return min(start + step, len(grid))

    def take(done: int) -> None:
        report(Progress("cluster: nearest", done, len(grid)))

    side_by_side(search, range(0, len(grid), step), take)
    return labels


def _exact(grid: Grid, wanted: int, report: Report) -> Keys:
    import faiss  # 0.3 s and 60 MB: only where clusters are sought

    whole = np.ascontiguousarray(grid, np.float32)
    keys = np.full((len(grid), wanted), NOTHING)
    step = _step(len(grid))

    def search(start: int) -> int:
        block = whole[start : start + step]
        scores, found = faiss.knn(block, whole, wanted, metric=faiss.METRIC_INNER_PRODUCT)
        keys[start : start + step] = pack(scores, found.astype(np.int64))
        return min(start + step, len(grid))

    def take(done: int) -> None:
        report(Progress("cluster: neighbours", done, len(grid)))

    side_by_side(search, range(0, len(grid), step), take)
    return keys


def _step(against: int) -> int:
    """How many rows to compare with so many others between two reports."""
    return int(np.clip(_SECOND // max(against, 1), 64, BLOCK_ROWS))


def _sort_into(graph: Graph, start: int, stop: int, keys: Keys) -> None:
    scores, rows = unpack(keys)
    own = np.arange(start, stop)[:, None]
    missing = ~(rows == own).any(axis=1)  # pushed out by its copies
    rows[missing, -1] = own[missing, 0]
    cosines = np.where(keys == NOTHING, -1.0, scores / RADIUS**2)
    rows = np.where(rows < 0, own, rows)  # where cells ran dry
    order = np.lexsort((rows, -cosines, rows != own), axis=1)
    graph.cosines[start:stop] = np.take_along_axis(cosines, order, axis=1)
    graph.rows[start:stop] = np.take_along_axis(rows, order, axis=1)
