"""The tables of leaves.db and how they came to be, so that a store of any earlier day opens.

A store's version is the number of steps that were carried out on it. Each step is small, is never
changed once it was released, and may meet what it makes: the first versions wrote no number.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

_FIRST = (
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS leaf "
    "(id TEXT PRIMARY KEY, state BLOB NOT NULL, centroid BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS history ("
    "seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, round INTEGER NOT NULL, leaf TEXT NOT NULL, "
    "kind TEXT NOT NULL, reason TEXT NOT NULL, state BLOB NOT NULL, centroid BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS history_leaf ON history (leaf, seq)",
    "CREATE TABLE IF NOT EXISTS routed (leaf TEXT PRIMARY KEY, at INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS member (session TEXT PRIMARY KEY, leaf TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS member_leaf ON member (leaf, session)",
    "CREATE TABLE IF NOT EXISTS lineage ("
    "leaf TEXT NOT NULL, session TEXT NOT NULL, role TEXT NOT NULL, round INTEGER NOT NULL, "
    "PRIMARY KEY (leaf, session, role))",
    "CREATE INDEX IF NOT EXISTS lineage_session ON lineage (session)",
    "CREATE TABLE IF NOT EXISTS round ("
    "id INTEGER PRIMARY KEY, started INTEGER NOT NULL, phase TEXT NOT NULL, finished INTEGER, "
    "state BLOB NOT NULL)",
)
_PROPOSALS_AND_RULES = (
    # One row for each change that ever asked for the owner's word. leaves: ids, sorted, joined by
    # a space. change: JSON; empty once sessions that it was made of are deleted. yes: 1, 0 or NULL.
    "CREATE TABLE IF NOT EXISTS proposal ("
    "id INTEGER PRIMARY KEY, kind TEXT NOT NULL, leaves TEXT NOT NULL, reason TEXT NOT NULL, "
    "change BLOB NOT NULL, at INTEGER NOT NULL, round INTEGER NOT NULL, seen INTEGER NOT NULL, "
    "sessions INTEGER NOT NULL, parts INTEGER NOT NULL, yes INTEGER, answered INTEGER, "
    "ended TEXT, ended_at INTEGER)",
    # What the owner changed under [rules]. old, new: JSON values.
    "CREATE TABLE IF NOT EXISTS rule ("
    "seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, round INTEGER NOT NULL, name TEXT NOT NULL, "
    "old TEXT NOT NULL, new TEXT NOT NULL)",
)


class StoreVersionError(ValueError):
    """The store was written by a newer groove-node."""


def prepare(db: sqlite3.Connection) -> None:
    """Bring a store to this version, all or nothing. Raises StoreVersionError for a newer one."""
    if _version(db) == VERSION:
        return
    with transaction(db):
        found = _version(db)  # another process may have been first
        if found > VERSION:
            raise StoreVersionError(
                f"it is of version {found}, and this groove-node knows versions up to {VERSION}"
            )
        for step in _STEPS[found:]:
            step(db)
        db.execute(
            "INSERT INTO meta VALUES ('schema', ?) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (VERSION,),
        )


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; a step within a step belongs to the outer one."""
    if db.in_transaction:
        yield
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _version(db: sqlite3.Connection) -> int:
    """0 for a new file, and for one of before versions were written."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
        return 0
    row = db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    return int(row[0]) if row else 0


def _tables_of_leaves(db: sqlite3.Connection) -> None:
    for statement in _FIRST:
        db.execute(statement)


def _proposals_rules_and_looks(db: sqlite3.Connection) -> None:
    """Beside the tables: a leaf that was judged before looks were counted has had its looks.

    Each training may have been one: to count none would let an old leaf be tried as a new one.
    And its sessions of today are taken for seen, or it would be trained anew for no news.
    """
    for statement in _PROPOSALS_AND_RULES:
        db.execute(statement)
    for leaf, state in db.execute("SELECT id, state FROM leaf").fetchall():
        fields = msgspec.json.decode(state)
        if not fields.get("trainings"):
            continue
        fields.setdefault("attempts", fields["trainings"])
        db.execute("UPDATE leaf SET state = ? WHERE id = ?", (msgspec.json.encode(fields), leaf))
        db.execute(
            "INSERT OR IGNORE INTO lineage SELECT leaf, session, 'seen', 0 FROM member "
            "WHERE leaf = ?",
            (leaf,),
        )


_STEPS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _tables_of_leaves,
    _proposals_rules_and_looks,
)
VERSION = len(_STEPS)
