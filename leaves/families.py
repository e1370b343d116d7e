"""Which leaves of different origins are one domain, as this node sees it. Pure.

Families are never gossiped: each node works them out from the replicated set and from what it has
verified itself, so nobody can vote a leaf into another's family. The same set and the same
evidence give the same partition, in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .model import LeafId, Matrix, Vector, unit

COSINE_SAME = 0.92  # the specification's threshold of a merge
PER_ORIGIN_MAX = 8  # leaves of one origin in one family: more count for nothing
MEDIAN_STEPS = 64  # of Weiszfeld's iteration; it settles in about ten
MEDIAN_SETTLED = 1e-7


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live, unexpired leaf of any origin.

    evidence: what this node has verified itself, such as the gain on its own held-out sessions;
    0 if nothing. What an origin claims of its own leaf has no place here.
    """

    origin: bytes  # 32 bytes
    leaf: LeafId
    enc8: bytes
    centroid: Vector = field(compare=False, repr=False)
    evidence: float = 0.0

    @property
    def reference(self) -> bytes:
        """SHA-256 of (origin, leaf): an order that nobody can choose cheaply, and all agree on."""
        return hashlib.sha256(self.origin + bytes.fromhex(self.leaf)).digest()


@dataclass(frozen=True, slots=True)
class Family:
    """One domain. The first member leads it: every other is within the threshold of it.

    prototype: geometric median of the members, one vote per origin.
    """

    enc8: bytes
    members: tuple[Candidate, ...]
    prototype: Vector = field(compare=False, repr=False)

    @property
    def leader(self) -> Candidate:
        return self.members[0]

    def origins(self) -> tuple[bytes, ...]:
        """Origins with a member here, ascending."""
        return tuple(sorted({member.origin for member in self.members}))


def families(
    candidates: Iterable[Candidate],
    *,
    cosine_min: float = COSINE_SAME,
    per_origin_max: int = PER_ORIGIN_MAX,
) -> tuple[Family, ...]:
    """Partition leaves into families, in the order of their leaders; encoders never mix.

    A leaf joins the nearest leader within `cosine_min`, otherwise it leads a family of its own.
    Leaves of one origin beyond `per_origin_max` in a family are left out of all: a flood of
    near-copies neither crowds a family nor founds others beside it.
    Costs one product with all leaders per leaf: under a second for 20,000 leaves of 500 domains.
    """
    distinct = {(c.enc8, c.origin, c.leaf): c for c in candidates}
    ordered = sorted(distinct.values(), key=lambda c: (c.enc8, -c.evidence, c.reference))
    out: list[Family] = []
    for enc8 in sorted({c.enc8 for c in ordered}):
        groups = _lead([c for c in ordered if c.enc8 == enc8], cosine_min, per_origin_max)
        out += [Family(enc8, tuple(members), _prototype(members)) for members in groups]
    return tuple(out)


def _lead(
    ordered: list[Candidate], cosine_min: float, per_origin_max: int
) -> list[list[Candidate]]:
    groups: list[list[Candidate]] = []
    if not ordered:
        return groups
    leaders: Matrix = np.zeros((len(ordered), len(ordered[0].centroid)), np.float32)
    for candidate in ordered:
        vector = unit(candidate.centroid[None])[0]
        cosines = leaders[: len(groups)] @ vector
        nearest = int(cosines.argmax()) if len(groups) else -1
        if nearest < 0 or cosines[nearest] < cosine_min:
            leaders[len(groups)] = vector
            groups.append([candidate])
            continue
        group = groups[nearest]
        if sum(member.origin == candidate.origin for member in group) < per_origin_max:
            group.append(candidate)
    return groups


def _prototype(members: list[Candidate]) -> Vector:
    """Return the unit geometric median of one mean per origin, by Weiszfeld's iteration.

    Unlike a mean, it stays near the honest majority while liars are fewer than half.
    """
    votes = []
    for origin in sorted({member.origin for member in members}):
        own = sorted((m for m in members if m.origin == origin), key=lambda m: m.reference)
        votes.append(unit(np.stack([m.centroid for m in own]).mean(axis=0)[None])[0])
    points: NDArray[np.float64] = np.stack(votes).astype(np.float64)
    median = points.mean(axis=0)
    for _ in range(MEDIAN_STEPS):
        weights = 1.0 / np.maximum(np.linalg.norm(points - median, axis=1), 1e-9)
        moved = (weights[:, None] * points).sum(axis=0) / weights.sum()
        settled = np.linalg.norm(moved - median) < MEDIAN_SETTLED
        median = moved
        if settled:
            break
    prototype: Vector = unit(median.astype(np.float32)[None])[0]
    return prototype
