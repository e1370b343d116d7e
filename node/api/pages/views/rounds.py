"""Rounds: what each came to and why, how far the open one is, what waits for the owner's word."""

from __future__ import annotations

from typing import Any

from leaves.descent import named
from leaves.proposals import Proposal
from leaves.store import JournalEntry, RoundRow
from node import approvals, planning
from node.api.pages import replaying
from node.api.pages.desk import AT_ONCE_MAX, Desk, Stamp
from node.api.pages.page import Ask, Page
from node.api.pages.views.leaf import STEADY

ROUNDS_SHOWN = 30
ENTRIES_MAX = 300  # of a round's journal
_REPLAYING = "the last sessions are being replayed; look again in a moment"
PHASES = ("embed", "cluster", "detect", "train", "deploy")


def rounds(desk: Desk, ask: Ask) -> Page:
    store, app = desk.app.forests, desk.app
    finished = store.finished_rounds(ROUNDS_SHOWN)
    wanted = ask.number("round", 0, 999_999_999, finished[0].id if finished else 0)
    entries = store.journal(ENTRIES_MAX, round_id=wanted, without=STEADY) if wanted else []
    proposals = approvals.listed(app)
    open_ = store.open_round()
    facts = {
        "open": _open(desk, open_),
        "waiting": [each for each in proposals if each["answer"] is None],
        "answered": [each for each in proposals if each["answer"] is not None],
        "asks": app.config.rules.approve == "ask",
        "rounds": [_line(row) for row in finished],
        "wanted": wanted,
        "entries": _grouped(desk, entries),
        "cut": len(entries) == ENTRIES_MAX,
        "rules": [
            (x.name, str(x.old), str(x.new)) for x in (store.rule_changes(wanted) if wanted else [])
        ],
    }
    return Page("rounds.html", "Rounds", facts, ("forest", "events"))


def _open(desk: Desk, row: RoundRow | None) -> dict[str, Any] | None:
    if row is None:
        return None
    due, done = row.state.get("due", []), row.state.get("done", {})
    leaves = desk.forest().leaves
    return {
        "id": row.id,
        "started": row.started,
        "phase": row.phase,
        "running": desk.app.is_locked("round"),
        "phases": [
            (phase, phase == row.phase, PHASES.index(phase) < _place(row.phase)) for phase in PHASES
        ],
        "due": len(due),
        "done": len(done),
        "training": [
            leaves[each["id"]].name
            for each in due
            if each["id"] in leaves and each["id"] not in done
        ][:3],
    }


def _place(phase: str) -> int:
    return PHASES.index(phase) if phase in PHASES else len(PHASES)


def _line(row: RoundRow) -> dict[str, Any]:
    took = row.state.get("took", {})
    steps = [
        f"{planning.WHAT[step].format(units=int(units))} {_span(seconds)}"
        for step, (seconds, units) in took.items()
        if step in planning.WHAT and seconds >= 1
    ]
    ended = row.finished or row.started
    return {
        "id": row.id,
        "started": row.started,
        "took": _span(ended - row.started),
        "trained": len(row.state.get("due", [])),
        "steps": "; ".join(steps),
    }


def _span(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min" if seconds >= 90 else f"{seconds:,.0f} s"


def _grouped(desk: Desk, entries: list[JournalEntry]) -> list[dict[str, Any]]:
    """The decisions of a round, in the order in which they were taken."""
    forest = desk.forest()
    return [
        {
            "kind": entry.kind,
            "leaf": entry.leaf,
            "name": forest.leaves[entry.leaf].name
            if entry.leaf in forest.leaves
            else entry.leaf[:8],
            "why": named(entry.reason, forest),
        }
        for entry in reversed(entries)
    ]


def proposal(desk: Desk, ask: Ask) -> Page:
    """One proposal, with what it would do to the routing of the last sessions."""
    app = desk.app
    found = approvals.find(app, ask.names["proposal"])
    # Not by the files: whoever opens a database may touch it, the child that replays too.
    stamp = (app.forests.revision(), app.foreign.revision(), desk.embedded(), found.id)
    effect = _effect(desk, found, stamp)
    facts = {
        "proposal": approvals.as_json(found, desk.forest()),
        "unknown": effect if isinstance(effect, str) else "",
        "told": "" if isinstance(effect, str) else approvals.told(effect),
        "shifts": () if isinstance(effect, str) else effect.shifts,
    }
    return Page("proposal.html", f"{found.kind.capitalize()} {found.id}", facts, ("errands",))


def _effect(desk: Desk, found: Proposal, stamp: Stamp) -> approvals.Effect | str:
    """What the replay says; in a large home it takes seconds, and is left to a child."""
    if desk.embedded() <= AT_ONCE_MAX:
        return desk.kept("effect", stamp, lambda: approvals.effect(desk.app, found))
    errand = desk.errands.get("replay")
    if errand is None or (errand.code is not None and errand.about != stamp):
        arguments = ["node.api.pages.replaying", str(desk.home), str(found.id)]
        desk.errands.start("replay", "The replay", arguments, about=stamp)
        return _REPLAYING
    if errand.code is None:
        return _REPLAYING
    return replaying.read(errand.output) if errand.code == 0 else errand.told
