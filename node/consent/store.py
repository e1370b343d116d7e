"""The consent database: rows that are only ever added, each a decision and its receipt.

Who decided what is read from the receipts alone, each of which holds the hash of the one before.
The columns beside them are for reading by eye; where they say something else, somebody edited the
store, and nothing in it is in force until the owner is asked again. Rows of the earlier form have
no receipt; they prove nothing, so they are history and allow nothing.

The whole chain is proved whenever the database was written, and what it says is kept until then.
The file may also be removed or replaced under a process that has it open, whose handle would go on
saying what nobody can change any more: so every use looks first whether it is still the same file.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from node.errors import OwnerError
from node.home import check_private, private_dir

from . import receipts
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
_RECEIPT = "CAST(receipt AS TEXT), hash, signature, key_doc, signed_at"
_COLUMNS = "user_id, opted_in, consent_version, scopes, metadata, at, receipt, hash"


class ConsentUnreadableError(OwnerError):
    """The consent database cannot be used; nothing may be captured."""


class ConsentGoneError(ConsentUnreadableError):
    """The database that was opened is not in its place any more, and none that can be used is."""


class ConsentLockedError(OwnerError):
    """Another process holds the consent database."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One decision. proven: its receipt was not altered, and no later one says it was not in force.

    Of a row that lacks such a receipt, the decision is what the columns tell.
    """

    decision: Decision
    proven: bool


@dataclass(frozen=True, slots=True)
class Chain:
    """All rows as one. sound: from the last that begins anew, each follows and none was edited."""

    latest: Mapping[str, Row]  # by user
    head: str  # hash of the last receipt; empty if there is none
    sound: bool


EMPTY = Chain({}, "", sound=True)


class ConsentStore:
    """The rows. Not safe from several threads: the manager takes turns."""

    def __init__(self, path: Path) -> None:
        """Open or make the database, mode 0600, and bring it to the form of today.

        Raises WideOpenError if others can reach it, ConsentUnreadableError if it cannot be used.
        """
        self._path = path
        self._chain: tuple[int, Chain] | None = None  # as of a value of PRAGMA data_version
        self._make()
        self._file, self._held = self._opened()

    def _make(self) -> None:
        private_dir(self._path.parent)
        with self._told(), suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def _opened(self) -> tuple[tuple[int, int], sqlite3.Connection]:
        """The database that is there, and which file it is. Makes none."""
        with self._told():
            file = _file_at(self._path)  # first: of one replaced meanwhile, the next use sees it
            check_private(self._path)
            return file, self._connected()

    def _connected(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw",
            uri=True,
            timeout=WAIT_S,
            isolation_level=None,
            check_same_thread=False,
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
        self._held.close()

    @property
    def _db(self) -> sqlite3.Connection:
        """The connection, to the file that is in its place now. Raises ConsentGoneError.

        A file that is missing is not made: somebody may be about to put a copy there.
        """
        if self._held.in_transaction:
            return self._held
        try:
            same = _file_at(self._path) == self._file
        except OSError as problem:
            raise self._gone(problem.strerror or "it is missing") from None
        if not same:
            try:
                file, db = self._opened()
            except OwnerError as problem:
                raise self._gone(problem.what) from None
            self._held.close()
            self._file, self._held, self._chain = file, db, None
        return self._held

    def _gone(self, why: str) -> ConsentGoneError:
        return ConsentGoneError(
            f"{self._path} was removed or replaced while it was open: {why}",
            unchanged="Nothing is allowed by this process.",
            next_step="Put the home back as it was, or grant again.",
        )

    def renew(self) -> None:
        """Make the database anew if it was removed; for whoever has something to write."""
        try:
            _ = self._db
        except ConsentGoneError:
            self._make()
            _ = self._db

    def chain(self) -> Chain:
        """All rows, proved: read again only after somebody wrote. Else about 5 µs."""
        try:
            db = self._db
            version: int = db.execute("PRAGMA data_version").fetchone()[0]
            if self._chain is None or self._chain[0] != version:
                rows = db.execute(f"SELECT {_COLUMNS} FROM consent ORDER BY id").fetchall()
                self._chain = version, _proved(rows)
        except sqlite3.Error as problem:
            raise _for_the_owner(self._path, problem) from None
        return self._chain[1]

    def history(self, user_id: str) -> list[Row]:
        """All decisions of a user, oldest first."""
        with self._told():
            found = self._db.execute(f"SELECT {_COLUMNS} FROM consent ORDER BY id").fetchall()
        return [row for row in map(_row, found) if row.decision.user_id == user_id]

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
            row.decision.number
            for each in found
            if (row := _row(each)).proven and each[:6] != _columns(row.decision)
        ]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction, whole or not at all."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._held.execute("COMMIT")
            except BaseException:
                if self._held.in_transaction:
                    self._held.execute("ROLLBACK")
                raise
            finally:
                self._chain = None  # PRAGMA data_version counts what others wrote
            if _file_at(self._path) != self._file:
                raise self._gone("what was written went with it")

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


def _file_at(path: Path) -> tuple[int, int]:
    found = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, on every call
    return found.st_dev, found.st_ino


def _proved(rows: Iterable[Sequence[Any]]) -> Chain:
    """Follow the receipts, oldest first; what the columns say proves nothing."""
    latest: dict[str, Row] = {}
    head, number, sound = "", 0, True
    for found in rows:
        row, hash_ = _row(found), found[-1]
        said = row.decision
        if said.broken and row.proven:
            # The word of somebody who was told that nothing was in force, whatever stood before.
            latest = {user: replace(each, proven=False) for user, each in latest.items()}
            sound = True
        if row.proven:
            follows = said.previous == head and said.number > number
            sound = sound and follows and found[:6] == _columns(said)
            number = said.number
        elif hash_:
            sound = False
        latest[said.user_id] = row
        head = hash_
    return Chain(latest, head, sound)


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
    decision = receipts.read(body, hash_) if hash_ and isinstance(body, str) else None
    if decision is not None:
        return Row(decision, proven=True)
    try:
        read = msgspec.json.decode(metadata, type=dict[str, Any])
    except msgspec.DecodeError:
        read = {}
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
        metadata=read,
        disclosure="",
        previous="",
    )
    return Row(told, proven=False)
