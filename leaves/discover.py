"""Finds domains in embeddings alone: three levels of clusters, by one of two clusterers.

Level 2 is found in the data. Level 1 groups level 2 by Ward linkage, and level 3 divides its
large clusters. Both adapters see rows sorted by session id on an integer grid, so the same
sessions give the same clusters in any order, on any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .grid import EXACT_ROWS_MAX, RADIUS, Grid, diffuse, neighbours, sums, to_grid
from .hdbscan_tree import hdbscan_labels
from .leiden import Division, divide
from .model import Matrix, Vector, unit
from .parallel import map_in_order
from .ports import (
    Cluster,
    Clusterer,
    Clustering,
    ClusterSizes,
    Executor,
    Findings,
    Found,
    NoiseReason,
    Progress,
    Report,
    silent,
)
from .rounding import BLOCK_ROWS

DIVIDE_FROM = 1000  # members; specification §4: "within large Level 2 clusters (1000+ sessions)"
COSINE_SAME = 0.92  # children nearer than this would be merged again, so they are one
COHERENT = 0.4  # cosine to the mean that four fifths of one domain's sessions have
DOMAINS_PER_BRANCH = 3  # at least, on average: a branch of one domain says nothing

ALONE_SHARE = 0.05  # of the sessions in domains; who is further from all others is alone

Rows = NDArray[np.int64]
Divide = Callable[[Grid, int, Report], Division]  # (rows on the grid, smallest cluster, report)


@dataclass(frozen=True, slots=True)
class HdbscanClusterer:
    """HDBSCAN* over diffused vectors: pure clusters and honest noise.

    The settings were picked on StackOverflow titles and CLINC; the plateau is wide (k 15 to 60,
    2 to 10 steps). `exact_rows_max`: more rows are searched by seeded IVF.
    """

    neighbours: int = 30
    steps: int = 3
    samples_min: int = 10
    exact_rows_max: int = EXACT_ROWS_MAX

    def cluster(
        self, ids: Sequence[str], vectors: Matrix, sizes: ClusterSizes, report: Report = silent
    ) -> Clustering:
        return three_levels(self._divide, ids, vectors, sizes, report)

    def _divide(self, grid: Grid, size_min: int, report: Report) -> Division:
        exact = self.exact_rows_max
        near = neighbours(grid, self.neighbours, exact_rows_max=exact, report=report)
        smooth = diffuse(grid, near, self.steps, report)
        graph = neighbours(smooth, self.neighbours, exact_rows_max=exact, report=report)
        return Division(
            hdbscan_labels(graph, size_min, self.samples_min),
            np.zeros(len(grid), np.bool_),
            near.cosines[:, 1:].mean(axis=1),
            settings=f"HDBSCAN*, {self.neighbours} neighbours, {self.steps} steps",
        )


@dataclass(frozen=True, slots=True)
class LeidenClusterer:
    """Communities of the kNN graph, as fine as subsamples bear out.

    executor: divides domains further, several at a time; None does it here.
    """

    executor: Executor | None = None

    def cluster(
        self, ids: Sequence[str], vectors: Matrix, sizes: ClusterSizes, report: Report = silent
    ) -> Clustering:
        return three_levels(divide, ids, vectors, sizes, report, self.executor)


def default_clusterer(executor: Executor | None = None) -> Clusterer:
    """The clusterer of a node that has chosen none."""
    return LeidenClusterer(executor)


def three_levels(
    divide: Divide,
    ids: Sequence[str],
    vectors: Matrix,
    sizes: ClusterSizes,
    report: Report = silent,
    executor: Executor | None = None,
) -> Clustering:
    """Return the clusters of all three levels, whatever `divide` finds at one.

    Clusters of a level come in the order of their first member. `vectors` may be a memory-map,
    and is read once. Raises ValueError if ids repeat, or do not fit the vectors, or a vector is
    not finite.
    """
    _check(ids, vectors)
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
    names = [ids[i] for i in order]
    narrow = np.int16 if len(ids) > EXACT_ROWS_MAX else np.float32
    grid = to_grid(vectors, rows=order, dtype=narrow, report=report)
    domains, findings = _domains(divide, grid, sizes.domain, report)
    branch_of, branches = _branches(grid, domains, sizes.branch)
    parts = _specialisations(divide, grid, domains, sizes.specialisation, report, executor)

    def cluster(level: int, rows: Rows, parent: int | None) -> Cluster:
        return Cluster(level, tuple(names[i] for i in rows), parent)

    level1 = [
        cluster(1, np.sort(np.concatenate([domains[d] for d in branch])), None)
        for branch in branches
    ]
    level2 = [cluster(2, rows, branch_of[index]) for index, rows in enumerate(domains)]
    level3 = [cluster(3, rows, index) for index, of in enumerate(parts) for rows in of]
    placed = _placed(len(names), domains)
    noise = tuple(names[i] for i in np.flatnonzero(~placed))
    report(Progress("cluster: done", 1, 1))
    return Clustering((tuple(level1), tuple(level2), tuple(level3)), noise, findings)


def _check(ids: Sequence[str], vectors: Matrix) -> None:
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise ValueError(f"{len(ids)} ids do not fit vectors of shape {vectors.shape}")
    if len(set(ids)) != len(ids):
        raise ValueError(f"ids repeat: {len(ids)} ids, {len(set(ids))} of them distinct")
    for start in range(0, len(vectors), BLOCK_ROWS):
        if not np.isfinite(vectors[start : start + BLOCK_ROWS]).all():
            raise ValueError("a vector is not finite; the embedding store is damaged")


def _groups(labels: Rows, size_min: int) -> list[tuple[int, Rows]]:
    """Return (label, its rows ascending) of each cluster, in the order of their first rows."""
    found = [(label, np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]
    return sorted((g for g in found if len(g[1]) >= size_min), key=lambda g: int(g[1][0]))


def _domains(
    divide: Divide, grid: Grid, size_min: int, report: Report
) -> tuple[list[Rows], Findings | None]:
    """Return the rows of each domain, and how sure they are.

    Rows that do not divide are one domain if coherent: whoever works on one thing gets one leaf,
    and a heap of unrelated prompts none. A fifth of the rows is below this cosine to the mean:
    one library .64 to .68, one kind of exercise .53, forum titles and trivia .09 to .15.
    """
    if len(grid) < max(size_min, 2):
        return [], None
    division = divide(grid, max(size_min, 2), report)
    groups = _groups(division.labels, size_min)
    stability = dict(enumerate(division.stability))
    if len(groups) < 2:
        groups = _one_domain(grid, division, groups, size_min)
    domains = [rows for _, rows in groups]
    found = [
        Found(stability.get(label), _cohesion(grid, rows), int((~division.copies[rows]).sum()))
        for label, rows in groups
    ]
    noise = _reasons(division, _placed(len(grid), domains))
    agreement = division.agreement if division.stability and len(groups) > 1 else None
    return domains, Findings(tuple(found), noise, agreement, division.settings)


def _one_domain(
    grid: Grid, division: Division, groups: list[tuple[int, Rows]], size_min: int
) -> list[tuple[int, Rows]]:
    rows = groups[0][1] if groups else np.arange(len(grid))
    if 2 * len(rows) <= len(grid):
        return groups
    near = rows[_cosines(grid, rows) >= COHERENT]
    distinct = int((~division.copies[near]).sum())
    return [(-1, near)] if distinct >= max(size_min, 0.8 * len(rows)) else []


def _cosines(grid: Grid, rows: Rows) -> NDArray[np.float64]:
    """Return the cosine of each of `rows` to their centroid."""
    part = np.asarray(grid[rows], np.float32)
    (centroid,) = to_grid(part.sum(axis=0, dtype=np.float64)[None])
    cosines: NDArray[np.float64] = (part @ centroid) / float(RADIUS) ** 2
    return cosines


def _cohesion(grid: Grid, rows: Rows) -> float:
    return round(float(np.median(_cosines(grid, rows))), 6)


def _placed(count: int, domains: list[Rows]) -> NDArray[np.bool_]:
    placed = np.zeros(count, np.bool_)
    for rows in domains:
        placed[rows] = True
    return placed


def _reasons(division: Division, placed: NDArray[np.bool_]) -> dict[NoiseReason, int]:
    """Say of the sessions in no domain why, by what is near them."""
    copies = ~placed & division.copies
    others = ~placed & ~division.copies
    known = division.nearness[placed & ~division.copies]
    far = float(np.quantile(known, ALONE_SHARE)) if len(known) else np.inf
    alone = others & (division.nearness < far)
    counts = {
        NoiseReason.ALONE: int(alone.sum()),
        NoiseReason.BETWEEN: int((others & ~alone).sum()),
        NoiseReason.COPIES: int(copies.sum()),
    }
    return {reason: count for reason, count in counts.items() if count}


class _Large(Sequence[tuple[Divide, Grid, int]]):
    """What to divide further. Rows are copied only when they are asked for: all at once they
    would be the whole grid again."""

    def __init__(self, divide: Divide, grid: Grid, groups: list[Rows], size_min: int) -> None:
        self._divide = divide
        self._grid = grid
        self._groups = groups
        self._size_min = size_min

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: Any) -> Any:
        return self._divide, self._grid[self._groups[index]], self._size_min

    def __iter__(self) -> Iterator[tuple[Divide, Grid, int]]:
        return (self[index] for index in range(len(self)))


def _further(item: tuple[Divide, Grid, int]) -> list[Rows]:
    """Return the parts of one domain, if at least two are distinct."""
    divide, grid, size_min = item
    labels = divide(np.asarray(grid, np.float32), max(size_min, 2), silent).labels
    parts = [rows for _, rows in _groups(labels, size_min)]
    while len(parts) >= 2:
        means = np.concatenate([to_grid(_sum(grid, part)[None]) for part in parts])
        alike = np.triu(means @ means.T / RADIUS**2, k=1)
        one, other = np.unravel_index(int(alike.argmax()), alike.shape)
        if alike[one, other] < COSINE_SAME:
            break
        parts[one] = np.sort(np.concatenate([parts[one], parts.pop(int(other))]))
    return sorted(parts, key=lambda part: int(part[0])) if len(parts) >= 2 else []


def _sum(grid: Grid, rows: Rows) -> NDArray[np.float64]:
    total: NDArray[np.float64] = grid[rows].sum(axis=0, dtype=np.float64)
    return total


def _specialisations(
    divide: Divide,
    grid: Grid,
    domains: list[Rows],
    size_min: int,
    report: Report,
    executor: Executor | None,
) -> list[list[Rows]]:
    """Return the parts of each domain: none where it is small or has no two distinct ones."""
    large = [index for index, rows in enumerate(domains) if len(rows) >= DIVIDE_FROM]
    work = _Large(divide, grid, [domains[index] for index in large], size_min)
    parts: list[list[Rows]] = [[] for _ in domains]
    for index, found in zip(large, map_in_order(executor, _further, work, report), strict=True):
        parts[index] = [domains[index][part] for part in found]
    return parts


def _branches(
    grid: Grid, domains: list[Rows], size_min: int
) -> tuple[list[int | None], list[tuple[int, ...]]]:
    """Group domains by Ward linkage on their centroids.

    Returns the branch of each domain, and the domains of each branch. A branch below `size_min`
    sessions joins its nearest; if only one is left there is none, for it would be everything.
    """
    if len(domains) < 2:
        return [None] * len(domains), []
    from scipy.cluster.hierarchy import fcluster, linkage

    labels = np.full(len(grid), -1)
    for index, rows in enumerate(domains):
        labels[rows] = index
    means = unit(sums(grid, labels, len(domains)).astype(np.float32))
    wanted = -(-len(domains) // DOMAINS_PER_BRANCH)
    cut = fcluster(linkage(means, "ward"), wanted, criterion="maxclust")
    branches = [np.flatnonzero(cut == label).tolist() for label in np.unique(cut)]
    sizes = np.array([len(rows) for rows in domains])
    while len(branches) > 1:
        smallest = min(range(len(branches)), key=lambda b: (sizes[branches[b]].sum(), branches[b]))
        if sizes[branches[smallest]].sum() >= size_min:
            break
        small = branches.pop(smallest)
        others = unit(np.stack([_mean(means, sizes, branch) for branch in branches]))
        at = others @ _mean(means, sizes, small)
        nearest = int(at.argmax())
        branches[nearest] = sorted(branches[nearest] + small)
    if len(branches) < 2:
        return [None] * len(domains), []
    branches.sort()
    branch_of: list[int | None] = [None] * len(domains)
    for index, parts in enumerate(branches):
        for domain in parts:
            branch_of[domain] = index
    return branch_of, [tuple(int(d) for d in parts) for parts in branches]


def _mean(means: Matrix, sizes: NDArray[np.int64], parts: list[int]) -> Vector:
    mean: Vector = (means[parts] * sizes[parts, None]).sum(axis=0).astype(np.float32)
    return mean
