"""What the owner has agreed to, per scope, and since when; asked before every byte is kept.

Consent is append-only: the latest row of a user is in force, the earlier ones are the proof of what
was agreed before. The flag file beside the database is what `node.gate` looks at. It may be missing
while capture is allowed (the next opening mends that), never present while it is not: it is removed
before a revocation commits, and written after a grant has.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from node.clock import Clock, SystemClock
from node.errors import OwnerError
from node.gate import FLAG_FILE
from node.home import check_private, owner_path, sync_dir, write_atomic

CURRENT_CONSENT_VERSION = "1.0"  # a new version of the terms asks everybody again

_SCHEMA = """
CREATE TABLE IF NOT EXISTS consent (
    id INTEGER PRIMARY KEY, user_id TEXT NOT NULL, opted_in INTEGER NOT NULL,
    consent_version TEXT NOT NULL, scopes TEXT NOT NULL, metadata TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS consent_user ON consent (user_id, id);
CREATE TABLE IF NOT EXISTS deletion_request (
    id INTEGER PRIMARY KEY, user_id TEXT NOT NULL, at REAL NOT NULL);
"""
_COLUMNS = "user_id, opted_in, consent_version, at, metadata, scopes"


class Scope(StrEnum):
    """What may be done; each is off until the owner turns it on."""

    CAPTURE = "capture"  # record, embed and cluster
    TRAIN = "train"  # make own adapters
    PUBLISH = "publish"  # offer own heads, cards, bundles and usage
    FETCH = "fetch"  # get, evaluate, route to and serve on others' bundles


class ConsentUnreadableError(OwnerError):
    """The consent database cannot be used; nothing may be captured."""


@dataclass(frozen=True, slots=True)
class ConsentRecord:
    """One decision of one user. The latest one is in force, whole."""

    user_id: str
    opted_in: bool
    consent_version: str
    timestamp: float
    metadata: dict[str, Any]
    scopes: frozenset[Scope]

    def grants(self, scope: Scope) -> bool:
        """True if this decision allows `scope` under the terms of today."""
        current = self.consent_version == CURRENT_CONSENT_VERSION
        return self.opted_in and current and scope in self.scopes


class ConsentManager:
    """Consent in SQLite, synchronous=FULL. Safe from several threads and processes."""

    def __init__(
        self, db_path: str | Path = "~/.groove/consent.db", *, clock: Clock | None = None
    ) -> None:
        """Open or make the database, mode 0600, and mend the flag.

        Raises WideOpenError if others can reach the file, ConsentUnreadableError if it is damaged.
        """
        self._path = owner_path(db_path)
        self._clock = clock or SystemClock()
        self._flag = self._path.with_name(FLAG_FILE)
        self._lock = threading.RLock()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        check_private(self._path)
        try:
            self._db = self._opened()
        except sqlite3.DatabaseError as problem:
            raise ConsentUnreadableError(
                f"{self._path} cannot be read as a consent database: {problem}",
                unchanged="The file was left as it is, and nothing is captured.",
                next_step=f"Restore {self._path} from a backup, or move it aside and grant again.",
            ) from None
        self._mend_flag()

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.executescript(_SCHEMA)
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def __enter__(self) -> ConsentManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def record_consent(
        self,
        user_id: str,
        opted_in: bool,
        consent_version: str,
        metadata: dict[str, Any] | None = None,
        *,
        scopes: Iterable[Scope] = (Scope.CAPTURE,),
    ) -> None:
        """Record a decision. It replaces the one before: scopes that are not named are off."""
        agreed = frozenset(Scope(scope) for scope in scopes) if opted_in else frozenset()
        now = self._clock.now_s()
        with self._lock, self._writing():
            row = ConsentRecord(user_id, opted_in, consent_version, now, metadata or {}, agreed)
            self._append(row)
        self._mend_flag()

    def grant_scope(self, user_id: str, scope: Scope) -> None:
        """Add one scope to those in force, under the terms of today."""
        self._change(user_id, lambda scopes: scopes | {Scope(scope)})

    def revoke_scope(self, user_id: str, scope: Scope) -> bool:
        """Take one scope away and keep the others; False if it was not in force."""
        if not self.allows(user_id, scope):
            return False
        self._change(user_id, lambda scopes: scopes - {Scope(scope)})
        return True

    def revoke_consent(self, user_id: str) -> bool:
        """Take all scopes away; False if the user had no consent records."""
        with self._lock:
            if self._latest(user_id) is None:
                return False
            self._change(user_id, lambda scopes: frozenset())
        return True

    def is_opted_in(self, user_id: str) -> bool:
        """True if the capture scope is in force: the specification's one opt-in."""
        return self.allows(user_id, Scope.CAPTURE)

    def allows(self, user_id: str, scope: Scope) -> bool:
        """True if `scope` is in force now. One indexed read, about 10 µs."""
        latest = self._latest(user_id)
        return latest is not None and latest.grants(scope)

    def scopes(self, user_id: str) -> frozenset[Scope]:
        """The scopes in force now."""
        latest = self._latest(user_id)
        if latest is None:
            return frozenset()
        return frozenset(scope for scope in latest.scopes if latest.grants(scope))

    def version_in_force(self, user_id: str, scope: Scope) -> str | None:
        """The version of the terms under which `scope` is in force, or None if it is not."""
        latest = self._latest(user_id)
        return latest.consent_version if latest is not None and latest.grants(scope) else None

    def request_deletion(self, user_id: str) -> dict[str, Any]:
        """Note a formal request; carrying it out is `TrainingDataIntake.delete_user`."""
        now = self._clock.now_s()
        with self._lock, self._writing():
            self._db.execute(
                "INSERT INTO deletion_request (user_id, at) VALUES (?, ?)", (user_id, now)
            )
            count = self._db.execute(
                "SELECT COUNT(*) FROM consent WHERE user_id = ?", (user_id,)
            ).fetchone()[0]
        return {"user_id": user_id, "consent_records": int(count), "status": "pending"}

    def get_opted_in_count(self) -> int:
        """How many users have the capture scope in force."""
        return sum(record.grants(Scope.CAPTURE) for record in self._latest_of_all())

    def get_consent_history(self, user_id: str) -> list[ConsentRecord]:
        """All decisions of a user, oldest first."""
        with self._lock:
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM consent WHERE user_id = ? ORDER BY id", (user_id,)
            ).fetchall()
        return [_record(row) for row in rows]

    def _change(self, user_id: str, change: Callable[[frozenset[Scope]], frozenset[Scope]]) -> None:
        now = self._clock.now_s()
        with self._lock, self._writing():
            agreed = change(self.scopes(user_id))
            self._append(
                ConsentRecord(user_id, bool(agreed), CURRENT_CONSENT_VERSION, now, {}, agreed)
            )
        self._mend_flag()

    def _append(self, record: ConsentRecord) -> None:
        self._db.execute(
            f"INSERT INTO consent ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
            (
                record.user_id,
                record.opted_in,
                record.consent_version,
                record.timestamp,
                msgspec.json.encode(record.metadata).decode(),
                " ".join(sorted(record.scopes)),
            ),
        )
        if not self.get_opted_in_count():
            self._lower_flag()

    def _mend_flag(self) -> None:
        """Make the flag say what is committed. The write lock keeps a revocation from between."""
        with self._lock, self._writing():
            allowed = self.get_opted_in_count() > 0
            if allowed and not self._flag.exists():
                write_atomic(self._flag, CURRENT_CONSENT_VERSION.encode() + b"\n")
            elif not allowed:
                self._lower_flag()

    def _lower_flag(self) -> None:
        if self._flag.exists():
            self._flag.unlink(missing_ok=True)
            sync_dir(self._flag.parent)

    def _latest(self, user_id: str) -> ConsentRecord | None:
        with self._lock:
            row = self._db.execute(
                f"SELECT {_COLUMNS} FROM consent WHERE user_id = ? ORDER BY id DESC LIMIT 1",
                (user_id,),
            ).fetchone()
        return _record(row) if row else None

    def _latest_of_all(self) -> list[ConsentRecord]:
        with self._lock:
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM consent WHERE id IN "
                "(SELECT MAX(id) FROM consent GROUP BY user_id)"
            ).fetchall()
        return [_record(row) for row in rows]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _record(row: tuple[str, int, str, float, str, str]) -> ConsentRecord:
    user_id, opted_in, version, at, metadata, scopes = row
    known = frozenset(scope for scope in Scope if scope in scopes.split())
    return ConsentRecord(user_id, bool(opted_in), version, at, msgspec.json.decode(metadata), known)
