"""Matches fresh clusters to known leaves, so that a leaf keeps its id while it drifts.

Pure: what a re-cluster found goes in, what the lifecycle has to know comes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from .model import DAY_S, Forest, GrownFrom, Instant, Kind, Leaf, LeafId, Stage, Vector, unit
from .ports import Cluster, Clustering

GROWTH_DAYS = 30  # a pace is that of the last month
OVERLAP_MIN = 0.5  # below half, a leaf and a cluster have more sessions apart than in common
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
    name: str
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
