"""The mesh: who is linked, what of peers is here and in use, what is offered to them."""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import Any

from leaves.model import LeafId, Stage
from node import overview, publishing, reach, show_peers
from node.api.pages.desk import Desk
from node.api.pages.page import Ask, Page
from node.foreign import Known, State
from node.shelf import Shelf

ROWS = 60
ORDER = (State.ACCEPTED, State.FETCHED, State.WAITING, State.HEARD, State.REFUSED)


def mesh(desk: Desk, ask: Ask) -> Page:
    app = desk.app
    told = overview.peers(app)
    node = desk.running()
    known = desk.foreign()
    sought, state = ask.query.get("q", "").strip()[:80], ask.query.get("state", "")
    shown = [each for each in known if _fits(each, sought, state)]
    shown.sort(key=lambda x: (ORDER.index(x.state), x.leaf.stage is not Stage.MATURE, x.name))
    pages = max(ceil(len(shown) / ROWS), 1)
    page = ask.number("page", 1, pages, 1)
    pins = {(pin.origin, pin.leaf) for pin in Shelf.of(app).pins()}
    facts = {
        "running": told["running"],
        "network": reach.summary(node) if node and node["pid"] else "",
        "columns": [name.capitalize() for name in show_peers.HEADINGS],
        "peers": show_peers.rows(told, app.now()),
        "listed": show_peers.listed(told),
        "private": told["private_swarm"],
        "rows": [_row(each, pins) for each in shown[(page - 1) * ROWS : page * ROWS]],
        "page": page,
        "pages": pages,
        "sought": sought,
        "state": state,
        "states": sorted(Counter(each.state.value for each in known).items()),
        "known": len(known),
        "bundles": _bundles(desk),
        "offered": _offered(desk),
        "fetch": "fetch" in desk.scopes(),
        "publish": "publish" in desk.scopes(),
        "kept_back": publishing.lines(publishing.kept_back(app)),
    }
    return Page("mesh.html", "Mesh", facts, ("node", "foreign", "forest", "consent", "mailbox"))


def _fits(known: Known, sought: str, state: str) -> bool:
    if state and known.state.value != state:
        return False
    text = sought.lower()
    return not text or text in known.name.lower() or known.leaf.origin.startswith(text)


def _row(known: Known, pins: set[tuple[str, LeafId]]) -> dict[str, Any]:
    return {
        "known": known,
        "why": str(known.detail.get("reason", "")),
        "pinned": (known.leaf.origin, known.leaf.leaf) in pins,
        "about": int(2 ** max(known.leaf.sessions_log2 - 1, 0)),
    }


def _bundles(desk: Desk) -> dict[str, Any]:
    """What of peers lies on disk, and how much room there is for it."""
    held = desk.kept("held", desk.stamp("foreign"), desk.app.foreign.expected)
    return {
        "count": len(held),
        "size": sum(held.values()),
        "most": desk.app.config.mesh.cache_bytes_max,
    }


def _offered(desk: Desk) -> int:
    """How many bundles peers may have of this node: own ones, and those it serves on."""
    stamp = desk.stamp("forest", "foreign", "consent")
    return desk.kept("offered", stamp, lambda: len(desk.app.roots_to_serve()))
