"""Gives new sessions to the leaves that are known, between two full re-clusters.

A session goes to the leaf whose centroid is nearest, if it is as near as the leaf's own members
are. With vectors of members at hand, the nearest of those decide between the leaves whose
centroids are near: a leaf is no ball, and its neighbours may reach into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .model import DAY_S, Forest, GrownFrom, Instant, Leaf, LeafId, Matrix
from .observe import GROWTH_DAYS, Observations, Seen, of_week
from .ports import Found, Progress, Report, silent

SCORES_MAX = 8_000_000  # cosines held at once: 32 MB
GATE_SHARE = 0.02  # of a leaf's own members that may lie outside of its gate
GATE_MIN = 0.25  # the specification's §8 for level 3: below, nothing is like anything
JUDGED_MAX = 200  # members that a gate is measured on
OWN_MIN = 20  # members that a leaf needs for a gate of its own
CANDIDATES = 8  # leaves among which members decide
NEIGHBOURS = 15  # members that vote


@dataclass(frozen=True, slots=True)
class Members:
    """Vectors of sessions whose leaf is known, for voting.

    vectors: shape (m, d), float32, unit rows; may be memory-mapped. leaves: shape (m,), the index
    of each one's leaf among the centroids.
    """

    vectors: Matrix
    leaves: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where new sessions belong.

    leaves: shape (n,), index of each one's leaf, -1 for none. cosines: to the centroid of the
    leaf that it has, or, without one, of the nearest. Both are free of the order of sessions.
    """

    leaves: NDArray[np.int64]
    cosines: NDArray[np.float32]

    @property
    def unplaced_share(self) -> float:
        """The share that no leaf takes: what is new, or has drifted away; 0 of nothing."""
        return float((self.leaves < 0).mean()) if len(self.leaves) else 0.0


def place(
    vectors: Matrix,
    centroids: Matrix,
    gates: NDArray[np.float32],
    members: Members | None = None,
    report: Report = silent,
) -> Placed:
    """Return the leaf of each new session.

    vectors: shape (n, d), float32, unit rows; may be memory-mapped. centroids: shape (leaves, d),
    unit rows. gates: shape (leaves,), the cosine below which a leaf does not take a session.
    Of leaves equally near, the first. Costs one (n, d) @ (d, leaves) product, and with members
    n times the members of CANDIDATES leaves.
    """
    if len(centroids) != len(gates):
        raise ValueError(f"{len(gates)} gates do not fit {len(centroids)} centroids")
    leaves = np.full(len(vectors), -1, np.int64)
    cosines = np.full(len(vectors), -1.0, np.float32)
    if not len(centroids):
        return Placed(leaves, cosines)
    voters = _Voters(members, len(centroids)) if members is not None else None
    step = max(1, SCORES_MAX // len(centroids))
    for start in range(0, len(vectors), step):
        block = np.ascontiguousarray(vectors[start : start + step], np.float32)
        scores = block @ centroids.T
        best = scores.argmax(axis=1) if voters is None else voters.choose(block, scores)
        here = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
        leaves[start : start + step] = np.where(here >= gates[best], best, -1)
        cosines[start : start + step] = here
        report(Progress("cluster: new sessions", start + len(block), len(vectors)))
    return Placed(leaves, cosines)


def gates_of(
    ids: Sequence[LeafId],
    centroids: Matrix,
    matrix: Matrix,
    rows_of: Mapping[LeafId, NDArray[np.int64]],
) -> NDArray[np.float32]:
    """Return for each leaf the cosine that all but GATE_SHARE of its members have to its centroid.

    A leaf of few members takes the median gate of the others. rows_of: leaf -> rows of `matrix`.
    Quantiles of a leaf's own members are narrower than those of what comes later, so the share
    is small and what is left outside is one in twenty or so.
    """
    gates = np.full(len(ids), np.nan, np.float32)
    for at, leaf in enumerate(ids):
        rows = rows_of.get(leaf)
        if rows is not None and len(rows) >= OWN_MIN:
            judged = np.sort(rows)[:: -(-len(rows) // JUDGED_MAX)]
            gates[at] = np.quantile(matrix[judged] @ centroids[at], GATE_SHARE)
    known = gates[~np.isnan(gates)]
    usual = np.median(known) if len(known) else np.float32(GATE_MIN)
    filled: NDArray[np.float32] = np.where(np.isnan(gates), usual, gates)
    return np.maximum(filled, np.float32(GATE_MIN))


def takers(forest: Forest) -> list[Leaf]:
    """The leaves that take new sessions, by id: domains and their specialisations."""
    return [x for x in forest.live() if x.grown_from is GrownFrom.DATA and x.level > 1]


def observe_placed(
    forest: Forest,
    before: Mapping[str, LeafId],
    placed: Mapping[str, LeafId],
    days: Mapping[str, int],
    now: Instant,
) -> Observations:
    """Return what new sessions mean for the leaves that took them.

    before: session -> leaf, as it was. placed: of the new sessions, those that a leaf took. days:
    session -> days since 1970-01-01, of all sessions. Only leaves that gained are seen, with the
    leaves above them; the others keep their sessions, and none of them was missed.
    """
    lines = {leaf.id: _line(forest, leaf.id) for leaf in forest.live()}
    gained = {holder for leaf in placed.values() for holder in lines.get(leaf, ())}
    after = {session: leaf for session, leaf in {**before, **placed}.items() if session in days}
    members: dict[LeafId, list[str]] = {leaf: [] for leaf in gained}
    for session, leaf in after.items():
        for holder in lines.get(leaf, ()):
            if holder in gained:
                members[holder].append(session)
    known = sorted((forest.leaves[leaf] for leaf in gained), key=lambda leaf: (leaf.level, leaf.id))
    seen = tuple(_seen(leaf, sorted(members[leaf.id]), days, now) for leaf in known)
    kept = {session: leaf for session, leaf in after.items() if leaf not in gained}
    return Observations(seen, False, len(days), len(days) - len(after), kept=kept)


def _line(forest: Forest, leaf: LeafId) -> list[LeafId]:
    """Return a leaf and the live leaves above it."""
    line: list[LeafId] = []
    at: LeafId | None = leaf
    while at is not None and at in forest.leaves and at not in line:
        if forest.leaves[at].stage.live:
            line.append(at)
        at = forest.leaves[at].parent
    return line


def _seen(leaf: Leaf, members: Sequence[str], days: Mapping[str, int], now: Instant) -> Seen:
    """The leaf as it was, with more sessions: its centroid moves when all are clustered anew."""
    of_members = np.array([days[member] for member in members])
    today = now // DAY_S
    recent = int((of_members > today - GROWTH_DAYS).sum())
    found = None
    if leaf.stability is not None and leaf.cohesion is not None:
        found = Found(leaf.stability, leaf.cohesion, len(members))
    return Seen(
        leaf=leaf.id,
        parent=leaf.parent,
        level=leaf.level,
        members=tuple(members),
        centroid=leaf.centroid,
        kind=leaf.kind,
        growth_per_day=recent / min(GROWTH_DAYS, max(1, today - int(of_members.min()) + 1)),
        name=leaf.name,
        newest=Instant(min(now, (int(of_members.max()) + 1) * DAY_S - 1)),
        days=tuple(of_members.tolist()),
        found=found,
        week=of_week(of_members.tolist(), now),
    )


class _Voters:
    """Members by leaf, so that a session is compared with those of its candidates alone."""

    def __init__(self, members: Members, leaves: int) -> None:
        self._members = members
        self._order = np.argsort(members.leaves, kind="stable")
        self._bounds = np.searchsorted(members.leaves[self._order], np.arange(leaves + 1))

    def choose(self, block: Matrix, scores: Matrix) -> NDArray[np.int64]:
        """Return for each row the candidate that most of its nearest members belong to.

        Votes weigh their cosine; without members of any candidate, the nearest centroid.
        """
        count = len(scores)
        candidates = np.argsort(-scores, axis=1, kind="stable")[:, :CANDIDATES]
        width = candidates.shape[1]
        near = np.full((count, width, NEIGHBOURS), -1.0, np.float32)
        for leaf in np.unique(candidates):
            rows, place_of = np.nonzero(candidates == leaf)
            near[rows, place_of] = self._best(block[rows], int(leaf))
        flat = near.reshape(count, -1)
        votes = np.sort(flat, axis=1)[:, -min(NEIGHBOURS, flat.shape[1])]
        weights = np.where(near >= votes[:, None, None], np.maximum(near, 0.0), 0.0).sum(axis=2)
        chosen: NDArray[np.int64] = np.take_along_axis(
            candidates, weights.argmax(axis=1)[:, None], axis=1
        )[:, 0]
        return chosen

    def _best(self, block: Matrix, leaf: int) -> Matrix:
        """Return the cosines of each row to the NEIGHBOURS nearest members of one leaf."""
        mine = self._order[self._bounds[leaf] : self._bounds[leaf + 1]]
        best = np.full((len(block), NEIGHBOURS), -1.0, np.float32)
        if len(mine):
            cosines = block @ self._members.vectors[mine].T
            found = min(NEIGHBOURS, len(mine))
            best[:, :found] = -np.partition(-cosines, found - 1, axis=1)[:, :found]
        return best
