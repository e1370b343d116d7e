"""HDBSCAN* from a kNN graph: the only place that touches the internals of hdbscan.

The library's own entry points want all pairs or a metric tree, and neither works on 384-d unit
vectors (it refuses "cosine", and takes 54 s for 10,000 rows where this takes 1.5). Its
linkage, condense and excess-of-mass steps take any spanning tree, so the tree comes from here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .grid import Graph, Labels

APART = 2.0  # the distance of opposite unit vectors; joins what the kNN graph leaves apart
NEVER_ZERO = 1e-9  # a sparse matrix drops edges of weight 0, and copies would fall apart


def hdbscan_labels(graph: Graph, size_min: int, samples_min: int) -> Labels:
    """Return clusters of at least `size_min` rows by excess of mass; -1 is noise.

    samples_min: which neighbour's distance is a row's core distance; 10, for 50 finds too little.
    Never returns one cluster that is everything. Needs at least two rows.
    """
    # Private names, pinned by constraints.txt and held by tests/test_discover.py.
    from hdbscan._hdbscan_linkage import label
    from hdbscan._hdbscan_tree import compute_stability, condense_tree, get_clusters

    tree = label(_spanning_tree(graph, samples_min))
    condensed = condense_tree(tree, size_min)
    labels, _, _ = get_clusters(condensed, compute_stability(condensed), "eom", False, False, 0.0)
    return np.asarray(labels, np.int64)


def _spanning_tree(graph: Graph, samples_min: int) -> NDArray[np.float64]:
    """Return n - 1 rows (from, to, mutual reachability), sorted by weight, then by ends."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

    count, width = graph.rows.shape
    distance = np.sqrt(np.maximum(2.0 - 2.0 * graph.cosines, 0.0))
    core = distance[:, min(samples_min, width - 1)]
    one = np.repeat(np.arange(count), width - 1)
    other = graph.rows[:, 1:].ravel()
    weight = np.maximum(distance[:, 1:].ravel(), np.maximum(core[one], core[other])) + NEVER_ZERO
    low, high = np.minimum(one, other), np.maximum(one, other)
    pairs, first = np.unique(low * count + high, return_index=True)  # both ways weigh the same
    joined = coo_matrix((weight[first], (pairs // count, pairs % count)), shape=(count, count))
    tree = minimum_spanning_tree(joined.tocsr()).tocoo()
    parts, part_of = connected_components(tree, directed=False)
    heads = np.array([np.flatnonzero(part_of == part)[0] for part in range(parts)], np.int64)
    edges = np.column_stack(
        [
            np.concatenate([tree.row, heads[:-1]]),
            np.concatenate([tree.col, heads[1:]]),
            np.concatenate([tree.data, np.full(parts - 1, APART)]),
        ]
    ).astype(np.float64)
    sorted_edges: NDArray[np.float64] = edges[np.lexsort((edges[:, 1], edges[:, 0], edges[:, 2]))]
    return sorted_edges
