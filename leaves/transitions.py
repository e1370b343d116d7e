"""What can happen to a leaf: the transitions, which of them are legal, and how each is carried out.

`LEGAL` is the whole of it as data: from which stage, by which transition, to which stage, and when.
`apply` refuses whatever is not in it, and the diagram in docs/lifecycle.md is drawn from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import assert_never

from . import looks
from .model import (
    HOLDS_LOW_MIN,
    Adapter,
    Evaluation,
    Forest,
    Instant,
    Kind,
    Leaf,
    LeafId,
    Looking,
    Stage,
    Vector,
    Verdict,
)
from .observe import Seen


class LifecycleError(Exception):
    """A transition that a leaf in its stage cannot make."""


@dataclass(frozen=True, slots=True)
class Born:
    """A cluster without a leaf became a SEED. cluster: its index in the observations."""

    leaf: Leaf
    cluster: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drifted:
    """A known leaf was found again: its sessions, centroid and place as they are now.

    joined: indexes of clusters in the observations that are this leaf too, though found apart.
    apart, parts: full looks in a row in which clusters beside its own had most of their sessions
    from it, and in which its own had parts.
    """

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
    cluster: int | None = None
    joined: tuple[int, ...] = ()
    apart: int = 0
    parts: int = 0
    week: int = 0


@dataclass(frozen=True, slots=True)
class Missed:
    """A full re-cluster did not find this leaf."""

    id: LeafId
    reason: str


@dataclass(frozen=True, slots=True)
class Dissolved:
    """A seed's cluster went away. children: leaves that stood below it and go to its parent."""

    id: LeafId
    reason: str
    children: tuple[LeafId, ...] = ()


@dataclass(frozen=True, slots=True)
class Archived:
    """Out of the router; its sessions go to the parent's pool, its bundle is kept.

    children: leaves that stood below it and go to its parent.
    """

    id: LeafId
    reason: str
    children: tuple[LeafId, ...] = ()


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
    """Children born SPROUT from parts of a leaf, which stays as their fallback.

    clusters: indexes of the children's clusters in the observations. parts: how many parts the
    leaf has with them, those that were children before included.
    """

    id: LeafId
    children: tuple[Leaf, ...]
    reason: str
    clusters: tuple[int, ...] = ()
    parts: int = 0


@dataclass(frozen=True, slots=True)
class Merged:
    """Two leaves became one, of new id. children: leaves below the two, which go to the new one."""

    parts: tuple[LeafId, LeafId]
    leaf: Leaf
    reason: str
    children: tuple[LeafId, ...] = ()


@dataclass(frozen=True, slots=True)
class Proposed:
    """A split or a merge that waits for the owner's word. The forest stays as it is.

    The ids of what would be born are those of today: by the day of the word others may be given.
    """

    change: Split | Merged
    reason: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Sessions that a leaf was trained on are gone, and so is its adapter.

    ended: the leaf goes with it, for others may hold the adapter under its id.
    """

    id: LeafId
    ended: bool
    reason: str


Transition = (
    Born
    | Drifted
    | Missed
    | Dissolved
    | Archived
    | Revived
    | Trained
    | Promoted
    | Split
    | Merged
    | Proposed
    | Withdrawn
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the owner said to a proposal, and how large it was then.

    A change of another size is another question: sessions and parts are those of the proposal
    that was shown (`size_of`). With 0 the answer holds for whatever size.
    """

    yes: bool
    sessions: int = 0
    parts: int = 0


ChangeKey = tuple[str, tuple[LeafId, ...]]  # ("split", its leaf) or ("merge", two ids ascending)
Approvals = Mapping[ChangeKey, Answer]
NO_APPROVALS: Approvals = MappingProxyType({})


def key_of(change: Split | Merged) -> ChangeKey:
    """What an answer to a proposal is kept under."""
    match change:
        case Split(id_):
            return "split", (id_,)
        case Merged(parts):
            return "merge", tuple(sorted(parts))


def size_of(change: Split | Merged) -> tuple[int, int]:
    """How many sessions a change concerns, and in how many parts."""
    match change:
        case Split(children=children, parts=parts):
            return sum(child.sessions for child in children), parts
        case Merged(leaf=leaf):
            return leaf.sessions, 2


def kind_of(transition: Transition) -> str:
    """The word for a transition in the journal and in `LEGAL`."""
    return type(transition).__name__.lower()


def ids_of(transition: Transition) -> Sequence[LeafId]:
    """The leaves that a transition changes or creates; of a proposal, those that it would end."""
    match transition:
        case Born(leaf):
            return [leaf.id]
        case Split(id_, children):
            return [id_, *(child.id for child in children)]
        case Merged(parts, leaf, _, children):
            return [leaf.id, *parts, *children]
        case Archived(id_, _, children) | Dissolved(id_, _, children):
            return [id_, *children]
        case Proposed(change):
            return [change.id] if isinstance(change, Split) else list(change.parts)
        case _:
            return [transition.id]


@dataclass(frozen=True, slots=True)
class Arrow:
    """One legal change. source: None is birth. when: in words; {names} are of `Rules`."""

    source: Stage | None
    kind: str
    to: Stage
    when: str


def _each(sources: Iterable[Stage], kind: str, to: Stage | None, when: str) -> list[Arrow]:
    """One arrow from each stage; without `to` it leads back to where it came from."""
    return [Arrow(source, kind, to or source, when) for source in sources]


_LIVE = (Stage.SEED, Stage.SPROUT, Stage.MATURE)
_TRAINED = (Stage.SPROUT, Stage.MATURE)

LEGAL: tuple[Arrow, ...] = (
    Arrow(
        None,
        "born",
        Stage.SEED,
        "a cluster of at least {seed_sessions} sessions is no leaf yet; if most of them are of a "
        "live leaf, once it was found apart in {part_looks} full looks running, and never while it "
        "would merge with that leaf again",
    ),
    Arrow(
        None,
        "split",
        Stage.SPROUT,
        "as a part of a MATURE leaf: at least {child_sessions} sessions, cosine to each other part "
        "at most {split_cosine}",
    ),
    Arrow(None, "merged", Stage.SPROUT, "of two leaves that have its kind's sessions together"),
    Arrow(None, "merged", Stage.SEED, "of two leaves that have not"),
    *_each(_LIVE, "drifted", None, "its cluster was found: sessions, centroid and place are new"),
    *_each(
        _LIVE,
        "missed",
        None,
        "a full look did not find its cluster; a seed bears it {missed_reclusters} times",
    ),
    Arrow(
        Stage.SEED,
        "dissolved",
        Stage.DISSOLVED,
        "its cluster was not found in {missed_reclusters} full looks running",
    ),
    Arrow(
        Stage.SEED,
        "trained",
        Stage.SPROUT,
        "{skill_sessions} sessions (skill) or {reasoning_sessions} (reasoning)",
    ),
    Arrow(
        Stage.SPROUT,
        "trained",
        Stage.SPROUT,
        "{sprout_retrain_sessions} sessions since its last training; or not trained since it was "
        "split off, merged or revived; or its adapter is of another chassis",
    ),
    Arrow(
        Stage.SPROUT,
        "promoted",
        Stage.MATURE,
        "{mature_wins} rounds won on fresh sessions, {mature_sessions} sessions, the last round "
        "IMPROVED or HOLDS, and {stay_days} days a sprout unless it is younger than that or has "
        "grown {surge:.0f}-fold in them",
    ),
    Arrow(
        Stage.MATURE,
        "trained",
        Stage.MATURE,
        "{mature_retrain_sessions} sessions since its last training, or {mature_retrain_days} days "
        "and any new ones",
    ),
    Arrow(
        Stage.MATURE,
        "trained",
        Stage.SPROUT,
        "on another chassis than before: it has not won there",
    ),
    Arrow(
        Stage.MATURE,
        "split",
        Stage.MATURE,
        "two parts or more showed in {part_looks} full looks running; it stays as their fallback",
    ),
    *_each(
        _LIVE,
        "merged",
        Stage.MERGED,
        "centroid cosine above {merge_cosine} and fewer than {merge_sessions} sessions together",
    ),
    *_each(
        _TRAINED,
        "archived",
        Stage.ARCHIVED,
        "{dormant_days} days old, and no session of it for {dormant_days} days; or fewer than "
        "{dormant_sessions_per_month} a month and no use by others; or {regressions} REGRESSED "
        "with none better or as good between them, each with the upper bound of its gain below "
        f"{HOLDS_LOW_MIN}",
    ),
    Arrow(
        Stage.ARCHIVED,
        "revived",
        Stage.SPROUT,
        "{seed_sessions} sessions newer than its archiving; within {stay_days} days of it only if "
        "a week has {surge:.0f} times as many as the one before it had",
    ),
    *_each(
        (Stage.SEED, Stage.SPROUT, Stage.MATURE, Stage.ARCHIVED, Stage.MERGED),
        "withdrawn",
        Stage.DISSOLVED,
        "its texts are deleted, and others may hold what was made of them under its id",
    ),
    *_each(
        (Stage.SEED, Stage.SPROUT, Stage.ARCHIVED, Stage.MERGED, Stage.DISSOLVED),
        "withdrawn",
        None,
        "its texts are deleted: it loses its adapter and keeps its id",
    ),
    Arrow(
        Stage.MATURE,
        "withdrawn",
        Stage.SPROUT,
        "its texts are deleted: it loses its adapter, and has won nothing without it",
    ),
)
_ARROWS = frozenset((arrow.source, arrow.kind, arrow.to) for arrow in LEGAL)


def apply(forest: Forest, transition: Transition, now: Instant) -> Forest:
    """Return the forest after one transition. What others may see raises a leaf's version.

    Raises LifecycleError for what `LEGAL` does not contain, and for an id that was given before.
    """
    return apply_all(forest, [transition], now)


def apply_all(forest: Forest, transitions: Iterable[Transition], now: Instant) -> Forest:
    """Return the forest after all of them, in order; the forest is copied once, not once each."""
    work = _Work(dict(forest.leaves), now, forest.births)
    for transition in transitions:
        work.carry_out(transition)
    return Forest(work.leaves, work.births, forest.origin)


@dataclass(slots=True)
class _Work:
    """A forest while transitions are carried out on it."""

    leaves: dict[LeafId, Leaf]
    now: Instant
    births: int

    def carry_out(self, transition: Transition) -> None:
        kind = kind_of(transition)
        match transition:
            case Born(leaf):
                self._bear(leaf, kind)
            case Drifted(id=id_):
                self._change(id_, kind, lambda leaf: _drifted(leaf, transition))
            case Missed(id_):
                self._change(id_, kind, lambda leaf: replace(leaf, missed=leaf.missed + 1))
            case Dissolved(id_, _, children):
                self._hand_up(children, self.leaves[id_].parent)
                self._change(id_, kind, self._to(Stage.DISSOLVED))
            case Archived(id_, _, children):
                self._hand_up(children, self.leaves[id_].parent)
                self._change(id_, kind, self._to(Stage.ARCHIVED))
            case Revived(id_, seen):
                self._change(id_, kind, lambda leaf: _revived(self._at(leaf, Stage.SPROUT), seen))
            case Trained(id=id_):
                self._change(id_, kind, lambda leaf: with_training(leaf, transition, self.now))
            case Promoted(id_):
                self._change(id_, kind, self._promoted)
            case Split(id_, born):
                self._change(id_, kind, lambda leaf: leaf)
                for child in born:
                    self._bear(child, kind)
            case Merged(parts, leaf, _, children):
                for part in parts:
                    self._change(part, kind, self._to(Stage.MERGED))
                self._bear(leaf, kind)
                self._hand_up(children, leaf.id)
            case Withdrawn(id_, ended):
                self._change(id_, kind, lambda leaf: self._bare(leaf, ended))
            case Proposed():
                pass
            case _:
                assert_never(transition)

    def _bear(self, leaf: Leaf, kind: str) -> None:
        if leaf.id in self.leaves:
            raise LifecycleError(f"leaf {leaf.id} cannot be born: there was one of this id")
        _check(None, kind, leaf)
        self.leaves[leaf.id] = leaf
        self.births += 1

    def _change(self, id_: LeafId, kind: str, how: Callable[[Leaf], Leaf]) -> None:
        before = self.leaves[id_]
        after = how(before)
        _check(before.stage, kind, after)
        self.leaves[id_] = after

    def _hand_up(self, children: Iterable[LeafId], parent: LeafId | None) -> None:
        for child in children:
            leaf = self.leaves[child]
            self.leaves[child] = replace(leaf, parent=parent, version=leaf.version + 1)

    def _at(self, leaf: Leaf, stage: Stage) -> Leaf:
        return replace(leaf, stage=stage, stage_since=self.now, version=leaf.version + 1)

    def _to(self, stage: Stage) -> Callable[[Leaf], Leaf]:
        return lambda leaf: self._at(leaf, stage)

    def _promoted(self, leaf: Leaf) -> Leaf:
        return replace(self._at(leaf, Stage.MATURE), gate=0.0, matured_at=self.now)

    def _bare(self, leaf: Leaf, ended: bool) -> Leaf:
        """Without what was made of its sessions. Looks that were taken at it stay counted."""
        stage = Stage.SPROUT if leaf.stage is Stage.MATURE else leaf.stage
        stage = Stage.DISSOLVED if ended else stage
        bare = replace(leaf.untrained(), stage=stage, version=leaf.version + 1)
        return bare if stage is leaf.stage else replace(bare, stage_since=self.now)


def _check(source: Stage | None, kind: str, leaf: Leaf) -> None:
    if (source, kind, leaf.stage) not in _ARROWS:
        was = source.value if source else "no leaf"
        raise LifecycleError(f"leaf {leaf.id}: {kind} does not lead from {was} to {leaf.stage}")


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
        cluster=to.cluster,
        apart=to.apart,
        parts=to.parts,
        week=to.week,
        version=leaf.version + int(changed),
    )


def _revived(leaf: Leaf, seen: Seen) -> Leaf:
    return replace(
        leaf,
        centroid=seen.centroid,
        sessions=seen.sessions,
        growth_per_day=seen.growth_per_day,
        newest=seen.newest,
        week=seen.week,
        parent=None if isinstance(seen.parent, int) else seen.parent,
        regressions=0,
        missed=0,
    )


def with_training(leaf: Leaf, trained: Trained, now: Instant) -> Leaf:
    """Return a leaf after a training.

    One that was judged on too few sessions neither wins nor regresses, and is no look. A regression
    that may be chance neither counts nor makes those before it forgotten. On another
    chassis the count begins anew: wins, regressions and looks of the old one were of weights that
    nobody can load any more, and say nothing of these.
    """
    verdict = trained.evaluation.verdict
    chassis, attempt = trained.adapter.chassis, trained.evaluation.attempt
    moved = looks.moved(leaf, chassis)
    stage = Stage.SPROUT if leaf.stage is Stage.SEED or moved else leaf.stage
    judged = stage is Stage.SPROUT and verdict is not Verdict.TOO_FEW
    preference = trained.evaluation.preference
    preferred = preference is not None and preference.verdict is not Verdict.TOO_FEW
    number = preference.attempt if preference is not None else 0
    return replace(
        leaf,
        stage=stage,
        stage_since=now if stage is not leaf.stage else leaf.stage_since,
        trainings=leaf.trainings + 1,
        first_trained=leaf.first_trained if leaf.first_trained is not None else now,
        trained_at=now,
        sessions_at_training=leaf.sessions,
        wins=(0 if moved else leaf.wins) + int(trained.evaluation.won),
        attempts=looks.after(leaf, Looking.ADAPTER, chassis, attempt, judged=judged),
        preference_looks=looks.after(leaf, Looking.PREFERENCE, chassis, number, judged=preferred),
        looked=(),
        regressions=0 if moved else _regressions(leaf.regressions, trained.evaluation),
        adapter=trained.adapter,
        method=trained.method,
        note=trained.note,
        evaluation=trained.evaluation,
        version=leaf.version + 1,
    )


def _regressions(before: int, evaluation: Evaluation) -> int:
    """How many sure regressions there were since a version was last as good as the one before."""
    if evaluation.surely_worse:
        return before + 1
    return before if evaluation.verdict is Verdict.REGRESSED else 0
