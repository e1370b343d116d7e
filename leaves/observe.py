"""Matches fresh clusters to known leaves, so that a leaf keeps its id while it drifts.

Pure: what a re-cluster found goes in, what the lifecycle has to know comes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .descent import Descent, descents
from .identity import COSINE_SAME, Place, match, shares
from .model import DAY_S, Forest, GrownFrom, Instant, Kind, LeafId, Vector, unit
from .names import below, unused
from .ports import Cluster, Clustering, Found

GROWTH_DAYS = 30  # a pace is that of the last month
WEEK_DAYS = 7
REASONING = frozenset({"research", "planning"})  # the tagger's domains that make a leaf reason


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
    newest: Instant  # end of the day of its newest session, never later than now
    days: tuple[int, ...] = field(default=(), repr=False)
    found: Found | None = None  # how sure the clusterer is of it, where it can say
    week: int = 0  # of its sessions, those of the last seven days

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
    descents: what became of each known leaf and where each new cluster comes from; empty where
    nothing was compared.
    kept: sessions that stay with a live leaf although its cluster was not found. It may be found
    tomorrow, and is then known by them; what dissolves or is archived gives them up.
    """

    seen: tuple[Seen, ...]
    full: bool  # a full re-cluster; otherwise new sessions were given to the nearest leaf
    sessions: int
    noise: int
    close: tuple[tuple[LeafId, LeafId, float], ...] = ()
    descents: tuple[Descent, ...] = ()
    kept: Mapping[str, LeafId] = field(default_factory=dict, repr=False)


Names = Sequence[Sequence[str]]  # of each cluster, parallel to `Clustering.levels`


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
    past = shares(forest, clustering, before)
    matched = match(forest, clustering, centroids, past, now)
    look = _Look(forest, clustering, centroids, matched, days, domains, now)
    seen = look.all(names)
    placed = sum(len(c.members) for c in clustering.levels[1])
    noise = len(clustering.noise)
    return Observations(
        tuple(seen),
        True,
        placed + noise,
        noise,
        _close(forest, seen),
        descents(forest, clustering, centroids, matched, past),
        _kept(forest, before, set(matched.values())),
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What is known of one re-cluster once its clusters are matched."""

    forest: Forest
    clustering: Clustering
    centroids: list[list[Vector]]
    matched: Mapping[Place, LeafId]
    days: Mapping[str, int]
    domains: Mapping[str, str]
    now: Instant

    def all(self, names: Names) -> list[Seen]:
        given = {leaf.name for leaf in self.forest}
        seen: list[Seen] = []
        for level, clusters in enumerate(self.clustering.levels):
            for index in range(len(clusters)):
                seen.append(self._seen((level, index), names[level][index], given))
        return seen

    def _seen(self, place: Place, fresh: str, given: set[str]) -> Seen:
        level, index = place
        cluster = self.clustering.levels[level][index]
        days = tuple(self.days[member] for member in cluster.members)
        leaf, parent = self.matched.get(place), self._parent(place)
        return Seen(
            leaf=leaf,
            parent=parent,
            level=level + 1,
            members=cluster.members,
            centroid=self.centroids[level][index],
            kind=_kind(cluster, self.domains),
            growth_per_day=_growth(days, self.now),
            name=_name(self.forest, leaf, parent, fresh, given),
            newest=Instant(min(self.now, (max(days) + 1) * DAY_S - 1)),
            days=days,
            found=_found(self.clustering, place),
            week=of_week(days, self.now),
        )

    def _parent(self, place: Place) -> LeafId | int | None:
        level, index = place
        parent = self.clustering.levels[level][index].parent
        if parent is None:
            return None
        start = sum(len(above) for above in self.clustering.levels[: level - 1])
        return self.matched.get((level - 1, parent)) or start + parent


def _found(clustering: Clustering, place: Place) -> Found | None:
    level, index = place
    if clustering.findings is None or level != 1:
        return None
    return clustering.findings.domains[index]


def _kept(forest: Forest, before: Mapping[str, LeafId], found: set[LeafId]) -> dict[str, LeafId]:
    """A branch gives its sessions up at once: they are in whatever domain is found for them."""
    lost = {leaf.id for leaf in forest.live() if leaf.id not in found and leaf.level > 1}
    return {session: leaf for session, leaf in before.items() if leaf in lost}


def _centroid(cluster: Cluster, vectors: Mapping[str, Vector]) -> Vector:
    total = np.stack([vectors[member] for member in cluster.members]).mean(axis=0, dtype=np.float64)
    centroid: Vector = unit(total[None])[0]
    return centroid


def _name(
    forest: Forest, leaf: LeafId | None, parent: LeafId | int | None, fresh: str, given: set[str]
) -> str:
    """Return a known leaf's own name, or for a new one a name that no leaf ever had.

    A part of a domain that the owner has named is named after it.
    """
    if leaf is not None:
        return forest.leaves[leaf].name
    above = forest.leaves.get(parent) if isinstance(parent, str) else None
    if above is not None and above.level > 1 and above.named_by_owner:
        fresh = below(above.name, fresh)
    name = unused(fresh, given)
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


def of_week(days: Sequence[int], now: Instant) -> int:
    """How many of these days are of the last seven."""
    return sum(day > now // DAY_S - WEEK_DAYS for day in days)


def _close(forest: Forest, seen: Sequence[Seen]) -> tuple[tuple[LeafId, LeafId, float], ...]:
    """Pairs of live leaves nearer than a merge wants, by their centroids as seen now."""
    fresh = {s.leaf: s.centroid for s in seen if s.leaf is not None}
    leaves = [leaf for leaf in forest.live() if leaf.grown_from is GrownFrom.DATA]
    pairs: list[tuple[LeafId, LeafId, float]] = []
    for level in (1, 2, 3):
        ids = [leaf.id for leaf in leaves if leaf.level == level]
        if len(ids) < 2:
            continue
        at = np.stack([fresh.get(id_, forest.leaves[id_].centroid) for id_ in ids])
        cosines = np.triu(at @ at.T, k=1)
        for one, other in zip(*np.nonzero(cosines > COSINE_SAME), strict=True):
            pairs.append((ids[one], ids[other], float(cosines[one, other])))
    return tuple(sorted(pairs))
