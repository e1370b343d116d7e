"""Finds domains in embeddings alone: three levels of clusters, by one of two clusterers.

Level 2 is found in the data. Level 1 groups level 2 by Ward linkage, and level 3 divides its
large clusters. Both adapters see rows sorted by session id on an integer grid, so the same
sessions give the same clusters in any order, on any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .grid import EXACT_ROWS_MAX, Labels, diffuse, neighbours, to_grid
from .hdbscan_tree import hdbscan_labels
from .leiden import leiden_labels
from .model import Matrix, Vector, unit
from .ports import Cluster, Clusterer, Clustering, ClusterSizes, Progress, Report, silent

DIVIDE_FROM = 1000  # members; specification §4: "within large Level 2 clusters (1000+ sessions)"
COSINE_SAME = 0.92  # children nearer than this would be merged again, so they are one
COHERENT = 0.4  # cosine to the mean that four fifths of one domain's sessions have
DOMAINS_PER_BRANCH = 3  # at least, on average: a branch of one domain says nothing

Divide = Callable[[Matrix, int], Labels]  # (rows on the grid, smallest cluster) -> labels


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

    def _divide(self, grid: Matrix, size_min: int) -> Labels:
        near = neighbours(grid, self.neighbours, exact_rows_max=self.exact_rows_max)
        smooth = diffuse(grid, near, self.steps)
        graph = neighbours(smooth, self.neighbours, exact_rows_max=self.exact_rows_max)
        return hdbscan_labels(graph, size_min, self.samples_min)


@dataclass(frozen=True, slots=True)
class LeidenClusterer:
    """An ensemble of Leiden runs on the kNN graph: little noise, even sizes."""

    def cluster(
        self, ids: Sequence[str], vectors: Matrix, sizes: ClusterSizes, report: Report = silent
    ) -> Clustering:
        return three_levels(leiden_labels, ids, vectors, sizes, report)


def default_clusterer() -> Clusterer:
    """The clusterer of a node that has chosen none."""
    return LeidenClusterer()


def three_levels(
    divide: Divide, ids: Sequence[str], vectors: Matrix, sizes: ClusterSizes, report: Report
) -> Clustering:
    """Return the clusters of all three levels, whatever `divide` finds at one.

    Clusters of a level come in the order of their first member. Raises ValueError if ids repeat,
    or do not fit the vectors, or a vector is not finite.
    """
    _check(ids, vectors)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    names = [ids[i] for i in order]
    rows = np.ascontiguousarray(vectors[order], dtype=np.float32)
    grid = to_grid(rows) if len(rows) else rows
    report(Progress("cluster: domains", 0, 3))
    domains = _domains(divide, grid, rows, sizes.domain)
    report(Progress("cluster: branches", 1, 3))
    branch_of, branches = _branches([rows[group] for group in domains], sizes.branch)
    report(Progress("cluster: specialisations", 2, 3))
    level2, level3 = [], []
    for index, group in enumerate(domains):
        level2.append(Cluster(2, tuple(names[i] for i in group), branch_of[index]))
        for part in _specialisations(divide, grid, rows, group, sizes.specialisation):
            level3.append(Cluster(3, tuple(names[i] for i in part), index))
    level1 = [
        Cluster(
            1, tuple(names[i] for i in sorted(np.concatenate([domains[d] for d in parts]))), None
        )
        for parts in branches
    ]
    placed = {i for group in domains for i in group.tolist()}
    noise = tuple(name for i, name in enumerate(names) if i not in placed)
    report(Progress("cluster: done", 3, 3))
    return Clustering((tuple(level1), tuple(level2), tuple(level3)), noise)


def _check(ids: Sequence[str], vectors: Matrix) -> None:
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise ValueError(f"{len(ids)} ids do not fit vectors of shape {vectors.shape}")
    if len(set(ids)) != len(ids):
        raise ValueError(f"ids repeat: {len(ids)} ids, {len(set(ids))} of them distinct")
    if not np.isfinite(vectors).all():
        raise ValueError("a vector is not finite; the embedding store is damaged")


def _groups(divide: Divide, grid: Matrix, size_min: int) -> list[NDArray[np.int64]]:
    """Return the rows of each cluster, ascending; clusters in the order of their first row."""
    if len(grid) < max(size_min, 2):
        return []
    labels = divide(grid, max(size_min, 2))
    groups = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    return sorted((g for g in groups if len(g) >= size_min), key=lambda group: int(group[0]))


def _domains(divide: Divide, grid: Matrix, rows: Matrix, size_min: int) -> list[NDArray[np.int64]]:
    """Return the rows of each domain. Rows that do not divide are one domain if coherent.

    Whoever works on one thing gets one leaf; a heap of unrelated prompts gets none. A fifth of
    the rows is below this cosine to the mean: one library .64 to .68, one kind of exercise .53,
    forum titles and trivia .09 to .15.
    """
    groups = _groups(divide, grid, size_min)
    if len(groups) > 1 or len(rows) < max(size_min, 2):
        return groups
    group = groups[0] if groups else np.arange(len(rows))
    if 2 * len(group) <= len(rows):
        return groups
    mean = unit(rows[group].mean(axis=0, dtype=np.float64)[None])[0]
    near = group[rows[group] @ mean >= COHERENT]
    return [near] if len(near) >= max(size_min, 0.8 * len(group)) else []


def _specialisations(
    divide: Divide, grid: Matrix, rows: Matrix, group: NDArray[np.int64], size_min: int
) -> list[NDArray[np.int64]]:
    """Return the parts of one domain, if it is large and at least two parts are distinct."""
    if len(group) < DIVIDE_FROM:
        return []
    parts = [group[part] for part in _groups(divide, grid[group], size_min)]
    while len(parts) >= 2:
        means = unit(np.stack([rows[part].mean(axis=0, dtype=np.float64) for part in parts]))
        alike = np.triu(means @ means.T, k=1)
        one, other = np.unravel_index(int(alike.argmax()), alike.shape)
        if alike[one, other] < COSINE_SAME:
            break
        parts[one] = np.sort(np.concatenate([parts[one], parts.pop(int(other))]))
    return sorted(parts, key=lambda part: int(part[0])) if len(parts) >= 2 else []


def _branches(
    domains: list[Matrix], size_min: int
) -> tuple[list[int | None], list[tuple[int, ...]]]:
    """Group domains by Ward linkage on their centroids.

    Returns the branch of each domain, and the domains of each branch. A branch below `size_min`
    sessions joins its nearest; if only one is left there is none, for it would be everything.
    """
    if len(domains) < 2:
        return [None] * len(domains), []
    from scipy.cluster.hierarchy import fcluster, linkage

    means = unit(np.stack([rows.mean(axis=0, dtype=np.float64) for rows in domains]))
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
