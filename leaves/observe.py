"""Matches fresh clusters to known leaves, so that a leaf keeps its id while it drifts.

Pure: what a re-cluster found goes in, what the lifecycle has to know comes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .model import DAY_S, Forest, GrownFrom, Instant, Kind, Leaf, LeafId, Stage, Vector, unit
from .ports import Cluster, Clustering

GROWTH_DAYS = 30  # a pace is that of the last month
OVERLAP_MIN = 0.5  # below half, a leaf and a cluster have more sessions apart than in common
SAME_LEVEL = 0.5  # of a score that goes to 2: enough to decide between equals, not more
COSINE_SAME = 0.92  # the specification's §5: nearer centroids are one domain
REASONING = frozenset({"research", "planning"})  # the tagger's domains that make a leaf reason


@dataclass(frozen=True, slots=True)
class SubCluster:
    """A part of a cluster that could stand alone: a level 3 cluster inside a level 2 one."""

    members: tuple[str, ...]  # session ids, sorted
    centroid: Vector = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Seen:
    """One cluster as the lifecycle sees it.

    leaf: the known leaf it is, or None if it is new. An ARCHIVED leaf is matched only by a
    cluster that no live leaf claims.
    parent: the leaf of the level above, or, if that one is new too, the index of its cluster in
    `Observations.seen`; None at the top.
    days: days since 1970-01-01 of each member, in the order of `members`.
    """

    leaf: LeafId | None
    parent: LeafId | int | None
    level: int  # 1 branch, 2 domain, 3 specialisation
    members: tuple[str, ...]  # session ids, sorted
    centroid: Vector = field(compare=False, repr=False)
    kind: Kind
    growth_per_day: float  # over the last 30 days, or since its first session if that is later
    name: str  # the leaf's, or for a new one a name that no leaf of the forest ever had
    subclusters: tuple[SubCluster, ...]
    newest: Instant  # end of the day of its newest session, never later than now
    days: tuple[int, ...] = field(default=(), repr=False)

    @property
    def sessions(self) -> int:
        return len(self.members)

    def since(self, instant: Instant) -> int:
        """How many of its sessions are of a later day than `instant`."""
        return sum(day > instant // DAY_S for day in self.days)


@dataclass(frozen=True, slots=True)
class Observations:
    """What one look at all sessions showed. Level 1 comes first, then 2, then 3.

    A live leaf named by no `Seen` was not found.
    close: pairs of live leaves of one level whose centroids are nearer than 0.92, ids ascending.
    """

    seen: tuple[Seen, ...]
    full: bool  # a full re-cluster; otherwise new sessions were given to the nearest leaf
    sessions: int
    noise: int
    close: tuple[tuple[LeafId, LeafId, float], ...] = ()


Names = Sequence[Sequence[str]]  # of each cluster, parallel to `Clustering.levels`


@dataclass(frozen=True, slots=True)
class _Past:
    """Which leaf each session was given to, what lies above each leaf, and how many each held."""

    leaf_of: Mapping[str, LeafId]
    lines: Mapping[LeafId, tuple[LeafId, ...]]
    held: Counter[LeafId]


def observe(
    forest: Forest,
    clustering: Clustering,
    vectors: Mapping[str, Vector],
    days: Mapping[str, int],
    domains: Mapping[str, str],
    names: Names,
    now: Instant,
    *,
    leaf_of: Mapping[str, LeafId] | None = None,
) -> Observations:
    """Return what a full re-cluster means for the known leaves.

    days: session -> days since 1970-01-01. domains: session -> the tagger's domain; a session
    without one counts for no kind. leaf_of: session -> the most specific leaf that it was given
    to before; without it leaves are matched by centroid alone.
    Deterministic: equal matches are decided by the order of clusters and of leaf ids.
    """
    centroids = [[_centroid(c, vectors) for c in level] for level in clustering.levels]
    before = {session: leaf for session, leaf in (leaf_of or {}).items() if session in vectors}
    matched = _match(forest, clustering, centroids, before)
    starts = np.cumsum([0, *(len(level) for level in clustering.levels)])
    given = {leaf.name for leaf in forest}
    seen: list[Seen] = []
    for level, clusters in enumerate(clustering.levels):
        for index, cluster in enumerate(clusters):
            parent: LeafId | int | None = None
            if cluster.parent is not None:
                above = matched.get((level - 1, cluster.parent))
                parent = above if above else int(starts[level - 1]) + cluster.parent
            member_days = tuple(days[member] for member in cluster.members)
            seen.append(
                Seen(
                    leaf=matched.get((level, index)),
                    parent=parent,
                    level=level + 1,
                    members=cluster.members,
                    centroid=centroids[level][index],
                    kind=_kind(cluster, domains),
                    growth_per_day=_growth(member_days, now),
                    name=_name(forest, matched.get((level, index)), names[level][index], given),
                    subclusters=_subclusters(clustering, centroids, level, index),
                    newest=Instant(min(now, (max(member_days) + 1) * DAY_S - 1)),
                    days=member_days,
                )
            )
    placed = sum(len(c.members) for c in clustering.levels[1])
    noise = len(clustering.noise)
    return Observations(tuple(seen), True, placed + noise, noise, _close(forest, seen))


def _centroid(cluster: Cluster, vectors: Mapping[str, Vector]) -> Vector:
    total = np.stack([vectors[member] for member in cluster.members]).mean(axis=0, dtype=np.float64)
    centroid: Vector = unit(total[None])[0]
    return centroid


def _name(forest: Forest, leaf: LeafId | None, fresh: str, given: set[str]) -> str:
    """Return a known leaf's own name, or for a new one a name that no leaf ever had."""
    if leaf is not None:
        return forest.leaves[leaf].name
    name, number = fresh, 2
    while name in given:
        name, number = f"{fresh}-{number}", number + 1
    given.add(name)
    return name


def _kind(cluster: Cluster, domains: Mapping[str, str]) -> Kind:
    counts = Counter(domains[member] for member in cluster.members if member in domains)
    if not counts:
        return Kind.SKILL
    top = min(counts, key=lambda domain: (-counts[domain], domain))
    return Kind.REASONING if top in REASONING else Kind.SKILL


def _growth(days: Sequence[int], now: Instant) -> float:
    today = now // DAY_S
    recent = sum(day > today - GROWTH_DAYS for day in days)
    return recent / min(GROWTH_DAYS, max(1, today - min(days) + 1))


def _subclusters(
    clustering: Clustering, centroids: list[list[Vector]], level: int, index: int
) -> tuple[SubCluster, ...]:
    if level != 1:
        return ()
    return tuple(
        SubCluster(part.members, centroids[2][at])
        for at, part in enumerate(clustering.levels[2])
        if part.parent == index
    )


def _match(
    forest: Forest,
    clustering: Clustering,
    centroids: list[list[Vector]],
    leaf_of: Mapping[str, LeafId],
) -> dict[tuple[int, int], LeafId]:
    """Return (level - 1, index of cluster) -> leaf, one to one.

    Live leaves choose before archived ones. A domain that is found a level higher or lower than
    before is still the same leaf, unless another fits as well at its own level. Branches match
    branches only, for a branch may hold little more than the sessions of its one domain.
    """
    past = _Past(leaf_of, _lines(forest), Counter())
    past = replace(past, held=_count(leaf_of, past))
    matched: dict[tuple[int, int], LeafId] = {}
    for live in (True, False):
        for levels in ((0,), (1, 2)):
            leaves = [
                leaf for leaf in forest if _matchable(leaf, live) and leaf.level - 1 in levels
            ]
            columns = [
                (level, index)
                for level in levels
                for index in range(len(clustering.levels[level]))
                if (level, index) not in matched
            ]
            clusters = [clustering.levels[level][index] for level, index in columns]
            at = [centroids[level][index] for level, index in columns]
            for row, column in _assign(_scores(leaves, clusters, at, past)):
                matched[columns[column]] = leaves[row].id
    return matched


def _matchable(leaf: Leaf, live: bool) -> bool:
    if leaf.grown_from is GrownFrom.STARTER:
        return False  # a starter is scaffolding: what grows near it is a leaf of its own
    return leaf.stage.live if live else leaf.stage is Stage.ARCHIVED


def _lines(forest: Forest) -> dict[LeafId, tuple[LeafId, ...]]:
    """Return each leaf with its ancestors: a session of a leaf is one of theirs as well."""
    lines = {}
    for leaf in forest.leaves:
        line: list[LeafId] = []
        at: LeafId | None = leaf
        while at is not None and at in forest.leaves and at not in line:
            line.append(at)
            at = forest.leaves[at].parent
        lines[leaf] = tuple(line)
    return lines


def _count(sessions: Iterable[str], past: _Past) -> Counter[LeafId]:
    """Return how many of `sessions` each leaf had, its descendants' included."""
    direct = Counter(past.leaf_of[s] for s in sessions if s in past.leaf_of)
    counts: Counter[LeafId] = Counter()
    for leaf, number in direct.items():
        for holder in past.lines.get(leaf, ()):
            counts[holder] += number
    return counts


def _scores(
    leaves: Sequence[Leaf],
    clusters: Sequence[Cluster],
    centroids: Sequence[Vector],
    past: _Past,
) -> NDArray[np.float64]:
    """Return how well each leaf and cluster fit, 0 where they cannot be the same.

    Overlap is the Dice coefficient over the sessions that were given to a leaf before: new
    sessions say nothing about which of two clusters a leaf has become.
    """
    scores = np.zeros((len(leaves), len(clusters)))
    for column, (cluster, centroid) in enumerate(zip(clusters, centroids, strict=True)):
        common = _count(cluster.members, past)
        known = sum(member in past.leaf_of for member in cluster.members)
        for row, leaf in enumerate(leaves):
            overlap = 2 * common[leaf.id] / max(known + past.held[leaf.id], 1)
            cosine = float(centroid @ leaf.centroid)
            if overlap >= OVERLAP_MIN or cosine >= COSINE_SAME:
                bonus = SAME_LEVEL if leaf.level == cluster.level else 0.0
                scores[row, column] = max(overlap + cosine + bonus, 1e-9)
    return scores


def _assign(scores: NDArray[np.float64]) -> list[tuple[int, int]]:
    if not scores.any():
        return []
    from scipy.optimize import linear_sum_assignment  # 0.3 s to load; only rounds come here

    rows, columns = linear_sum_assignment(scores, maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if scores[r, c] > 0]


def _close(forest: Forest, seen: Sequence[Seen]) -> tuple[tuple[LeafId, LeafId, float], ...]:
    """Pairs of live leaves nearer than a merge wants, by their centroids as seen now."""
    fresh = {s.leaf: s.centroid for s in seen if s.leaf is not None}
    leaves = [leaf for leaf in forest.live() if leaf.grown_from is GrownFrom.DATA]
    pairs = []
    for at, one in enumerate(leaves):
        for other in leaves[at + 1 :]:
            if one.level != other.level:
                continue
            here, there = fresh.get(one.id, one.centroid), fresh.get(other.id, other.centroid)
            cosine = float(here @ there)
            if cosine > COSINE_SAME:
                pairs.append((one.id, other.id, cosine))
    return tuple(pairs)
