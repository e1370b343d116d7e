"""The forest of a past day: what changed since, and the way back to it.

Going back is a change like any other: each leaf gets a new entry in its history, nothing is
unwritten, no id is given twice. What cannot come back stays gone, and is said: what was made of
sessions that were deleted since, adapters that are gone, leaves that were retracted from the mesh.
The next round decides anew by what the sessions show; with `approve = "ask"` it asks first.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from leaves.embeddings import Snapshot
from leaves.incremental import takers
from leaves.model import DAY_S, Forest, Instant, Leaf, LeafId, Stage

from .errors import MisuseError, OwnerError

if TYPE_CHECKING:
    from .app import App


class OpenRoundError(OwnerError):
    """A round was begun and not finished."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One leaf that is not the same in two forests."""

    leaf: LeafId
    name: str
    what: str  # "appeared", "went", "changed stage", "grew" or "shrank"
    before: str
    after: str
    sessions: int  # more than before

    def row(self) -> tuple[str, ...]:
        return self.name, self.what, self.before, self.after, f"{self.sessions:+,}"


@dataclass(frozen=True, slots=True)
class Restoration:
    """What going back to a day comes to.

    leaves: as they will be, with the reason of each. kept_out: what of the day does not come back,
    in words.
    """

    leaves: dict[LeafId, tuple[Leaf, str]]
    forest: Forest
    kept_out: list[str] = field(default_factory=list)


def day_end(text: str) -> Instant:
    """The last second of a day, UTC."""
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        raise MisuseError(f"{text!r} is no date; expected one like 2026-11-22, in UTC") from None
    end = datetime.datetime.combine(day, datetime.time.max, datetime.UTC)
    return Instant(int(end.timestamp()))


def past_day(app: App, text: str) -> Instant:
    """The last second of a day that has come; raises MisuseError."""
    end = day_end(text)
    if end - app.now() >= DAY_S:
        raise MisuseError(
            f"{text} is still to come; today is {_day(app.now())}, in UTC",
            unchanged="Nothing was changed.",
            next_step="`groove-node tree --at DATE` shows the forest of a past day.",
        )
    return end


def _day(at: Instant) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).date().isoformat()


def differences(before: Forest, after: Forest) -> list[Difference]:
    """What happened between two forests, the largest changes first; ended leaves count as gone."""
    out = []
    for id_ in sorted(before.leaves.keys() | after.leaves.keys()):
        was, now = before.leaves.get(id_), after.leaves.get(id_)
        leaf = now or was
        assert leaf is not None
        had = was.sessions if was is not None and was.stage.live else 0
        has = now.sessions if now is not None and now.stage.live else 0
        what = _what(was, now)
        if what:
            out.append(Difference(id_, leaf.name, what, _stood(was), _stood(now), has - had))
    order = ("appeared", "went", "changed stage", "grew", "shrank")
    return sorted(out, key=lambda x: (order.index(x.what), -abs(x.sessions), x.name, x.leaf))


def _what(was: Leaf | None, now: Leaf | None) -> str:
    lived, lives = was is not None and was.stage.live, now is not None and now.stage.live
    if lived != lives:
        return "appeared" if lives else "went"
    if was is None or now is None or not lives:
        return ""
    if was.stage is not now.stage:
        return "changed stage"
    if was.sessions == now.sessions:
        return ""
    return "grew" if now.sessions > was.sessions else "shrank"


def _stood(leaf: Leaf | None) -> str:
    if leaf is None:
        return "-"
    return f"{leaf.stage}, {leaf.sessions:,}" if leaf.stage.live else leaf.stage.value


def restored(
    past: Forest,
    now_is: Forest,
    day: str,
    now: Instant,
    held: Callable[[str], bool],
    withdrawn: Container[LeafId] = (),
) -> Restoration:
    """What every leaf of now becomes for the forest to be as it was. Pure.

    held: whether a bundle is still here. withdrawn: leaves that sessions were deleted of since:
    their size and their centroid of that day are made of these too, so they stay as they are.
    What is of the world and not of the tree stays as it is today: names, when a leaf was last
    routed to, who uses it; and how often it was judged, for a leaf must not win by being tried
    again and again.
    """
    leaves: dict[LeafId, tuple[Leaf, str]] = {}
    kept_out: list[str] = []
    for leaf in now_is:
        was = past.leaves.get(leaf.id)
        if was is None:
            if leaf.stage.live:
                ended = _ended(leaf, now)
                leaves[leaf.id] = ended, f"it was not there on {day}"
            continue
        if leaf.id in withdrawn:
            if was.stage.live:
                kept_out.append(
                    f"{leaf.name}: sessions that it was made of were deleted since; it stays "
                    f"{leaf.stage}"
                )
            continue
        back = _back(was, leaf, now)
        if was.adapter is not None and not held(was.adapter.bundle):
            back = _bare(back, now)
            kept_out.append(
                f"{leaf.name}: its adapter of that day is gone; it comes back as a "
                f"{back.stage} and is trained anew"
                if back.stage.live
                else f"{leaf.name}: its adapter of that day is gone"
            )
        if back != replace(leaf, version=back.version):
            leaves[leaf.id] = back, f"as it was on {day}"
    after = {**now_is.leaves, **{id_: leaf for id_, (leaf, _) in leaves.items()}}
    for id_, (_, reason) in sorted(leaves.items()):
        if _above_itself(after, id_):
            after[id_] = _placed_as_now(after, now_is.leaves[id_])
            leaves[id_] = after[id_], reason
            name = after[id_].name
            kept_out.append(f"{name}: what it was below is below it now; it stays where it is")
    return Restoration(leaves, Forest(after, now_is.births, now_is.origin), kept_out)


def _above_itself(leaves: Mapping[LeafId, Leaf], leaf: LeafId) -> bool:
    """True if the way up from a leaf leads back to it.

    So it may when only one of two comes back that have changed places since.
    """
    passed: set[LeafId] = set()
    at = leaves[leaf].parent
    while at is not None and at in leaves and at not in passed and at != leaf:
        passed.add(at)
        at = leaves[at].parent
    return at == leaf


def _placed_as_now(leaves: Mapping[LeafId, Leaf], now_is: Leaf) -> Leaf:
    """A restored leaf where it stands today; on top, if what came back closes a ring there too."""
    placed = replace(leaves[now_is.id], parent=now_is.parent, level=now_is.level)
    ring = _above_itself({**leaves, placed.id: placed}, placed.id)
    return replace(placed, parent=None) if ring else placed


def _ended(leaf: Leaf, now: Instant) -> Leaf:
    """Born since: a seed goes, and what was trained waits in the archive with its bundle."""
    stage = Stage.DISSOLVED if leaf.adapter is None else Stage.ARCHIVED
    return replace(leaf, stage=stage, stage_since=now, version=leaf.version + 1)


def _back(was: Leaf, leaf: Leaf, now: Instant) -> Leaf:
    """A leaf as it was. It is in its stage since it came to it last, be it by this."""
    return replace(
        was,
        name=leaf.name,
        named_by_owner=leaf.named_by_owner,
        last_routed=leaf.last_routed,
        used_by=leaf.used_by,
        newest=leaf.newest,
        attempts=max(was.attempts, leaf.attempts),
        preference_looks=max(was.preference_looks, leaf.preference_looks),
        stage_since=leaf.stage_since if was.stage is leaf.stage else now,
        version=leaf.version + 1,
    )


def _bare(leaf: Leaf, now: Instant) -> Leaf:
    """Without an adapter a leaf is a seed, whatever it was."""
    stage = Stage.SEED if leaf.stage.live else leaf.stage
    since = leaf.stage_since if stage is leaf.stage else now
    note = "its adapter was gone when it was restored"
    return replace(leaf.untrained(), stage=stage, stage_since=since, note=note)


def members_after(
    forest: Forest, embedded: Snapshot, assigned: Mapping[str, LeafId]
) -> dict[str, LeafId]:
    """Whose the sessions are in a restored forest.

    A session stays with its leaf while that lives. Those of an ended leaf go to the leaf that it
    came from or that came of it, the nearest of these; where there is none, to no leaf until the
    next round looks at them.
    """
    heirs = _heirs(forest)
    members = {s: leaf for s, leaf in assigned.items() if forest.leaves[leaf].stage.live}
    rows: dict[LeafId, list[int]] = {}
    for row, session in enumerate(embedded.ids):
        leaf = assigned.get(session)
        if leaf is not None and session not in members and heirs.get(leaf):
            rows.setdefault(leaf, []).append(row)
    for leaf, mine in sorted(rows.items()):
        choices = sorted(heirs[leaf])
        centroids = np.stack([forest.leaves[choice].centroid for choice in choices])
        nearest = (embedded.matrix[mine] @ centroids.T).argmax(axis=1)
        members |= {
            embedded.ids[row]: choices[at] for row, at in zip(mine, nearest.tolist(), strict=True)
        }
    return members


def _heirs(forest: Forest) -> dict[LeafId, set[LeafId]]:
    """For each ended leaf the living ones that are its kin by split, merge or place."""
    living = {leaf.id for leaf in takers(forest)}
    heirs: dict[LeafId, set[LeafId]] = {}
    for leaf in forest:
        for old in leaf.lineage:
            if leaf.id in living:
                heirs.setdefault(old, set()).add(leaf.id)
            if old in living:
                heirs.setdefault(leaf.id, set()).add(old)
    for leaf in forest:
        if leaf.id not in living and leaf.parent in living and leaf.parent is not None:
            heirs.setdefault(leaf.id, set()).add(leaf.parent)
    return heirs


def plan(app: App, day: str) -> Restoration:
    """What `restore` would do, told beforehand. Raises OwnerError if it cannot be done now."""
    end = past_day(app, day)
    _no_open_round(app)
    past, forest = app.forests.forest_at(end), app.forests.forest()
    if not past.leaves:
        raise MisuseError(
            f"there were no leaves yet on {day}",
            unchanged="Nothing was restored.",
            next_step="`groove-node tree --at DATE` shows the forest of a day.",
        )
    unrecorded = set[str]().union(*(app.forests.unrecorded(leaf.id) for leaf in forest))
    found = restored(
        past,
        forest,
        day,
        app.now(),
        lambda root: root not in unrecorded and app.bundles.path(root) is not None,
        app.forests.changed_since(end, "withdrawn"),
    )
    found.kept_out.extend(_retracted(app, found))
    return found


def restore(app: App, day: str) -> Restoration:
    """Have the forest be as it was at the end of a day; the routing table follows."""
    with app.lock("round", "a round is running, and it works on what is to be changed"):
        found = plan(app, day)
        if found.leaves:
            members = members_after(
                found.forest, app.embeddings.snapshot(), app.forests.assignment()
            )
            app.forests.restore(found.leaves, members, app.now())
    app.deploy_if_routed()  # also after a kill in between: the leaves are restored already
    return found


def _no_open_round(app: App) -> None:
    row = app.forests.open_round()
    if row is not None:
        raise OpenRoundError(
            f"round {row.id} was begun and is not finished, and would go on in another forest",
            unchanged="Nothing was restored.",
            next_step="`groove-node round` finishes it; then restore.",
        )


def _retracted(app: App, found: Restoration) -> Iterable[str]:
    """Leaves that come back here and that peers never take again."""
    from .orders import retracted

    gone = retracted(app)
    return [
        f"{leaf.name}: it was retracted, and peers never take it again"
        for id_, (leaf, _) in found.leaves.items()
        if leaf.stage.live and (id_ in gone or "" in gone)
    ]


def as_json(changes: Iterable[Difference]) -> list[dict[str, Any]]:
    return [
        {
            "leaf_id": change.leaf,
            "name": change.name,
            "what": change.what,
            "before": change.before,
            "after": change.after,
            "sessions": change.sessions,
        }
        for change in changes
    ]


COLUMNS = ("LEAF", "WHAT", "BEFORE", "AFTER", "SESSIONS")


def summary(changes: list[Difference], start: str, end: str) -> str:
    """One line: how many of each."""
    counts: dict[str, int] = {}
    for change in changes:
        counts[change.what] = counts.get(change.what, 0) + 1
    told = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    return f"{start} to {end}: {told}" if told else f"nothing changed from {start} to {end}"


def span(days: Sequence[str]) -> tuple[str, str]:
    """Two days in the order of time; a day alone is compared with now. Raises MisuseError."""
    if not 1 <= len(days) <= 2:
        raise MisuseError(
            f"--diff takes one day or two, not {len(days)}",
            unchanged="Nothing was done.",
            next_step="As in `groove-node tree --diff 2026-11-01 2026-11-22`, or with `now`.",
        )
    start, end = (*days, "now")[:2]
    for day in (start, end):
        if day != "now":
            day_end(day)
    if start == "now" or (end != "now" and end < start):  # dates sort as text
        start, end = end, start
    return start, end


def at_end_of(app: App, day: str) -> Forest:
    """The forest at the end of a day, or of now."""
    if day == "now":
        return app.forests.forest()
    return app.forests.forest_at(past_day(app, day))
