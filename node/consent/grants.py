"""Since when each source and folder has been allowed without a break.

The watcher takes in what is said from then on; what was said before is for `groove-node import`,
which the owner asks for. Only the clock that the decisions were dated with tells the one from the
other. If it went back between two of them, the later date counts; a date that is yet to come
counts as now, for the clock was ahead then.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .folders import resolved
from .manager import FOLDER_SOURCES, NOTHING, ConsentRecord, Scope


class Grants:
    """What the decisions of one user come to, oldest first."""

    def __init__(self, decisions: Iterable[ConsentRecord]) -> None:
        self.sources: dict[str, float] = {}
        self.folders: dict[Path, float] = {}
        self.last = 0.0  # the latest date of all
        for decision in decisions:
            self.last = max(self.last, decision.timestamp)
            if decision.broken:  # whatever was granted before was not in force any more
                self.sources, self.folders = {}, {}
            allowed = decision.allowed
            if Scope.CAPTURE not in allowed.scopes:
                allowed = NOTHING
            self.sources = {each: self.sources.get(each, self.last) for each in allowed.sources}
            self.folders = {each: self._holds(each, self.last) for each in allowed.folders}

    def since(self, source: str, folders: tuple[str, ...], now_s: float) -> float:
        """When a source, and all of the folders that a session was in, were allowed.

        Unix seconds, now at the latest; what is not allowed counts as allowed now.
        """
        dates = [self.sources.get(source, now_s)]
        if source in FOLDER_SOURCES:
            places = [resolved(folder) for folder in folders]
            dates += [self._holds(place, now_s) if place else now_s for place in places]
        return min(now_s, max(dates))

    def _holds(self, folder: Path, otherwise: float) -> float:
        """Since when the folder, or one that holds it, has been allowed."""
        holders = (at for each, at in self.folders.items() if folder.is_relative_to(each))
        return min(holders, default=otherwise)
