"""Communities of the kNN graph: an ensemble of Leiden runs, settled by Lloyd steps.

Compared with HDBSCAN* it leaves a third of the noise and does not let one dense region swallow
its neighbours. Left alone it divides what is one domain, so near communities are joined again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .grid import RADIUS, Graph, Labels, diffuse, neighbours, to_grid
from .model import Matrix

NEIGHBOURS = 15
DIFFUSION_STEPS = 3
RUNS = 9  # 30 were no better
RUN_SPREAD = (0.7, 1.0, 1.4)  # resolutions of the ensemble, as multiples of the one picked
RESOLUTIONS = (
    *(0.02, 0.05, 0.1, 0.2, 0.35, 0.5),  # for corpora of one or two domains
    *(0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0),
)
SMALL_SHARE_MAX = 0.08  # of rows in communities too small to keep; sets the granularity
LLOYD_STEPS = 4
NOISE_SHARE_MAX = 0.3  # above, a coarser division is tried
COSINE_SAME = 0.92  # the specification's threshold of a merge
NOISE_SHARE = 0.15  # the rows whose neighbours agree least

Weights = NDArray[np.float64]


def leiden_labels(grid: Matrix, size_min: int) -> Labels:
    """Return communities of at least `size_min` rows of the grid; -1 is noise.

    The same rows give the same labels on any number of threads. Ties between exact copies are
    broken by row, so the caller sorts rows by id. Needs at least two rows.
    """
    # Centring matters where all prompts share a form: their common part hides the rest.
    centred = to_grid(grid - grid.mean(axis=0, dtype=np.float64).astype(np.float32))
    graph = neighbours(centred, 2 * NEIGHBOURS)
    near = Graph(graph.cosines[:, : NEIGHBOURS + 1], graph.rows[:, : NEIGHBOURS + 1])
    smooth = diffuse(centred, near, DIFFUSION_STEPS)
    best = np.full(len(grid), -1, np.int64)
    for communities in _communities(near, size_min):
        labels = _gathered(centred, communities, size_min)
        labels = _settled(smooth, graph, _joined(grid, labels), size_min)
        if (labels >= 0).sum() > (best >= 0).sum():
            best = labels
        if (best < 0).mean() <= NOISE_SHARE_MAX:
            break
    return best


def _settled(smooth: Matrix, graph: Graph, labels: Labels, size_min: int) -> Labels:
    """Return labels after Lloyd steps, without the rows whose neighbours agree least."""
    for _ in range(LLOYD_STEPS):
        if labels.max() < 0:
            return labels
        nearest = (smooth @ _centroids(smooth, labels).T).argmax(axis=1).astype(np.int64)
        labels = keep_large(nearest, (size_min + 1) // 2)
    agreement = (labels[graph.rows[:, 1:]] == labels[:, None]).mean(axis=1)
    least = np.sort(agreement)[int(NOISE_SHARE * len(labels))]
    return keep_large(np.where(agreement < least, -1, labels).astype(np.int64), size_min)


def _gathered(centred: Matrix, labels: Labels, size_min: int) -> Labels:
    """Return labels with each community that is too small joined to its nearest, smallest first.

    Dropped instead, their rows would be drawn to whatever is left, however far it is.
    """
    while True:
        sizes = np.bincount(labels)
        small = int(sizes.argmin())
        if len(sizes) == 1 or sizes[small] >= size_min:
            return labels
        means = _centroids(centred, labels)
        cosines = means @ means[small]
        cosines[small] = -np.inf
        labels = keep_large(np.where(labels == small, int(cosines.argmax()), labels), 1)


def _joined(grid: Matrix, labels: Labels) -> Labels:
    """Return labels with communities joined whose centroids are one domain's."""
    while labels.max() > 0:
        means = _centroids(grid, labels)
        alike = np.triu(means @ means.T / RADIUS**2, k=1)
        one, other = np.unravel_index(int(alike.argmax()), alike.shape)
        if alike[one, other] < COSINE_SAME:
            break
        labels = keep_large(np.where(labels == other, one, labels), 1)
    return labels


def keep_large(labels: Labels, size_min: int) -> Labels:
    """Return labels with groups below `size_min` made noise and the others renumbered."""
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    large = sizes >= size_min
    renumbered = np.where(large, np.cumsum(large) - 1, -1)
    return np.where(labels >= 0, renumbered[labels], -1).astype(np.int64)


def _communities(near: Graph, size_min: int) -> Iterator[Labels]:
    """Yield divisions of the graph, the finest that may do first, then coarser ones."""
    import igraph

    count = len(near.rows)
    edges, similarity = _edges(near)
    graph = igraph.Graph(n=count, edges=edges)
    base = _resolution(graph, similarity, size_min)
    together = np.zeros(len(edges))
    for run in range(RUNS):
        scale = RUN_SPREAD[run % len(RUN_SPREAD)]
        found = _leiden(graph, similarity, base * scale, seed=run + 1, iterations=1)
        together += found[edges[:, 0]] == found[edges[:, 1]]
    weights = 0.05 + 0.95 * together / RUNS  # of edges, by how many runs keep both ends together
    finest = RESOLUTIONS.index(_resolution(graph, weights, size_min))
    for resolution in reversed(RESOLUTIONS[: finest + 1]):
        yield _leiden(graph, weights, resolution, seed=0, iterations=3)


def _edges(near: Graph) -> tuple[NDArray[np.int64], Weights]:
    from scipy.sparse import csr_matrix

    count, width = near.rows.shape
    one = np.repeat(np.arange(count), width - 1)
    directed = csr_matrix(
        (np.maximum(near.cosines[:, 1:], 0.0).ravel(), (one, near.rows[:, 1:].ravel())),
        shape=(count, count),
    )
    both = (directed + directed.T).tocoo()
    upper = both.row < both.col
    edges = np.column_stack([both.row[upper], both.col[upper]]).astype(np.int64)
    return edges, np.round(both.data[upper], 5)


def _leiden(graph: Any, weights: Weights, resolution: float, seed: int, iterations: int) -> Labels:
    import igraph

    igraph.set_random_number_generator(random.Random(seed))
    found = graph.community_leiden(
        "modularity", weights=weights.tolist(), resolution=resolution, n_iterations=iterations
    )
    return np.array(found.membership, np.int64)


def _resolution(graph: Any, weights: Weights, size_min: int) -> float:
    """Return the finest resolution that leaves few rows in communities under `size_min`."""
    best = RESOLUTIONS[0]
    for resolution in RESOLUTIONS:
        sizes = np.bincount(_leiden(graph, weights, resolution, seed=0, iterations=1))
        if sizes[sizes < size_min].sum() > SMALL_SHARE_MAX * graph.vcount():
            break
        best = resolution
    return best


def _centroids(grid: Matrix, labels: Labels) -> Matrix:
    from scipy.sparse import csr_matrix

    rows = np.flatnonzero(labels >= 0)
    share = csr_matrix(
        (np.ones(len(rows)), (labels[rows], rows)), shape=(labels.max() + 1, len(grid))
    )
    return to_grid(share @ grid.astype(np.float64))  # sums of integers: exact in float64
