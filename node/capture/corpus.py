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
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from node.clock import Clock, SystemClock
from node.errors import OwnerError
from node.home import owner_path, sync_dir, write_atomic

from .record import (
    READ_BYTES,
    TrainingRecord,
    decode_line,
    encode_line,
    export_line,
    read_lines,
)
from .sessions import IDLE_S, Position, Session, SessionBatch, read_sessions, sessions

log = logging.getLogger(__name__)

SYNC_LINES = 64
SYNC_S = 2.0
OPEN_DAYS_MAX = 4  # files kept open for appending
RESERVE_BYTES = 64 * 2**20  # of the disk, left for deletion and retraction to work in

_PREFIX, _SUFFIX, _TORN = "training_", ".jsonl", ".torn"


class CorpusError(OwnerError):
    """The corpus cannot be written. What is on disk is whole; the record at hand is not kept."""


class TrainingCorpus:
    """Daily JSONL files under one folder. Safe from several threads and processes."""

    def __init__(
        self, root: str | Path = "~/.groove/training_data", *, clock: Clock | None = None
    ) -> None:
        """Make the folder if it is missing, and cut off torn tails."""
        self._clock = clock or SystemClock()
        self._root = owner_path(root)
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._gate = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, self._gate)
        self._open: dict[Path, int] = {}
        self._unsynced: set[int] = set()
        self._lines = 0
        self._timer: threading.Timer | None = None
        self._failure: str | None = None
        self.torn_tails = 0  # cut by this object
        self.damaged_lines = 0  # met by this object's last complete read
        with self._turn():
            for path in self.files():
                self._cut_torn_tail(path)

    @property
    def root(self) -> Path:
        return self._root

    def files(self) -> list[Path]:
        """The daily files, oldest first."""
        return sorted(self._root.glob(f"{_PREFIX}*{_SUFFIX}"))

    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files())

    def close(self) -> None:
        """Sync and close. The corpus opens again by itself at the next record."""
        with self._turn():
            self._sync()
            self._close_files()

    def add_record(
        self, record: TrainingRecord, *, allowed: Callable[[], bool] = lambda: True
    ) -> bool:
        """Append one record; durable within SYNC_S or SYNC_LINES. Raises CorpusError.

        allowed: asked when it is this writer's turn; if not, nothing is written, and False
        returned. A deletion withdraws consent before it takes its turn, so none slips in after it.
        """
        with self._turn():
            if not allowed():
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

        allowed: as for `add_record`.
        """
        count = 0
        with self._turn():
            if not allowed():
                return 0
            for record in records:
                self._append(record)
                count += 1
            self._sync()
        return count

    def flush(self) -> None:
        """Make durable what was added. Raises CorpusError."""
        with self._turn():
            self._sync()

    def records(self, after: float | None = None) -> Iterator[TrainingRecord]:
        """Yield records in the order of their files; `after` is an exclusive Unix time."""
        self.damaged_lines = 0
        for path in self.files():
            for _, line in read_lines(path, 0):
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

        The file appears whole or not at all.
        """
        target = Path(output_path).expanduser().absolute()
        fresh = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        count = 0
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "wb", buffering=READ_BYTES) as out:
                for record in self.records(after):
                    if domain in (None, record.domain) and user_id in (None, record.user_id):
                        out.write(export_line(record))
                        count += 1
                out.flush()
                os.fsync(out.fileno())
            fresh.replace(target)
        except OSError as problem:
            fresh.unlink(missing_ok=True)
            raise CorpusError(
                f"{target} cannot be written: {problem.strerror}",
                unchanged="The corpus was only read, and an earlier export is as it was.",
                next_step="Name a file in a folder that you can write to.",
            ) from None
        return count

    def delete_user(self, user_id: str) -> int:
        """Remove a user's records for good and return how many; SESSION_CLOSE is not counted.

        Damaged lines and torn tails go too, for whose they were cannot be told.
        """
        with self._turn():
            self._sync()
            self._close_files()
            deleted = sum(self._without(path, user_id) for path in self.files())
            for torn in self._root.glob(f"*{_TORN}"):
                torn.unlink()
            sync_dir(self._root)
        return deleted

    def _without(self, path: Path, user_id: str) -> int:
        kept: list[bytes] = []
        total = deleted = 0
        for _, line in read_lines(path, 0):
            total += 1
            record = decode_line(line)
            if record is not None and record.user_id != user_id:
                kept.append(line)
            elif record is not None:
                deleted += not record.closes
        if not kept:
            path.unlink()
        elif len(kept) < total:
            write_atomic(path, b"".join(kept))
        return deleted

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
        if self._lines == 0:
            self._check_room()
        line = encode_line(record)
        fd = self._file_of(record)
        try:
            written = os.write(fd, line)
            if written < len(line):  # a full disk: the cut line must not stay
                os.ftruncate(fd, os.fstat(fd).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as problem:
            raise self._failed(problem) from None
        self._unsynced.add(fd)
        self._lines += 1

    def _file_of(self, record: TrainingRecord) -> int:
        day = datetime.fromtimestamp(record.timestamp, UTC).strftime("%Y-%m-%d")
        path = self._root / f"{_PREFIX}{day}{_SUFFIX}"
        fd = self._open.get(path)
        if fd is not None and self._is_current(path, fd):
            return fd
        if fd is not None or len(self._open) >= OPEN_DAYS_MAX:
            self._sync()
            self._close_files()
        is_new = not path.exists()
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._open[path] = fd
        if is_new:
            sync_dir(self._root)
        else:
            self._cut_torn_tail(path)
        return fd

    def _is_current(self, path: Path, fd: int) -> bool:
        """False once another process has replaced or removed the file in a deletion."""
        try:
            return os.path.samestat(path.stat(), os.fstat(fd))
        except FileNotFoundError:
            return False

    def _check_room(self) -> None:
        room = os.statvfs(self._root)
        if room.f_bavail * room.f_frsize < RESERVE_BYTES:
            raise CorpusError(
                f"less than {RESERVE_BYTES // 2**20} MB are free on the disk of {self._root}",
                unchanged="Nothing was captured; what was captured before is safe.",
                next_step="Free some space: capture goes on by itself.",
            )

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
        if self._timer is None:
            self._timer = threading.Timer(SYNC_S, self._sync_due)
            self._timer.daemon = True
            self._timer.start()

    def _sync_due(self) -> None:
        try:
            self.flush()
        except CorpusError as problem:
            log.error("corpus not synced reason=%s", problem.what)

    def _sync(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            for fd in self._unsynced:
                os.fsync(fd)
        except OSError as problem:
            raise self._failed(problem) from None
        self._unsynced.clear()
        self._lines = 0

    def _close_files(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _failed(self, problem: OSError) -> CorpusError:
        """After a failed fsync nobody knows what the page cache holds: write no more.

        A full disk is another matter, for the cut line was taken back: the next record tries again.
        """
        reason = problem.strerror or type(problem).__name__
        log.error("corpus write failed reason=%s", reason)
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
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
