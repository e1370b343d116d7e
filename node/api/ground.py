"""What routing stands on, read from disk in a thread and held until the disk says otherwise.

A leaf whose adapter is not here, is of another chassis or was refused by the back end does not
answer for itself here: whoever is above it does. The table on disk is left as it is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from leaves.model import LeafId
from node import asking
from node.errors import OwnerError
from router.neighbours import Neighbours
from router.table import Entry, Table

if TYPE_CHECKING:
    from node.app import App

log = logging.getLogger(__name__)

ANEW_S = 60.0  # it is read again after so long though nothing changed: peers may have gone silent
REFUSED_S = 300.0  # a back end that could not put an adapter on is not asked for it again
REFUSED_MAX = 1000
Key = tuple[LeafId, str]  # a leaf, and its origin
Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Ground:
    """One reading of the disk.

    table: None if there is none to route by, and then `trouble` is the cause, one word.
    lacking: leaves that would answer for themselves, but their adapters cannot be put on.
    blind: the own sessions that vote cannot be read; centroids alone decide.
    """

    table: Table | None
    near: Neighbours | None = None
    trouble: str = ""
    blind: bool = False
    lacking: frozenset[Key] = frozenset()
    made: int = 0  # Unix seconds, of the table
    entries: Mapping[Key, Entry] = field(default_factory=dict)  # without starters


NOTHING_YET = Ground(None, trouble="starting")


class Grounds:
    """The reading in force. `look` blocks, and may be called from several threads."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.current = NOTHING_YET
        self._turn = threading.Lock()
        self._stamp: Stamp = ()
        self._read_s = 0.0
        self._sitting: dict[str, tuple[tuple[int, int, int] | None, bool]] = {}
        self._refused: dict[str, float] = {}  # bundle -> when

    def refuse(self, bundle: str) -> None:
        """The back end could not put this adapter on."""
        self._refused.pop(bundle, None)
        self._refused[bundle] = self._app.clock.now_s()
        while len(self._refused) > REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
        self._stamp = ()  # read anew

    def look(self) -> Ground:
        """The reading in force, made anew if the disk changed. Never raises."""
        with self._turn:
            stamp, now_s = self._stamped(), self._app.clock.now_s()
            if stamp == self._stamp and 0 <= now_s - self._read_s < ANEW_S:
                return self.current
            try:
                self.current = self._read(now_s)
            except Exception as problem:  # a store in any state must not cost an answer
                log.error("routing not read problem=%s", type(problem).__name__)
                self.current = Ground(None, trouble="store")
            # What was written meanwhile, by the reading itself too, is found by the next look.
            self._stamp, self._read_s = stamp, now_s
            return self.current

    def _stamped(self) -> Stamp:
        """What changes with every replacement of a table, of neighbours, or of a bundle."""
        home = self._app.home
        folder = home / "router"
        names = [folder, folder / "current", home / "neighbours", home / "bundles"]
        return tuple(
            _stat(path) for path in (*names, self._app.neighbours_path, home / "chassis.json")
        )

    def _read(self, now_s: float) -> Ground:
        try:
            kept, trouble = asking.in_force(self._app)
        except Exception as problem:  # starters need the encoder; a leaf that is named does not
            log.warning("starters not looked for problem=%s", type(problem).__name__)
            kept, trouble = self._app.tables.current(), "the encoder cannot be used"
        if kept is None or kept.table.enc8 != self._app.enc8:
            log.warning("prompts go to the chassis reason=%s", trouble)
            return Ground(None, trouble="no_table")
        near, blind = self._app.neighbours()
        self._refused = {
            bundle: at for bundle, at in self._refused.items() if 0 <= now_s - at < REFUSED_S
        }
        lacking = frozenset(_lacking(kept.table.entries, self._sits))
        table = kept.table
        if lacking:
            table = Table.build(
                table.enc8,
                table.dimensions,
                [
                    replace(e, servable=False) if (e.leaf, e.origin) in lacking else e
                    for e in table.entries
                ],
            )
        entries = {(e.leaf, e.origin): e for e in table.entries if not e.system}
        return Ground(table, near, "", bool(blind), lacking, kept.note.at, entries)

    def _sits(self, bundle: str | None) -> bool:
        if bundle is None or bundle in self._refused:
            return False
        stamp = _stat(self._app.bundles.files.path(bytes.fromhex(bundle)))
        known = self._sitting.get(bundle)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            fits = stamp is not None and asking.sits(self._app, bundle)
        except (OwnerError, OSError) as problem:  # a chassis that cannot be opened carries nothing
            log.warning("bundle not used bundle=%s reason=%s", bundle, type(problem).__name__)
            return False
        if len(self._sitting) > REFUSED_MAX:
            self._sitting.clear()
        self._sitting[bundle] = stamp, fits
        return fits


def _lacking(entries: Iterable[Entry], sits: Callable[[str | None], bool]) -> Iterator[Key]:
    for entry in entries:
        if entry.servable and not sits(entry.bundle):
            yield entry.leaf, entry.origin


def _stat(path: Path) -> tuple[int, int, int] | None:
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None
