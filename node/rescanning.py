"""What is stored, through the scrubber of today; and what was made of it, made anew.

A session whose text changed has a vector and perhaps an adapter of the text as it was. Its vector
goes, so that the next round embeds it anew, and leaves that were trained on it lose their adapters
and are trained again. Which sessions these are is written down before a file changes, so a killed
rescan still knows them when it is run again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import msgspec

from leaves.ports import Report, silent

from .deletion import affected, alone, compact, withdraw
from .home import sync_dir, write_atomic
from .told import Told

if TYPE_CHECKING:
    from .app import App

PENDING = "rescan.pending"


def rescan_due(app: App) -> bool:
    """True if something stored went through older rules, or if a rescan was not finished."""
    from .capture.rescan import is_due

    return (app.home / PENDING).exists() or is_due(app.corpus)


def rescan(app: App, report: Report = silent) -> dict[str, Any]:
    """Clean what is stored; returns what was done. Raises BusyError while a round runs."""
    from .capture import SCRUB_RULES_VERSION
    from .capture.rescan import rescan as clean

    with alone(app):
        scrubber = app.scrubber
        sessions = _pending(app)

        def before(found: Collection[str]) -> None:
            names = sorted(sessions | set(found))
            write_atomic(app.home / PENDING, msgspec.json.encode(names))

        before(())
        done = clean(app.corpus, scrubber, before=before, report=report)
        sessions |= done.sessions
        leaves = affected(app, sessions)
        if sessions:
            withdraw(app, sorted(sessions), gone=(), reset=leaves)
            compact(app.home)
        app.corpus.rescanned(SCRUB_RULES_VERSION)
        (app.home / PENDING).unlink(missing_ok=True)
        sync_dir(app.home)
    result = {
        "records": done.records,
        "changed": done.changed,
        "dropped": done.dropped,
        "damaged_lines": done.damaged,
        "sessions_changed": len(sessions),
        "leaves_to_retrain": len(leaves),
        "rules_version": SCRUB_RULES_VERSION,
    }
    app.events.tell(Told("rescanned", f"rescanned {done.records:,} records", result))
    return result


def _pending(app: App) -> set[str]:
    """The sessions that an unfinished rescan had changed, or was about to."""
    path = app.home / PENDING
    if not path.exists():
        return set()
    return set(msgspec.json.decode(path.read_bytes(), type=list[str]))
