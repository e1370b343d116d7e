"""Gates: how near a prompt must be to a leaf before the leaf may have it.

The floors of the specification refuse one good prompt in a thousand and only a sixth of those that
are in no domain. A leaf's own gate is a quantile of the scores of prompts that its centroid has
not seen: quantiles of its own members are too high and refuse 15 % instead of 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from leaves.model import LeafId, Matrix, unit

FALSE_REJECTS = 0.05  # of held-out prompts in scope; four fifths of the others are then refused
FOLDS = 5
SHRINK = 20  # held-out prompts at which a leaf's own quantile counts as much as the global one
SCORES_MIN = 10  # held-out prompts below which a leaf has no quantile of its own
FLOOR = 0.20  # a stray below the specification's lowest gate is refused anyway


def calibrate(
    members: Mapping[LeafId, Matrix],
    strays: Matrix,
    *,
    false_rejects: float = FALSE_REJECTS,
    folds: int = FOLDS,
) -> dict[LeafId, float]:
    """Return the gate of each leaf of one level.

    members: leaf -> vectors of its sessions, in an order that is not that of their content (by
    session id). strays: vectors of sessions in no leaf, shape (n, d): without them only what
    clusters well would be asked, and the gates would be too high.
    Each row is scored against centroids made without its fold. A leaf with few held-out scores
    leans on the quantile over all leaves; where there are none at all, the gates are 0.
    """
    leaves = sorted(members)
    if not 0.0 <= false_rejects < 1.0 or folds < 2:
        raise ValueError(f"cannot calibrate with {false_rejects=} and {folds=}")
    leaf_of, best = _held_out(leaves, members, strays, folds)
    if len(best) == 0:
        return dict.fromkeys(leaves, 0.0)
    everywhere = float(np.quantile(best, false_rejects))
    gates = {}
    for index, leaf in enumerate(leaves):
        own = best[leaf_of == index]
        weight = len(own) / (len(own) + SHRINK) if len(own) >= SCORES_MIN else 0.0
        quantile = float(np.quantile(own, false_rejects)) if weight else 0.0
        gates[leaf] = weight * quantile + (1.0 - weight) * everywhere
    return gates


def _held_out(
    leaves: list[LeafId], members: Mapping[LeafId, Matrix], strays: Matrix, folds: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return, for each held-out row that a leaf would take, which leaf, and its score."""
    chosen: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float32]] = []
    for fold in range(folds):
        kept = [np.arange(len(members[leaf])) % folds != fold for leaf in leaves]
        if not all(rows.any() for rows in kept) or not leaves:
            continue
        means = [
            members[leaf][rows].mean(axis=0, dtype=np.float64)
            for leaf, rows in zip(leaves, kept, strict=True)
        ]
        centroids = unit(np.stack(means).astype(np.float32))
        groups = [members[leaf][~rows] for leaf, rows in zip(leaves, kept, strict=True)]
        near = np.concatenate([*groups, strays[fold::folds]]) @ centroids.T
        best = near.max(axis=1)
        taken = best >= FLOOR
        chosen.append(near.argmax(axis=1)[taken])
        scores.append(best[taken])
    if not scores:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    return np.concatenate(chosen), np.concatenate(scores)
