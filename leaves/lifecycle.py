"""How leaves live: what a round's observations mean for each leaf, decided purely.

A round asks three questions in this order, and applies the answers as it goes:

    decide(forest, seen, now, rules)        births, drift, endings, revival, splits, merges
    due(forest, now, rules)                 which leaves are to be trained, and why
    conclude(forest, outcomes, now, rules)  what the trainings' verdicts change

Each answer is a list of transitions; `apply` carries one out. Nothing here trains,
reads a clock or draws a number, so a round that was killed comes to the same answers again.
`transitions.LEGAL` has all that can happen; docs/lifecycle.md is drawn from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from .descent import Change, Descent, why_kept, why_missed, why_new
from .model import (
    DAY_S,
    Adapter,
    Evaluation,
    Forest,
    GrownFrom,
    Instant,
    Leaf,
    LeafId,
    Stage,
    Verdict,
    leaf_id,
)
from .observe import Observations, Seen
from .reshaping import (
    Shape,
    grown,
    merges,
    shape,
    splits,
    stays,
    together,
    training_threshold,
)
from .rules import Rules
from .transitions import (
    LEGAL,
    NO_APPROVALS,
    Answer,
    Approvals,
    Archived,
    Born,
    ChangeKey,
    Dissolved,
    Drifted,
    LifecycleError,
    Merged,
    Missed,
    Promoted,
    Proposed,
    Revived,
    Split,
    Trained,
    Transition,
    Withdrawn,
    apply,
    apply_all,
    ids_of,
    key_of,
    kind_of,
    size_of,
    with_training,
)

__all__ = [
    "LEGAL",
    "NO_APPROVALS",
    "Answer",
    "Approvals",
    "Archived",
    "Born",
    "ChangeKey",
    "Dissolved",
    "Drifted",
    "LifecycleError",
    "Merged",
    "Missed",
    "Outcome",
    "Promoted",
    "Proposed",
    "Purpose",
    "Revived",
    "Rules",
    "Split",
    "Trained",
    "TrainingDue",
    "Transition",
    "Withdrawn",
    "apply",
    "apply_all",
    "assignment",
    "conclude",
    "decide",
    "due",
    "ids_of",
    "key_of",
    "kind_of",
    "size_of",
    "training_threshold",
    "would_mature",
]


class Purpose(StrEnum):
    """Why a leaf is trained."""

    FIRST = "first"
    RETRAIN = "retrain"
    REVIVAL = "revival"
    CHASSIS = "chassis"  # its adapter is of another one, and its parent serves meanwhile


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
    method: str = "sft"  # or "sft+dpo"; how the candidate was made


def decide(
    forest: Forest,
    seen: Observations,
    now: Instant,
    rules: Rules,
    approvals: Approvals = NO_APPROVALS,
) -> list[Transition]:
    """Return what the round's observations mean, in the order in which it happens.

    Births, drift and revivals; then misses and endings; then splits; then merges: a leaf may pass
    several. Births are numbered in that order, so the same observations give the same ids.
    """
    lost = frozenset(x.leaf for x in seen.descents if x.cluster is None and x.leaf is not None)
    look = _Look(forest, seen, now, rules, shape(forest, seen, rules), lost)
    out = look.found()
    standing = apply_all(forest, out, now)
    ended = look.endings(standing, out)
    standing = apply_all(standing, ended, now)
    divided = splits(standing, seen, look.shape, now, rules, approvals)
    standing = apply_all(standing, divided, now)
    busy = frozenset(x for change in divided for x in ids_of(change))
    united = merges(standing, seen.close, now, rules, approvals, busy)
    return [*out, *ended, *divided, *united]


@dataclass(frozen=True, slots=True)
class _Look:
    """One round's observations, and what is asked of them."""

    forest: Forest
    seen: Observations
    now: Instant
    rules: Rules
    shape: Shape
    lost: frozenset[LeafId]  # not found, though leaves were compared

    def found(self) -> list[Transition]:
        """What the clusters are: new leaves, known ones, archived ones that came back."""
        out: list[Transition] = []
        born = self._births()
        ids: dict[int, LeafId] = dict(self.shape.joined)
        whence = {x.cluster: x for x in self.seen.descents if x.cluster is not None}
        revived: set[LeafId] = set()
        for index, cluster in enumerate(self.seen.seen):
            above = ids.get(cluster.parent) if isinstance(cluster.parent, int) else cluster.parent
            parent = self._standing(above, born, revived)
            known = self.forest.leaves.get(cluster.leaf) if cluster.leaf else None
            descent = whence.get(index)
            if known is None:
                if index in born:
                    ids[index] = born[index]
                    leaf = grown(cluster, born[index], self.now, parent=parent)
                    leaf = replace(leaf, cluster=index)
                    out.append(Born(leaf, index, _why_born(cluster, descent, born)))
                continue
            ids[index] = known.id
            if known.stage is Stage.ARCHIVED:
                back = self._revival(known, replace(cluster, parent=parent))
                if back is not None:
                    revived.add(known.id)
                    out.append(back)
            elif known.stage.live:
                out.append(self._drift(known, index, parent, descent, born))
        return out

    def endings(self, standing: Forest, before: Sequence[Transition]) -> list[Transition]:
        """Misses, and what dissolves or is archived. standing: after what came before."""
        found = {id_ for transition in before for id_ in ids_of(transition)}
        born = {t.cluster: t.leaf.id for t in before if isinstance(t, Born)}
        lost = {x.leaf: x for x in self.seen.descents if x.cluster is None}
        out: list[Transition] = []
        for leaf in standing.live():
            absent = self.seen.full and leaf.id not in found
            if absent and leaf.grown_from is GrownFrom.DATA:
                out.append(self._missed(leaf, lost.get(leaf.id), born, standing))
        # Not found, or found as a part of what it was: a pace of today would be no one's.
        unsure = {
            x.leaf for x in self.seen.descents if {Change.VANISHED, Change.SPLIT} & {*x.changes}
        }
        for leaf in standing.live():
            why = _dormant(leaf, leaf.id in unsure, self.now, self.rules)
            if why:
                out.append(Archived(leaf.id, why, _below(standing, leaf.id)))
        return out

    def _births(self) -> dict[int, LeafId]:
        """The clusters that become leaves, by index, with the ids that they will have.

        An unknown cluster of level 3 is no birth: such a leaf comes from a split only.
        """
        indexes = [
            index
            for index, cluster in enumerate(self.seen.seen)
            if self.forest.leaves.get(cluster.leaf or LeafId("")) is None
            and cluster.level < 3
            and index not in self.shape.joined
            and cluster.sessions >= self.rules.seed_sessions
        ]
        births = self.forest.births
        return {i: leaf_id(self.forest.origin, births + at) for at, i in enumerate(indexes)}

    def _standing(
        self, leaf: LeafId | None, born: Mapping[int, LeafId], revived: set[LeafId]
    ) -> LeafId | None:
        """The leaf itself, or the nearest live one above it."""
        passed: set[LeafId] = set()
        while leaf is not None and leaf not in passed:
            passed.add(leaf)
            if leaf in revived or leaf not in self.forest.leaves:
                return leaf if leaf in revived or leaf in born.values() else None
            known = self.forest.leaves[leaf]
            if known.stage.live:
                return leaf
            leaf = known.parent
        return None

    def _drift(
        self,
        known: Leaf,
        index: int,
        parent: LeafId | None,
        descent: Descent | None,
        ids: Mapping[int, LeafId],
    ) -> Drifted:
        """The leaf as its cluster is now, with the clusters that are joined to it."""
        cluster = self.seen.seen[index]
        joined = tuple(sorted(i for i, leaf in self.shape.joined.items() if leaf == known.id))
        all_ = [cluster, *(self.seen.seen[i] for i in joined)]
        sessions = sum(part.sessions for part in all_) - self._kept_of(descent)
        why = f"found again with {sessions} sessions ({sessions - known.sessions:+d})"
        if descent:
            why = why_kept(descent, ids)
        centroid = cluster.centroid
        if joined:
            centroid = together([p.centroid for p in all_], [p.sessions for p in all_])
            apart = sum(self.seen.seen[i].sessions for i in joined)
            why += f"; {apart} of its sessions were found apart and stay with it"
        full = self.seen.full
        shown = known.id in self.shape.parts
        return Drifted(
            known.id,
            sessions,
            centroid,
            cluster.kind,
            sum(part.growth_per_day for part in all_),
            cluster.level,
            parent,
            why,
            max(part.newest for part in all_),
            cluster.found.stability if cluster.found else None,
            cluster.found.cohesion if cluster.found else None,
            index,
            joined,
            (known.apart + 1 if known.id in self.shape.apart else 0) if full else known.apart,
            (known.parts + 1 if shown else 0) if full else known.parts,
            sum(part.week for part in all_),
        )

    def _kept_of(self, descent: Descent | None) -> int:
        """Sessions in a leaf's cluster that stay with leaves which were not found today."""
        if descent is None or descent.levels is None or descent.levels[1] == 1:
            return 0
        return sum(share.sessions for share in descent.came if share.place in self.lost)

    def _missed(
        self, leaf: Leaf, descent: Descent | None, ids: Mapping[int, LeafId], standing: Forest
    ) -> Transition:
        """A seed goes after some misses; what was trained stays, and waits to be found again."""
        times = leaf.missed + 1
        where = f": {why_missed(descent, ids)}" if descent else ""
        if leaf.stage is not Stage.SEED:
            return Missed(leaf.id, f"its cluster was not found, {times} running{where}")
        wanted = self.rules.missed_reclusters
        if times >= wanted:
            why = f"its cluster was not found in {times} full re-clusters{where}"
            return Dissolved(leaf.id, why, _below(standing, leaf.id))
        return Missed(leaf.id, f"its cluster was not found ({times} of {wanted}){where}")

    def _revival(self, leaf: Leaf, cluster: Seen) -> Revived | None:
        """Only sessions that came after the archiving count: the old ones went to the parent."""
        fresh = cluster.since(leaf.stage_since)
        if fresh < self.rules.seed_sessions:
            return None
        why = f"{fresh} sessions since it was archived"
        if stays(leaf, self.now, self.rules):
            if cluster.week < self.rules.surge * max(leaf.week, 1):
                return None
            why += f", {cluster.week} in a week that had {leaf.week}"
        return Revived(leaf.id, cluster, why)


def due(
    forest: Forest,
    now: Instant,
    rules: Rules,
    chassis: str | None = None,
    fresh: Mapping[LeafId, int] | None = None,
) -> list[TrainingDue]:
    """Return the leaves to train in this round, by id; at most one training each.

    chassis: tag of the one in force; an adapter of another is set aside and made anew. None: all
    are of this one. fresh: of a leaf's sessions, how many were never its own at any training of
    it; a leaf that is not named has none. None: the number of sessions at the last training stands
    in for it, which is blind to sessions that came while others left.
    """
    out: list[TrainingDue] = []
    for leaf in forest.live():
        if leaf.level == 1:  # a branch is for browsing and as a parent, not for choosing
            continue
        new = leaf.sessions - leaf.sessions_at_training
        if fresh is not None:
            new = fresh.get(leaf.id, 0)
        wanted = _training(leaf, new, now, rules, chassis)
        if wanted:
            out.append(TrainingDue(leaf.id, *wanted))
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
        promoted = _promotion(after, now, rules)
        if promoted:
            out.append(promoted)
        elif (why := _worse(after, now, rules)) is not None:
            out.append(Archived(id_, why, _below(forest, id_)))
    return out


def would_mature(leaf: Leaf, evaluation: Evaluation, rules: Rules) -> bool:
    """True if this evaluation, once it is recorded, is enough for MATURE: DPO is then due.

    leaf: as it is before the training. The evaluation is of the chassis of the leaf's adapter.
    """
    adapter = leaf.adapter or Adapter("", "", "", "", 0)
    trained = Trained(leaf.id, evaluation, adapter, leaf.method, "", "")
    after = with_training(leaf, trained, evaluation.at)
    return _promotion(after, evaluation.at, rules) is not None


def assignment(
    seen: Observations, transitions: Sequence[Transition], after: Forest
) -> dict[str, LeafId]:
    """Give each session to the most specific live leaf whose cluster holds it.

    The sessions of a leaf that was not found stay with it while it lives; those of one that was
    archived go to the pool of the leaf above it, and those of two that merged to the one leaf.
    """
    of: dict[int, LeafId] = {}
    heirs: dict[LeafId, LeafId] = {}
    for transition in transitions:
        match transition:
            case Born(seed, at):
                of[at] = seed.id
            case Drifted(id=id_, joined=joined):
                of.update(dict.fromkeys(joined, id_))
            case Split(children=children, clusters=clusters):
                of.update(zip(clusters, (child.id for child in children), strict=True))
            case Merged(parts, union):
                heirs.update(dict.fromkeys(parts, union.id))
            case _:
                pass
    pool = {leaf.id: _pool(after, leaf.id, heirs) for leaf in after}
    members: dict[str, LeafId] = {}
    for index, cluster in enumerate(seen.seen):  # level 1 comes first: what follows is finer
        known = of.get(index) or cluster.leaf
        holder = pool[known] if known is not None else None
        if holder is not None:
            members.update(dict.fromkeys(cluster.members, holder))
    for session, leaf in seen.kept.items():
        holder = pool[leaf]
        if holder is None:
            continue
        if after.leaves[leaf].stage in (Stage.ARCHIVED, Stage.DISSOLVED):
            members.setdefault(session, holder)  # it may be in another leaf's cluster by now
        else:
            members[session] = holder
    return members


def _pool(forest: Forest, leaf: LeafId | None, heirs: Mapping[LeafId, LeafId]) -> LeafId | None:
    """Who holds the sessions of a leaf: itself, its heir, or the nearest live leaf above."""
    passed: set[LeafId] = set()
    while leaf is not None and leaf not in passed:
        passed.add(leaf)
        known = forest.leaves[leaf]
        if known.stage.live:
            return leaf
        leaf = heirs.get(leaf, known.parent)
    return None


def _below(forest: Forest, leaf: LeafId) -> tuple[LeafId, ...]:
    """The live leaves whose parent this is, by id."""
    return tuple(each.id for each in forest.live() if each.parent == leaf)


def _why_born(cluster: Seen, descent: Descent | None, ids: Mapping[int, LeafId]) -> str:
    why = f"a cluster of {cluster.sessions} sessions without a leaf"
    return f"{why}: {why_new(descent, ids)}" if descent else why


def _dormant(leaf: Leaf, unsure: bool, now: Instant, rules: Rules) -> str | None:
    """Say why a leaf is to be archived, or None.

    A captured session in its region is a prompt that came its way, whoever answered it.
    """
    if leaf.trainings == 0 or _age_days(leaf, now) < rules.dormant_days:
        return None
    if stays(leaf, now, rules):
        return None
    heard = max(leaf.last_routed or 0, leaf.stage_since, leaf.newest or 0)
    quiet_days = (now - heard) // DAY_S
    monthly = leaf.growth_per_day * 30
    if quiet_days >= rules.dormant_days and leaf.used_by == 0:
        return f"not routed to for {quiet_days} days"
    if not unsure and monthly < rules.dormant_sessions_per_month and leaf.used_by == 0:
        return f"{monthly:.0f} new sessions a month, no use by others"
    return _worse(leaf, now, rules)


def _worse(leaf: Leaf, now: Instant, rules: Rules) -> str | None:
    """Say so if too many retrainings running came out surely worse than the version in force."""
    if leaf.regressions < rules.regressions or stays(leaf, now, rules):
        return None
    if _age_days(leaf, now) < rules.dormant_days:
        return None
    return f"{leaf.regressions} sure regressions in a row"


def _training(
    leaf: Leaf, new: int, now: Instant, rules: Rules, chassis: str | None
) -> tuple[Purpose, str] | None:
    """Why a live leaf is to be trained now, if it is. new: sessions since its last training."""
    days = (now - leaf.trained_at) // DAY_S if leaf.trained_at is not None else 0
    since = f"{new} sessions since its last training"
    wanted = training_threshold(leaf.kind, rules)
    alien = chassis is not None and leaf.adapter is not None and leaf.adapter.chassis != chassis
    match leaf.stage:
        case Stage.SEED if leaf.sessions >= wanted:
            return Purpose.FIRST, f"{leaf.sessions} sessions, {wanted} wanted for {leaf.kind}"
        case Stage.SPROUT | Stage.MATURE if alien:
            if leaf.sessions < (rules.child_sessions if leaf.lineage else wanted):
                return None
            return Purpose.CHASSIS, f"its adapter is of another chassis, {leaf.sessions} sessions"
        case Stage.SPROUT if leaf.trained_at is not None and leaf.stage_since > leaf.trained_at:
            return Purpose.REVIVAL, "revived from the archive"
        case Stage.SPROUT if leaf.trainings == 0:
            return Purpose.FIRST, "born of a split or a merge" if leaf.lineage else "has no adapter"
        case Stage.SPROUT if new >= rules.sprout_retrain_sessions:
            return Purpose.RETRAIN, since
        case Stage.MATURE if new >= rules.mature_retrain_sessions:
            return Purpose.RETRAIN, since
        case Stage.MATURE if days >= rules.mature_retrain_days and new > 0:
            return Purpose.RETRAIN, f"{days} days since its last training"
        case _:
            return None


def _trained(leaf: Leaf, outcome: Outcome) -> Trained:
    """A first adapter is kept even if it has not won: its parent serves until one wins."""
    verdict = outcome.evaluation.verdict
    gain = outcome.evaluation.over_style
    first = leaf.adapter is None or leaf.adapter.chassis != outcome.adapter.chassis
    replaces = first or verdict in (Verdict.IMPROVED, Verdict.BETTER)
    return Trained(
        leaf.id,
        outcome.evaluation,
        outcome.adapter if replaces or leaf.adapter is None else leaf.adapter,
        outcome.method if replaces else leaf.method,
        outcome.preference_note,
        f"{verdict}: {gain.mean:+.3f} nats over the style control, lower bound {gain.low:+.3f}, "
        f"on {outcome.evaluation.held_out} held-out sessions",
    )


def _promotion(leaf: Leaf, now: Instant, rules: Rules) -> Promoted | None:
    if leaf.stage is not Stage.SPROUT or leaf.evaluation is None:
        return None
    earned = (
        leaf.trainings >= 2
        and leaf.sessions >= rules.mature_sessions
        and leaf.wins >= rules.mature_wins
        and leaf.evaluation.verdict in (Verdict.IMPROVED, Verdict.HOLDS)
    )
    if not earned or (stays(leaf, now, rules) and not _surged(leaf, now, rules)):
        return None
    won = f"won {leaf.wins} rounds on fresh sessions, last one {leaf.evaluation.verdict}"
    return Promoted(leaf.id, f"{leaf.sessions} sessions, {won}")


def _surged(leaf: Leaf, now: Instant, rules: Rules) -> bool:
    """True if a leaf has many times the sessions that it had a while ago: from none, if young."""
    if 0 <= now - leaf.created < rules.stay_days * DAY_S:  # a clock may have gone back
        return True
    return leaf.sessions >= rules.surge * max(leaf.sessions - leaf.week, 1)


def _age_days(leaf: Leaf, now: Instant) -> int:
    return (now - leaf.created) // DAY_S
