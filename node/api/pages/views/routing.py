"""Routing: how sure it is of each leaf, what falls back, tables on replay; clusters in time."""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import Any

from leaves.model import DAY_S
from node import show_routes, transition
from node.api.pages.counting import assignment
from node.api.pages.desk import Desk
from node.api.pages.drawing import Series, histogram, stacked
from node.api.pages.nearness import nearness
from node.api.pages.page import Ask, Page
from node.api.pages.recent import recent_routes
from node.pictures.growth import growth
from node.pictures.marks import marks
from node.tables import Kept

LEAVES = 24  # drawn on one page
CHANGES = (  # kinds of the journal, as they are called and coloured here
    ("born", "born", "#2f7d4f"),
    ("split", "split", "#1f6fb2"),
    ("merged", "merged", "#8a4fb0"),
    ("archived", "archived", "#9a6b15"),
    ("dissolved", "dissolved", "#8c8c8c"),
    ("revived", "revived", "#c2467a"),
)
BIGGEST = 12  # leaves with a colour of their own in the picture of sizes
BARS_MAX = 60


def routing(desk: Desk, ask: Ask) -> Page:
    app = desk.app
    assignment(desk)
    current = desk.kept("table", desk.stamp("routing"), app.tables.sound)
    leaves = _leaves(desk, current)
    pages = max(ceil(len(leaves) / LEAVES), 1)
    page = ask.number("page", 1, pages, 1)
    recent = desk.kept("recent", desk.stamp("captured"), lambda: recent_routes(app))
    facts = {
        "standing": desk.kept(
            "transition", desk.stamp("routing", "forest"), lambda: transition.standing(app)
        ),
        "note": current.note if current else None,
        "measures": (current.note.replay.get("measures", ()) if current else ()),
        "leaves": [_drawn(desk, each) for each in leaves[(page - 1) * LEAVES : page * LEAVES]],
        "page": page,
        "pages": pages,
        "recent": recent,
        "confidence": histogram(
            recent.confidences, label="Confidence of the last routed sessions", wide=480, high=110
        ),
        "fallbacks": sorted(desk.hub.counts.fallbacks.items()),
        "answered": sorted(desk.hub.counts.answered.items()),
        "tables": show_routes.table_rows(app.tables.history()),
        "columns": [name.capitalize() or "State" for name in show_routes.TABLES],
        "changes": desk.kept("changes", desk.stamp("forest"), lambda: _changes(desk)),
        "sizes": desk.lately(
            "sizes", desk.stamp("forest", "embedded"), lambda: _sizes(desk), stacked((), 0, 1)
        ),
        "counting": desk.embedded() > 0,
    }
    return Page(
        "routing.html", "Routing", facts, ("routing", "forest", "captured", "api", "figures")
    )


def _leaves(desk: Desk, current: Kept | None) -> list[dict[str, Any]]:
    """The entries of the table in force that are leaves, those with most sessions first."""
    if current is None:
        return []
    found = []
    for entry in current.table.entries:
        if entry.level == 1:
            continue
        votes = current.note.votes.get(entry.leaf, (0, 0))
        near = nearness(desk).get(entry.leaf, ()) if entry.grown else ()
        found.append({"entry": entry, "votes": votes, "near": near})
    found.sort(key=lambda each: (-len(each["near"]), each["entry"].name, each["entry"].leaf))  # type: ignore[arg-type,attr-defined]
    return found


def _drawn(desk: Desk, each: dict[str, Any]) -> dict[str, Any]:
    entry = each["entry"]
    # By what is drawn, not by the home: the figures may be of a state before.
    stamp = (id(each["near"]), len(each["near"]), entry.threshold)
    picture = desk.kept(
        ("near", entry.leaf), stamp, lambda: histogram(each["near"], gate=entry.threshold)
    )
    return {**each, "picture": picture, "count": len(each["near"])}


def _changes(desk: Desk) -> Any:
    """What became of clusters, by day or, over a long time, by week."""
    rows = [row for row in desk.app.forests.changes_by_day() if row[1] in dict.fromkeys(_KINDS)]
    if not rows:
        return stacked((), 0, 1)
    first, last = rows[0][0], max(desk.app.now() // DAY_S, rows[-1][0])
    step = max(1, ceil((last - first + 1) / BARS_MAX))
    bars = (last - first) // step + 1
    counts: dict[str, list[int]] = {kind: [0] * bars for kind in _KINDS}
    for day, kind, count in rows:
        counts[kind][(day - first) // step] += count
    series = [Series(told, colour, tuple(counts[kind])) for kind, told, colour in CHANGES]
    return stacked([each for each in series if any(each.counts)], first, step)


_KINDS = tuple(kind for kind, _, _ in CHANGES)


def _sizes(desk: Desk) -> Any:
    """Sessions of a week by the leaf that holds them today, the largest leaves by name."""
    days = desk.app.embeddings.days()
    if not days:
        return stacked((), 0, 1)
    forest, leaf_of = desk.forest(), assignment(desk)
    held = Counter(leaf_of.values())
    fine = [leaf for leaf in forest.live() if leaf.level > 1]
    fine.sort(key=lambda leaf: (-held[leaf.id], leaf.id))
    colours = marks(leaf for leaf in forest if leaf.level > 1)
    biggest, others = fine[:BIGGEST], fine[BIGGEST:]
    grown = growth(list(days), list(days.values()), leaf_of, [leaf.id for leaf in fine])
    series = [
        Series(leaf.name, colours[leaf.id].colour, tuple(grown.counts[row].tolist()))
        for row, leaf in enumerate(biggest)
    ]
    if others:
        rest = grown.counts[len(biggest) : len(fine)].sum(axis=0).tolist()
        series.append(Series(f"{len(others)} smaller leaves", "#b5b5b5", tuple(rest)))
    series.append(Series("in no leaf", "#8c8c8c", tuple(grown.counts[-1].tolist())))
    return stacked(series, grown.first_day, grown.days_per_bar)
