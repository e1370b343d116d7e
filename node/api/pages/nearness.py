"""How near the sessions of each leaf stand to its centroid: what its gate is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from leaves.model import LeafId

from .counting import assignment
from .desk import Desk

SESSIONS_MAX = 20_000  # the last ones that came: enough for a picture, and read in 50 ms


def nearness(desk: Desk) -> Mapping[LeafId, Sequence[float]]:
    """Cosines of the sessions of each living leaf, of the last ones of the home."""
    stamp = desk.stamp("forest", "embedded")
    assignment(desk)
    return desk.lately("nearness", stamp, lambda: _nearness(desk), {})


def _nearness(desk: Desk) -> dict[LeafId, list[float]]:
    embedded = desk.app.embeddings.snapshot()
    if not embedded.ids:
        return {}
    live = [leaf for leaf in desk.forest().live() if leaf.level > 1]
    index = {leaf.id: at for at, leaf in enumerate(live)}
    leaf_of = assignment(desk)
    first = max(0, len(embedded.ids) - SESSIONS_MAX)
    rows, owners = [], []
    for row in range(first, len(embedded.ids)):
        at = index.get(leaf_of.get(embedded.ids[row], LeafId("")))
        if at is not None:
            rows.append(row)
            owners.append(at)
    if not rows:
        return {}
    vectors = np.asarray(embedded.matrix[first:])[np.array(rows) - first]
    centroids = np.stack([leaf.centroid for leaf in live])
    cosines = np.einsum("ij,ij->i", vectors, centroids[np.array(owners)])
    found: dict[LeafId, list[float]] = {}
    for at, cosine in zip(owners, cosines.tolist(), strict=True):
        found.setdefault(live[at].id, []).append(cosine)
    return found
