"""Leaves of other origins, as far as this node has come with each.

    HEARD ──► FETCHED ──► ACCEPTED (routed)
                 │  └───► REFUSED (it did not win here, or its bundle is bad)
                 └──────► WAITING (too few own sessions to judge it)

A leaf whose card names another bundle starts again at HEARD. One that is retracted, or absent
under a newer head, is dropped, and so is its bundle.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

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

    def replace_origin(self, origin: str, leaves: Iterable[ForeignLeaf]) -> list[Known]:
        """Take an origin's table as the whole truth of it; return the leaves that are gone."""
        wanted = {leaf.leaf: leaf for leaf in leaves}
        before = {known.leaf.leaf: known for known in self.all() if known.leaf.origin == origin}
        gone = [known for id_, known in before.items() if id_ not in wanted]
        for known in gone:
            self._drop(known)
        for id_ in sorted(wanted):
            old = before.get(id_)
            if old is None or old.leaf.root != wanted[id_].root:
                name = old.name if old else f"leaf-{id_[:8]}"
                self._put(Known(wanted[id_], State.HEARD, name, {}))
            elif old.leaf.version != wanted[id_].version:
                self._put(replace(old, leaf=wanted[id_]))
        return gone

    def retract(self, origin: str, leaf: str | None) -> list[Known]:
        """Drop one leaf of an origin, or all (leaf is None); return what was dropped."""
        gone = [
            known
            for known in self.all()
            if known.leaf.origin == origin and leaf in (None, known.leaf.leaf)
        ]
        for known in gone:
            self._drop(known)
        return gone

    def settle(
        self, known: Known, state: State, detail: dict[str, Any], name: str | None = None
    ) -> Known:
        """Record how far a leaf has come; a leaf dropped meanwhile stays dropped."""
        now = self.get(known.leaf.origin, known.leaf.leaf)
        settled = replace(
            known, state=state, detail={**known.detail, **detail}, name=name or known.name
        )
        if now is not None and now.leaf.root == known.leaf.root:
            self._put(settled)
        return settled

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
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(f"INSERT OR REPLACE INTO leaf ({_COLUMNS}) VALUES ({marks})", values)
        self._db.execute("UPDATE meta SET revision = revision + 1")
        self._db.execute("COMMIT")

    def _drop(self, known: Known) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "DELETE FROM leaf WHERE origin = ? AND leaf = ?", (known.leaf.origin, known.leaf.leaf)
        )
        self._db.execute("UPDATE meta SET revision = revision + 1")
        self._db.execute("COMMIT")


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
