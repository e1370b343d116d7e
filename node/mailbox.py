"""Orders from commands to the running node, kept on disk until they are carried out.

A command writes its order and is done: the order survives a crash of either side, and is carried
out at the next start if no node is running. The node polls; an idle poll reads an empty index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

_SCHEMA = """
CREATE TABLE IF NOT EXISTS letter (
    id INTEGER PRIMARY KEY, order_ BLOB NOT NULL, posted REAL NOT NULL,
    answer BLOB, answered REAL);
CREATE INDEX IF NOT EXISTS letter_waiting ON letter (id) WHERE answer IS NULL;
"""
ANSWERED_KEPT_S, ANSWERED_KEPT_MAX = 7 * 86_400, 1_000  # nobody waits longer for an answer
# The last letter stays whatever its age, for its number would be given again.
_PRUNE = f"""
DELETE FROM letter WHERE answer IS NOT NULL AND id < (SELECT max(id) FROM letter)
    AND (answered < ? OR id NOT IN (SELECT id FROM letter WHERE answer IS NOT NULL
        ORDER BY answered DESC, id DESC LIMIT {ANSWERED_KEPT_MAX}))
"""


class Dial(msgspec.Struct, frozen=True, tag="dial"):
    """Connect to a peer, and remember it."""

    address: str


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Remember a peer no more, and end the link with it."""

    peer: str


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """Get a foreign leaf's bundle now, whatever the interest in it."""

    origin: str
    leaf: str


class Retract(msgspec.Struct, frozen=True, tag="retract"):
    """Retract an own leaf for ever, or all of them (leaf is None)."""

    leaf: str | None


class Rekey(msgspec.Struct, frozen=True, tag="rekey"):
    """Sign with the keys that are in the home now: they are of a new epoch."""


Order = Dial | Forget | Fetch | Retract | Rekey


@dataclass(frozen=True, slots=True)
class Letter:
    id: int
    order: Order | None  # None: it cannot be read


class Mailbox:
    """The orders of one home."""

    def __init__(self, home: Path) -> None:
        path = home / "mailbox.db"
        path.touch(mode=0o600, exist_ok=True)
        self._files = (path, path.with_name(path.name + "-wal"))
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Size and time of the files: another after each letter but, within a few ms, two."""
        found = []
        for path in self._files:
            try:
                about = path.stat()
            except OSError:
                continue
            found.append((about.st_size, about.st_mtime_ns))
        return tuple(found)

    def wait_at_most(self, seconds: float) -> None:
        """Raise OperationalError so soon if another process holds the database; at first 30 s."""
        self._db.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")

    def post(self, order: Order, now_s: float) -> int:
        """Leave an order; once this returns it will be carried out, even after a crash."""
        cursor = self._db.execute(
            "INSERT INTO letter (order_, posted) VALUES (?, ?)",
            (msgspec.json.encode(order), now_s),
        )
        return int(cursor.lastrowid or 0)

    def waiting(self) -> list[Letter]:
        """Orders not yet carried out, oldest first."""
        rows = self._db.execute(
            "SELECT id, order_ FROM letter WHERE answer IS NULL ORDER BY id"
        ).fetchall()
        return [Letter(id_, _read(order)) for id_, order in rows]

    def answer(self, letter: int, answer: dict[str, Any], now_s: float) -> None:
        """Mark an order as carried out, or refused, with what came of it."""
        self.answer_all({letter: answer}, now_s)

    def answer_all(self, answers: Mapping[int, dict[str, Any]], now_s: float) -> bool:
        """Answer several, all or none, and forget the oldest answers. Raises sqlite3.Error."""
        rows = [(msgspec.json.encode(answer), now_s, letter) for letter, answer in answers.items()]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany("UPDATE letter SET answer = ?, answered = ? WHERE id = ?", rows)
            self._db.execute(_PRUNE, (now_s - ANSWERED_KEPT_S,))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk may have ended it already
                self._db.execute("ROLLBACK")
            raise
        return True

    def answer_to(self, letter: int) -> dict[str, Any] | None:
        row = self._db.execute("SELECT answer FROM letter WHERE id = ?", (letter,)).fetchone()
        if row is None or row[0] is None:
            return None
        answer: dict[str, Any] = msgspec.json.decode(row[0])
        return answer


def _read(order: bytes) -> Order | None:
    try:
        return msgspec.json.decode(order, type=Order)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
