"""What is remembered of nights: which began, how far it came, what it cost, how the last one was.

Each change is on disk before the next step, so a node that was killed in the middle of a night goes
on with it, within the same budgets. The owner's `pause` is a file of its own, for a command writes
it while the node writes the other.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from leaves.model import Instant

from .governor import Record
from .held import Worker
from .home import write_atomic

log = logging.getLogger(__name__)

FILE = "night.json"
PAUSE_FILE = "pause.json"
REASONS_MAX = 32

changed = msgspec.structs.replace


class Phase(StrEnum):
    """A night's phases, in their order."""

    CATCH_UP = "catch up"  # retractions and keys of peers, before anything else
    ROUND = "round"
    PUBLISH = "publish"
    RECONCILE = "reconcile"
    FETCH = "fetch and judge"
    REPORT = "report"


class Pages(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The book. Times are Unix seconds; the figures are of the night that began last."""

    since: int
    began: int | None = None
    date: str = ""
    done: tuple[Phase, ...] = ()
    bytes_in: int = 0
    bytes_out: int = 0
    cpu_s: float = 0.0
    waited_s: dict[str, float] = {}  # for what, within the night
    worker: Worker | None = None  # the process of its round, while it runs
    report: dict[str, Any] = {}  # of the last night, or round, that ended


class Pause(Struct, frozen=True):
    """The owner's word. until: Unix seconds; None: until `resume`."""

    at: int
    until: int | None = None


class Book:
    """The book of one home; one process writes it."""

    def __init__(self, home: Path, now: Instant) -> None:
        self._path = home / FILE
        self._home = home
        self.pages = read(home) or Pages(since=now)

    def begin(self, date: str, now: Instant) -> None:
        """A night begins: what was remembered of the one before goes, except its report."""
        report = self.pages.report
        self._write(Pages(since=self.pages.since, began=now, date=date, report=report))

    def finish(self, phase: Phase) -> None:
        """A phase is done: it is not done again in this night."""
        if phase not in self.pages.done:
            self._write(changed(self.pages, done=(*self.pages.done, phase)))

    def spent(self, bytes_in: int, bytes_out: int, cpu_s: float) -> None:
        """Add to what the night has cost."""
        pages = self.pages
        self._write(
            changed(
                pages,
                bytes_in=pages.bytes_in + bytes_in,
                bytes_out=pages.bytes_out + bytes_out,
                cpu_s=pages.cpu_s + cpu_s,
            )
        )

    def waited(self, why: str, seconds: float) -> None:
        """Add to how long the night waited for something; on disk with the next change."""
        known = dict(self.pages.waited_s)
        if why in known or len(known) < REASONS_MAX:
            known[why] = known.get(why, 0.0) + seconds
            self.pages = changed(self.pages, waited_s=known)

    def works(self, worker: Worker | None) -> None:
        """The round's process has begun, or ended (None)."""
        self._write(changed(self.pages, worker=worker))

    def tell(self, report: dict[str, Any]) -> None:
        """Keep a report until the next one."""
        self._write(changed(self.pages, report=report))

    def record(self) -> Record:
        """What the governor has to know."""
        return record_of(self.pages, self._home)

    def _write(self, pages: Pages) -> None:
        write_atomic(self._path, msgspec.json.encode(pages))
        self.pages = pages


def record_of(pages: Pages, home: Path) -> Record:
    """A book and the owner's pause, as the governor knows them."""
    pause = read_pause(home)
    until = Instant(pause.until) if pause and pause.until is not None else None
    return Record(
        since=Instant(pages.since),
        began=None if pages.began is None else Instant(pages.began),
        date=pages.date,
        finished=Phase.REPORT in pages.done,
        bytes=pages.bytes_in + pages.bytes_out,
        cpu_s=pages.cpu_s,
        paused=pause is not None,
        paused_until=until,
    )


def read(home: Path) -> Pages | None:
    """The book as another process reads it; None if there is none that can be read."""
    try:
        return msgspec.json.decode((home / FILE).read_bytes(), type=Pages)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as problem:
        log.warning("nights not remembered reason=%s", type(problem).__name__)
        return None


def read_pause(home: Path) -> Pause | None:
    """The owner's pause; a file that cannot be read is one: it was written to have one."""
    try:
        return msgspec.json.decode((home / PAUSE_FILE).read_bytes(), type=Pause)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError):
        return Pause(0)


def pause(home: Path, now: Instant, for_s: int | None) -> Pause:
    """Let nothing run by itself for a while, or until `resume`; on disk when this returns."""
    paused = Pause(now, None if for_s is None else now + for_s)
    write_atomic(home / PAUSE_FILE, msgspec.json.encode(paused))
    return paused


def resume(home: Path) -> bool:
    """Take a pause back; False if there was none."""
    try:
        (home / PAUSE_FILE).unlink()
    except FileNotFoundError:
        return False
    return True
