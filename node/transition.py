"""From starters to leaves that grew from sessions: compared at every round, told in one line.

Starters are there from the first minute. Once leaves grow, starters stay below them, and leave
when the leaves take four fifths of the last thousand sessions above their gates. They stay until
a leaf can answer for itself, whatever the leaves take: the bare chassis is no better than they.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from leaves.embeddings import Snapshot
from leaves.lifecycle import Rules
from leaves.model import DAY_S, LeafId, Matrix
from router.table import Entry, Table

from .routing import entries as routing_entries
from .routing import leaves_of, serving
from .tables import Kept, RoutingError, Starters

if TYPE_CHECKING:
    from .app import App

PACE_DAYS = 30  # the pace of sessions is that of so many last days


class Replaced(Struct, frozen=True):
    """Which starter a leaf mostly answers instead of."""

    name: str
    starter: str  # its name; empty if starters would have taken few of the leaf's sessions
    starter_id: str
    sessions: int  # that the leaf takes
    of_starter: int  # that the starter would have taken


class Coverage(Struct, frozen=True):
    """Who takes the last sessions, above the gates: leaves, starters, both, nobody.

    agreement: of those that both would take, the share whose starter is the one that their leaf
    mostly replaces. leaves: by id. serving: leaves that can answer for themselves.
    """

    sessions: int
    by_leaves: int
    by_starters: int
    by_both: int
    by_none: int
    agreement: float
    leaves: dict[LeafId, Replaced]
    serving: int

    @property
    def share(self) -> float:
        return self.by_leaves / self.sessions if self.sessions else 0.0

    def told(self, rules: Rules) -> str:
        return share_line(self.share, self.sessions, self.serving, rules)

    def replaced_line(self) -> str:
        """What starters are replaced by, the largest first; to read."""
        found = sorted(self.leaves.values(), key=lambda x: (-x.of_starter, x.name))
        return ", ".join(
            f"{x.starter} by {x.name} ({x.of_starter:,} of {x.sessions:,} sessions)"
            for x in found
            if x.starter
        )


def share_line(share: float, sessions: int, serving: int, rules: Rules) -> str:
    """How far the leaves are, to read."""
    few = f" (of {rules.starters_sessions:,} wanted)" if sessions < rules.starters_sessions else ""
    first = "" if serving else ", once a leaf can answer for itself"
    return (
        f"data-driven leaves take {share:.0%} of the last {sessions:,} sessions{few}; "
        f"starters leave at {rules.starters_leave:.0%}{first}"
    )


def last_rows(embedded: Snapshot, count: int) -> NDArray[np.int64]:
    """Rows of the last sessions, by day and then by arrival, oldest first."""
    order = np.argsort(np.asarray(embedded.days, np.int64), kind="stable")
    return order[max(0, len(order) - count) :].astype(np.int64)


def covered(
    enc8: bytes, leaves: Sequence[Entry], starters: Sequence[Entry], last: Matrix
) -> Coverage:
    """Compare what leaves and starters take of the last sessions, each as if alone.

    Branches are no leaves here: they are for browsing, and a broad centroid takes anything.
    """
    grown = _takers(enc8, leaves_of(leaves), last)
    written = _takers(enc8, starters, last)
    both = [(leaf, start) for leaf, start in zip(grown, written, strict=True) if leaf and start]
    mostly = _mostly(grown, written)
    agreed = sum(mostly[leaf.leaf].starter_id == start.leaf for leaf, start in both)
    return Coverage(
        sessions=len(last),
        by_leaves=sum(leaf is not None for leaf in grown),
        by_starters=sum(starter is not None for starter in written),
        by_both=len(both),
        by_none=sum(not leaf and not start for leaf, start in zip(grown, written, strict=True)),
        agreement=round(agreed / len(both), 4) if both else 0.0,
        leaves=mostly,
        serving=serving(leaves),
    )


def leave(coverage: Coverage, rules: Rules) -> bool:
    """True once the leaves take enough of enough sessions for the starters to go, and one of
    them at least can answer."""
    if not coverage.serving:
        return False
    enough = coverage.sessions >= max(rules.starters_sessions, 1)
    return enough and coverage.share >= rules.starters_leave


def standing(app: App) -> dict[str, Any]:
    """Where the transition is: a line to read, and its figures. Loads no model."""
    rules = app.config.rules
    try:
        current = app.tables.current()
    except RoutingError as problem:
        return {
            "state": "damaged",
            "line": f"the chassis answers: {problem.what}; `groove-node round` builds a new table",
        }
    note = current.note if current else None
    grown = note is not None and note.leaves > 0
    if note is None or (not grown and note.starters is not Starters.GONE):
        found = {"state": "starters", "table": None, **_waiting(app)}
        if current is not None:
            found |= {"table": current.number, "line": found["line"] + _kept_line(current)}
        return found
    assert current is not None
    line = "leaves that grew from sessions serve; the starters have left"
    share: float | None = None
    if note.starters is Starters.SERVING and note.transition:
        share = note.transition["by_leaves"] / max(note.transition["sessions"], 1)
        able = serving(current.table.entries)
        line = share_line(share, note.transition["sessions"], able, rules)
    elif note.starters is not Starters.GONE:
        line = "the next round compares leaves and starters"
    return {
        "state": "leaves" if note.starters is Starters.GONE else "both",
        "line": line + _kept_line(current),
        "table": current.number,
        "share": None if share is None else round(share, 4),
        "pinned": note.pinned,
        "held": note.held,
    }


def _kept_line(current: Kept) -> str:
    note = current.note
    if note.pinned:
        return f"; table {current.number} is pinned: `groove-node restore --unpin`"
    if note.held:
        return f"; table {current.number} is in force: {note.held_because or 'it is kept'}"
    return ""


def _waiting(app: App) -> dict[str, Any]:
    """How far the first discovery is; or, if leaves grew already, that none is routed to."""
    if grown := leaves_of(routing_entries(app.forests.forest(), ())):
        has = "leaf of the tree is" if len(grown) == 1 else "leaves of the tree are"
        what = f"{len(grown):,} {has} not in the routing table"
        return {"line": f"starters serve; {what}", "sessions": len(app.embeddings), "missing": 0}
    wanted = app.config.rules.first_discovery_sessions
    embedded = len(app.embeddings)
    days = [] if embedded >= wanted else _session_days(app, wanted)
    sessions = max(embedded, len(days))
    missing = wanted - sessions
    if missing <= 0:
        what = (
            "no domain is large enough for a leaf yet"
            if embedded >= wanted and app.forests.last_round() is not None
            else "there are sessions enough for the first discovery: `groove-node round`"
        )
        return {"line": f"starters serve; {what}", "sessions": sessions, "missing": 0}
    pace = _pace(days, int(app.now()) // DAY_S)
    when = f", about {max(round(missing / pace), 1):,} days at this pace" if pace else ""
    had = f"{sessions:,} of {wanted:,} sessions for the first discovery"
    return {"line": f"starters serve; {had}{when}", "sessions": sessions, "missing": missing}


def _session_days(app: App, at_most: int) -> list[int]:
    """The day of each session, embedded or captured since; no more than are asked for."""
    embedded = app.embeddings.snapshot()
    days = dict(zip(embedded.ids, embedded.days, strict=True))
    for record in app.corpus.records():
        if record.content_type in ("prompt", "conversation"):
            days.setdefault(record.session_id, int(record.timestamp) // DAY_S)
        if len(days) >= at_most:
            break
    return list(days.values())


def _pace(days: Sequence[int], today: int) -> float:
    """Sessions a day of late: none if there were none, or if all came at once."""
    late = [day for day in days if today - PACE_DAYS < day <= today]
    span = today - min(late) + 1 if late else 0
    return len(late) / span if span > 1 else 0.0


def _takers(enc8: bytes, entries: Sequence[Entry], last: Matrix) -> list[Entry | None]:
    if not entries or not len(last):
        return [None] * len(last)
    table = Table.build(enc8, last.shape[1], entries)
    return [table.route(vector).leaf for vector in last]


def _mostly(
    grown: Sequence[Entry | None], written: Sequence[Entry | None]
) -> dict[LeafId, Replaced]:
    names: dict[LeafId, str] = {}
    met: dict[LeafId, Counter[tuple[str, str]]] = {}
    for leaf, starter in zip(grown, written, strict=True):
        if leaf is not None:
            names[leaf.leaf] = leaf.name
            who = (starter.name, starter.leaf) if starter else ("", "")
            met.setdefault(leaf.leaf, Counter())[who] += 1
    out: dict[LeafId, Replaced] = {}
    for id_, counts in sorted(met.items()):
        # Of equally many, the one whose name sorts first; "" is that no starter would have.
        (name, starter_id), most = min(counts.items(), key=lambda item: (-item[1], item[0]))
        taken = counts.total()
        out[id_] = Replaced(names[id_], name, starter_id, taken, most if name else 0)
    return out
