"""The integer grid that all arithmetic of clusters is done on, and exact sums over it.

Clusters must not depend on the order of rows, the number of threads or the width of a vector
unit, and float sums do. On this grid every dot product is an integer below 2**24, so float32
products and sums are exact, whatever their order.

Everything goes in blocks of rows: what is held beside input and result is a few megabytes, and
a `report` comes about once a second. A grid may be held as float32 or, at half the size, as
int16; code that multiplies a grid itself needs float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ports import Progress, Report, silent

RADIUS = 4070  # rounding lengthens a vector by up to √384 / 2: 4080² is still below 2**24
BLOCK_ROWS = 8192  # x 384 numbers: 12 MB in float32

Labels = NDArray[np.int64]  # shape (n,); -1 is noise
Grid = NDArray[Any]  # float32 or int16, shape (n, d), rows of length RADIUS or 0
Block = Callable[[int, int], NDArray[Any]]  # the rows from one to another, float64, any length


def to_grid(
    vectors: NDArray[Any],
    *,
    rows: NDArray[np.int64] | None = None,
    dtype: type[np.float32] | type[np.int16] = np.float32,
    report: Report = silent,
) -> Grid:
    """Return rows of length RADIUS, rounded to integers; zero rows stay zero.

    rows: which rows of `vectors`, in which order; all if None. A memory-map is read block by
    block, and no second copy of it is made.
    """
    count = len(vectors) if rows is None else len(rows)

    def block(start: int, stop: int) -> NDArray[Any]:
        part = vectors[start:stop] if rows is None else vectors[rows[start:stop]]
        return np.asarray(part, np.float64)

    return rounded(block, count, vectors.shape[1], dtype, report)


def centred(grid: Grid, report: Report = silent) -> Grid:
    """Return the grid with the mean of all rows taken away, on the grid again.

    Where all prompts share a form, their common part hides the rest.
    """
    everywhere = np.zeros(len(grid), np.int64)
    mean = (sums(grid, everywhere, 1) / max(len(grid), 1)).astype(np.float32).astype(np.float64)

    def block(start: int, stop: int) -> NDArray[Any]:
        # In float32, as the difference of two float32 matrices is: results stay what they were.
        part: NDArray[Any] = np.asarray(grid[start:stop], np.float32) - mean.astype(np.float32)
        return part.astype(np.float64)

    return rounded(block, len(grid), grid.shape[1], grid.dtype.type, report)


def sums(grid: Grid, labels: Labels, groups: int) -> NDArray[np.float64]:
    """Return the sum of the rows of each label from 0 to `groups` - 1; rows of -1 are left out.

    Exact: sums of integers in float64. Shape (groups, d).
    """
    from scipy.sparse import csr_matrix

    total = np.zeros((groups, grid.shape[1]))
    for start in range(0, len(grid), BLOCK_ROWS):
        part = labels[start : start + BLOCK_ROWS]
        here = np.flatnonzero(part >= 0)
        share = csr_matrix((np.ones(len(here)), (part[here], here)), shape=(groups, len(part)))
        total += share @ np.asarray(grid[start : start + BLOCK_ROWS], np.float64)
    return total


def rounded(block: Block, count: int, width: int, dtype: Any, report: Report) -> Grid:
    """Fill a grid from blocks of float64 rows of any length."""
    out = np.empty((count, width), dtype)
    for start in range(0, count, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, count)
        wide = block(start, stop)
        norms = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
        out[start:stop] = np.rint(RADIUS * wide / np.maximum(norms, 1e-9))
        report(Progress("cluster: vectors", stop, count))
    return out
