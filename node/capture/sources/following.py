"""Follows the transcripts of one tool while they are being written, across restarts and kills.

Of each file it remembers which file it was and how far it was read; that is GROOVE_HOME/watch.json,
which names no path and holds no text. A position is moved on only once what stands before it is
durable in the corpus: a kill at any moment costs a second reading, which finds known what the first
took in. What was said before its source and its folder were allowed is left to `groove-node
import`, turn by turn; a turn without a date is as old as the last reading of its file.

A file that cannot be read, or that a fault in here breaks on, is put aside as it is and counted:
one line of one file must not stop the others.

No thread and no waiting in here: `node.watching` says when to look.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import msgspec
from msgspec import Struct

from node.capture.intake import TrainingDataIntake
from node.errors import OwnerError
from node.home import write_atomic

from .held import HeldRecords
from .importing import Ended, ImportResult, Taker
from .kinds import drifts
from .source import ParseCounts, SourceError, SourceSession, TranscriptFormat
from .transcript import opened

log = logging.getLogger(__name__)

STATE_FILE = "watch.json"
MARK_BYTES = 64  # before a position: another file under the same name has others there
PIECE_TURNS = 128  # written together, so that a long first reading is not begun again after a kill


class Seen(Struct, frozen=True, array_like=True):
    """One file as it was when it was last read."""

    device: int
    inode: int
    size: int
    changed_ns: int
    position: int  # as the format counts: bytes of whole lines, or the last row
    open: bool  # it was read on since its sessions were last closed
    ended: Ended | None = None
    mark: str = ""  # a hash of what stands before the position
    read_s: float = 0.0  # when it was read, Unix seconds


class State(Struct):
    """What is remembered of one source: files by the hash of their path."""

    since: float  # when it was first watched, Unix seconds
    files: dict[str, Seen] = {}


class StateFile:
    """GROOVE_HOME/watch.json. One that is damaged begins anew: nothing is taken in twice by it."""

    def __init__(self, home: Path) -> None:
        self._path = home / STATE_FILE
        self.sources: dict[str, State] = {}
        try:
            data = self._path.read_bytes()
            self.sources = msgspec.json.decode(data, type=dict[str, State])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as problem:
            log.warning("watch state begun anew reason=%s", type(problem).__name__)

    def holds(self, source: str, path: Path) -> bool:
        """True if the file was read as it is now."""
        state, now = self.sources.get(source), _seen(path)
        before = state.files.get(_key(path)) if state else None
        return before is not None and now is not None and _stamp(before) == _stamp(now)

    def save(self) -> None:
        """Replace the file, whole. Raises OSError."""
        write_atomic(self._path, msgspec.json.encode(self.sources))


class Follower:
    """The transcripts of one source."""

    def __init__(
        self,
        format_: TranscriptFormat,
        intake: TrainingDataIntake,
        user_id: str,
        held: HeldRecords,
        state: State,
        *,
        idle_s: float,
        since: Callable[[tuple[str, ...]], float] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """idle_s: a file that was not written to for so long is taken for a finished session.
        since: when all of some folders were allowed, Unix seconds; else when the source was.
        """
        self.format = format_
        self.counts = ParseCounts()  # of what was read on, second readings apart
        self._intake = intake
        self._user_id = user_id
        self._held = held
        self._state = state
        self._idle_s = idle_s
        self._since = since or (lambda folders: state.since)
        self._stopping = stopping
        self._paths: set[Path] = set()
        self._strangers: set[Path] = set()  # beside the transcripts, and none
        self._passed: dict[str, Seen] = {}  # put aside until they are not as they were
        # Files of folders that are not allowed, and their sizes. What they told of does not go
        # away when they grow, so they are read again only once consent has another answer.
        self._barred: dict[tuple[str, int, int], int] = {}

    def look(self, changed: Iterable[Path] | None = None) -> list[Path]:
        """The files that there is something to do with, of those named or of all.

        A named one that was never met means that all are looked at: it may be a new transcript.
        """
        named = None if changed is None else set(changed) - self._strangers
        if named is None or not named <= self._paths:
            self._paths = {path for root in self.format.roots() for path in self.format.files(root)}
            self._strangers = set() if named is None else named - self._paths
            keys = {_key(path) for path in self._paths}
            for key in self._state.files.keys() - keys:
                del self._state.files[key]  # the tool has deleted it
            named = self._paths
        return [path for path in sorted(named) if self._due(path)]

    def bring(self, path: Path) -> ImportResult:
        """Take in what is new in a file, and close it if it is idle.

        Raises CorpusError if it cannot be written; then, as after a stop, nothing is forgotten.
        """
        before, now = self._state.files.get(_key(path)), _seen(path)
        met = before is not None and now is not None and _goes_on(path, before, now)
        taker = Taker(
            self._intake,
            self._user_id,
            self.format.name,
            self._held,
            since=self._said_since,
            stopping=self._stopping,
            ended=before.ended if before is not None else None,
        )
        if now is None:
            return taker.result()
        try:
            idle = self._is_idle(now)
            if before is None or _stamp(before) != _stamp(now) or (idle and before.open):
                self._read_on(path, now, before if met else None, taker, growing=not idle)
            read = self._state.files.get(_key(path))
            if idle and read is not None and read.open and _key(path) not in self._passed:
                self._close(path, taker)
        except SourceError as problem:
            self._put_aside(path, now, problem.reason)
        except (OwnerError, OSError):
            raise  # the disk or the consent store: no file's fault
        except Exception as problem:  # its message might quote a text
            self._put_aside(path, now, type(problem).__name__)
        return taker.result()

    # ---- one file --------------------------------------------------------------------------------

    def _due(self, path: Path) -> bool:
        now = _seen(path)
        if now is None or self._passed.get(_key(path)) == now:
            return False
        if now.size >= self._barred.get((_key(path), now.device, now.inode), math.inf):
            return False
        before = self._state.files.get(_key(path))
        if before is None:
            return now.changed_ns >= self._state.since * 1e9
        return _stamp(before) != _stamp(now) or (before.open and self._is_idle(before))

    def _is_idle(self, seen: Seen) -> bool:
        return self._intake.now_s() - seen.changed_ns / 1e9 > self._idle_s

    def _said_since(self, session: SourceSession) -> float:
        return max(self._state.since, self._since(session.folders))

    def _put_aside(self, path: Path, now: Seen, reason: str) -> None:
        log.warning("transcript not read source=%s reason=%s", self.format.name, reason)
        self.counts.left_out[f"unreadable files: {reason}"] += 1
        self._passed[_key(path)] = now

    def _read_on(
        self, path: Path, now: Seen, before: Seen | None, taker: Taker, *, growing: bool
    ) -> None:
        """Take in what follows the position; of a growing file no answer that may go on."""
        read_s = self._intake.now_s()
        reading = self.format.read(path, before.position if before else 0, growing=growing)
        taker.undated_s = before.read_s if before and reading.start else -math.inf
        for session in reading.sessions:
            for first in range(0, len(session.turns), PIECE_TURNS):
                turns = session.turns[first : first + PIECE_TURNS]
                if not taker.take([replace(session, turns=turns, closed=False)]):
                    return
        done = taker.result()
        if done.not_allowed or done.refused:
            self._passed[_key(path)] = now  # the position stays: it may be allowed one day
            if any(session.folders for session in reading.sessions) and not done.refused:
                self._barred[_key(path), now.device, now.inode] = now.size
            return
        counts = reading.counts
        if not drifts(self.format, path, reading):
            counts.unknown.clear()
        self.counts.add(counts)
        self._state.files[_key(path)] = msgspec.structs.replace(
            now,
            position=reading.position,
            open=True,
            ended=taker.ended,
            mark=_mark(path, reading.position),
            read_s=read_s,
        )

    def _close(self, path: Path, taker: Taker) -> None:
        """Read the whole for how it went, and write only the closing records."""
        sessions = [replace(each, closed=True) for each in self.format.read(path).sessions]
        if taker.take(sessions, only_close=True):
            key = _key(path)
            self._state.files[key] = msgspec.structs.replace(self._state.files[key], open=False)


def _seen(path: Path) -> Seen | None:
    """The file now, with the write-ahead log of a database beside it; None if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    size, changed_ns = found.st_size, found.st_mtime_ns
    if path.suffix == ".db":
        try:
            beside = path.with_name(f"{path.name}-wal").stat()
            size, changed_ns = size + beside.st_size, max(changed_ns, beside.st_mtime_ns)
        except OSError:
            pass  # no log: all is in the database
    return Seen(found.st_dev, found.st_ino, size, changed_ns, 0, False)


def _stamp(seen: Seen) -> tuple[int, int, int, int]:
    return seen.device, seen.inode, seen.size, seen.changed_ns


def _goes_on(path: Path, before: Seen, now: Seen) -> bool:
    """True if it is the same file with something added, and not written anew in its place.

    A database may shrink and still have all its rows; its rows are numbered, so they are read on.
    """
    if (before.device, before.inode) != (now.device, now.inode):
        return False
    if path.suffix == ".db":
        return True
    return now.size >= before.size and before.mark == _mark(path, before.position)


def _mark(path: Path, position: int) -> str:
    """What stands just before a position, hashed; of a database nothing: it moves things about."""
    if path.suffix == ".db":
        return ""
    try:
        with opened(path) as file:
            file.seek(max(0, position - MARK_BYTES))
            return hashlib.sha256(file.read(min(position, MARK_BYTES))).hexdigest()[:16]
    except OSError:
        return ""


def _key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
