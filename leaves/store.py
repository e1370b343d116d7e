"""The forest on disk: what each leaf is, how it came to be so, and which sessions it was made of.

One SQLite file in WAL mode with synchronous=FULL. Whatever belongs together is one transaction, so
a crash leaves the forest before a step or after it, never between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .lifecycle import Transition, apply, ids_of
from .model import Forest, Instant, Leaf, LeafId

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS leaf (id TEXT PRIMARY KEY, state BLOB NOT NULL, centroid BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS history (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, round INTEGER NOT NULL, leaf TEXT NOT NULL,
    kind TEXT NOT NULL, reason TEXT NOT NULL, state BLOB NOT NULL, centroid BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS history_leaf ON history (leaf, seq);
CREATE TABLE IF NOT EXISTS routed (leaf TEXT PRIMARY KEY, at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS member (session TEXT PRIMARY KEY, leaf TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS lineage (
    leaf TEXT NOT NULL, session TEXT NOT NULL, role TEXT NOT NULL, round INTEGER NOT NULL,
    PRIMARY KEY (leaf, session, role));
CREATE INDEX IF NOT EXISTS lineage_session ON lineage (session);
CREATE TABLE IF NOT EXISTS round (
    id INTEGER PRIMARY KEY, started INTEGER NOT NULL, phase TEXT NOT NULL, finished INTEGER,
    state BLOB NOT NULL);
"""
_MEMBER_INDEX = "CREATE INDEX IF NOT EXISTS member_leaf ON member (leaf, session)"

_ASKED_AT_ONCE = 500  # sessions in one statement


class Role(StrEnum):
    """What a session was to a leaf's training."""

    TRAIN = "train"
    HELD_OUT = "held_out"
    CONTROL = "control"  # in the style control the leaf was measured against


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One change of one leaf."""

    at: Instant
    round: int
    leaf: Leaf  # as it was after the change
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One journaled round. `state` is the engine's own and holds no text of a session."""

    id: int
    started: Instant
    phase: str
    finished: Instant | None
    state: dict[str, Any]


class ForestStore:
    """Reads and writes the forest. One writer at a time (the round's lock); readers at any time."""

    def __init__(self, path: Path, origin: bytes) -> None:
        self._origin = origin
        path.touch(mode=0o600, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA secure_delete=ON")  # a deleted session leaves no trace in a page
        self._db.executescript(_SCHEMA)
        self._db.execute(_MEMBER_INDEX)

    def close(self) -> None:
        self._db.close()

    def revision(self) -> int:
        """A number that rises with every change of the forest; cheap enough to poll."""
        row = self._db.execute("SELECT COALESCE(MAX(seq), 0) FROM history").fetchone()
        return int(row[0])

    def forest(self) -> Forest:
        rows = self._db.execute("SELECT state, centroid FROM leaf ORDER BY id").fetchall()
        births = self._db.execute("SELECT value FROM meta WHERE name = 'births'").fetchone()
        forest = _forest(rows, int(births[0]) if births else 0, self._origin)
        for leaf, at in self._db.execute("SELECT leaf, at FROM routed ORDER BY leaf").fetchall():
            if leaf in forest.leaves:
                forest = forest.with_leaf(replace(forest.leaves[leaf], last_routed=at))
        return forest

    def forest_at(self, at: Instant) -> Forest:
        """The forest as it was at a moment; its count of births is of no use to a round."""
        rows = self._db.execute(
            "SELECT state, centroid FROM history WHERE seq IN "
            "(SELECT MAX(seq) FROM history WHERE at <= ? GROUP BY leaf) ORDER BY leaf",
            (at,),
        ).fetchall()
        return _forest(rows, len(rows), self._origin)

    def history(self, leaf: LeafId) -> list[HistoryEntry]:
        """All changes of one leaf, oldest first."""
        rows = self._db.execute(
            "SELECT at, round, state, centroid, kind, reason FROM history WHERE leaf = ? "
            "ORDER BY seq",
            (leaf,),
        )
        return [
            HistoryEntry(Instant(at), round_, _leaf(state, centroid), kind, reason)
            for at, round_, state, centroid, kind, reason in rows
        ]

    def carry_out(
        self,
        forest: Forest,
        transitions: Sequence[Transition],
        now: Instant,
        round_id: int,
        also: Callable[[Forest], None] = lambda forest: None,
    ) -> Forest:
        """Apply transitions and write them with their reasons, all or nothing.

        also: further writes to this store that belong to the same step; it is given the forest
        as it is after the transitions.
        """
        with self._transaction():
            for transition in transitions:
                forest = apply(forest, transition, now)
                for id_ in ids_of(transition):
                    self._write(forest.leaves[id_], transition, now, round_id)
            self._db.execute(
                "INSERT INTO meta VALUES ('births', ?) "
                "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (forest.births,),
            )
            also(forest)
        return forest

    def change(self, leaf: Leaf, kind: str, reason: str, now: Instant) -> None:
        """Write one leaf outside a round: a rename, or what routing and usage records tell."""
        with self._transaction():
            self._put(leaf, kind, reason, now, 0)

    def routed(self, leaf: LeafId, now: Instant) -> None:
        """Note that a prompt was routed to a leaf."""
        self._db.execute(
            "INSERT INTO routed VALUES (?, ?) ON CONFLICT (leaf) DO UPDATE SET at = excluded.at",
            (leaf, now),
        )

    def assign(self, members: Mapping[str, LeafId]) -> None:
        """Replace the assignment of sessions to leaves; only what changed is written."""
        with self._transaction():
            known: set[str] = set()
            gone: list[tuple[str]] = []
            moved: list[tuple[LeafId, str]] = []
            for session, leaf in self._db.execute("SELECT session, leaf FROM member"):
                known.add(session)
                wanted = members.get(session)
                if wanted is None:
                    gone.append((session,))
                elif wanted != leaf:
                    moved.append((wanted, session))
            fresh = sorted((session, members[session]) for session in members.keys() - known)
            self._db.executemany("DELETE FROM member WHERE session = ?", gone)
            self._db.executemany("UPDATE member SET leaf = ? WHERE session = ?", moved)
            if len(fresh) > len(known):  # sorted once is sooner done than kept sorted all along
                self._db.execute("DROP INDEX member_leaf")
            self._db.executemany("INSERT INTO member VALUES (?, ?)", fresh)
            self._db.execute(_MEMBER_INDEX)

    def members(self, leaf: LeafId) -> list[str]:
        rows = self._db.execute(
            "SELECT session FROM member WHERE leaf = ? ORDER BY session", (leaf,)
        )
        return [session for (session,) in rows]

    def sizes(self) -> dict[LeafId, int]:
        """How many sessions each leaf has, by leaf, without reading who they are."""
        rows = self._db.execute("SELECT leaf, count(*) FROM member GROUP BY leaf ORDER BY leaf")
        return {LeafId(leaf): count for leaf, count in rows}

    def leaf_of(self, sessions: Sequence[str]) -> dict[str, LeafId]:
        """The leaf of each of these sessions that has one."""
        found: dict[str, LeafId] = {}
        for start in range(0, len(sessions), _ASKED_AT_ONCE):
            asked = sessions[start : start + _ASKED_AT_ONCE]
            marks = ", ".join("?" * len(asked))
            rows = self._db.execute(
                f"SELECT session, leaf FROM member WHERE session IN ({marks})", asked
            )
            found.update((session, LeafId(leaf)) for session, leaf in rows)
        return found

    def assignment(self) -> dict[str, LeafId]:
        """The leaf of every session that has one, by session, in the order of their names."""
        leaves: dict[str, LeafId] = {}  # one object a leaf, not one a session
        rows = self._db.execute("SELECT session, leaf FROM member")
        # Sorted here: ORDER BY would have SQLite look up each row by its name.
        return {s: leaves.setdefault(leaf, LeafId(leaf)) for s, leaf in sorted(rows)}

    def use(self, leaf: LeafId, role: Role, sessions: Iterable[str], round_id: int) -> None:
        """Record which sessions a training used; kept until they are forgotten."""
        rows = [(leaf, session, role.value, round_id) for session in sorted(sessions)]
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO lineage VALUES (?, ?, ?, ?)", rows)

    def used(self, leaf: LeafId, role: Role, before_round: int | None = None) -> set[str]:
        """Sessions that a leaf's trainings used in this role, in rounds before the given one."""
        rows = self._db.execute(
            "SELECT session FROM lineage WHERE leaf = ? AND role = ? AND round < ?",
            (leaf, role.value, before_round if before_round is not None else 2**62),
        )
        return {session for (session,) in rows}

    def unuse(self, leaf: LeafId) -> None:
        """Forget what a leaf was trained on: its adapter in force was begun anew."""
        with self._transaction():
            self._db.execute(
                "DELETE FROM lineage WHERE leaf = ? AND role IN (?, ?)",
                (leaf, Role.TRAIN.value, Role.CONTROL.value),
            )

    def made_of(self, sessions: Iterable[str], *roles: Role) -> list[LeafId]:
        """Leaves whose trainings used any of these sessions, by id; without roles, to train on."""
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS asked (session TEXT PRIMARY KEY)")
        self._db.execute("DELETE FROM asked")
        self._db.executemany("INSERT OR IGNORE INTO asked VALUES (?)", ((s,) for s in sessions))
        wanted = roles or (Role.TRAIN,)
        marks = ", ".join("?" * len(wanted))
        rows = self._db.execute(
            "SELECT DISTINCT leaf FROM lineage JOIN asked USING (session) "
            f"WHERE role IN ({marks}) ORDER BY leaf",
            [role.value for role in wanted],
        ).fetchall()
        self._db.execute("DELETE FROM asked")
        return [LeafId(leaf) for (leaf,) in rows]

    def forget(self, sessions: Iterable[str]) -> None:
        """Erase every trace of these sessions; the free pages are overwritten too."""
        rows = [(session,) for session in sessions]
        with self._transaction():
            self._db.executemany("DELETE FROM member WHERE session = ?", rows)
            self._db.executemany("DELETE FROM lineage WHERE session = ?", rows)
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def rename_throughout(self, leaf: LeafId, name: str) -> None:
        """Give a leaf another name in all of its history: the old one was made of deleted texts."""
        with self._transaction():
            for table, key in (("leaf", "id"), ("history", "leaf")):
                rows = self._db.execute(
                    f"SELECT rowid, state FROM {table} WHERE {key} = ?", (leaf,)
                ).fetchall()
                for row, state in rows:
                    fields = {**msgspec.json.decode(state), "name": name}
                    self._db.execute(
                        f"UPDATE {table} SET state = ? WHERE rowid = ?",
                        (msgspec.json.encode(fields), row),
                    )
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def erase(self) -> None:
        """Erase all leaves with their history; the count of births stays, so no id comes again."""
        with self._transaction():
            for table in ("leaf", "history", "routed", "member", "lineage", "round"):
                self._db.execute(f"DELETE FROM {table}")
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def open_round(self) -> RoundRow | None:
        """The round that was begun and not finished, if any."""
        return self._round("WHERE finished IS NULL ORDER BY id DESC LIMIT 1")

    def last_round(self) -> RoundRow | None:
        return self._round("WHERE finished IS NOT NULL ORDER BY id DESC LIMIT 1")

    def begin_round(self, now: Instant, phase: str, state: dict[str, Any]) -> RoundRow:
        blob = msgspec.json.encode(state)
        cursor = self._db.execute(
            "INSERT INTO round (started, phase, state) VALUES (?, ?, ?)", (now, phase, blob)
        )
        return RoundRow(int(cursor.lastrowid or 0), now, phase, None, state)

    def advance_round(self, round_id: int, phase: str, state: dict[str, Any]) -> None:
        self._db.execute(
            "UPDATE round SET phase = ?, state = ? WHERE id = ?",
            (phase, msgspec.json.encode(state), round_id),
        )

    def finish_round(self, round_id: int, now: Instant) -> None:
        self._db.execute("UPDATE round SET finished = ? WHERE id = ?", (now, round_id))

    def _round(self, clause: str) -> RoundRow | None:
        row = self._db.execute(
            f"SELECT id, started, phase, finished, state FROM round {clause}"
        ).fetchone()
        if row is None:
            return None
        id_, started, phase, finished, state = row
        return RoundRow(id_, Instant(started), phase, finished, msgspec.json.decode(state))

    def _write(self, leaf: Leaf, transition: Transition, now: Instant, round_id: int) -> None:
        self._put(leaf, type(transition).__name__.lower(), transition.reason, now, round_id)

    def _put(self, leaf: Leaf, kind: str, reason: str, now: Instant, round_id: int) -> None:
        state, centroid = _blobs(leaf)
        self._db.execute(
            "INSERT INTO leaf VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "state = excluded.state, centroid = excluded.centroid",
            (leaf.id, state, centroid),
        )
        self._db.execute(
            "INSERT INTO history (at, round, leaf, kind, reason, state, centroid) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (now, round_id, leaf.id, kind, reason, state, centroid),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._db.in_transaction:  # a step within a step belongs to the outer one
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _blobs(leaf: Leaf) -> tuple[bytes, bytes]:
    fields = msgspec.to_builtins(leaf, enc_hook=lambda centroid: None)
    return msgspec.json.encode(fields), leaf.centroid.astype("<f4").tobytes()


def _leaf(state: bytes, centroid: bytes) -> Leaf:
    vector = np.frombuffer(centroid, dtype="<f4").astype(np.float32)
    fields = {**msgspec.json.decode(state), "centroid": []}
    return msgspec.convert(fields, Leaf, dec_hook=lambda kind, value: vector)


def _forest(rows: Iterable[tuple[bytes, bytes]], births: int, origin: bytes) -> Forest:
    leaves = [_leaf(state, centroid) for state, centroid in rows]
    return Forest({leaf.id: leaf for leaf in leaves}, births, origin)
