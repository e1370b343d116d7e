"""What the pictures show, gathered from the stores of one home. Reads only.

The texts of prompts are read only if they are asked for: what is not here cannot reach a file.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leaves.model import DAY_S, Forest, Instant, Leaf, LeafId
from leaves.ports import Progress, Report, silent
from node import overview, routing, set_aside
from node.errors import MisuseError, OwnerError
from router.starters import STARTERS

from .growth import WEEK, Event, Growth, Then, events, growth, life
from .marks import Mark, marks
from .projection import SHOWN_MAX, Places, densest, project, sampled
from .tree import SPARK_WEEKS, Standing

if TYPE_CHECKING:
    from node.app import App

TEXT_CHARS = 240  # of a prompt, with --texts
SPARK_SESSIONS_MAX = 200_000  # of more, reading their days would make `tree` slow


class NoSessionsError(OwnerError):
    """There is nothing to draw."""


@dataclass(frozen=True, slots=True)
class Dots:
    """The sessions that are drawn, all parallel, in the order of their ids.

    leaves: the leaf of level 2 or 3 that holds each today. texts: empty unless asked for.
    """

    ids: tuple[str, ...]
    days: tuple[int, ...]
    leaves: tuple[LeafId | None, ...]
    places: Places
    texts: tuple[str, ...]
    method: str
    why: str


@dataclass(frozen=True, slots=True)
class Atlas:
    """Everything that a picture shows. former: leaves that no longer live, by id."""

    made: Instant
    standing: Standing
    former: tuple[Leaf, ...]
    marks: Mapping[LeafId, Mark]
    spots: Mapping[LeafId, tuple[float, float]]  # where a leaf's name goes
    lives: Mapping[LeafId, Sequence[Then]]
    events: tuple[Event, ...]  # oldest first
    growth: Growth
    dots: Dots


def gather(
    app: App, *, sample: int = SHOWN_MAX, texts: bool = False, report: Report = silent
) -> Atlas:
    """Everything for the map of all sessions as they are now; lays at most `sample` of them out."""
    if sample < 1:
        raise MisuseError(f"--sample must be at least 1, not {sample}")
    report(Progress("map: reading", 0, 0))
    embedded = app.embeddings.sound(report)
    if not embedded.ids:
        raise NoSessionsError(
            "there is no session with a vector yet, so there is nothing to draw",
            unchanged="No file was written.",
            next_step="`groove-node import` takes sessions in, and `groove-node round` embeds "
            "them; `groove-node status` says how many there are.",
        )
    forest = app.forests.forest()
    leaf_of = _leaf_of(app, forest)
    rows = sampled(embedded.ids, sample)
    laid = project(np.asarray(embedded.matrix[rows]), report)
    ids = tuple(embedded.ids[row] for row in rows)
    dots = Dots(
        ids,
        tuple(embedded.days[row] for row in rows),
        tuple(leaf_of.get(id_) for id_ in ids),
        laid.places,
        _texts(app, ids) if texts else (),
        laid.method,
        laid.why,
    )
    report(Progress("map: history", 0, 0))
    histories = {leaf.id: app.forests.history(leaf.id) for leaf in forest}
    shown = [leaf.id for leaf in forest.live() if leaf.level > 1]
    changes = [event for leaf in forest if leaf.level > 1 for event in events(histories[leaf.id])]
    return Atlas(
        made=app.now(),
        standing=_standing(app, forest, leaf_of, len(embedded.ids)),
        former=tuple(leaf for leaf in forest if leaf.level > 1 and not leaf.stage.live),
        marks=marks(leaf for leaf in forest if leaf.level > 1),
        spots=_spots(dots),
        lives={id_: life(history) for id_, history in histories.items()},
        events=tuple(sorted(changes, key=lambda event: (event.day, event.leaf))),
        growth=growth(embedded.ids, embedded.days, leaf_of, shown),
        dots=dots,
    )


def standing(app: App, at: str | None = None) -> Standing:
    """What `groove-node tree` tells: of now, or of the end of a day."""
    if at is None:
        forest = app.forests.forest()
        leaf_of = _leaf_of(app, forest)
        return _standing(app, forest, leaf_of, len(app.embeddings), _weekly(app, leaf_of))
    forest, _ = overview.tree(app, at)
    last = datetime.date.fromisoformat(at).toordinal() - datetime.date(1970, 1, 1).toordinal()
    sessions = sum(day <= last for day in app.embeddings.snapshot().days)
    # The journal tells how many sessions a leaf had, not which. Parts are counted in their whole.
    live = {leaf.id: leaf for leaf in forest.live()}
    whole = [
        leaf
        for leaf in live.values()
        if leaf.level > 1
        and (leaf.parent is None or leaf.parent not in live or live[leaf.parent].level == 1)
    ]
    assigned = sum(leaf.sessions for leaf in whole)
    return Standing(forest, app.config.rules, sessions, max(sessions - assigned, 0))


def _standing(
    app: App,
    forest: Forest,
    leaf_of: Mapping[str, LeafId],
    sessions: int,
    weekly: Mapping[LeafId, Sequence[int]] | None = None,
) -> Standing:
    table = app.tables.load_sound()
    entries = table.entries if table else ()
    starters = [entry.name.removesuffix("-starter") for entry in entries if entry.system]
    if table is None and not forest.leaves:  # nothing was ever routed: they will be the first
        starters = [starter.key for starter in STARTERS]
    return Standing(
        forest,
        app.config.rules,
        sessions,
        max(sessions - len(leaf_of), 0),
        tuple(app.foreign.all()),
        tuple(starters),
        routing.gates_in_force(app),
        weekly or {},
        app.allows("train"),
        set_aside.tag(app),
    )


def _leaf_of(app: App, forest: Forest) -> dict[str, LeafId]:
    """The live leaf of each session; a branch is none, for it is there for browsing alone."""
    fine = {leaf.id for leaf in forest.live() if leaf.level > 1}
    assigned = app.forests.assignment()
    return {session: leaf for session, leaf in assigned.items() if leaf in fine}


def _weekly(app: App, leaf_of: Mapping[str, LeafId]) -> dict[LeafId, list[int]]:
    """Sessions of each leaf in each of the last weeks, oldest first."""
    if not 0 < len(app.embeddings) <= SPARK_SESSIONS_MAX:
        return {}
    today = app.now() // DAY_S
    counts: Counter[tuple[LeafId, int]] = Counter()
    for session, day in app.embeddings.days().items():
        week = (today - day) // WEEK
        if session in leaf_of and 0 <= week < SPARK_WEEKS:
            counts[leaf_of[session], week] += 1
    weeks = range(SPARK_WEEKS - 1, -1, -1)
    return {leaf: [counts[leaf, week] for week in weeks] for leaf, _ in counts}


def _texts(app: App, ids: Sequence[str]) -> tuple[str, ...]:
    """The beginning of each prompt, as it was scrubbed; nothing for one that is gone."""
    sessions = app.sessions()
    prompts = (sessions[id_].prompt if id_ in sessions else "" for id_ in ids)
    return tuple(" ".join(prompt[: 4 * TEXT_CHARS].split())[:TEXT_CHARS] for prompt in prompts)


def _spots(dots: Dots) -> dict[LeafId, tuple[float, float]]:
    members: dict[LeafId, list[int]] = {}
    for row, leaf in enumerate(dots.leaves):
        if leaf is not None:
            members.setdefault(leaf, []).append(row)
    return {leaf: densest(dots.places[rows]) for leaf, rows in members.items()}
