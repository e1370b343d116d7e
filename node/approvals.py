"""The owner's word on splits and merges: what waits, what it would do to routing, the answer.

A proposal is shown by replaying the last sessions through two tables that are built alike: of the
leaves as they are, and as they would be. Nothing is put in force by looking, and nothing of a
session is kept with a proposal: whose part a session would be in is told by its vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from leaves.descent import named
from leaves.embeddings import Snapshot
from leaves.lifecycle import LifecycleError, Merged, Split, apply
from leaves.model import Forest, Leaf, LeafId, Matrix, leaf_id
from leaves.proposals import Change, Proposal
from router.table import Route, Table

from . import deploying, show, transition
from .errors import MisuseError, OwnerError

if TYPE_CHECKING:
    from .app import App

NOWHERE = "no leaf"
_WAITS = "waits for your word: "  # how the lifecycle begins the reason of a proposal


class NoProposalError(OwnerError):
    """There is no such proposal."""


@dataclass(frozen=True, slots=True)
class Shift:
    """The sessions of the replay that go to one leaf, now and after the change."""

    leaf: str  # its name; NOWHERE for what no leaf takes
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What a change would do to the routing of the last sessions.

    changed: sessions that would go to another leaf. score_before, score_after: of these, the mean
    of what the router holds against the gate, 0 to 1; sessions that no leaf takes count too.
    """

    sessions: int
    changed: int
    score_before: float
    score_after: float
    shifts: tuple[Shift, ...]


def listed(app: App) -> list[dict[str, Any]]:
    """What waits for an answer, or was answered and has not been carried out."""
    forest = app.forests.forest()
    return [as_json(proposal, forest) for proposal in app.forests.proposals.current()]


def as_json(proposal: Proposal, forest: Forest) -> dict[str, Any]:
    return {
        "id": proposal.id,
        "kind": proposal.kind,
        "leaves": [_name(forest, leaf) for leaf in proposal.leaves],
        "leaf_ids": list(proposal.leaves),
        "reason": named(proposal.reason.removeprefix(_WAITS), forest),
        "since": show.moment(proposal.at),
        "round": proposal.round,
        "answer": None if proposal.yes is None else ("yes" if proposal.yes else "no"),
        "answered": show.moment(proposal.answered) if proposal.answered is not None else None,
        "stands": stands(proposal),
    }


def stands(proposal: Proposal) -> str:
    """How a proposal stands, in words."""
    if proposal.yes is None:
        return "waits for you"
    if proposal.yes:
        return "approved: the next round carries it out if it still holds"
    return "refused: asked again only when it has clearly changed"


def find(app: App, name: str) -> Proposal:
    """The proposal of this number, or the one about a leaf of this name, id or start of an id."""
    forest, current = app.forests.forest(), app.forests.proposals.current()
    found = [each for each in current if str(each.id) == name]
    found = found or [
        each
        for each in current
        if any(
            name in (leaf, _name(forest, leaf)) or (len(name) >= 4 and leaf.startswith(name))
            for leaf in each.leaves
        )
    ]
    if len(found) == 1:
        return found[0]
    what = (
        f"no proposal has the number or the leaf {name!r}"
        if not found
        else f"{len(found)} proposals are about {name!r}"
    )
    raise NoProposalError(
        what,
        unchanged="Nothing was answered.",
        next_step="`groove-node approve` lists what waits, with a number for each.",
    )


def answer(app: App, proposal: Proposal, yes: bool) -> Proposal:
    """Keep the owner's word; the next round acts on it. Raises MisuseError if it came too late."""
    app.forests.proposals.answer(proposal.id, yes, app.now())
    kept = next(each for each in app.forests.proposals.all() if each.id == proposal.id)
    if kept.ended is not None:  # by a round, while the owner was reading
        raise MisuseError(
            f"the {kept.kind} {kept.ended}: a round came in between",
            unchanged="Nothing was answered.",
            next_step="`groove-node approve` lists what waits now.",
        )
    return kept


def effect(app: App, proposal: Proposal) -> Effect | str:
    """What a proposal would do to routing; or, in words, why that cannot be told."""
    if proposal.change is None:
        return "sessions that it was made of are deleted; the next round looks at it anew"
    embedded, forest = app.embeddings.snapshot(), app.forests.forest()
    if not len(embedded.ids):
        return "no sessions are embedded to replay"
    change = renumbered(proposal.change, forest)
    try:
        after = apply(forest, change, app.now())
    except (LifecycleError, KeyError):
        return "its leaves are not what they were; the next round looks at it anew"
    assigned = app.forests.assignment()
    old = deploying.table_of(app, forest, embedded, assigned)
    new = deploying.table_of(app, after, embedded, _moved(change, forest, embedded, assigned))
    last = embedded.matrix[transition.last_rows(embedded, app.config.rules.replay_sessions)]
    return compared(old, new, last, {leaf.id: leaf.name for leaf in after})


def renumbered(change: Change, forest: Forest) -> Change:
    """The change with the ids that it would give today: others may have been born since."""
    match change:
        case Split():
            children = tuple(
                replace(child, id=leaf_id(forest.origin, forest.births + at))
                for at, child in enumerate(change.children)
            )
            return replace(change, children=children)
        case Merged():
            return replace(
                change, leaf=replace(change.leaf, id=leaf_id(forest.origin, forest.births))
            )


def compared(old: Table, new: Table, vectors: Matrix, names: Mapping[LeafId, str]) -> Effect:
    """Route sessions through both tables. vectors: one row each, unit length."""
    before = [old.route(vector) for vector in vectors]
    after = [new.route(vector) for vector in vectors]
    pairs = list(zip(before, after, strict=True))
    changed = [(was, now) for was, now in pairs if _leaf(was) != _leaf(now)]
    counts = Counter(map(_leaf, before)), Counter(map(_leaf, after))
    shifts = [
        Shift(names.get(leaf, leaf[:8]) if leaf else NOWHERE, counts[0][leaf], counts[1][leaf])
        for leaf in counts[0].keys() | counts[1].keys()
        if leaf is None or counts[0][leaf] != counts[1][leaf]
    ]
    shifts.sort(key=lambda shift: (shift.leaf == NOWHERE, -shift.before, -shift.after, shift.leaf))
    return Effect(
        len(pairs),
        len(changed),
        _mean([was.score for was, _ in changed]),
        _mean([now.score for _, now in changed]),
        tuple(shifts),
    )


def told(found: Effect) -> str:
    """The effect in one line."""
    line = f"of the last {found.sessions:,} sessions {found.changed:,} would change their leaf"
    if found.changed:
        line += (
            f"; the router's score for these: {found.score_before:.2f} now, "
            f"{found.score_after:.2f} then"
        )
    return line


def _leaf(route: Route) -> LeafId | None:
    return route.leaf.leaf if route.leaf is not None else None


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0


def _moved(
    change: Change, forest: Forest, embedded: Snapshot, assigned: Mapping[str, LeafId]
) -> dict[str, LeafId]:
    """Whose each session would be: of a split, the part's that is nearer than the leaf itself."""
    match change:
        case Merged(parts=parts, leaf=leaf):
            return {s: leaf.id if old in parts else old for s, old in assigned.items()}
        case Split(id=id_, children=children):
            rows = [row for row, s in enumerate(embedded.ids) if assigned.get(s) == id_]
            choices: list[Leaf] = [*children, forest.leaves[id_]]
            centroids = np.stack([leaf.centroid for leaf in choices])
            nearest = (embedded.matrix[rows] @ centroids.T).argmax(axis=1)
            moved = {
                embedded.ids[row]: choices[at].id
                for row, at in zip(rows, nearest.tolist(), strict=True)
            }
            return {**assigned, **moved}


def _name(forest: Forest, leaf: LeafId) -> str:
    return forest.leaves[leaf].name if leaf in forest.leaves else leaf[:8]
