"""The forest on disk: what each leaf is, how it came to be so, and which sessions it was made of.

One SQLite file in WAL mode with synchronous=FULL. Whatever belongs together is one transaction, so
a crash leaves the forest before a step or after it, never between.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .model import Forest, Instant, Leaf, LeafId
from .proposals import Proposals
from .rules import Rules
from .schema import prepare, transaction
from .transitions import Merged, Proposed, Split, Transition, apply, ids_of, kind_of

_ASKED_AT_ONCE = 500  # sessions in one statement
_OF_LEAVES = ("leaf", "history", "routed", "member", "lineage", "round", "proposal", "rule")


class Role(StrEnum):
    """What a session was to a leaf's training."""

    TRAIN = "train"
    HELD_OUT = "held_out"
    CONTROL = "control"  # in the style control the leaf was measured against
    SEEN = "seen"  # its own when it was trained, used or not


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One change of one leaf."""

    at: Instant
    round: int
    leaf: Leaf  # as it was after the change
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One change as the journal tells it, without the leaf that it made: cheap to read many of."""

    at: Instant
    round: int
    leaf: LeafId
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


@dataclass(frozen=True, slots=True)
class RuleChange:
    """One rule that the owner changed, as the round that met it first wrote it down."""

    at: Instant
    round: int
    name: str
    old: Any
    new: Any


class ForestStore:
    """Reads and writes the forest. One writer at a time (the round's lock); readers at any time."""

    def __init__(self, path: Path, origin: bytes) -> None:
        """Open or make a store. Raises StoreVersionError if a newer groove-node wrote it."""
        self._origin = origin
        path.touch(mode=0o600, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA secure_delete=ON")  # a deleted session leaves no trace in a page
        prepare(self._db)
        self.proposals = Proposals(self._db)
        # How many origins report use of each leaf, from whoever has heard them; None: as last known
        self.used_by: Mapping[LeafId, int] | None = None

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
        if self.used_by is None:
            return forest
        for each in forest:
            if each.used_by != (count := self.used_by.get(each.id, 0)):
                forest = forest.with_leaf(replace(each, used_by=count))
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

    def journal(
        self,
        count: int,
        *,
        leaf: LeafId | None = None,
        round_id: int | None = None,
        without: Sequence[str] = (),
    ) -> list[JournalEntry]:
        """The last changes, newest first: of one leaf, of one round, or all; not of some kinds."""
        # One condition each, not "? IS NULL OR leaf = ?": for that no index is used.
        of: tuple[tuple[str, object], ...] = (("leaf = ?", leaf), ("round = ?", round_id))
        asked: list[tuple[str, object]] = [each for each in of if each[1] is not None]
        asked.append(("kind NOT IN (SELECT value FROM json_each(?))", _json(list(without))))
        rows = self._db.execute(
            "SELECT at, round, leaf, kind, reason FROM history WHERE "
            f"{' AND '.join(where for where, _ in asked)} ORDER BY seq DESC LIMIT ?",
            (*(value for _, value in asked), count),
        )
        return [JournalEntry(Instant(at), *rest) for at, *rest in rows]

    def changes_by_day(self) -> list[tuple[int, str, int]]:
        """How many changes of each kind there were: day since 1970-01-01, kind, count."""
        return self._db.execute(
            "SELECT at / 86400, kind, COUNT(*) FROM history GROUP BY 1, 2 ORDER BY 1, 2"
        ).fetchall()

    def changed_since(self, at: Instant, kind: str) -> set[LeafId]:
        """Leaves that had a change of this kind after a moment."""
        rows = self._db.execute(
            "SELECT DISTINCT leaf FROM history WHERE at > ? AND kind = ?", (at, kind)
        )
        return {LeafId(leaf) for (leaf,) in rows}

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
        with transaction(self._db):
            for transition in transitions:
                if not self._word_of_it(transition, now, round_id):
                    continue
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

    def _word_of_it(self, transition: Transition, now: Instant, round_id: int) -> bool:
        """Keep what is asked of the owner; False if a proposal waits already, and is no news."""
        match transition:
            case Proposed(change, reason):
                return self.proposals.propose(change, reason, now, round_id)
            case Split() | Merged():
                self.proposals.carried_out(transition, now)
        return True

    def change(self, leaf: Leaf, kind: str, reason: str, now: Instant) -> None:
        """Write one leaf outside a round: a rename, or what routing and usage records tell."""
        with transaction(self._db):
            self._put(leaf, kind, reason, now, 0)

    def restore(
        self, leaves: Mapping[LeafId, tuple[Leaf, str]], members: Mapping[str, LeafId], now: Instant
    ) -> None:
        """Write leaves as they were once, each with its reason, and whose their sessions are.

        The count of births stays, so an id is never given twice.
        """
        with transaction(self._db):
            for id_ in sorted(leaves):
                leaf, reason = leaves[id_]
                self._put(leaf, "restored", reason, now, 0)
            self.assign(members)

    def routed(self, leaf: LeafId, now: Instant) -> None:
        """Note that a prompt was routed to a leaf."""
        self._db.execute(
            "INSERT INTO routed VALUES (?, ?) ON CONFLICT (leaf) DO UPDATE SET at = excluded.at",
            (leaf, now),
        )

    def assign(self, members: Mapping[str, LeafId]) -> None:
        """Replace the assignment of sessions to leaves; only what changed is written."""
        with transaction(self._db):
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
                self._db.execute("DROP INDEX IF EXISTS member_leaf")
            self._db.executemany("INSERT INTO member VALUES (?, ?)", fresh)
            self._db.execute("CREATE INDEX IF NOT EXISTS member_leaf ON member (leaf, session)")

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
        with transaction(self._db):
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
        with transaction(self._db):
            self._db.execute(
                "DELETE FROM lineage WHERE leaf = ? AND role IN (?, ?, ?)",
                (leaf, Role.TRAIN.value, Role.CONTROL.value, Role.SEEN.value),
            )

    def unrecorded(self, leaf: LeafId) -> set[str]:
        """Replaced versions of a leaf, and their controls, of which `unuse` forgot the sessions.

        What they learned is not known any more: they are of rounds before the first on record.
        """
        first = self._db.execute(
            "SELECT MIN(round) FROM lineage WHERE leaf = ? AND role = ?", (leaf, Role.TRAIN.value)
        ).fetchone()[0]
        trained = self._db.execute(
            "SELECT state FROM history WHERE leaf = ?1 AND kind = 'trained' "
            "AND (?2 IS NULL OR round < ?2)",
            (leaf, first),
        )
        before = {address for (state,) in trained for address in _addresses(state)}
        in_force = self._db.execute("SELECT state FROM leaf WHERE id = ?", (leaf,))
        return before - {address for (state,) in in_force for address in _addresses(state)}

    def saw(self, leaf: LeafId, round_id: int) -> None:
        """Record the sessions that a leaf had when it was trained: none of them is news any more.

        A training uses as many as it has steps for, and not those whose terms forbid it: what it
        left lying must not have the leaf trained again every night.
        """
        self._db.execute(
            "INSERT OR IGNORE INTO lineage SELECT leaf, session, ?, ? FROM member WHERE leaf = ?",
            (Role.SEEN.value, round_id, leaf),
        )

    def fresh(self, members: Mapping[str, LeafId] | None = None) -> dict[LeafId, int]:
        """How many sessions of each leaf came since it was last trained, by leaf.

        members: whose the sessions would be; by default, whose they are.
        """
        roles = (Role.TRAIN.value, Role.HELD_OUT.value, Role.SEEN.value)
        if members is not None:
            known = set(
                self._db.execute("SELECT leaf, session FROM lineage WHERE role IN (?, ?, ?)", roles)
            )
            return dict(Counter(leaf for s, leaf in members.items() if (leaf, s) not in known))
        rows = self._db.execute(
            "SELECT member.leaf, count(*) FROM member WHERE NOT EXISTS (SELECT 1 FROM lineage "
            "WHERE lineage.leaf = member.leaf AND lineage.session = member.session "
            "AND lineage.role IN (?, ?, ?)) GROUP BY member.leaf ORDER BY member.leaf",
            roles,
        )
        return {LeafId(leaf): count for leaf, count in rows}

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
        with transaction(self._db):
            self._db.executemany("DELETE FROM member WHERE session = ?", rows)
            self._db.executemany("DELETE FROM lineage WHERE session = ?", rows)
            self.proposals.forget()
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def names(self) -> dict[LeafId, set[str]]:
        """All names that each leaf ever had."""
        found: dict[LeafId, set[str]] = {}
        rows = self._db.execute("SELECT leaf, state FROM history UNION SELECT id, state FROM leaf")
        for leaf, state in rows:
            found.setdefault(LeafId(leaf), set()).add(msgspec.json.decode(state)["name"])
        return found

    def rename_throughout(self, leaf: LeafId, name: str) -> None:
        """Give a leaf another name in all of its history: the old one was made of deleted texts."""
        with transaction(self._db):
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
        with transaction(self._db):
            for table in _OF_LEAVES:
                self._db.execute(f"DELETE FROM {table}")
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def open_round(self) -> RoundRow | None:
        """The round that was begun and not finished, if any."""
        return self._round("WHERE finished IS NULL ORDER BY id DESC LIMIT 1")

    def last_round(self) -> RoundRow | None:
        return self._round("WHERE finished IS NOT NULL ORDER BY id DESC LIMIT 1")

    def finished_rounds(self, count: int) -> list[RoundRow]:
        """The last rounds that were finished, newest first."""
        rows = self._db.execute(
            "SELECT id, started, phase, finished, state FROM round WHERE finished IS NOT NULL "
            "ORDER BY id DESC LIMIT ?",
            (count,),
        )
        return [_row(*row) for row in rows]

    def begin_round(
        self, now: Instant, phase: str, state: dict[str, Any], rules: Rules | None = None
    ) -> RoundRow:
        """Write down that a round begins, and which rules changed since the last one."""
        blob = msgspec.json.encode(state)
        with transaction(self._db):
            cursor = self._db.execute(
                "INSERT INTO round (started, phase, state) VALUES (?, ?, ?)", (now, phase, blob)
            )
            row = RoundRow(int(cursor.lastrowid or 0), now, phase, None, state)
            if rules is not None:
                self._journal_rules(rules, row)
        return row

    def _journal_rules(self, rules: Rules, row: RoundRow) -> None:
        now, before = msgspec.to_builtins(rules), self.rules_before()
        self._db.executemany(
            "INSERT INTO rule (at, round, name, old, new) VALUES (?, ?, ?, ?, ?)",
            [
                (row.started, row.id, name, _json(before[name]), _json(value))
                for name, value in now.items()
                if before[name] != value
            ],
        )
        self._db.execute(
            "INSERT INTO meta VALUES ('rules', ?) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (msgspec.json.encode(now),),
        )

    def rules_before(self) -> dict[str, Any]:
        """The rules that the last round went by; one that it did not know yet had its default."""
        kept = self._db.execute("SELECT value FROM meta WHERE name = 'rules'").fetchone()
        return {**msgspec.to_builtins(Rules()), **(msgspec.json.decode(kept[0]) if kept else {})}

    def rule_changes(self, round_id: int | None = None) -> list[RuleChange]:
        """What changed under [rules], oldest first: all, or what one round met."""
        rows = self._db.execute(
            "SELECT at, round, name, old, new FROM rule WHERE ?1 IS NULL OR round = ?1 "
            "ORDER BY seq",
            (round_id,),
        )
        return [
            RuleChange(
                Instant(at), round_, name, msgspec.json.decode(old), msgspec.json.decode(new)
            )
            for at, round_, name, old, new in rows
        ]

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
        return _row(*row)

    def _write(self, leaf: Leaf, transition: Transition, now: Instant, round_id: int) -> None:
        self._put(leaf, kind_of(transition), transition.reason, now, round_id)

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


def _row(id_: int, started: int, phase: str, finished: int | None, state: bytes) -> RoundRow:
    ended = Instant(finished) if finished is not None else None
    return RoundRow(id_, Instant(started), phase, ended, msgspec.json.decode(state))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _blobs(leaf: Leaf) -> tuple[bytes, bytes]:
    fields = msgspec.to_builtins(leaf, enc_hook=lambda centroid: None)
    if not (_finite(fields) and np.isfinite(leaf.centroid).all()):  # as JSON: null, read by nobody
        raise ValueError(f"leaf {leaf.id}: a number of its state is not finite")
    return msgspec.json.encode(fields), leaf.centroid.astype("<f4").tobytes()


def _addresses(state: bytes) -> set[str]:
    """The bundle and the control of a leaf's adapter."""
    adapter = msgspec.json.decode(state)["adapter"]
    return {adapter["bundle"], adapter["control"]} if adapter else set()


def _finite(value: object) -> bool:
    match value:
        case float():
            return math.isfinite(value)
        case dict():
            return all(map(_finite, value.values()))
        case list() | tuple():
            return all(map(_finite, value))
        case _:
            return True


def _leaf(state: bytes, centroid: bytes) -> Leaf:
    vector = np.frombuffer(centroid, dtype="<f4").astype(np.float32)
    fields = {**msgspec.json.decode(state), "centroid": []}
    return msgspec.convert(fields, Leaf, dec_hook=lambda kind, value: vector)


def _forest(rows: Iterable[tuple[bytes, bytes]], births: int, origin: bytes) -> Forest:
    leaves = [_leaf(state, centroid) for state, centroid in rows]
    return Forest({leaf.id: leaf for leaf in leaves}, births, origin)
