"""The transcripts that other tools keep on this machine, and those that they will soon delete.

Only names, sizes and dates of files are looked at here; nothing is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .consent import ENDPOINT_SOURCES, FOLDER_SOURCES
from .home import dated
from .tally import Counts, SourceCounts

if TYPE_CHECKING:
    from .app import App
    from .capture.sources.source import TranscriptFormat

SOON_DAYS = 7
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class History:
    """What one tool keeps here, and what of it came in."""

    source: str
    allowed: bool
    transcripts: int
    expiring: int  # deleted by the tool within SOON_DAYS, and neither imported nor watched
    expiry_days: int | None  # None: the tool keeps its transcripts
    counts: SourceCounts
    growing: int = 0  # written to so lately that their last answers wait
    folders: int | None = None  # allowed ones; None: the tool's transcripts are of no folder
    unread: int = 0  # changed since the last whole import, and not read by watching

    @property
    def unsaved(self) -> bool:
        """True if something that may be captured is about to be lost."""
        return self.allowed and self.expiring > 0


def histories(app: App, counts: Counts) -> list[History]:
    """One for each tool that keeps something here, or that something came from.

    The endpoint's own sources are here once they are allowed.
    """
    from .capture.sources.following import StateFile
    from .capture.sources.formats import formats

    folders = len(app.consent.allowed_folders(app.user_id))
    allowed = app.consent.allowed_sources(app.user_id) if app.allows("capture") else frozenset()
    watched = StateFile(app.home)
    found = []
    for format_ in formats():
        name, files, days = format_.name, transcripts(format_), format_.expiry_days()
        told = counts.sources.get(name, SourceCounts())
        if not files and not told.records:
            continue
        unread = [
            (changed, path)
            for changed, path in files
            if changed > told.imported and not watched.holds(name, path)
        ]
        going = [path for changed, path in unread if expires_soon(changed, days, app)]
        of_folders = name in FOLDER_SOURCES
        fresh = app.clock.now_s() - app.config.capture.idle_close_s
        found.append(
            History(
                name,
                name in allowed,
                len(files),
                len(going),
                days,
                told,
                sum(changed >= fresh for changed, _ in files) if of_folders else 0,
                folders if of_folders else None,
                len(unread),
            )
        )
    for name in ENDPOINT_SOURCES:  # they keep nothing here that could expire
        told = counts.sources.get(name, SourceCounts())
        if name in allowed or told.records:
            found.append(History(name, name in allowed, 0, 0, None, told))
    return found


def transcripts(format_: TranscriptFormat) -> list[tuple[float, Path]]:
    """When each transcript was last changed, and its path; what expires first comes first."""
    found: list[tuple[float, Path]] = []
    for root in format_.roots():
        found += dated(format_.files(root))
    return sorted(found)


def expires_soon(changed: float, expiry_days: int | None, app: App) -> bool:
    """True if the tool deletes a transcript of this age within SOON_DAYS."""
    if expiry_days is None:
        return False
    return changed + (expiry_days - SOON_DAYS) * _DAY_S < app.clock.now_s()
