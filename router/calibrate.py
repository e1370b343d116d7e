"""Gates: how near a prompt must be to a leaf before the leaf may have it.

The floors of the specification refuse one good prompt in a thousand and only a sixth of those that
are in no domain. A leaf's own gate is a quantile of the scores of prompts that its centroid has
not seen: quantiles of its own members are too high and refuse 15 % instead of 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leaves.model import LeafId, Matrix, Vector, unit

FALSE_REJECTS = 0.05  # of held-out prompts in scope; four fifths of the others are then refused
FOLDS = 5
SHRINK = 20  # held-out prompts at which a leaf's own quantile counts as much as the global one
SCORES_MIN = 10  # held-out prompts below which a leaf has no quantile of its own
FLOOR = 0.20  # a stray below the specification's lowest gate is refused anyway
HUBNESS = 0.5  # share of a centroid's cosine to the mean of all sessions that is taken off


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
    found, _ = quantiles(best, leaf_of, len(leaves), false_rejects, SHRINK)
    return dict(zip(leaves, found, strict=True))


def calibrate_tree(
    ids: Sequence[str],
    matrix: Matrix,
    leaf_of: Mapping[str, LeafId],
    level_of: Mapping[LeafId, int],
    parent_of: Mapping[LeafId, LeafId | None],
) -> dict[LeafId, float]:
    """Return the gates of the leaves of all three levels, each level for itself.

    matrix: shape (n, d), row i of session ids[i], in any order. leaf_of: the most specific leaf of
    a session; a leaf has the sessions of all leaves below it. level_of, parent_of: of each leaf.
    """
    order = sorted(range(len(ids)), key=ids.__getitem__)
    rows: dict[LeafId, list[int]] = {}
    inside: dict[int, set[int]] = {1: set(), 2: set(), 3: set()}
    for row in order:
        leaf = leaf_of.get(ids[row])
        seen = set[LeafId]()  # parents are data: a ring of them must end too
        while leaf is not None and leaf in level_of and leaf not in seen:
            seen.add(leaf)
            rows.setdefault(leaf, []).append(row)
            inside[level_of[leaf]].add(row)
            leaf = parent_of.get(leaf)
    gates: dict[LeafId, float] = {}
    for level, placed in inside.items():
        members = {
            leaf: np.asarray(matrix[at]) for leaf, at in rows.items() if level_of[leaf] == level
        }
        if members:
            # A domain without parts is no stray at level 3: its sessions are not asked there.
            strays = [row for row in order if row not in (placed if level < 3 else inside[2])]
            gates.update(calibrate(members, np.asarray(matrix[strays])))
    return gates


def offsets(centroids: Matrix, mean: Vector) -> list[float]:
    """Return what is taken off each centroid's cosine before the nearest is chosen.

    mean: of all sessions, not of unit length. A centroid near it is a hub, nearest to prompts that
    are near nothing; half of that nearness is taken off, so what counts is the rest.
    """
    near = HUBNESS * (centroids @ mean)
    return [float(each) for each in near - (near.mean() if len(near) else 0.0)]


def quantiles(
    scores: NDArray[np.floating],
    leaf_of: NDArray[np.integer],
    leaves: int,
    share: float,
    shrink: int,
) -> tuple[list[float], float]:
    """Return each leaf's quantile of its scores, shrunk to that of all; and that of all.

    leaf_of: the leaf of each score, an index below `leaves`, or -1. shrink: how many scores a leaf
    has when its own quantile counts as much as the global one.
    """
    everywhere = float(np.quantile(scores, share))
    out = []
    for index in range(leaves):
        own = scores[leaf_of == index]
        weight = len(own) / (len(own) + shrink) if len(own) >= SCORES_MIN else 0.0
        quantile = float(np.quantile(own, share)) if weight else 0.0
        out.append(weight * quantile + (1.0 - weight) * everywhere)
    return out, everywhere


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
