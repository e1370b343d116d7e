"""The map as it was made last, and whether it is of the sessions as they are now.

It is made in a child and shown when it is there; until then the page shows the one before and says
of when it is. Only who opens the page has a new one made.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from node.show import moment

from .desk import Desk
from .page import Ask, Page

FOLDER, FILE = "map", "map.json"
ERRAND = "map"
_STATE = (  # of a home: what is drawn
    ("leaves.db", "SELECT MAX(seq) FROM history"),
    ("embeddings/index.sqlite", "SELECT COUNT(*), MAX(row) FROM rows"),
)


class Made(msgspec.Struct, frozen=True):
    """The file. state: of what it was made. tree, growth: HTML, escaped where it was made."""

    state: str
    at: int
    texts: bool
    note: str
    method: str
    sessions: int
    first: str
    last: str
    tree: str
    growth: str
    data: str  # JSON that may stand in a page


def state_of(home: Path) -> str:
    """Names the forest and the sessions of a home: the same while neither has changed."""
    parts = []
    for name, sql in _STATE:
        path = home / name
        if not path.exists():
            parts.append("-")
            continue
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
            parts.append(repr(db.execute(sql).fetchone()))
    return " ".join(parts)


def read(home: Path) -> Made | None:
    """The last map; None if there is none that can be read."""
    try:
        return msgspec.json.decode((home / FOLDER / FILE).read_bytes(), type=Made)
    except (OSError, ValueError, RecursionError):
        return None


def start(desk: Desk, *, texts: bool) -> None:
    """Have a map made. Raises ErrandRunningError if one is being made."""
    arguments = ["node.api.pages.make_map", str(desk.home), *(["--texts"] if texts else [])]
    desk.errands.start(ERRAND, "The map", arguments)


def page(desk: Desk, ask: Ask) -> Page:
    made = desk.kept("map", desk.stamp("map"), lambda: read(desk.home))
    now = desk.kept("map state", desk.stamp("forest", "embedded"), lambda: state_of(desk.home))
    making = desk.errands.running(ERRAND)
    last = next((each for each in desk.errands.all() if each.name == ERRAND), None)
    facts: dict[str, Any] = {
        "made": made,
        "fresh": made is not None and made.state == now,
        "at": moment(made.at) if made else "",  # type: ignore[arg-type]
        "making": making,
        "failed": last.told if last and last.failed else "",
        "sessions": desk.embedded(),
    }
    return Page("map.html", "Map", facts, ("map", "errands", "forest", "embedded"), wide=True)
