"""One leaf: its life with the reasons, how it was measured, its kin, what it gives away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leaves.descent import named
from leaves.model import Evaluation, Leaf, LeafId, Stage
from node import (
    deploying,
    orders,
    overview,
    publishing,
    routing,
    set_aside,
    show,
    show_routes,
    usage,
)
from node.api.pages.counting import weekly
from node.api.pages.desk import Desk
from node.api.pages.drawing import Range, histogram, ranges, sparkline
from node.api.pages.nearness import nearness
from node.api.pages.page import Ask, Page
from node.foreign import Known
from node.pictures import tree as words
from node.shelf import Shelf

LIFE_MAX = 200  # changes that are listed
STEADY = ("drifted", "missed")  # said of a leaf at nearly every look


@dataclass(frozen=True, slots=True)
class Measured:
    """One evaluation, as it is drawn and told."""

    when: str
    round: int
    verdict: str
    line: str
    ranges: tuple[Range, ...]


def leaf(desk: Desk, ask: Ask) -> Page:
    found = _found(desk, ask.names["leaf"])
    if isinstance(found, Known):
        return _foreign(desk, found)
    return _own(desk, found, ask)


def _found(desk: Desk, name: str) -> Leaf | Known:
    forest = desk.forest()
    if name in forest.leaves:
        return forest.leaves[LeafId(name)]
    return overview.any_leaf(desk.app, name)


def _own(desk: Desk, found: Leaf, ask: Ask) -> Page:
    app, forest = desk.app, desk.forest()
    kinds = () if ask.query.get("all") else STEADY
    entries = app.forests.journal(LIFE_MAX, leaf=found.id, without=kinds)
    gates = desk.kept("gates", desk.stamp("routing"), lambda: routing.gates_in_force(app))
    gate = gates.get(found.id) if found.stage is not Stage.SEED else None
    shared, sharing = publishing.about(app, found)
    near = nearness(desk).get(found.id, ())
    facts = {
        "leaf": found,
        "branch": found.level == 1,
        "why_ended": "" if found.stage.live or not entries else entries[0].reason,
        "missing": ", ".join(words.missing(found, app.config.rules, "train" in desk.scopes())),
        "pace": words.pace(found),
        "spark": sparkline(weekly(desk).get(found.id, ())),
        "gate": gate,
        "near": histogram(near, gate=gate),
        "members": len(near),
        "life": [(each, named(each.reason, forest)) for each in entries],
        "life_all": bool(ask.query.get("all")),
        "measured": _measured(desk, found),
        "parent": forest.leaves.get(found.parent) if found.parent else None,
        "children": [x for x in forest if x.parent == found.id],
        "came_from": [forest.leaves[x] for x in found.lineage if x in forest.leaves],
        "went_to": [x for x in forest if found.id in x.lineage],
        "privacy": sharing["privacy"],
        "privacy_lines": [each for each in shared if each[0] != "kept back"],
        "kept_back": sharing["kept_back"],
        "publish": "publish" in desk.scopes(),
        "hidden": found.id in app.withheld().hidden,
        "asked": found.id in app.withheld().asked,
        "retracted": found.id in _retracted(desk),
        "feedback": show_routes.votes_facts(deploying.votes_of(app, found.id)),
        "users": app.foreign.users(app.origin.hex(), usage.told_of(app.now())).get(found.id, 0),
        "bundle": _bundle(desk, found),
        "set_aside": found.adapter is not None and set_aside.of_another(found, set_aside.tag(app)),
    }
    topics = ("forest", "foreign", "consent", "routing", "mailbox", "figures")
    return Page("leaf.html", found.name, facts, topics)


def _retracted(desk: Desk) -> set[str]:
    """Read of the mesh's own records, which is slow where many peers are known: kept by stamps."""
    stamp = (*desk.stamp("mailbox"), *desk.stamp("mesh"))
    return desk.kept("retracted", stamp, lambda: orders.retracted(desk.app))


def _bundle(desk: Desk, found: Leaf) -> dict[str, Any] | None:
    if found.adapter is None:
        return None
    path = desk.app.bundles.path(found.adapter.bundle)
    size = path.stat().st_size if path is not None else 0
    return {"adapter": found.adapter, "size": size, "path": str(path) if path else ""}


def _measured(desk: Desk, found: Leaf) -> list[Measured]:
    """Every evaluation of the leaf's life, the newest first; each once."""
    stamp = desk.stamp("forest")
    return desk.kept(("measured", found.id), stamp, lambda: _evaluations(desk, found))


def _evaluations(desk: Desk, found: Leaf) -> list[Measured]:
    out: list[Measured] = []
    last: Evaluation | None = None
    for entry in desk.app.forests.history(found.id):
        now = entry.leaf.evaluation
        if now is not None and now != last:
            line = show.evaluation_line(now)
            what = show.moment(now.at)
            out.append(Measured(what, entry.round, now.verdict.value, line, _ranges(now)))
        last = now
    return out[::-1]


def _ranges(of: Evaluation) -> tuple[Range, ...]:
    found = [
        Range("over its parent", of.over_parent, of.parent_margin),
        Range("over the style control", of.over_style, of.margin),
    ]
    if of.over_previous is not None:
        found.append(Range("over the version before", of.over_previous, 0.0))
    return tuple(found)


def _foreign(desk: Desk, known: Known) -> Page:
    app = desk.app
    facts = {
        "known": known,
        "rows": show.foreign_facts(known),
        "pinned": Shelf.of(app).is_pinned(known),
        "fetch": "fetch" in desk.scopes(),
        "running": desk.running() is not None,
        "attested": usage.attestations(app, known.leaf.origin, known.leaf.leaf),
        "sessions": int(2 ** max(known.leaf.sessions_log2 - 1, 0)),
        "ranges": ranges(_foreign_ranges(known)),
    }
    return Page("foreign.html", known.name, facts, ("foreign", "mailbox"))


def _foreign_ranges(known: Known) -> tuple[Range, ...]:
    from leaves.model import Interval

    names = (("over_parent", "over its parent"), ("over_style", "over the style control"))
    return tuple(
        Range(told, Interval(**known.detail[key]), 0.0)
        for key, told in names
        if known.detail.get(key)
    )


def retract(desk: Desk, ask: Ask) -> Page:
    """Asks before a leaf is withdrawn from all peers: that cannot be taken back."""
    found = overview.own_leaf(desk.app, ask.names["leaf"])
    return Page("retract.html", f"Retract {found.name}?", {"leaf": found})
