"""How leaves live: what a round's observations mean for each leaf, decided purely.

A round asks three questions in this order, and applies the answers as it goes:

    decide(forest, seen, now, rules)        births, drift, dissolution, archiving, revival
    due(forest, now, rules)                 which leaves are to be trained, and why
    conclude(forest, outcomes, now, rules)  what the trainings' verdicts change

Each answer is a list of transitions; `apply` carries one out. Nothing here trains,
reads a clock or draws a number, so a round that was killed comes to the same answers again.

    none ──► SEED ──► SPROUT ──► MATURE        SEED ──► DISSOLVED, when its cluster goes away
                        ▲ ▲         │          MERGED, when it lives on in another leaf
                        │ └─────────┤
                        └─ ARCHIVED ◄          SPROUT or MATURE ──► ARCHIVED ──► SPROUT
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from msgspec import Struct

from .descent import Change, Descent, why_kept, why_missed, why_new
from .model import (
    DAY_S,
    Adapter,
    Evaluation,
    Forest,
    GrownFrom,
    Instant,
    Kind,
    Leaf,
    LeafId,
    Stage,
    Vector,
    Verdict,
    leaf_id,
)
from .observe import Observations, Seen


class Rules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every threshold of a leaf's life. The clauses are of the leaf architecture document."""

    branch_sessions: int = 1000  # §4, level 1: smallest branch
    seed_sessions: int = 200  # §5 SEED: smallest cluster that makes a leaf
    child_sessions: int = 100  # §4, level 3 and §5 SPLIT: smallest specialisation
    first_discovery_sessions: int = 1000  # §8: starters alone serve before this many sessions
    skill_sessions: int = 500  # §5 SPROUT: code, journalism, general
    reasoning_sessions: int = 300  # §5 SPROUT: research, planning
    sprout_gate: float = 0.3  # §5 SPROUT: below this confidence the parent serves
    sprout_retrain_sessions: int = 100  # new sessions before a sprout is trained again
    mature_sessions: int = 500  # §5 MATURE
    mature_wins: int = 2  # rounds won on fresh held-out sessions
    mature_retrain_sessions: int = 500  # §5 MATURE: retrained every so many new sessions
    mature_retrain_days: int = 30  # §5 MATURE: "or monthly, whichever comes first"
    dormant_days: int = 30  # §5 PRUNE: not routed to, and how old a leaf must be first
    dormant_sessions_per_month: int = 10  # §5 PRUNE
    regressions: int = 3  # §5 PRUNE: in a row; a single one may be chance
    missed_reclusters: int = 3  # a seed not found this often is dissolved
    merge_cosine: float = 0.92  # §5 MERGE
    merge_sessions: int = 800  # §5 MERGE: together fewer than this
    full_each_round_sessions: int = 10_000  # §9: up to here each round clusters all sessions anew
    full_weekly_sessions: int = 100_000  # §9: from here weekly; between the two daily
    full_monthly_sessions: int = 1_000_000  # §9: from here monthly
    drift_share: float = 0.25  # of new sessions in no leaf, from which all are clustered anew
    starters_leave: float = 0.8  # §8: data-driven leaves take so much; then starters are deprecated
    starters_sessions: int = 1000  # of the last so many sessions
    replay_sessions: int = 1000  # §12, phase 4: a new table is compared on so many recent sessions
    replay_drop: float = 0.05  # and is refused if worse by so much: good ones differ by 0.02
    replay_doubt: float = 0.01  # and chance would do that so seldom (exact sign test)

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"rules.{name} must not be negative, not {value!r}")
        if self.child_sessions > self.seed_sessions:
            raise ValueError(
                f"rules.child_sessions ({self.child_sessions}) must not exceed "
                f"rules.seed_sessions ({self.seed_sessions})"
            )


class Purpose(StrEnum):
    """Why a leaf is trained."""

    FIRST = "first"
    RETRAIN = "retrain"
    REVIVAL = "revival"


@dataclass(frozen=True, slots=True)
class Born:
    """A cluster without a leaf became a SEED. cluster: its index in the observations."""

    leaf: Leaf
    cluster: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drifted:
    """A known leaf was found again: its sessions, centroid and place as they are now."""

    id: LeafId
    sessions: int
    centroid: Vector
    kind: Kind
    growth_per_day: float
    level: int
    parent: LeafId | None
    reason: str
    newest: Instant | None = None
    stability: float | None = None
    cohesion: float | None = None


@dataclass(frozen=True, slots=True)
class Missed:
    """A full re-cluster did not find this leaf."""

    id: LeafId
    reason: str


@dataclass(frozen=True, slots=True)
class Dissolved:
    id: LeafId
    reason: str


@dataclass(frozen=True, slots=True)
class Archived:
    """Out of the router; its sessions go to the parent's pool, its bundle is kept."""

    id: LeafId
    reason: str


@dataclass(frozen=True, slots=True)
class Revived:
    """An archived leaf's domain came back: SPROUT again, to be retrained."""

    id: LeafId
    seen: Seen
    reason: str


@dataclass(frozen=True, slots=True)
class Trained:
    """A training and its evaluation. `adapter` is the one in force from now on."""

    id: LeafId
    evaluation: Evaluation
    adapter: Adapter
    method: str
    note: str
    reason: str


@dataclass(frozen=True, slots=True)
class Promoted:
    """SPROUT to MATURE: offered to the mesh."""

    id: LeafId
    reason: str


@dataclass(frozen=True, slots=True)
class Split:
    """Children born SPROUT from parts of a leaf, which stays as their fallback."""

    id: LeafId
    children: tuple[Leaf, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Merged:
    """Two leaves became one, of new id."""

    parts: tuple[LeafId, LeafId]
    leaf: Leaf
    reason: str


Transition = (
    Born | Drifted | Missed | Dissolved | Archived | Revived | Trained | Promoted | Split | Merged
)


@dataclass(frozen=True, slots=True)
class TrainingDue:
    """A leaf that this round is to train, once."""

    id: LeafId
    purpose: Purpose
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one leaf's training came to.

    evaluation: of the candidate; evaluation.won is judged for the adapter that stays in force.
    adapter: the candidate.
    """

    evaluation: Evaluation
    adapter: Adapter
    preference_note: str  # what came of the preference step


def decide(forest: Forest, seen: Observations, now: Instant, rules: Rules) -> list[Transition]:
    """Return what the round's observations mean: births, drift, misses, endings, revivals.

    Births are numbered in the order of `seen.seen`, so the same observations give the same ids.
    An unknown cluster of level 3 is no birth: such a leaf comes from a split only.
    """
    out: list[Transition] = []
    born = _births(forest, seen, rules)
    ids: dict[int, LeafId] = {}
    whence = {x.cluster: x for x in seen.descents if x.cluster is not None}
    for index, cluster in enumerate(seen.seen):
        parent = ids.get(cluster.parent) if isinstance(cluster.parent, int) else cluster.parent
        known = forest.leaves.get(cluster.leaf) if cluster.leaf else None
        descent = whence.get(index)
        if known is None:
            if index in born:
                ids[index] = born[index]
                leaf = _seed(cluster, parent, born[index], now)
                out.append(Born(leaf, index, _why_born(cluster, descent, born)))
            continue
        ids[index] = known.id
        if known.stage is Stage.ARCHIVED:
            revived = _revival(known, cluster, rules)
            out.extend([revived] if revived else [])
        elif known.stage.live:
            out.append(_drift(known, cluster, parent, descent, born))
    found = set(ids.values())
    lost = {x.leaf: x for x in seen.descents if x.cluster is None}
    for leaf in forest.live():
        if seen.full and leaf.id not in found and leaf.grown_from is GrownFrom.DATA:
            out.append(_missed(leaf, rules, lost.get(leaf.id), born))
    out.extend(_dormant(forest, seen, now, rules))
    return out


def _births(forest: Forest, seen: Observations, rules: Rules) -> dict[int, LeafId]:
    """Return the clusters that become leaves, by index, with the ids that they will have."""
    indexes = [
        index
        for index, cluster in enumerate(seen.seen)
        if forest.leaves.get(cluster.leaf or LeafId("")) is None
        and cluster.level < 3
        and cluster.sessions >= rules.seed_sessions
    ]
    return {index: leaf_id(forest.origin, forest.births + at) for at, index in enumerate(indexes)}


def due(forest: Forest, now: Instant, rules: Rules) -> list[TrainingDue]:
    """Return the leaves to train in this round, by id; at most one training each."""
    out: list[TrainingDue] = []
    for leaf in forest.live():
        if leaf.level == 1:  # a branch is for browsing and as a parent, not for choosing
            continue
        wanted = _training(leaf, now, rules)
        if wanted:
            out.append(wanted)
    return out


def conclude(
    forest: Forest, outcomes: Mapping[LeafId, Outcome], now: Instant, rules: Rules
) -> list[Transition]:
    """Return what trainings change: the adapter in force, and promotions earned by it."""
    out: list[Transition] = []
    for id_ in sorted(outcomes):
        trained = _trained(forest.leaves[id_], outcomes[id_])
        out.append(trained)
        after = apply(forest, trained, now).leaves[id_]
        promoted = _promotion(after, rules)
        if promoted:
            out.append(promoted)
        elif after.regressions >= rules.regressions and _age_days(after, now) >= rules.dormant_days:
            out.append(Archived(id_, f"{after.regressions} regressions in a row"))
    return out


def apply(forest: Forest, transition: Transition, now: Instant) -> Forest:
    """Return the forest after one transition. What others may see raises a leaf's version."""
    match transition:
        case Born(leaf):
            return forest.with_births(leaf)
        case Drifted(id=id_):
            return forest.with_leaf(_drifted(forest.leaves[id_], transition))
        case Missed(id_):
            leaf = forest.leaves[id_]
            return forest.with_leaf(replace(leaf, missed=leaf.missed + 1))
        case Dissolved(id_):
            return forest.with_leaf(_staged(forest.leaves[id_], Stage.DISSOLVED, now))
        case Archived(id_):
            return forest.with_leaf(_staged(forest.leaves[id_], Stage.ARCHIVED, now))
        case Revived(id_, seen):
            leaf = _staged(forest.leaves[id_], Stage.SPROUT, now)
            leaf = replace(leaf, centroid=seen.centroid, sessions=seen.sessions, regressions=0)
            parent = None if isinstance(seen.parent, int) else seen.parent
            return forest.with_leaf(replace(leaf, newest=seen.newest, parent=parent, missed=0))
        case Trained(id=id_):
            return forest.with_leaf(_with_training(forest.leaves[id_], transition, now))
        case Promoted(id_):
            leaf = replace(_staged(forest.leaves[id_], Stage.MATURE, now), gate=0.0)
            return forest.with_leaf(replace(leaf, matured_at=now))
        case Split(_, children):
            return forest.with_births(*children)
        case Merged(parts, leaf):
            for part in parts:
                forest = forest.with_leaf(_staged(forest.leaves[part], Stage.MERGED, now))
            return forest.with_births(leaf)
        case _:
            assert_never(transition)


def assignment(
    seen: Observations, transitions: Sequence[Transition], after: Forest
) -> dict[str, LeafId]:
    """Give each session to the most specific live leaf whose cluster holds it.

    The sessions of a leaf that was not found stay with it while it lives.
    """
    born = {t.cluster: t.leaf.id for t in transitions if isinstance(t, Born)}
    members: dict[str, LeafId] = {}
    for index, cluster in enumerate(seen.seen):  # level 1 comes first: what follows is finer
        leaf = cluster.leaf or born.get(index)
        if leaf is not None and after.leaves[leaf].stage.live:
            members.update(dict.fromkeys(cluster.members, leaf))
    for session, leaf in seen.kept.items():
        if after.leaves[leaf].stage.live:
            members[session] = leaf
    return members


def training_threshold(kind: Kind, rules: Rules) -> int:
    """Sessions that a seed needs before it is trained."""
    return rules.skill_sessions if kind is Kind.SKILL else rules.reasoning_sessions


def _seed(cluster: Seen, parent: LeafId | None, id_: LeafId, now: Instant) -> Leaf:
    return Leaf(
        id=id_,
        name=cluster.name,
        stage=Stage.SEED,
        stage_since=now,
        level=cluster.level,
        kind=cluster.kind,
        grown_from=GrownFrom.DATA,
        parent=parent,
        lineage=(),
        created=now,
        sessions=cluster.sessions,
        growth_per_day=cluster.growth_per_day,
        centroid=cluster.centroid,
        newest=cluster.newest,
        stability=cluster.found.stability if cluster.found else None,
        cohesion=cluster.found.cohesion if cluster.found else None,
    )


def _why_born(cluster: Seen, descent: Descent | None, ids: Mapping[int, LeafId]) -> str:
    why = f"a cluster of {cluster.sessions} sessions without a leaf"
    return f"{why}: {why_new(descent, ids)}" if descent else why


def _drift(
    known: Leaf,
    cluster: Seen,
    parent: LeafId | None,
    descent: Descent | None,
    ids: Mapping[int, LeafId],
) -> Drifted:
    why = f"found again with {cluster.sessions} sessions ({cluster.sessions - known.sessions:+d})"
    return Drifted(
        known.id,
        cluster.sessions,
        cluster.centroid,
        cluster.kind,
        cluster.growth_per_day,
        cluster.level,
        parent,
        why_kept(descent, ids) if descent else why,
        cluster.newest,
        cluster.found.stability if cluster.found else None,
        cluster.found.cohesion if cluster.found else None,
    )


def _drifted(leaf: Leaf, to: Drifted) -> Leaf:
    changed = leaf.sessions != to.sessions or leaf.parent != to.parent
    return replace(
        leaf,
        sessions=to.sessions,
        centroid=to.centroid,
        kind=to.kind,
        growth_per_day=to.growth_per_day,
        level=to.level,
        parent=to.parent,
        missed=0,
        newest=to.newest,
        stability=to.stability,
        cohesion=to.cohesion,
        version=leaf.version + int(changed),
    )


def _missed(
    leaf: Leaf, rules: Rules, descent: Descent | None, ids: Mapping[int, LeafId]
) -> Transition:
    """A seed goes after some misses; what was trained stays, and waits to be found again."""
    times = leaf.missed + 1
    where = f": {why_missed(descent, ids)}" if descent else ""
    if leaf.stage is not Stage.SEED:
        return Missed(leaf.id, f"its cluster was not found, {times} running{where}")
    if times >= rules.missed_reclusters:
        why = f"its cluster was not found in {times} full re-clusters"
        return Dissolved(leaf.id, why + where)
    why = f"its cluster was not found ({times} of {rules.missed_reclusters})"
    return Missed(leaf.id, why + where)


def _revival(leaf: Leaf, cluster: Seen, rules: Rules) -> Revived | None:
    """Only sessions that came after the archiving count: the old ones went to the parent."""
    fresh = cluster.since(leaf.stage_since)
    if fresh < rules.seed_sessions:
        return None
    return Revived(leaf.id, cluster, f"{fresh} sessions since it was archived")


def _dormant(forest: Forest, seen: Observations, now: Instant, rules: Rules) -> list[Transition]:
    """A captured session in its region is a prompt that came its way, whoever answered it."""
    newest = {cluster.leaf: cluster.newest for cluster in seen.seen if cluster.leaf}
    paces = {cluster.leaf: cluster.growth_per_day for cluster in seen.seen if cluster.leaf}
    # Not found, or found as a part of what it was: a pace of today would be no one's.
    unsure = {x.leaf for x in seen.descents if {Change.VANISHED, Change.SPLIT} & {*x.changes}}
    out: list[Transition] = []
    for leaf in forest.live():
        if leaf.trainings == 0 or _age_days(leaf, now) < rules.dormant_days:
            continue
        last = newest.get(leaf.id, leaf.newest or 0)  # not found today, it is as it was last found
        heard = max(leaf.last_routed or 0, leaf.stage_since, last)
        quiet_days = (now - heard) // DAY_S
        monthly = paces.get(leaf.id, leaf.growth_per_day) * 30
        if quiet_days >= rules.dormant_days:
            out.append(Archived(leaf.id, f"not routed to for {quiet_days} days"))
        elif leaf.id in unsure:
            continue
        elif monthly < rules.dormant_sessions_per_month and leaf.used_by == 0:
            out.append(Archived(leaf.id, f"{monthly:.0f} new sessions a month, no use by others"))
    return out


def _training(leaf: Leaf, now: Instant, rules: Rules) -> TrainingDue | None:
    new = leaf.sessions - leaf.sessions_at_training
    days = (now - leaf.trained_at) // DAY_S if leaf.trained_at is not None else 0
    match leaf.stage:
        case Stage.SEED:
            wanted = training_threshold(leaf.kind, rules)
            if leaf.sessions >= wanted:
                why = f"{leaf.sessions} sessions, {wanted} wanted for {leaf.kind}"
                return TrainingDue(leaf.id, Purpose.FIRST, why)
        case Stage.SPROUT if leaf.trained_at is not None and leaf.stage_since > leaf.trained_at:
            return TrainingDue(leaf.id, Purpose.REVIVAL, "revived from the archive")
        case Stage.SPROUT if leaf.trainings == 0:
            return TrainingDue(leaf.id, Purpose.FIRST, "born of a split or a merge")
        case Stage.SPROUT if new >= rules.sprout_retrain_sessions:
            return TrainingDue(leaf.id, Purpose.RETRAIN, f"{new} sessions since its last training")
        case Stage.MATURE if new >= rules.mature_retrain_sessions:
            return TrainingDue(leaf.id, Purpose.RETRAIN, f"{new} sessions since its last training")
        case Stage.MATURE if days >= rules.mature_retrain_days and new > 0:
            return TrainingDue(leaf.id, Purpose.RETRAIN, f"{days} days since its last training")
        case _:
            pass
    return None


def _trained(leaf: Leaf, outcome: Outcome) -> Trained:
    """A first adapter is kept even if it has not won: its parent serves until one wins."""
    verdict = outcome.evaluation.verdict
    replaces = verdict in (Verdict.IMPROVED, Verdict.BETTER)
    gain = outcome.evaluation.over_style
    return Trained(
        leaf.id,
        outcome.evaluation,
        outcome.adapter if replaces or leaf.adapter is None else leaf.adapter,
        "sft",
        outcome.preference_note,
        f"{verdict}: {gain.mean:+.3f} nats over the style control, lower bound {gain.low:+.3f}, "
        f"on {outcome.evaluation.held_out} held-out sessions",
    )


def _with_training(leaf: Leaf, trained: Trained, now: Instant) -> Leaf:
    """A training judged on too few sessions neither wins nor regresses."""
    verdict = trained.evaluation.verdict
    stage = Stage.SPROUT if leaf.stage is Stage.SEED else leaf.stage
    return replace(
        leaf,
        stage=stage,
        stage_since=now if stage is not leaf.stage else leaf.stage_since,
        trainings=leaf.trainings + 1,
        first_trained=leaf.first_trained if leaf.first_trained is not None else now,
        trained_at=now,
        sessions_at_training=leaf.sessions,
        wins=leaf.wins + int(trained.evaluation.won),
        regressions=leaf.regressions + 1 if verdict is Verdict.REGRESSED else 0,
        adapter=trained.adapter,
        method=trained.method,
        note=trained.note,
        evaluation=trained.evaluation,
        version=leaf.version + 1,
    )


def _promotion(leaf: Leaf, rules: Rules) -> Promoted | None:
    if leaf.stage is not Stage.SPROUT or leaf.evaluation is None:
        return None
    earned = (
        leaf.trainings >= 2
        and leaf.sessions >= rules.mature_sessions
        and leaf.wins >= rules.mature_wins
        and leaf.evaluation.verdict in (Verdict.IMPROVED, Verdict.HOLDS)
    )
    if not earned:
        return None
    won = f"won {leaf.wins} rounds on fresh sessions, last one {leaf.evaluation.verdict}"
    return Promoted(leaf.id, f"{leaf.sessions} sessions, {won}")


def _staged(leaf: Leaf, stage: Stage, now: Instant) -> Leaf:
    return replace(leaf, stage=stage, stage_since=now, version=leaf.version + 1)


def _age_days(leaf: Leaf, now: Instant) -> int:
    return (now - leaf.created) // DAY_S


def ids_of(transition: Transition) -> Sequence[LeafId]:
    """The leaves that a transition changes or creates."""
    match transition:
        case Born(leaf):
            return [leaf.id]
        case Split(id_, children):
            return [id_, *(child.id for child in children)]
        case Merged(parts, leaf):
            return [leaf.id, *parts]
        case _:
            return [transition.id]
