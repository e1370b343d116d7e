"""A new routing table against the one in force, on sessions of which something is known.

Nobody labels sessions, so four things are measured that need no labels. Each is paired: the same
session under both tables. A table is worse only if an exact sign test doubts that the losses are
chance and the drop is large enough to matter; a handful of sessions never decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import exp, lgamma, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaves.lifecycle import Rules
from leaves.model import Forest, LeafId, Matrix, Stage, Vector
from router.calibrate import FALSE_REJECTS
from router.table import COSINE_SAME, Route, Table

NEIGHBOURS = 5  # of each session, among those that are replayed
_BLOCK = 512
Router = Callable[[Vector], Route]


@dataclass(frozen=True, slots=True)
class Case:
    """One session to replay.

    leaf: that it belongs to, if any. voted: the leaf that answered it, and whether that went well.
    """

    session: str
    leaf: LeafId | None
    voted: LeafId | None = None
    well: bool = False


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing measured under both tables. old, new: means over `sessions`.

    chance: of so many losses among the sessions that the two tables treat differently, if these
    were as likely won as lost.
    """

    name: str
    sessions: int
    old: float
    new: float
    chance: float
    worse: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the replay came to. accuracy: of sessions in a leaf, the share routed to its domain."""

    sessions: int
    members: int  # of them in a leaf
    accuracy_old: float
    accuracy_new: float
    measures: tuple[Measure, ...]

    @property
    def worse(self) -> tuple[Measure, ...]:
        """What the new table does worse; empty lets it in force."""
        return tuple(measure for measure in self.measures if measure.worse)

    def told(self) -> str:
        """Figures to read, of what is worse, or of all."""
        return "; ".join(
            f"{m.name} {m.old:.1%} -> {m.new:.1%} of {m.sessions:,} sessions"
            for m in self.worse or self.measures
        )

    def figures(self) -> dict[str, Any]:
        """The same for the journal."""
        return asdict(self)


def compare(
    old: Router,
    new: Router,
    cases: Sequence[Case],
    vectors: Matrix,
    domain: Callable[[LeafId], LeafId],
    rules: Rules,
) -> Comparison:
    """Replay sessions through two tables.

    vectors: row i is that of cases[i]. domain: what a leaf's id comes to today, so that an id that
    was merged away, a part and a peer's copy count as the domain that they are of.

    coverage: sessions in a leaf that some leaf takes. Its limit allows for the good prompts that a
    gate refuses by design: a table without gates covers everything.
    agreement: of those that both take, the share routed to the domain that they belong to.
    company: of all that both take, the share routed as their nearest neighbours are, less what
    chance gives: to route everything to one leaf agrees with itself, and is worth nothing here.
    outcomes: sessions that went well and are routed to the same again, or badly and are not.
    """
    before = [_taken(old(vector), domain) for vector in vectors]
    after = [_taken(new(vector), domain) for vector in vectors]
    own = [domain(case.leaf) if case.leaf else None for case in cases]
    inside = [i for i, leaf in enumerate(own) if leaf is not None]
    both = [i for i in range(len(cases)) if before[i] and after[i]]
    settled = [i for i in both if own[i] is not None]
    judged = [i for i, case in enumerate(cases) if case.voted]
    near = _nearest(vectors[both])
    drop, judge = rules.replay_drop, partial(_measure, doubt=rules.replay_doubt)
    measures = (
        judge("coverage", drop + FALSE_REJECTS, *(_took(x, inside) for x in (before, after))),
        judge("agreement", drop, *(_right(x, own, settled) for x in (before, after))),
        judge("company", drop, *(_alike(x, both, near) for x in (before, after))),
        judge("outcomes", drop, *(_heeded(x, cases, judged, domain) for x in (before, after))),
    )
    return Comparison(
        len(cases),
        len(inside),
        float(_right(before, own, inside).mean()) if inside else 0.0,
        float(_right(after, own, inside).mean()) if inside else 0.0,
        measures,
    )


def domains(forest: Forest, *tables: Table) -> Callable[[LeafId], LeafId]:
    """What a leaf's id comes to today: its heir, if it was merged; of a part, the domain that it
    is in; of a peer's leaf, the own one of the same domain."""
    heirs = {
        old: leaf.id
        for leaf in forest
        for old in leaf.lineage
        if old in forest.leaves and forest.leaves[old].stage is Stage.MERGED
    }
    kin = _kin(forest, tables)

    def domain(leaf: LeafId) -> LeafId:
        met = {leaf}
        while (heir := kin.get(leaf) or heirs.get(leaf)) is not None and heir not in met:
            leaf = heir
            met.add(leaf)
        known = forest.leaves.get(leaf)
        return known.parent or leaf if known is not None and known.level == 3 else leaf

    return domain


def chance_of(losses: int, wins: int) -> float:
    """Probability of at most `wins` heads in so many tosses: the exact one-sided sign test."""
    tosses = losses + wins
    if tosses == 0:
        return 1.0
    head = lgamma(tosses + 1) - tosses * log(2.0)
    return min(
        1.0, sum(exp(head - lgamma(k + 1) - lgamma(tosses - k + 1)) for k in range(wins + 1))
    )


def _kin(forest: Forest, tables: Sequence[Table]) -> dict[LeafId, LeafId]:
    own = [leaf for leaf in forest.live() if leaf.level == 2]
    if not own:
        return {}
    centroids = np.stack([leaf.centroid for leaf in own])
    kin: dict[LeafId, LeafId] = {}
    for entry in (entry for table in tables for entry in table.entries if entry.origin):
        cosines = centroids @ entry.centroid
        nearest = int(cosines.argmax())
        if cosines[nearest] >= COSINE_SAME:
            kin[entry.leaf] = own[nearest].id
    return kin


def _taken(route: Route, domain: Callable[[LeafId], LeafId]) -> LeafId | None:
    """The domain that a prompt is routed to. A branch is for browsing, a starter no domain."""
    leaf = route.leaf
    return domain(leaf.leaf) if leaf and leaf.level > 1 and not leaf.system else None


Values = NDArray[np.float64]


def _took(routed: Sequence[LeafId | None], at: Sequence[int]) -> Values:
    return np.array([routed[i] is not None for i in at], np.float64)


def _right(
    routed: Sequence[LeafId | None], own: Sequence[LeafId | None], at: Sequence[int]
) -> Values:
    return np.array([routed[i] == own[i] for i in at], np.float64)


def _alike(routed: Sequence[LeafId | None], at: Sequence[int], near: NDArray[np.int64]) -> Values:
    """For each session, the share of its neighbours that go where it goes, less that of all."""
    share: Mapping[LeafId | None, int] = Counter(routed[i] for i in at)
    return np.array(
        [
            np.mean([routed[at[j]] == routed[i] for j in near[row]]) - share[routed[i]] / len(at)
            for row, i in enumerate(at)
        ]
        if near.shape[1]
        else np.zeros(len(at)),
        np.float64,
    )


def _heeded(
    routed: Sequence[LeafId | None],
    cases: Sequence[Case],
    at: Sequence[int],
    domain: Callable[[LeafId], LeafId],
) -> Values:
    right = []
    for i in at:
        voted = cases[i].voted
        assert voted is not None
        right.append((routed[i] == domain(voted)) == cases[i].well)
    return np.array(right, np.float64)


def _nearest(vectors: Matrix) -> NDArray[np.int64]:
    """The rows nearest to each row, without itself; fewer than NEIGHBOURS if there are few."""
    count = len(vectors)
    k = min(NEIGHBOURS, max(count - 1, 0))
    out = np.zeros((count, k), np.int64)
    if k == 0:
        return out
    for start in range(0, count, _BLOCK):
        block = vectors[start : start + _BLOCK] @ vectors.T
        rows = np.arange(len(block))
        block[rows, rows + start] = -np.inf
        out[start : start + _BLOCK] = np.argpartition(-block, k - 1, axis=1)[:, :k]
    return out


def _measure(name: str, drop: float, old: Values, new: Values, *, doubt: float) -> Measure:
    if not len(old):
        return Measure(name, 0, 0.0, 0.0, 1.0, False)
    change = new - old
    losses, wins = int((change < -1e-9).sum()), int((change > 1e-9).sum())
    chance = chance_of(losses, wins)
    worse = bool(change.mean() <= -drop and chance <= doubt)
    return Measure(name, len(old), float(old.mean()), float(new.mean()), chance, worse)
