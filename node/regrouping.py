"""How a round finds out where sessions belong: all anew, or the new ones by their nearest leaf.

`Regrouping` is the round's second phase without its journal: which of the two it is and why, the
work itself, and what came of it for the lifecycle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from leaves.embeddings import EmbeddingStore, Snapshot
from leaves.incremental import gates_of, observe_placed, place, takers
from leaves.lifecycle import Rules
from leaves.model import DAY_S, Forest, Instant, LeafId
from leaves.observe import Observations
from leaves.ports import Clusterer, Clustering, ClusterSizes, Findings, NoiseReason, Report
from leaves.scale import Full, Incremental, Mode, drifted, mode
from leaves.store import ForestStore


@dataclass(frozen=True, slots=True)
class Last:
    """The looks at the data before this one, as each round's journal hands them on."""

    full: Instant | None = None  # when the last full re-cluster began
    rows: int = 0  # of the embedding store at the last look, full or not
    at: int = 0  # when that was, Unix seconds

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Last:
        """As a round's state has it; nothing, if the round is of before there were any."""
        kept = state.get("looked", {})
        full = kept.get("full")
        begun = Instant(full) if full is not None else None
        return cls(begun, kept.get("rows", 0), kept.get("at", 0))

    def as_state(self) -> dict[str, Any]:
        return {"looked": {"full": self.full, "rows": self.rows, "at": self.at}}


@dataclass(frozen=True, slots=True)
class Placement:
    """What became of new sessions. placed: session -> leaf. fresh: how many there were."""

    placed: dict[str, LeafId]
    fresh: int

    def told(self) -> str:
        taken, leaves = len(self.placed), len(set(self.placed.values()))
        return (
            f"{taken:,} of {self.fresh:,} new sessions given to {leaves} leaves, "
            f"{self.fresh - taken:,} fit none"
        )


Outcome = Clustering | Placement

CHANCE = 0.5  # stability below which a domain may be chance (Hennig 2007)
_WHY = {
    NoiseReason.COPIES: "copies of one ask",
    NoiseReason.BETWEEN: "between domains",
    NoiseReason.ALONE: "like nothing else here",
}


def how_sure(findings: Findings) -> str:
    """Say how far the domains can be trusted, and why sessions are in none."""
    parts = []
    if findings.stability is not None:
        parts.append(f"subsamples agree by {findings.stability:.2f} (adjusted Rand index)")
    unsure = [d for d in findings.domains if d.stability is not None and d.stability < CHANCE]
    if unsure:
        parts.append(f"{len(unsure)} of {len(findings.domains)} domains may be chance")
    noise = [f"{findings.noise[why]:,} {_WHY[why]}" for why in _WHY if findings.noise.get(why)]
    parts.append(f"in no domain: {', '.join(noise)}" if noise else "none is in no domain")
    return "; ".join([*parts, findings.settings])


@dataclass(frozen=True, slots=True)
class Regrouping:
    """One look at the sessions that are embedded."""

    embeddings: EmbeddingStore
    store: ForestStore
    clusterer: Clusterer
    rules: Rules
    report: Report

    def look(self, last: Last, now: Instant) -> tuple[Mode, Outcome, Last] | None:
        """Find out where sessions belong; None before there are enough for a first discovery.

        Returns how it was done, what came of it, and the `Last` of the next look.
        """
        embedded = self.embeddings.sound(self.report)
        count = len(embedded.ids)
        if count < self.rules.first_discovery_sessions and not self.store.revision():
            return None
        chosen = mode(count, last.full, now, self.rules)
        if isinstance(chosen, Incremental):
            placement = self._place(embedded, last)
            unplaced = placement.fresh - len(placement.placed)
            forced = drifted(unplaced, placement.fresh, self.rules)
            if forced is None:
                return chosen, placement, Last(last.full, count, now)
            chosen = forced
        rules = self.rules
        sizes = ClusterSizes(rules.branch_sessions, rules.seed_sessions, rules.child_sessions)
        found = self.clusterer.cluster(embedded.ids, embedded.matrix, sizes, self.report)
        check_clustering(found, embedded.ids)  # another look would not mend it
        return chosen, found, Last(now, count, now)

    def observe_placed(self, forest: Forest, placement: Placement, now: Instant) -> Observations:
        before = self.store.assignment()
        return observe_placed(forest, before, placement.placed, self.embeddings.days(), now)

    def _place(self, embedded: Snapshot, last: Last) -> Placement:
        assigned = self.store.assignment()
        rows = _fresh(embedded, assigned, last)
        leaves = takers(self.store.forest())
        ids = [leaf.id for leaf in leaves]
        if not ids or not len(rows):
            return Placement({}, len(rows))
        centroids = np.stack([leaf.centroid for leaf in leaves])
        gates = gates_of(ids, centroids, embedded.matrix, _rows_of(embedded, assigned))
        found = place(embedded.matrix[rows], centroids, gates, report=self.report)
        placed = {
            embedded.ids[row]: ids[leaf]
            for row, leaf in zip(rows.tolist(), found.leaves.tolist(), strict=True)
            if leaf >= 0
        }
        return Placement(placed, len(rows))


def read_outcome(
    data: bytes, incremental: bool, known: Collection[str], leaves: Collection[str]
) -> Outcome:
    """Return what a round wrote down of its look. Raises ValueError if it is not whole.

    known: the sessions that are embedded. leaves: the ids of the leaves that there are.
    """
    if not incremental:
        clustering = msgspec.json.decode(data, type=Clustering)
        check_clustering(clustering, known)
        return clustering
    placement = msgspec.json.decode(data, type=Placement)
    if not placement.placed.keys() <= set(known):
        raise ValueError("it places a session that is not embedded")
    if not set(placement.placed.values()) <= set(leaves):
        raise ValueError("it places a session in a leaf that is not there")
    return placement


def check_clustering(clustering: Clustering, known: Collection[str]) -> None:
    """Raise ValueError for what `Clustering` promises and this one does not keep."""
    embedded = set(known)
    above = 0  # clusters of the level above
    for level, clusters in enumerate(clustering.levels, start=1):
        members = [member for cluster in clusters for member in cluster.members]
        if level == 2:
            members += clustering.noise
        if len(set(members)) != len(members):
            raise ValueError(f"a session is twice in level {level}")
        if not embedded.issuperset(members):
            raise ValueError(f"a session of level {level} is not embedded")
        for cluster in clusters:
            if cluster.level != level or not cluster.members:
                raise ValueError(f"a cluster of level {level} is empty, or of another level")
            if cluster.parent is not None and not 0 <= cluster.parent < above:
                raise ValueError(f"a cluster of level {level} has a parent that is not there")
        above = len(clusters)
    findings = clustering.findings
    if findings is not None and len(findings.domains) != len(clustering.levels[1]):
        raise ValueError("its findings are not those of its domains")


def told(chosen: Mode) -> str:
    """How sessions are looked at, and why, in words."""
    match chosen:
        case Full(why):
            return f"all sessions are clustered anew: {why}"
        case Incremental(why):
            return f"new sessions go to the nearest leaf: {why}"


def _fresh(
    embedded: Snapshot, assigned: Mapping[str, LeafId], last: Last
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rows that came after the last look and have no leaf.

    Rows are in order of arrival, but a deletion since then has moved them down; what is of a
    later day than the look is new for certain. A few of that very day may wait for the next
    full re-cluster.
    """
    day = last.at // DAY_S
    rows = [
        row
        for row, (id_, closed) in enumerate(zip(embedded.ids, embedded.days, strict=True))
        if (row >= last.rows or closed > day) and id_ not in assigned
    ]
    return np.array(rows, np.int64)


def _rows_of(
    embedded: Snapshot, assigned: Mapping[str, LeafId]
) -> dict[LeafId, np.ndarray[Any, np.dtype[np.int64]]]:
    rows: dict[LeafId, list[int]] = {}
    for row, id_ in enumerate(embedded.ids):
        leaf = assigned.get(id_)
        if leaf is not None:
            rows.setdefault(leaf, []).append(row)
    return {leaf: np.array(mine, np.int64) for leaf, mine in rows.items()}
