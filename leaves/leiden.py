"""Communities of the kNN graph: an ensemble of Leiden runs, settled by Lloyd steps.

Compared with HDBSCAN* it leaves less noise and does not let one dense region swallow its
neighbours, but it always finds some division, also where there is none.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .grid import Graph, Labels, Matrix, diffuse, neighbours, to_grid

NEIGHBOURS = 15
DIFFUSION_STEPS = 3
RUNS = 9  # 30 were no better
RUN_SPREAD = (0.7, 1.0, 1.4)  # resolutions of the ensemble, as multiples of the one picked
RESOLUTIONS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0)
SMALL_SHARE_MAX = 0.08  # of rows in communities too small to keep; sets the granularity
LLOYD_STEPS = 4
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
    labels = _communities(near, size_min)
    if labels.max() < 0:
        return labels
    smooth = diffuse(centred, near, DIFFUSION_STEPS)
    for _ in range(LLOYD_STEPS):
        nearest = (smooth @ _centroids(smooth, labels).T).argmax(axis=1).astype(np.int64)
        labels = keep_large(nearest, (size_min + 1) // 2)
        if labels.max() < 0:
            return labels
    agreement = (labels[graph.rows[:, 1:]] == labels[:, None]).mean(axis=1)
    least = np.sort(agreement)[int(NOISE_SHARE * len(labels))]
    return keep_large(np.where(agreement < least, -1, labels).astype(np.int64), size_min)


def keep_large(labels: Labels, size_min: int) -> Labels:
    """Return labels with groups below `size_min` made noise and the others renumbered."""
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    large = sizes >= size_min
    renumbered = np.where(large, np.cumsum(large) - 1, -1)
    return np.where(labels >= 0, renumbered[labels], -1).astype(np.int64)


def _communities(near: Graph, size_min: int) -> Labels:
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
    resolution = _resolution(graph, weights, size_min)
    return keep_large(_leiden(graph, weights, resolution, seed=0, iterations=3), size_min)


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
    share = csr_matrix((np.ones(len(rows)), (labels[rows], rows)), shape=(labels.max() + 1, len(grid)))
    return to_grid(share @ grid.astype(np.float64))  # sums of integers: exact in float64
