"""Neighbours among very many rows: an inverted file whose scans are matrix products.

Rows are put into cells around seeded centroids, and a row is compared with those of its nearest
cells only. The usual inverted file goes row by row and waits for memory; here all rows that
probe a cell are multiplied with it at once, which finds the same neighbours four times as fast.
All numbers are integers below 2**24, so threads and block sizes cannot change a result; the
sample that centroids come from is chosen by content, so the order of rows cannot either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cores import side_by_side
from .model import Matrix
from .ports import Progress, Report
from .rounding import Grid, sums, to_grid

PROBES = 56  # cells that a row is compared with
FIRST_CELLS = 8  # of those, the ones nearest to its own cell, which set how near is near
SAMPLE_PER_CELL = 16
TRAIN_STEPS = 4
QUERIES = 4096  # rows compared at once: 4096 x 384 numbers, 6 MB
FOUND_MAX = 2_000_000  # candidates kept before they are merged: 32 MB

Keys = NDArray[np.int64]  # score and row in one number, so that sorting numbers sorts neighbours
_ROW_BITS = 32
_ROW_MASK = np.int64((1 << _ROW_BITS) - 1)
NOTHING = np.int64(np.iinfo(np.int64).min)


def pack(scores: Matrix, rows: NDArray[np.int64]) -> Keys:
    """Return keys that rise with the score, and among equal scores fall with the row."""
    packed: Keys = (scores.astype(np.int64) << _ROW_BITS) | (_ROW_MASK - rows)
    return packed


def unpack(keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return scores and rows; the row of NOTHING is -1."""
    rows = np.where(keys == NOTHING, -1, _ROW_MASK - (keys & _ROW_MASK))
    return keys >> _ROW_BITS, rows


@dataclass(frozen=True, slots=True)
class Cells:
    """Rows sorted by cell. `rows[bounds[c] : bounds[c + 1]]` are the rows of cell c, ascending.

    probes: shape (n, p), the cells nearest to each row, nearest first.
    """

    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    probes: NDArray[np.int32]
    near: NDArray[np.int64]  # shape (cells, FIRST_CELLS): the cells nearest to each, itself first

    def of(self, cell: int) -> NDArray[np.int64]:
        return self.rows[self.bounds[cell] : self.bounds[cell + 1]]


def cell_neighbours(grid: Grid, k: int, cells: int, report: Report, phase: str) -> Keys:
    """Return keys of the `k` best rows of each row, best first; NOTHING where cells run dry.

    The row itself is among them unless more than `k` copies of it are.
    """
    count = len(grid)
    told = _Told(report, phase, count)
    centroids = _train(grid, cells, told.part(0.0, 0.06))
    filed = _file(grid, centroids, told.part(0.06, 0.3))
    keys = np.full((count, k), NOTHING)
    near = told.part(0.3, 0.45)

    def search(cell: int) -> int:
        _search_near(grid, filed, cell, keys)
        return cell

    side_by_side(search, range(cells), lambda cell: near(cell / cells))
    _probe(grid, filed, keys, told.part(0.45, 1.0))
    return keys


Tell = Callable[[float], None]  # how far a part of the work is, 0 to 1
Found = tuple[NDArray[np.int64], Keys]  # rows that asked, and the key of what each found


@dataclass(frozen=True, slots=True)
class _Told:
    """Reports of the parts of one search as one count of rows; the shares are of its time."""

    report: Report
    phase: str
    total: int

    def part(self, start: float, end: float) -> Tell:
        def tell(done: float) -> None:
            at = int(self.total * (start + (end - start) * done))
            self.report(Progress(self.phase, at, self.total))

        tell(0.0)
        return tell


def _train(grid: Grid, cells: int, tell: Tell) -> Matrix:
    """Return centroids on the grid: spherical k-means on a sample chosen by content."""
    sample = np.asarray(grid[_sample(grid, cells * SAMPLE_PER_CELL)], np.float32)
    centroids = sample[:cells].copy()
    for step in range(TRAIN_STEPS):

        def step_done(done: float, step: int = step) -> None:
            tell((step + done) / TRAIN_STEPS)

        own = _nearest(sample, centroids, 1, step_done)[:, 0]
        moved = to_grid(sums(sample, own.astype(np.int64), cells))
        filled = np.bincount(own, minlength=cells) > 0
        centroids[filled] = moved[filled]
    return centroids


def _sample(grid: Grid, wanted: int) -> NDArray[np.int64]:
    """Return rows whose contents hash lowest, by hash: the same ones in any order of rows."""
    weights = np.random.default_rng(0).integers(1, 1 << 30, grid.shape[1]).astype(np.float64)
    hashes = np.concatenate(  # exact: 4080 * 384 * 2**30 is below 2**53
        [np.asarray(grid[a : a + QUERIES], np.float64) @ weights for a in _starts(len(grid))]
    )
    mixed = np.abs(hashes).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.argsort(mixed, kind="stable")[:wanted]


def _nearest(grid: Grid, centroids: Matrix, wanted: int, tell: Tell) -> NDArray[np.int32]:
    """Return the `wanted` nearest centroids of each row, nearest first."""
    import faiss

    nearest = np.empty((len(grid), wanted), np.int32)

    def search(start: int) -> int:
        block = np.ascontiguousarray(grid[start : start + QUERIES], np.float32)
        found = faiss.knn(block, centroids, wanted, metric=faiss.METRIC_INNER_PRODUCT)[1]
        nearest[start : start + QUERIES] = found
        return start

    side_by_side(search, _starts(len(grid)), lambda start: tell(start / len(grid)))
    return nearest


def _file(grid: Grid, centroids: Matrix, tell: Tell) -> Cells:
    probes = _nearest(grid, centroids, min(PROBES, len(centroids)), tell)
    own = probes[:, 0]
    rows = np.argsort(own, kind="stable")
    bounds = np.searchsorted(own[rows], np.arange(len(centroids) + 1))
    first = min(FIRST_CELLS, len(centroids))
    alike = centroids @ centroids.T
    np.fill_diagonal(alike, np.inf)  # a cell is its own nearest, whatever rounding says
    near = np.argsort(-alike, axis=1, kind="stable")[:, :first]
    return Cells(rows, bounds, probes, near)


def _search_near(grid: Grid, filed: Cells, cell: int, keys: Keys) -> None:
    """Compare the rows of one cell with those of the cells nearest to it, exactly."""
    import faiss

    own = filed.of(cell)
    if not len(own):
        return
    others = np.concatenate([filed.of(c) for c in filed.near[cell]])
    k = min(keys.shape[1], len(others))
    scores, found = faiss.knn(
        np.asarray(grid[own], np.float32),
        np.asarray(grid[others], np.float32),
        k,
        metric=faiss.METRIC_INNER_PRODUCT,
    )
    keys[own, :k] = np.sort(pack(scores, others[found]), axis=1)[:, ::-1]


def _probe(grid: Grid, filed: Cells, keys: Keys, tell: Tell) -> None:
    """Compare each row with all cells that it probes and was not compared with yet."""
    merge = _Merge(keys)
    cells = len(filed.near)

    def search(asked: tuple[int, NDArray[np.int64]]) -> tuple[int, list[Found]]:
        cell, queries = asked
        others = filed.of(cell)
        block = np.asarray(grid[others], np.float32)
        parts = [queries[start : start + QUERIES] for start in _starts(len(queries))]
        found = [
            merge.passing(part, others, np.asarray(grid[part], np.float32) @ block.T)
            for part in parts
            if len(others)
        ]
        return cell, found

    def take(result: tuple[int, list[Found]]) -> None:
        cell, found = result
        for part in found:
            merge.add(part)
        tell(cell / cells)

    side_by_side(search, enumerate(_askers(filed)), take)
    merge.flush()
    tell(1.0)


def _askers(filed: Cells) -> Iterator[NDArray[np.int64]]:
    """Yield, cell by cell, the rows that probe it and whose own cell is not near it."""
    from scipy.sparse import csr_matrix

    count, wanted = filed.probes.shape
    cells = len(filed.near)
    every = np.ones(count * wanted, np.int8)
    starts = np.arange(0, count * wanted + 1, wanted)
    probed = csr_matrix((every, filed.probes.ravel(), starts), shape=(count, cells)).tocsc()
    for cell in range(cells):
        rows = probed.indices[probed.indptr[cell] : probed.indptr[cell + 1]].astype(np.int64)
        done = np.zeros(cells, bool)
        done[np.flatnonzero((filed.near == cell).any(axis=1))] = True
        yield rows[~done[filed.probes[rows, 0]]]


class _Merge:
    """Gathers candidates that beat a row's worst neighbour, and merges them now and then."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._floor = self._floors(keys)
        self._queries: list[NDArray[np.int64]] = []
        self._found: list[Keys] = []
        self._held = 0

    @staticmethod
    def _floors(keys: Keys) -> Matrix:
        scores = np.maximum(keys[:, -1] >> _ROW_BITS, -(1 << 25))  # what float32 holds exactly
        floors: Matrix = scores.astype(np.float32)
        return floors

    def passing(self, queries: NDArray[np.int64], rows: NDArray[np.int64], scores: Matrix) -> Found:
        """Return the rows that beat the worst neighbour of the row that asks.

        Any thread may ask while another merges: a floor only rises, so an old one lets more in.
        """
        passed = np.flatnonzero(scores >= self._floor[queries, None])
        at, column = np.divmod(passed, len(rows))
        return queries[at], pack(scores.ravel()[passed], rows[column])

    def add(self, found: Found) -> None:
        self._queries.append(found[0])
        self._found.append(found[1])
        self._held += len(found[0])
        if self._held > FOUND_MAX:
            self.flush()

    def flush(self) -> None:
        if not self._held:
            return
        queries, found = np.concatenate(self._queries), np.concatenate(self._found)
        order = np.argsort(queries, kind="stable")
        queries, found = queries[order], found[order]
        asked, first, counts = np.unique(queries, return_index=True, return_counts=True)
        by_count = np.argsort(counts, kind="stable")  # so that few rows are padded far
        for start in range(0, len(asked), QUERIES):
            some = by_count[start : start + QUERIES]
            self._merge(asked[some], first[some], counts[some], found)
        self._queries, self._found, self._held = [], [], 0

    def _merge(
        self,
        rows: NDArray[np.int64],
        first: NDArray[np.int64],
        counts: NDArray[np.int64],
        found: Keys,
    ) -> None:
        width = int(counts.max())
        reach = np.arange(width)
        at = np.minimum(first[:, None] + reach, len(found) - 1)
        fresh = np.where(reach < counts[:, None], found[at], NOTHING)
        both = np.sort(np.concatenate([self._keys[rows], fresh], axis=1), axis=1)
        best = both[:, ::-1][:, : self._keys.shape[1]]
        self._keys[rows] = best
        self._floor[rows] = self._floors(best)


def _starts(count: int) -> range:
    return range(0, count, QUERIES)


def cells_for(count: int) -> int:
    """How many cells suit so many rows: finding a row's cells costs about what scanning does."""
    return max(1, int(4 * count**0.5))
