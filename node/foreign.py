"""Leaves of other origins, as far as this node has come with each.

    HEARD ──► FETCHED ──► ACCEPTED (routed)
                 │  └───► REFUSED (it did not win here, or its bundle is bad)
                 └──────► WAITING (too few own sessions to judge it, and too few others who use it)

A leaf whose card names another bundle, or points elsewhere, starts again at HEARD: it was judged as
what it was. One that is retracted, or absent under a newer head, is dropped, and so is its bundle;
how often it was judged is kept, so that it does not come back with its chances whole.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gossip.wire import Usage
from leaves.model import LeafId, Stage

from .mesh import ForeignLeaf

_SCHEMA = """
CREATE TABLE IF NOT EXISTS leaf (
    origin TEXT NOT NULL, leaf TEXT NOT NULL, version INTEGER NOT NULL, stage TEXT NOT NULL,
    sessions_log2 INTEGER NOT NULL, root TEXT, label TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, chassis TEXT NOT NULL, centroid BLOB NOT NULL,
    state TEXT NOT NULL, name TEXT NOT NULL, detail BLOB NOT NULL,
    PRIMARY KEY (origin, leaf));
CREATE TABLE IF NOT EXISTS meta (revision INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS bundle (root TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS usage (
    by TEXT NOT NULL, origin TEXT NOT NULL, leaf TEXT NOT NULL, week INTEGER NOT NULL,
    routed_log2 INTEGER NOT NULL, accepted_log2 INTEGER NOT NULL,
    PRIMARY KEY (by, origin, leaf, week));
CREATE INDEX IF NOT EXISTS usage_of ON usage (origin, leaf);
CREATE TABLE IF NOT EXISTS gone (
    origin TEXT NOT NULL, leaf TEXT NOT NULL, looks INTEGER NOT NULL, PRIMARY KEY (origin, leaf));
"""
_COLUMNS = (
    "origin, leaf, version, stage, sessions_log2, root, label, size_bytes, chassis, centroid, "
    "state, name, detail"
)


class State(StrEnum):
    HEARD = "heard"
    FETCHED = "fetched"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    WAITING = "waiting"


SERVED = (State.FETCHED, State.WAITING, State.ACCEPTED)  # whole, checked, and not refused
WANTED = (State.HEARD, *SERVED)  # here, or may come
LOOKS = "looks"  # in `detail`: how many versions of a leaf were judged here; outlives the leaf
TRUSTED = "attested"  # in `detail`: how many origins' word it is routed to by; 0 once judged
GONE_MAX = 20_000  # leaves whose looks are kept after they went, the latest: each cost a judgement


@dataclass(frozen=True, slots=True)
class Known:
    """A foreign leaf and what this node made of it.

    name: from its label, so a peer's word; a placeholder until the bundle is here.
    detail: figures of the fetch and of the evaluation.
    """

    leaf: ForeignLeaf
    state: State
    name: str
    detail: dict[str, Any]


class Foreign:
    """The foreign leaves of one home. The running node writes, commands read."""

    def __init__(self, home: Path) -> None:
        path = home / "foreign.db"
        path.touch(mode=0o600, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        self._turn = threading.Lock()
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(_SCHEMA)
        if self._db.execute("SELECT COUNT(*) FROM meta").fetchone()[0] == 0:
            self._db.execute("INSERT INTO meta VALUES (0)")

    def close(self) -> None:
        self._db.close()

    def revision(self) -> int:
        """Rises with every change."""
        return int(self._db.execute("SELECT revision FROM meta").fetchone()[0])

    def all(self) -> list[Known]:
        """Every foreign leaf, by origin and id."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM leaf ORDER BY origin, leaf").fetchall()
        return [_known(row) for row in rows]

    def get(self, origin: str, leaf: str) -> Known | None:
        row = self._db.execute(
            f"SELECT {_COLUMNS} FROM leaf WHERE origin = ? AND leaf = ?", (origin, leaf)
        ).fetchone()
        return _known(row) if row else None

    def of(self, origin: str) -> list[Known]:
        """The leaves of one origin, by id."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM leaf WHERE origin = ? ORDER BY leaf", (origin,)
        ).fetchall()
        return [_known(row) for row in rows]

    def unsettled(self, chassis: str) -> list[Known]:
        """Mature leaves with a bundle for this chassis that are neither accepted nor refused."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM leaf WHERE state IN (?, ?, ?) AND stage = ? "
            "AND root IS NOT NULL AND chassis = ? ORDER BY origin, leaf",
            (State.HEARD, State.FETCHED, State.WAITING, Stage.MATURE, chassis),
        ).fetchall()
        return [_known(row) for row in rows]

    def used_origins(self) -> frozenset[bytes]:
        """Origins of whose leaves some were fetched, judged or routed to, now or before."""
        rows = self._db.execute(
            "SELECT origin FROM leaf WHERE state != ? UNION SELECT origin FROM gone",
            (State.HEARD,),
        )
        return frozenset(bytes.fromhex(origin) for (origin,) in rows)

    def roots_of(self, origin: str, state: State) -> set[tuple[LeafId, str | None]]:
        """The leaves of an origin in one state, each with its bundle."""
        return {(x.leaf.leaf, x.leaf.root) for x in self.of(origin) if x.state is state}

    def roots(self, states: Collection[State]) -> set[str]:
        """Bundles of leaves in these states, and of their controls."""
        marks = ", ".join("?" * len(states))
        rows = self._db.execute(
            f"SELECT root, detail FROM leaf WHERE root IS NOT NULL AND state IN ({marks})",
            tuple(states),
        )
        found: set[str] = set()
        for root, detail in rows.fetchall():
            found |= {root, msgspec.json.decode(detail).get("control_root", "")}
        return found - {""}

    # The bundles that came from peers. What is not on this list is the owner's, whatever a peer
    # calls its own, and is never removed for a peer's sake.

    def expect(self, root: str, size_bytes: int) -> None:
        """Put a bundle on the list, before anything of it is on disk."""
        self._db.execute("INSERT OR REPLACE INTO bundle VALUES (?, ?)", (root, size_bytes))

    def expected(self) -> dict[str, int]:
        """Size in bytes of every bundle that is on disk, in whole or in part, for a peer's leaf."""
        rows = self._db.execute("SELECT root, size_bytes FROM bundle ORDER BY root")
        return dict(rows.fetchall())

    def removed(self, root: str) -> None:
        """Take a bundle off the list, once it is gone from disk."""
        self._db.execute("DELETE FROM bundle WHERE root = ?", (root,))

    def replace_origin(self, origin: str, leaves: Iterable[ForeignLeaf]) -> list[Known]:
        """Take an origin's table as the whole truth of it; return the leaves that are gone."""
        wanted = {leaf.leaf: leaf for leaf in leaves}
        before = {known.leaf.leaf: known for known in self.of(origin)}
        gone = [known for id_, known in before.items() if id_ not in wanted]
        changed: list[Known] = []
        for id_ in sorted(wanted):
            old = before.get(id_)
            if old is None or not _same(old.leaf, wanted[id_]):
                name = old.name if old else f"leaf-{id_[:8]}"
                # The same sessions judge each version: one that comes often must not pass by luck.
                looks = old.detail.get(LOOKS, 0) if old else self._looks_before(origin, id_)
                detail = {LOOKS: looks} if looks else {}
                changed.append(Known(wanted[id_], State.HEARD, name, detail))
            elif old.leaf.version != wanted[id_].version:
                changed.append(replace(old, leaf=wanted[id_]))
        self._write(changed, gone)
        return gone

    def retract(self, origin: str, leaf: str | None) -> list[Known]:
        """Drop one leaf of an origin, or all (leaf is None); return what was dropped."""
        gone = [known for known in self.of(origin) if leaf in (None, known.leaf.leaf)]
        self._write([], gone)
        return gone

    # What other origins say of how they use leaves, ours and each other's; each may say it of any.

    def replace_usage(self, by: str, rows: Iterable[Usage]) -> None:
        """Take an origin's usage records as the whole of what it says; written if it is news."""
        values = sorted(
            (by, r.origin.hex(), r.leaf.hex(), r.week, r.routed_log2, r.accepted_log2) for r in rows
        )
        with self._turn:
            held = self._db.execute(
                "SELECT * FROM usage WHERE by = ? ORDER BY origin, leaf, week", (by,)
            ).fetchall()
            if held == values:
                return
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM usage WHERE by = ?", (by,))
            self._db.executemany("INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?, ?, ?)", values)
            self._db.execute("COMMIT")

    def users(self, origin: str, weeks: range) -> dict[LeafId, int]:
        """How many others say that they used each leaf of an origin in these weeks."""
        found = self._db.execute(
            "SELECT leaf, COUNT(DISTINCT by) FROM usage WHERE origin = ? AND by != origin "
            "AND week BETWEEN ? AND ? AND routed_log2 > 0 GROUP BY leaf ORDER BY leaf",
            (origin, weeks[0], weeks[-1]),
        )
        return {LeafId(leaf): count for leaf, count in found.fetchall()}

    def attesting(self, origin: str, leaf: str, weeks: range, *, without: str) -> int:
        """How many others, `without` left out too, say that they accepted a leaf's answers then."""
        found = self._db.execute(
            "SELECT COUNT(DISTINCT by) FROM usage WHERE origin = ? AND leaf = ? AND by != origin "
            "AND by != ? AND week BETWEEN ? AND ? AND accepted_log2 > 0",
            (origin, leaf, without, weeks[0], weeks[-1]),
        )
        return int(found.fetchone()[0])

    def on_trust(self, chassis: str) -> list[Known]:
        """Leaves for this chassis that are routed to on others' word alone."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM leaf WHERE state = ? AND chassis = ? ORDER BY origin, leaf",
            (State.ACCEPTED, chassis),
        ).fetchall()
        return [known for known in map(_known, rows) if known.detail.get(TRUSTED)]

    def settle(
        self, known: Known, state: State, detail: dict[str, Any], name: str | None = None
    ) -> Known:
        """Record how far a leaf has come; a leaf dropped meanwhile stays dropped."""
        now = self.get(known.leaf.origin, known.leaf.leaf)
        settled = replace(
            known, state=state, detail={**known.detail, **detail}, name=name or known.name
        )
        if now is not None and _same(now.leaf, known.leaf):
            self._write([settled], [])
        return settled

    def _write(self, puts: list[Known], drops: list[Known]) -> None:
        """All in one transaction: an origin may have hundreds of leaves."""
        if not puts and not drops:
            return
        with self._turn:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for known in puts:
                    self._put(known)
                for known in drops:
                    self._drop(known)
                self._db.execute("UPDATE meta SET revision = revision + 1")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _put(self, known: Known) -> None:
        leaf = known.leaf
        values = (
            leaf.origin,
            leaf.leaf,
            leaf.version,
            leaf.stage.value,
            leaf.sessions_log2,
            leaf.root,
            leaf.label,
            leaf.size_bytes,
            leaf.chassis,
            leaf.centroid.astype("<f4").tobytes(),
            known.state.value,
            known.name,
            msgspec.json.encode(known.detail),
        )
        marks = ", ".join("?" * len(values))
        self._db.execute(f"INSERT OR REPLACE INTO leaf ({_COLUMNS}) VALUES ({marks})", values)

    def _drop(self, known: Known) -> None:
        name = (known.leaf.origin, known.leaf.leaf)
        self._db.execute("DELETE FROM leaf WHERE origin = ? AND leaf = ?", name)
        if looks := known.detail.get(LOOKS):
            self._db.execute("INSERT OR REPLACE INTO gone VALUES (?, ?, ?)", (*name, looks))
            self._db.execute(
                "DELETE FROM gone WHERE rowid <= (SELECT MAX(rowid) FROM gone) - ?", (GONE_MAX,)
            )

    def _looks_before(self, origin: str, leaf: str) -> int:
        """How often a leaf was judged before it went."""
        row = self._db.execute(
            "SELECT looks FROM gone WHERE origin = ? AND leaf = ?", (origin, leaf)
        ).fetchone()
        return int(row[0]) if row else 0


def _same(judged: ForeignLeaf, now: ForeignLeaf) -> bool:
    """True if what was found out of a leaf is still true of it.

    The centroid counts: it alone decides what a leaf is asked, so one that moves after it was
    accepted would be asked what nobody judged it by. (A step of int8 is 100 x the tolerance.)
    """
    same = (judged.stage, judged.root, judged.label, judged.size_bytes, judged.chassis) == (
        now.stage,
        now.root,
        now.label,
        now.size_bytes,
        now.chassis,
    )
    return same and bool(np.allclose(judged.centroid, now.centroid, rtol=0, atol=1e-5))


def _known(row: tuple[Any, ...]) -> Known:
    (
        origin,
        leaf,
        version,
        stage,
        log2,
        root,
        label,
        size,
        chassis,
        centroid,
        state,
        name,
        detail,
    ) = row
    vector = np.frombuffer(centroid, dtype="<f4").astype(np.float32)
    return Known(
        ForeignLeaf(
            origin, LeafId(leaf), version, Stage(stage), log2, root, label, size, chassis, vector
        ),
        State(state),
        name,
        msgspec.json.decode(detail),
    )
