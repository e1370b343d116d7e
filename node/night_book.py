"""What is remembered of nights: which began, how far it came, what it cost, how the last one was.

Each change is on disk before the next step, so a node that was killed in the middle of a night goes
on with it, within the same budgets. The owner's `pause` is a file of its own, for a command writes
it while the node writes the other.
"""

from __future__ import annotations

import logging
import os
import stat
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from leaves.model import Instant

from .governor import Record
from .held import Worker
from .home import sync_dir, write_atomic
from .morning import checked

log = logging.getLogger(__name__)

FILE = "night.json"
PAUSE_FILE = "pause.json"
REASONS_MAX = 32
SIZE_BYTES_MAX = 1 << 20  # a book that is whole takes some kilobytes

# A file may hold anything: what is read from it must not break what is computed with it.
At = Annotated[int, Meta(ge=0, le=253_370_764_800)]  # Unix seconds until the year 9999
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Lasted = Annotated[float, Meta(ge=0, le=1e12)]  # seconds

changed = msgspec.structs.replace
T = TypeVar("T")


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

    since: At
    began: At | None = None
    date: Annotated[str, Meta(max_length=64)] = ""
    done: Annotated[tuple[Phase, ...], Meta(max_length=len(Phase))] = ()
    bytes_in: Bytes = 0
    bytes_out: Bytes = 0
    cpu_s: Lasted = 0.0
    waited_s: Annotated[dict[str, Lasted], Meta(max_length=REASONS_MAX)] = {}  # in the night
    worker: Worker | None = None  # the process of its round, while it runs
    report: dict[str, Any] = {}  # of the last night, or round, that ended


class Pause(Struct, frozen=True):
    """The owner's word. until: Unix seconds; None: until `resume`."""

    at: At
    until: At | None = None


UNREADABLE = Pause(0)  # a file that cannot be read was written to have a pause: it lasts


class DamagedError(Exception):
    """A file of nights holds nothing that can be read."""


class Book:
    """The book of one home; one process writes it."""

    def __init__(self, home: Path, now: Instant) -> None:
        self._path = home / FILE
        self._home = home
        self.damaged = ""  # why what was remembered is lost, for the owner
        try:
            self.pages = _read(home) or Pages(since=now)
        except DamagedError as problem:
            self.pages = Pages(since=now)
            self.damaged = f"nights are not remembered, {problem}; {_set_aside(self._path)}"
            log.warning("nights not remembered reason=%s", problem)

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
        paused_by=f"{PAUSE_FILE} cannot be read" if pause is UNREADABLE else "by you",
    )


def read(home: Path) -> Pages | None:
    """The book as another process reads it; None if there is none that can be read."""
    try:
        return _read(home)
    except DamagedError as problem:
        log.warning("nights not remembered reason=%s", problem)
        return None


def _read(home: Path) -> Pages | None:
    pages = _decoded(home / FILE, Pages)
    return pages and changed(pages, report=checked(pages.report))


def read_pause(home: Path) -> Pause | None:
    """The owner's pause, or UNREADABLE."""
    try:
        return _decoded(home / PAUSE_FILE, Pause)
    except DamagedError:
        return UNREADABLE


def _decoded(path: Path, type_: type[T]) -> T | None:
    """What a file holds; None if there is none. Raises DamagedError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise DamagedError(f"{path.name} is no file")
            blob = file.read(SIZE_BYTES_MAX + 1)
        if len(blob) > SIZE_BYTES_MAX:
            raise DamagedError(f"{path.name} has more than {SIZE_BYTES_MAX:,} bytes")
        return msgspec.json.decode(blob, type=type_)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as problem:
        raise DamagedError(f"{path.name} is damaged ({type(problem).__name__})") from None


def _set_aside(path: Path) -> str:
    """Keep a damaged file for whoever wants to look; what was done, in words."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
        sync_dir(path.parent)
    except OSError as problem:
        return f"it cannot be set aside: {problem.strerror}"
    return f"it was set aside as {aside.name}"


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
