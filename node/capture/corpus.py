"""The owner's records on disk: one file a day, one line a record, nothing lost and nothing torn.

A line is one write with O_APPEND, and is on the platter within two seconds or 64 lines. A process
that dies in a write leaves a tail without a newline: the next opening cuts it into FILE.torn. Lines
that do not prove themselves are skipped and counted. Writers of several processes take turns by a
lock on the folder, so that a deletion, which replaces files, never loses a line that is being
added; readers need no lock, because they stop at the last newline.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from node.clock import Clock, SystemClock
from node.errors import OwnerError
from node.home import owner_path, sync_dir, write_atomic
from node.writers import LOCK

from . import whole
from .record import (
    READ_BYTES,
    TrainingRecord,
    day_of,
    decode_line,
    encode_line,
    export_line,
    is_date,
    read_lines,
)
from .scrubber import SCRUB_RULES_VERSION
from .sessions import IDLE_S, Position, Session, SessionBatch, read_sessions, sessions
from .tombstones import FILE, Tombstones

log = logging.getLogger(__name__)

SYNC_LINES = 64
SYNC_S = 2.0
OPEN_DAYS_MAX = 4  # files kept open for appending
RESERVE_BYTES = 64 * 2**20  # of the disk, left for deletion and retraction to work in
ROOM_S = 0.25  # between two looks at the disk's free space, which cost as much as ten records

_PREFIX, _SUFFIX, _TORN = "training_", ".jsonl", ".torn"
_RULES = "scrub_rules"  # the oldest version of the scrub rules that anything here went through


class CorpusError(OwnerError):
    """The corpus cannot be written. What is on disk is whole; the record at hand is not kept."""


class TrainingCorpus:
    """Daily JSONL files under one folder. Safe from several threads and processes."""

    def __init__(
        self, root: str | Path = "~/.groove/training_data", *, clock: Clock | None = None
    ) -> None:
        """Make the folder if it is missing, cut off torn tails, and remove what kills left.

        Raises CorpusError if the folder cannot be used.
        """
        self._clock = clock or SystemClock()
        self._root = owner_path(root)
        self._lock = threading.RLock()
        self._open: dict[str, tuple[int, Path]] = {}  # by day
        self._unsynced: set[int] = set()
        self._lines = 0
        self._timer: threading.Timer | None = None
        self._looked = float("-inf")
        self._failure: str | None = None
        self._told = False
        self.torn_tails = 0  # cut by this object
        self.damaged_lines = 0  # met by this object's last complete read
        self.deleted = Tombstones(self._root)
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._gate = os.open(self._root / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            # Not at the interpreter's exit: a sync that is due may still take its turn then.
            weakref.finalize(self, os.close, self._gate).atexit = False
            with self._turn():
                self._mend()
        except OSError as problem:
            raise CorpusError(
                f"{self._root} cannot be used: {problem.strerror}",
                unchanged="Nothing is captured; what was captured before is as it was.",
                next_step="Make the folder writable to you, then start again.",
            ) from None

    @property
    def root(self) -> Path:
        return self._root

    def files(self) -> list[Path]:
        """The daily files, oldest first."""
        return sorted(self._root.glob(f"{_PREFIX}*{_SUFFIX}"))

    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files())

    def torn_lines(self) -> int:
        """Tails that were cut aside since the last deletion or rescan, by any process."""
        return sum(path.read_bytes().count(b"\n") for path in self._root.glob(f"*{_TORN}"))

    @property
    def rules_version(self) -> str:
        """The oldest scrub rules that what is here went through; empty if that is not known."""
        try:
            return (self._root / _RULES).read_text().strip()
        except FileNotFoundError:
            return "" if self.files() else SCRUB_RULES_VERSION

    def close(self) -> None:
        """Sync and close. The corpus opens again by itself at the next record."""
        with self._turn():
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._sync()
            self._close_files()

    def add_record(
        self, record: TrainingRecord, *, allowed: Callable[[], bool] = lambda: True
    ) -> bool:
        """Append one record; durable within SYNC_S or SYNC_LINES. Raises CorpusError.

        allowed: asked when it is this writer's turn; if not, nothing is written, and False
        returned. A deletion withdraws consent before it takes its turn, so none slips in after it.
        False also for a record of a session that the owner has deleted.
        """
        with self._turn():
            if not allowed() or (self.deleted.refresh() and record.session_id in self.deleted):
                return False
            self._append(record)
            if self._lines >= SYNC_LINES:
                self._sync()
            else:
                self._sync_later()
        return True

    def add_records(
        self, records: Iterable[TrainingRecord], *, allowed: Callable[[], bool] = lambda: True
    ) -> int:
        """Append records, and return their number once all are durable. Raises CorpusError.

        allowed: as for `add_record`. Records of sessions that the owner has deleted are left out.
        """
        count = 0
        with self._turn():
            if not allowed():
                return 0
            self.deleted.refresh()
            for record in records:
                if record.session_id not in self.deleted:
                    self._append(record)
                    count += 1
            self._sync()
        return count

    def was_deleted(self, session_id: str) -> bool:
        """True if the owner has deleted this session: it is not to be imported again."""
        self.deleted.refresh()
        return session_id in self.deleted

    def bury(self, session_ids: Collection[str]) -> None:
        """Take sessions for deleted by the owner: they are parts of what was."""
        with self._turn():
            self.deleted.add(session_ids)

    def flush(self) -> None:
        """Make durable what was added. Raises CorpusError."""
        with self._turn():
            self._sync()

    def records(
        self, after: float | None = None, *, read: Callable[[int], None] = lambda size: None
    ) -> Iterator[TrainingRecord]:
        """Yield records in the order of their files; `after` is an exclusive Unix time.

        read: told the bytes of each line, for a bar.
        """
        self.damaged_lines = 0
        for path in self.files():
            for _, line in read_lines(path, 0):
                read(len(line))
                record = decode_line(line)
                if record is None:
                    self.damaged_lines += 1
                elif after is None or record.timestamp > after:
                    yield record
        if self.damaged_lines:
            log.warning("corpus lines skipped damaged=%d", self.damaged_lines)

    def sessions(self, only: Collection[str] | None = None) -> Iterator[Session]:
        """Yield every session once, or those of the given ids; about 2 s per 100,000 records."""
        return sessions(self.files(), only)

    def read_sessions(
        self, since: Position | None = None, *, idle_s: float = IDLE_S
    ) -> SessionBatch:
        """Read on from a position: the sessions that closed since, and where to go on.

        One that never closes is given, with `closed=False`, once idle for `idle_s`.
        One that was given may be given again, when a record follows it or after a deletion.
        """
        return read_sessions(self.files(), since, idle_before=self._clock.now_s() - idle_s)

    def export_jsonl(
        self,
        output_path: str | Path,
        domain: str | None = None,
        after: float | None = None,
        *,
        user_id: str | None = None,
    ) -> int:
        """Write records as plain JSON lines, mode 0600, and return how many.

        SESSION_CLOSE records are written with their sessions, of whatever domain, and not counted,
        as in `CorpusStats.summary`. The file appears whole or not at all. `node.capture.export` has
        more forms.
        """
        count = 0
        given: set[str] = set()
        with self.output(output_path) as out:
            for record in self.records(after):
                fits = record.session_id in given if record.closes else record.domain == domain
                if (domain is None or fits) and user_id in (None, record.user_id):
                    out.write(export_line(record))
                    count += not record.closes
                    given.add(record.session_id)
        return count

    @contextmanager
    def output(self, path: str | Path) -> Iterator[BinaryIO]:
        """A file of the owner's for a copy of what is here: it appears whole or not at all."""
        target = Path(path).expanduser().absolute()
        try:
            with whole.whole_file(target, self._root) as out:
                yield out
        except OSError as problem:
            raise CorpusError(
                f"{target} cannot be written: {problem.strerror}",
                unchanged="The corpus was only read, and an earlier export is as it was.",
                next_step="Name a file in a folder that you can write to.",
            ) from None

    def delete_user(self, user_id: str) -> int:
        """Remove a user's records for good and return how many; SESSION_CLOSE is not counted."""
        return self.delete_where(lambda record: record.user_id == user_id)

    def delete_sessions(self, session_ids: Collection[str]) -> int:
        """Remove sessions for good, whatever an import finds later; counts as `delete_user`."""
        gone = frozenset(session_ids)
        with self._turn():
            records = {each.record_id for each in self.records() if each.session_id in gone}
            self.deleted.add(gone | records)
        return self.delete_where(lambda record: record.session_id in gone)

    def delete_where(self, gone: Callable[[TrainingRecord], bool]) -> int:
        """Remove the records of which `gone` is true, for good; counts as `delete_user`.

        Damaged lines and torn tails go too, for whose they were cannot be told.
        """
        deleted = 0

        def keep(line: bytes) -> bytes | None:
            nonlocal deleted
            record = decode_line(line)
            if record is not None and not gone(record):
                return line
            deleted += record is not None and not record.closes
            return None

        with self._turn():
            self._sync()
            self._close_files()
            for path in self.files():
                self._rewrite(path, keep)
            self._drop_torn()
            if not self.files():
                (self._root / _RULES).unlink(missing_ok=True)
        return deleted

    def replace_lines(self, path: Path, changes: Mapping[bytes, bytes | None]) -> None:
        """Put other lines in the place of these in one file, whole or not at all.

        None takes a line out. Lines that are not named stay, also those added meanwhile.
        """
        with self._turn():
            self._sync()
            self._close_files()
            if path.exists():
                self._rewrite(path, lambda line: changes.get(line, line))

    def rescanned(self, version: str) -> None:
        """Note that all that is here went through these scrub rules, and drop torn tails."""
        with self._turn():
            self._drop_torn()
            write_atomic(self._root / _RULES, version.encode() + b"\n")

    def _rewrite(self, path: Path, change: Callable[[bytes], bytes | None]) -> None:
        """Replace a file by its changed lines; one without lines goes. Copies only if it must."""
        fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # `_mend` sweeps it
        out: BinaryIO | None = None
        try:
            for offset, line in read_lines(path, 0):
                changed = change(line)
                if out is None and changed != line:
                    out = _begun(fresh, path, offset)
                if out is not None and changed is not None:
                    out.write(changed)
            if out is None:
                return
            with out:
                out.flush()
                os.fsync(out.fileno())
                empty = out.tell() == 0
            if empty:
                path.unlink()
            else:
                fresh.replace(path)
        finally:
            if out is not None:
                out.close()
            fresh.unlink(missing_ok=True)
        sync_dir(self._root)

    def _drop_torn(self) -> None:
        for torn in self._root.glob(f"*{_TORN}"):
            torn.unlink()
        sync_dir(self._root)

    def _mend(self) -> None:
        whole.sweep(self._root)
        for name in (_PREFIX, _RULES, FILE):  # each is replaced in its writer's turn, as this is
            for left in self._root.glob(f".{name}*.tmp"):
                left.unlink()
        for path in self.files():
            self._cut_torn_tail(path)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """This thread's and this process's turn to write."""
        with self._lock:
            fcntl.flock(self._gate, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _append(self, record: TrainingRecord) -> None:
        if self._failure is not None:
            raise self._refusal(self._failure)
        if not is_date(record.timestamp):  # of a broken clock, or of a source
            record = replace(record, timestamp=self._clock.now_s())
        if self._lines == 0:
            self._check_room()
        line = encode_line(record)
        try:
            fd = self._file_of(day_of(record.timestamp))
        except OSError as problem:  # nothing was written: the next record tries again
            raise self._refused(problem) from None
        try:
            written = os.write(fd, line)
            if written < len(line):  # a full disk: the cut line must not stay
                os.ftruncate(fd, os.fstat(fd).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._refused(problem) from None
            raise self._failed(problem) from None
        self._unsynced.add(fd)
        self._lines += 1
        self._told = False

    def _file_of(self, day: str) -> int:
        known = self._open.get(day)
        if known is not None and _is_current(*known):
            return known[0]
        if known is not None or len(self._open) >= OPEN_DAYS_MAX:
            self._sync()
            self._close_files()
        path = self._root / f"{_PREFIX}{day}{_SUFFIX}"
        is_new = not path.exists()
        if is_new and not self.files():
            write_atomic(self._root / _RULES, SCRUB_RULES_VERSION.encode() + b"\n")
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._open[day] = fd, path
        if is_new:
            sync_dir(self._root)
        else:
            self._cut_torn_tail(path)
        return fd

    def _check_room(self) -> None:
        now = time.monotonic()
        if now - self._looked < ROOM_S:
            return
        room = os.statvfs(self._root)
        if room.f_bavail * room.f_frsize < RESERVE_BYTES:
            raise CorpusError(
                f"less than {RESERVE_BYTES // 2**20} MB are free on the disk of {self._root}",
                unchanged="Nothing was captured; what was captured before is safe.",
                next_step="Free some space: capture goes on by itself.",
            )
        self._looked = now

    def _cut_torn_tail(self, path: Path) -> None:
        with path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            keep = _last_newline(file.fileno(), size)
            if keep == size:
                return
            file.seek(keep)
            torn = path.with_name(path.name + _TORN)
            fd = os.open(torn, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(fd, "ab") as out:
                out.write(file.read() + b"\n")
                out.flush()
                os.fsync(out.fileno())
            file.truncate(keep)
            os.fsync(file.fileno())
        self.torn_tails += 1
        log.warning("torn tail cut file=%s bytes=%d", path.name, size - keep)

    def _sync_later(self) -> None:
        """Have a thread sync within SYNC_S. One is started per SYNC_S at most, not per group."""
        if self._timer is None:
            self._timer = threading.Timer(SYNC_S, self._sync_due)
            self._timer.daemon = True
            self._timer.start()

    def _sync_due(self) -> None:
        try:
            with self._turn():
                self._timer = None
                self._sync()
        except CorpusError as problem:
            log.error("corpus not synced reason=%s", problem.what)

    def _sync(self) -> None:
        try:
            for fd in self._unsynced:
                os.fsync(fd)
        except OSError as problem:
            raise self._failed(problem) from None
        self._unsynced.clear()
        self._lines = 0

    def _close_files(self) -> None:
        for fd, _ in self._open.values():
            os.close(fd)
        self._open.clear()

    def _refused(self, problem: OSError) -> CorpusError:
        """Nothing of the record is on disk, and what was written before stays to be synced."""
        reason = problem.strerror or type(problem).__name__
        if not self._told:
            log.error("corpus write refused reason=%s", reason)
            self._told = True  # until one succeeds
        return self._refusal(reason)

    def _failed(self, problem: OSError) -> CorpusError:
        """After a failed fsync nobody knows what the page cache holds: write no more."""
        reason = problem.strerror or type(problem).__name__
        log.error("corpus write failed reason=%s", reason)
        self._failure = reason
        self._unsynced.clear()  # deletion must go on working
        self._close_files()
        return self._refusal(reason)

    def _refusal(self, reason: str) -> CorpusError:
        return CorpusError(
            f"{self._root} cannot be written: {reason}",
            unchanged="The record was not kept; what was captured before is safe.",
            next_step="Mend the disk, then restart the node.",
        )


def _is_current(fd: int, path: Path) -> bool:
    """False once somebody has replaced or removed the file: a deletion, a rescan, the owner."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _begun(fresh: Path, path: Path, size: int) -> BinaryIO:
    """A new file that begins with the first `size` bytes of another."""
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    out = os.fdopen(fd, "wb", buffering=READ_BYTES)
    with path.open("rb") as file:
        while size > 0 and (part := file.read(min(size, READ_BYTES))):
            out.write(part)
            size -= len(part)
    return out


def _last_newline(fd: int, size: int) -> int:
    """Offset just after the last newline, 0 if there is none."""
    end = size
    while end > 0:
        start = max(0, end - READ_BYTES)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
