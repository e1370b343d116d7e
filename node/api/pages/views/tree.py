"""The tree: every leaf with its stage, how it grows, what it waits for; and those now gone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from leaves.model import Leaf, LeafId, Stage
from node import overview, publishing, routing
from node.api.pages.counting import weekly
from node.api.pages.desk import Desk
from node.api.pages.drawing import sparkline
from node.api.pages.page import Ask, Page
from node.pictures import tree as words
from node.pictures.tree import Branch
from node.show import ago, counted, day

ROWS = 60  # of a page of the list


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the list; depth: how many leaves stand above it."""

    leaf: Leaf
    depth: int


def tree(desk: Desk, ask: Ask) -> Page:
    app = desk.app
    at = ask.query.get("at", "").strip() or None
    if at is None:
        forest = desk.forest()
    else:
        forest = overview.tree(app, at)[0]
    sought, stage = ask.query.get("q", "").strip()[:80], ask.query.get("stage", "")
    rows = [row for row in _walk(words.grown(forest), 0) if _fits(row.leaf, sought, stage)]
    former = [x for x in forest if x.level > 1 and not x.stage.live and _fits(x, sought, stage)]
    former.sort(key=lambda leaf: (-leaf.stage_since, leaf.id))
    pages = max(ceil(len(rows) / ROWS), 1)
    page = ask.number("page", 1, pages, 1)
    gone_pages = max(ceil(len(former) / ROWS), 1)
    gone_page = ask.number("gone", 1, gone_pages, 1)
    sparks = weekly(desk) if at is None else {}
    gates = desk.kept("gates", desk.stamp("routing"), lambda: routing.gates_in_force(app))
    shown = rows[(page - 1) * ROWS : page * ROWS]
    live = [leaf for leaf in forest.live() if leaf.level > 1]
    facts = {
        "at": at,
        "sought": sought,
        "stage": stage,
        "stages": [
            (each.value, sum(x.stage is each for x in forest if x.level > 1)) for each in Stage
        ],
        "leaves": len(live),
        "found": len(rows) + len(former),
        "rows": [_row(desk, row, sparks, gates, at is None) for row in shown],
        "page": page,
        "pages": pages,
        "former": _former(desk, former[(gone_page - 1) * ROWS : gone_page * ROWS], at is None),
        "formers": len(former),
        "gone_page": gone_page,
        "gone_pages": gone_pages,
        "kept_back": publishing.lines(publishing.kept_back(app)) if at is None else [],
        "today": day(app.now()),
    }
    return Page(
        "leaves.html", "Leaves", facts, ("forest", "foreign", "routing", "embedded", "figures")
    )


def _walk(branches: Iterable[Branch], depth: int) -> Iterator[Row]:
    for branch in branches:
        yield Row(branch.leaf, depth)
        yield from _walk(branch.children, depth + 1)


def _fits(leaf: Leaf, sought: str, stage: str) -> bool:
    if stage and leaf.stage.value != stage:
        return False
    return not sought or sought.lower() in leaf.name.lower() or leaf.id.startswith(sought.lower())


def _row(
    desk: Desk, row: Row, sparks: dict[LeafId, list[int]], gates: dict[LeafId, float], now: bool
) -> dict[str, Any]:
    leaf, app = row.leaf, desk.app
    serves = leaf.stage is not Stage.SEED
    return {
        "leaf": leaf,
        "depth": min(row.depth, 4),
        "branch": leaf.level == 1,
        "spark": sparkline(sparks.get(leaf.id, ())),
        "pace": words.pace(leaf),
        "gate": gates.get(leaf.id) if serves and now else None,
        "next": ", ".join(words.missing(leaf, app.config.rules, "train" in desk.scopes())),
        "routed": ago(leaf.last_routed, app.now()) if serves else "",
        "held_by": _held_by(leaf),
    }


def _held_by(leaf: Leaf) -> str:
    """As far as it is known: a peer that only holds a bundle tells nobody."""
    here = ["this node"] if leaf.adapter else []
    return ", ".join(here + ([counted(leaf.used_by, "peer")] if leaf.used_by else []))


def _former(desk: Desk, leaves: list[Leaf], now: bool) -> list[dict[str, Any]]:
    """Leaves that no longer live, each with why; of a past day the reason may be of later."""
    found = []
    for leaf in leaves:
        last = desk.app.forests.journal(1, leaf=leaf.id, without=("renamed", "proposed"))
        found.append({"leaf": leaf, "why": last[0].reason if now and last else ""})
    return found
