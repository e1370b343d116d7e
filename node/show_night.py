"""What is said of unattended work: why it waits, until when, and how the last night was."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leaves.model import Instant

from . import morning, night_book
from .governor import Governor, Senses, State
from .night_book import Pages

if TYPE_CHECKING:
    from .app import App

_DETAILS = (
    ("grown", "grown"),
    ("reshaped", "reshaped"),
    ("trained", "trained"),
    ("not_trained", "not trained"),
    ("asked", "asks"),
    ("accepted", "accepted"),
    ("refused", "refused"),
    ("dropped", "dropped"),
    ("failed", "failed"),
)
LINES_MAX = 3  # of one kind; `status --json` has twenty


def standing(app: App, node: Mapping[str, Any] | None) -> dict[str, Any]:
    """How it stands with unattended work: as the running node says, or would when it is started."""
    pages = night_book.read(app.home)
    alone = _without_a_node(app, pages)
    told = dict(node["night"]) if node and node.get("night") else alone
    if (told["state"] == State.PAUSED) is not (alone["state"] == State.PAUSED):
        told = alone  # the owner's word is on disk, and the node says some seconds later what it is
    told["last"] = pages.report if pages and pages.report else None
    return told


def _without_a_node(app: App, pages: Pages | None) -> dict[str, Any]:
    from .night import governor_of

    governor: Governor = governor_of(app)
    now = app.now()
    governor.knows(night_book.record_of(pages or Pages(since=now), app.home))
    verdict = governor.look(Senses(), now)
    return {
        "state": verdict.state.value,
        "why": verdict.why,
        "until": verdict.until,
        "at": verdict.at,
        "phase": "",
        "unknown": {},
    }


def facts(night: Mapping[str, Any], *, running: bool) -> list[tuple[str, str]]:
    """Lines for `status`."""
    line = f"{night['state']}: {'; '.join(filter(None, (night['why'], night['until'])))}"
    if night["phase"]:
        line += f" (in {night['phase']!r})"
    if not running and night["state"] != "paused":
        line = f"{night['until'] or night['why']}, if a node runs then"
    found = [("unattended", line)]
    if report := night["last"]:
        found.append(("last night", f"{_when(report['began'])}: {morning.headline(report)}"))
        for key, word in _DETAILS:
            texts = report.get(key, [])
            found += [(f"  {word}", text) for text in texts[:LINES_MAX]]
            if (more := report["counts"].get(key, 0) - LINES_MAX) > 0:
                found.append((f"  {word}", f"and {more:,} more"))
        if waited := report["put_off"]:
            told = ", ".join(f"{minutes:,.0f} min for {why}" for why, minutes in waited.items())
            found.append(("  gave way", told))
    return found


def unknown(night: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the running node's senses cannot tell, and what is done without it."""
    return [(f"sense: {sense}", without) for sense, without in sorted(night["unknown"].items())]


def _when(began: int) -> str:
    """Local time: it is the owner's night."""
    return datetime.datetime.fromtimestamp(Instant(began)).strftime("%a %Y-%m-%d %H:%M")
