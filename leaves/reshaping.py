"""Where leaves divide and unite: what a full look shows of parts, and the splits and merges of it.

A look is wrong now and then: on some day it cuts a domain in two, on another it joins two. So
what comes out of a live leaf stays with it until it has shown in several full looks running; and
what would merge with a leaf as soon as it were born is no birth at all. Otherwise two leaves that
merged, but are found as two clusters by every look, would bear a leaf and merge for ever.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .model import (
    DAY_S,
    Forest,
    GrownFrom,
    Instant,
    Kind,
    Leaf,
    LeafId,
    Stage,
    Vector,
    leaf_id,
    unit,
)
from .names import unused
from .observe import Observations, Seen
from .rules import Rules
from .transitions import Answer, Approvals, Merged, Proposed, Split, key_of, size_of

MOSTLY = 0.5  # of a cluster's sessions from one leaf, from which it is a part of that leaf


@dataclass(frozen=True, slots=True)
class Shape:
    """How the clusters of a look that are no leaf stand to those that are.

    joined: of such clusters, by index, those that stay with a leaf that was found. apart: leaves
    that have one among them which is to be born if it goes on showing. parts: of each domain that
    falls into parts, the indexes of the parts that stand apart, at least two and one of them new.
    """

    joined: Mapping[int, LeafId]
    apart: frozenset[LeafId]
    parts: Mapping[LeafId, tuple[int, ...]]


NO_SHAPE = Shape({}, frozenset(), {})


def shape(forest: Forest, seen: Observations, rules: Rules) -> Shape:
    """Return the shape of a full look. An incremental one looks for neither births nor parts."""
    if not seen.full:
        return NO_SHAPE
    found = {c.leaf: i for i, c in enumerate(seen.seen) if c.leaf and _lives(forest, c.leaf)}
    joined: dict[int, LeafId] = {}
    apart: set[LeafId] = set()
    whence = {x.cluster: x for x in seen.descents if x.leaf is None}
    for index, cluster in enumerate(seen.seen):
        if cluster.leaf is not None or cluster.level == 1:
            continue
        holder = _would_merge(cluster, seen, found, rules)
        if holder is None and cluster.level == 2 and index in whence:
            counts = Counter({s.place: s.sessions for s in whence[index].came})
            holder = _whole(forest, counts, cluster, found)
            if holder is not None:
                if forest.leaves[holder].apart + 1 >= rules.part_looks:
                    continue
                apart.add(holder)
        if holder is not None:
            joined[index] = holder
    return Shape(joined, frozenset(apart), _parts(forest, seen, joined, rules))


def _lives(forest: Forest, leaf: LeafId) -> bool:
    return forest.leaves[leaf].stage.live


def _would_merge(
    cluster: Seen, seen: Observations, found: Mapping[LeafId, int], rules: Rules
) -> LeafId | None:
    """The found leaf nearest to a new cluster, if the two would be merged, now or soon."""
    near: list[tuple[float, LeafId]] = []
    for leaf, index in found.items():
        other = seen.seen[index]
        if other.level != cluster.level or (cluster.level == 3 and other.parent != cluster.parent):
            continue
        if other.sessions + cluster.sessions >= rules.merge_sessions:
            continue
        cosine = float(other.centroid @ cluster.centroid)
        if cosine > rules.split_cosine:
            near.append((-cosine, leaf))
    return min(near)[1] if near else None


def _whole(
    forest: Forest,
    came: Mapping[LeafId | int | None, int],
    cluster: Seen,
    found: Mapping[LeafId, int],
) -> LeafId | None:
    """The found domain that most of a cluster's sessions are from, its specialisations' counted."""
    counts: Counter[LeafId] = Counter()
    for place, sessions in came.items():
        leaf = forest.leaves.get(place) if isinstance(place, str) else None
        if leaf is not None and leaf.level == 3 and leaf.parent is not None:
            leaf = forest.leaves.get(leaf.parent)
        if leaf is not None and leaf.level == 2 and leaf.id in found:
            counts[leaf.id] += sessions
    most = min(counts, key=lambda leaf: (-counts[leaf], leaf), default=None)
    if most is None or counts[most] < MOSTLY * cluster.sessions:
        return None
    return most


def _parts(
    forest: Forest, seen: Observations, joined: Mapping[int, LeafId], rules: Rules
) -> dict[LeafId, tuple[int, ...]]:
    """Of each domain that falls into parts, those far enough from one another, the known first."""
    within: dict[LeafId, list[int]] = defaultdict(list)
    for index, cluster in enumerate(seen.seen):
        if cluster.level == 3 and isinstance(cluster.parent, str) and index not in joined:
            within[cluster.parent].append(index)
    out: dict[LeafId, tuple[int, ...]] = {}
    for leaf, indexes in within.items():
        if forest.leaves[leaf].level != 2 or not _lives(forest, leaf):
            continue
        parts: list[int] = []
        fresh = False
        for index in sorted(indexes, key=lambda i: (seen.seen[i].leaf is None, i)):
            part = seen.seen[index]
            if part.leaf is None:
                if part.sessions < rules.child_sessions:
                    continue
                if any(
                    float(part.centroid @ seen.seen[i].centroid) > rules.split_cosine for i in parts
                ):
                    continue
                fresh = True
            parts.append(index)
        if fresh and len(parts) >= 2:
            out[leaf] = tuple(parts)
    return out


def splits(
    forest: Forest,
    seen: Observations,
    shape: Shape,
    now: Instant,
    rules: Rules,
    approvals: Approvals,
) -> list[Split | Merged | Proposed]:
    """Return the splits of mature leaves whose parts have shown for long enough, by leaf."""
    out: list[Split | Merged | Proposed] = []
    births = forest.births
    for id_, parts in sorted(shape.parts.items()):
        leaf = forest.leaves[id_]
        if leaf.stage is not Stage.MATURE or leaf.parts < rules.part_looks:
            continue
        fresh = [index for index in parts if seen.seen[index].leaf is None]
        children = tuple(
            grown(
                seen.seen[index],
                leaf_id(forest.origin, births + at),
                now,
                parent=id_,
                stage=Stage.SPROUT,
                lineage=(id_,),
            )
            for at, index in enumerate(fresh)
        )
        sizes = ", ".join(f"{seen.seen[index].sessions:,}" for index in parts)
        why = (
            f"{len(parts)} parts of {sizes} sessions, {leaf.parts} full looks running, "
            f"no new one nearer than {rules.split_cosine:.2f} to another"
        )
        answered = _with_word(Split(id_, children, why, tuple(fresh), len(parts)), approvals, rules)
        if isinstance(answered, Split):
            births += len(children)
        if answered is not None:
            out.append(answered)
    return out


def merges(
    forest: Forest,
    close: Sequence[tuple[LeafId, LeafId, float]],
    now: Instant,
    rules: Rules,
    approvals: Approvals,
    besides: frozenset[LeafId] = frozenset(),
) -> list[Split | Merged | Proposed]:
    """Return the merges of near leaves, the nearest pair first; a leaf is in one a round.

    besides: leaves that this round has split.
    """
    out: list[Split | Merged | Proposed] = []
    births, taken = forest.births, set(besides)
    names = {leaf.name for leaf in forest}
    for one, other, cosine in sorted(close, key=lambda pair: (-pair[2], pair[0], pair[1])):
        if {one, other} & taken or cosine <= rules.merge_cosine:
            continue
        parts = forest.leaves[one], forest.leaves[other]
        if not all(part.stage.live and not stays(part, now, rules) for part in parts):
            continue
        together = sum(part.sessions for part in parts)
        if parts[0].level == 1 or parts[0].level != parts[1].level:
            continue
        if together >= rules.merge_sessions:
            continue
        why = (
            f"{one} and {other} are {cosine:.3f} alike, more than {rules.merge_cosine:.2f}, and "
            f"have {together} sessions together, {rules.merge_sessions} would keep them apart"
        )
        leaf = _union(parts, leaf_id(forest.origin, births), names, now, rules)
        children = tuple(x.id for x in forest if x.parent in (one, other) and x.stage.live)
        answered = _with_word(Merged((one, other), leaf, why, children), approvals, rules)
        if isinstance(answered, Merged):
            births += 1
            names.add(leaf.name)
        if answered is not None:
            taken |= {one, other}
            out.append(answered)
    return out


def grown(
    cluster: Seen,
    id_: LeafId,
    now: Instant,
    *,
    parent: LeafId | None,
    stage: Stage = Stage.SEED,
    lineage: tuple[LeafId, ...] = (),
) -> Leaf:
    """A leaf as it is born of a cluster."""
    return Leaf(
        id=id_,
        name=cluster.name,
        stage=stage,
        stage_since=now,
        level=cluster.level,
        kind=cluster.kind,
        grown_from=GrownFrom.DATA,
        parent=parent,
        lineage=lineage,
        created=now,
        sessions=cluster.sessions,
        growth_per_day=cluster.growth_per_day,
        centroid=cluster.centroid,
        newest=cluster.newest,
        stability=cluster.found.stability if cluster.found else None,
        cohesion=cluster.found.cohesion if cluster.found else None,
        week=cluster.week,
    )


def together(vectors: Sequence[Vector], weights: Sequence[int]) -> Vector:
    """The centroid of clusters taken as one, each weighing as many sessions as it has."""
    total = sum(w * v.astype(np.float64) for v, w in zip(vectors, weights, strict=True))
    centroid: Vector = unit(np.asarray(total)[None])[0]
    return centroid


def stays(leaf: Leaf, now: Instant, rules: Rules) -> bool:
    """True while a leaf has come to its stage so lately that it may not leave it.

    A seed has come from nowhere, and a sprout that was never trained was born as one.
    """
    came = leaf.stage is not Stage.SEED and (leaf.stage_since > leaf.created or leaf.trainings > 0)
    return came and now - leaf.stage_since < rules.stay_days * DAY_S


def training_threshold(kind: Kind, rules: Rules) -> int:
    """Sessions that a seed needs before it is trained."""
    return rules.skill_sessions if kind is Kind.SKILL else rules.reasoning_sessions


def _union(
    parts: tuple[Leaf, Leaf], id_: LeafId, names: set[str], now: Instant, rules: Rules
) -> Leaf:
    """One leaf of two; what only one of two can be is that of the larger."""
    larger, smaller = sorted(parts, key=lambda part: (-part.sessions, part.created, part.id))
    sessions = larger.sessions + smaller.sessions
    ready = sessions >= training_threshold(larger.kind, rules)
    return Leaf(
        id=id_,
        name=unused(larger.name, names),
        stage=Stage.SPROUT if ready else Stage.SEED,
        stage_since=now,
        level=larger.level,
        kind=larger.kind,
        grown_from=GrownFrom.DATA,
        parent=larger.parent,
        lineage=(larger.id, smaller.id),
        created=now,
        sessions=sessions,
        growth_per_day=larger.growth_per_day + smaller.growth_per_day,
        centroid=together(
            [larger.centroid, smaller.centroid], [larger.sessions, max(smaller.sessions, 1)]
        ),
        last_routed=max((p.last_routed for p in parts if p.last_routed is not None), default=None),
        used_by=max(larger.used_by, smaller.used_by),
        newest=max((p.newest for p in parts if p.newest is not None), default=None),
        week=larger.week + smaller.week,
        named_by_owner=larger.named_by_owner,
    )


def _with_word(
    change: Split | Merged, approvals: Approvals, rules: Rules
) -> Split | Merged | Proposed | None:
    """The change itself, if nobody has to be asked or the owner said yes; None after a no."""
    if rules.approve == "auto":
        return change
    answer = approvals.get(key_of(change))
    if answer is None or _another(change, answer, rules):
        return Proposed(change, f"waits for your word: {change.reason}")
    return change if answer.yes else None


def _another(change: Split | Merged, answer: Answer, rules: Rules) -> bool:
    """True if the owner was asked about something else: other parts, or far fewer sessions."""
    if not answer.sessions:
        return False
    sessions, parts = size_of(change)
    return parts != answer.parts or sessions >= rules.ask_again * answer.sessions
