"""The consent database: rows that are only ever added, each a decision and its receipt.

What a row allows is read from its receipt, whose hash the next receipt holds; the columns beside it
are for finding rows and for reading by eye. Rows of the earlier form have no receipt; they prove
nothing, so they are history and allow nothing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from . import receipts
from .errors import OwnerError
from .home import check_private, private_dir
from .receipts import Decision, Receipt

WAIT_S = 5.0  # for another process that is writing

_FORM = 1  # PRAGMA user_version; 0 is the earlier form, without receipts
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS consent (id INTEGER PRIMARY KEY, user_id TEXT NOT NULL, "
    "opted_in INTEGER NOT NULL, consent_version TEXT NOT NULL, scopes TEXT NOT NULL, "
    "metadata TEXT NOT NULL, at REAL NOT NULL)",
    "CREATE INDEX IF NOT EXISTS consent_user ON consent (user_id, id)",
    "CREATE TABLE IF NOT EXISTS deletion_request "
    "(id INTEGER PRIMARY KEY, user_id TEXT NOT NULL, at REAL NOT NULL)",
)
_ADDED = (
    "receipt TEXT NOT NULL DEFAULT ''",
    "hash TEXT NOT NULL DEFAULT ''",
    "signature BLOB NOT NULL DEFAULT x''",
    "key_doc BLOB NOT NULL DEFAULT x''",
    "signed_at REAL",
)
_RECEIPT = "receipt, hash, signature, key_doc, signed_at"
_COLUMNS = "user_id, opted_in, consent_version, scopes, metadata, at, receipt, hash"
_HEAD = "(SELECT hash FROM consent ORDER BY id DESC LIMIT 1)"


class ConsentUnreadableError(OwnerError):
    """The consent database cannot be used; nothing may be captured."""


class ConsentLockedError(OwnerError):
    """Another process holds the consent database."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One decision. proven: it has a receipt, and that was not altered."""

    decision: Decision
    proven: bool


class ConsentStore:
    """The rows. Not safe from several threads: the manager takes turns."""

    def __init__(self, path: Path) -> None:
        """Open or make the database, mode 0600, and bring it to the form of today.

        Raises WideOpenError if others can reach it, ConsentUnreadableError if it cannot be used.
        """
        self._path = path
        private_dir(path.parent)
        with self._told(), suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        check_private(path)
        with self._told():
            self._db = self._opened()

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._path, timeout=WAIT_S, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            if _form(db) != _FORM:
                _migrate(db)
        except sqlite3.Error:
            db.close()
            raise
        if (form := _form(db)) > _FORM:
            db.close()
            raise ConsentUnreadableError(
                f"{self._path} has form {form}; this version knows forms up to {_FORM}",
                unchanged="The file was left as it is, and nothing is captured.",
                next_step="Run the newer groove-node that wrote it.",
            )
        return db

    def close(self) -> None:
        self._db.close()

    def marks(self, user_id: str) -> tuple[str, str] | None:
        """The hash of a user's last decision, and that of the last one of all users. About 6 µs."""
        try:
            found = self._db.execute(
                f"SELECT hash, {_HEAD} FROM consent WHERE user_id = ? ORDER BY id DESC LIMIT 1",
                (user_id,),
            ).fetchone()
        except sqlite3.Error as problem:
            raise _for_the_owner(self._path, problem) from None
        return found or None

    def latest(self, user_id: str) -> tuple[Row, str] | None:
        """A user's last decision, and the hash of the last one of all users."""
        with self._told():
            found = self._db.execute(
                f"SELECT {_COLUMNS}, {_HEAD} FROM consent WHERE user_id = ? "
                "ORDER BY id DESC LIMIT 1",
                (user_id,),
            ).fetchone()
        return (_row(found[:-1]), found[-1]) if found else None

    def latest_of_all(self) -> list[Row]:
        """The last decision of each user."""
        return self._rows("WHERE id IN (SELECT MAX(id) FROM consent GROUP BY user_id)")

    def history(self, user_id: str) -> list[Row]:
        """All decisions of a user, oldest first."""
        return self._rows("WHERE user_id = ?", user_id)

    def _rows(self, where: str, *values: str) -> list[Row]:
        with self._told():
            found = self._db.execute(
                f"SELECT {_COLUMNS} FROM consent {where} ORDER BY id", values
            ).fetchall()
        return [_row(each) for each in found]

    def head(self) -> str:
        """The hash of the last receipt; empty if there is none."""
        with self._told():
            found = self._db.execute(f"SELECT {_HEAD}").fetchone()
        return found[0] or ""

    def last_number(self) -> int:
        """The number of the last receipt; 0 if there is none."""
        last = self._receipts("WHERE hash != '' ORDER BY id DESC LIMIT 1")
        said = receipts.read(last[0].body, last[0].hash) if last else None
        return said.number if said else 0

    def receipts(self) -> list[Receipt]:
        """All receipts, oldest first."""
        return self._receipts("WHERE hash != '' ORDER BY id")

    def unsigned(self) -> list[Receipt]:
        """The receipts that no key has signed yet, oldest first."""
        return self._receipts("WHERE hash != '' AND signature = x'' ORDER BY id")

    def _receipts(self, which: str) -> list[Receipt]:
        with self._told():
            found = self._db.execute(f"SELECT {_RECEIPT} FROM consent {which}").fetchall()
        return [Receipt(*each) for each in found]

    def differing(self) -> list[int]:
        """Numbers of decisions whose columns say something else than their receipt."""
        with self._told():
            found = self._db.execute(
                f"SELECT {_COLUMNS} FROM consent WHERE hash != '' ORDER BY id"
            ).fetchall()
        return [
            decision.number
            for each in found
            if (decision := receipts.read(each[6], each[7])) and each[:6] != _columns(decision)
        ]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction, whole or not at all."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def append(self, decision: Decision, receipt: Receipt) -> None:
        self._db.execute(
            f"INSERT INTO consent ({_COLUMNS}, signature, key_doc, signed_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *_columns(decision),
                *(receipt.body, receipt.hash, receipt.signature, receipt.key_doc),
                receipt.signed_at,
            ),
        )

    def sign(self, receipt: Receipt) -> None:
        """Add the signature that a stored receipt lacks."""
        self._db.execute(
            "UPDATE consent SET signature = ?, key_doc = ?, signed_at = ? "
            "WHERE hash = ? AND signature = x''",
            (receipt.signature, receipt.key_doc, receipt.signed_at, receipt.hash),
        )

    def request_deletion(self, user_id: str, now_s: float) -> int:
        """Note a request; return how many decisions the user has on record."""
        with self.writing():
            self._db.execute(
                "INSERT INTO deletion_request (user_id, at) VALUES (?, ?)", (user_id, now_s)
            )
            found = self._db.execute("SELECT COUNT(*) FROM consent WHERE user_id = ?", (user_id,))
            return int(found.fetchone()[0])

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite and the disk find wrong, as something the owner can mend."""
        try:
            yield
        except (sqlite3.Error, OSError) as problem:
            raise _for_the_owner(self._path, problem) from None


def _for_the_owner(path: Path, problem: sqlite3.Error | OSError) -> OwnerError:
    text = str(problem)
    if "locked" in text:
        return ConsentLockedError(
            f"{path}: another process has been writing for more than {WAIT_S:g} s",
            unchanged="Nothing was changed.",
            next_step="Run the command again; if it stays so, end the process that holds the file.",
        )
    if isinstance(problem, OSError | sqlite3.OperationalError):
        return ConsentUnreadableError(
            f"{path} cannot be opened or written: {text}",
            unchanged="No consent was given, and nothing is captured.",
            next_step="Mend the disk, or the permissions of the folder, and run the command again.",
        )
    return ConsentUnreadableError(
        f"{path} cannot be read as a consent database: {text}",
        unchanged="The file was left as it is, and nothing is captured.",
        next_step=f"Restore {path} from a backup, or move it aside and grant again.",
    )


def _form(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _migrate(db: sqlite3.Connection) -> None:
    """Make the tables, or add what the earlier form lacks: whole, or not at all."""
    db.execute("BEGIN IMMEDIATE")
    try:
        if _form(db) == 0:  # else another process was first
            for statement in _SCHEMA:
                db.execute(statement)
            for column in _ADDED:
                db.execute(f"ALTER TABLE consent ADD COLUMN {column}")
            db.execute(f"PRAGMA user_version = {_FORM}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _columns(decision: Decision) -> tuple[str, int, str, str, str, float]:
    return (
        decision.user_id,
        int(decision.opted_in),
        decision.version,
        " ".join(decision.scopes),
        msgspec.json.encode(decision.metadata, order="deterministic").decode(),
        decision.at,
    )


def _row(found: Sequence[Any]) -> Row:
    user_id, opted_in, version, scopes, metadata, at, body, hash_ = found
    decision = receipts.read(body, hash_) if hash_ else None
    if decision is not None and decision.user_id == user_id:
        return Row(decision, proven=True)
    told = Decision(
        number=0,
        user_id=user_id,
        event=receipts.DECISION,
        opted_in=bool(opted_in),
        version=version,
        scopes=tuple(scopes.split()),
        sources=(),
        folders=(),
        at=at,
        metadata=msgspec.json.decode(metadata),
        disclosure="",
        previous="",
    )
    return Row(told, proven=False)
