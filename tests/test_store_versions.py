"""A store of an earlier version opens with all that it holds; one of a newer version is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import numpy as np
import pytest

from leaves.lifecycle import Rules
from leaves.model import Instant, LeafId, Stage
from leaves.schema import VERSION, StoreVersionError
from leaves.store import ForestStore, Role
from node.app import App
from node.errors import OwnerError

A, B = LeafId("a" * 32), LeafId("b" * 32)

FIRST = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE leaf (id TEXT PRIMARY KEY, state BLOB NOT NULL, centroid BLOB NOT NULL);
CREATE TABLE history (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, round INTEGER NOT NULL, leaf TEXT NOT NULL,
    kind TEXT NOT NULL, reason TEXT NOT NULL, state BLOB NOT NULL, centroid BLOB NOT NULL);
CREATE INDEX history_leaf ON history (leaf, seq);
CREATE TABLE routed (leaf TEXT PRIMARY KEY, at INTEGER NOT NULL);
CREATE TABLE member (session TEXT PRIMARY KEY, leaf TEXT NOT NULL);
CREATE TABLE lineage (
    leaf TEXT NOT NULL, session TEXT NOT NULL, role TEXT NOT NULL, round INTEGER NOT NULL,
    PRIMARY KEY (leaf, session, role));
CREATE INDEX lineage_session ON lineage (session);
CREATE TABLE round (
    id INTEGER PRIMARY KEY, started INTEGER NOT NULL, phase TEXT NOT NULL, finished INTEGER,
    state BLOB NOT NULL);
CREATE INDEX member_leaf ON member (leaf, session);
"""


def state_of(id_: LeafId, trainings: int) -> bytes:
    """A leaf as the first version wrote it."""
    fields = {
        "id": id_, "name": "gears", "stage": "sprout", "stage_since": 1_700_000_000, "level": 2,
        "kind": "skill", "grown_from": "data_driven", "parent": None, "lineage": [],
        "created": 1_700_000_000, "sessions": 300, "growth_per_day": 1.5, "centroid": None,
        "version": 3, "missed": 0, "trainings": trainings, "trained_at": None,
        "first_trained": None, "sessions_at_training": 0, "wins": 0, "regressions": 0,
        "matured_at": None, "method": "sft", "note": "", "adapter": None,
        "evaluation": {
            "held_out": 60, "loss": 2.0, "over_parent": {"mean": 0.1, "low": 0.05, "high": 0.2},
            "over_style": {"mean": 0.1, "low": 0.0, "high": 0.2}, "over_previous": None,
            "general_rise": 0.01, "won": False, "verdict": "not better", "at": 1_700_000_000,
        },
        "last_routed": None, "gate": 0.0, "used_by": 0, "newest": None, "stability": None,
        "cohesion": None, "named_by_owner": False,
    }  # fmt: skip
    return msgspec.json.encode(fields)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store as the first version left it, with an open round."""
    path = tmp_path / "leaves.db"
    db = sqlite3.connect(path)
    db.executescript(FIRST)
    centroid = np.eye(4, dtype="<f4")[0].tobytes()
    for id_, trainings in ((A, 4), (B, 0)):
        state = state_of(id_, trainings)
        db.execute("INSERT INTO leaf VALUES (?, ?, ?)", (id_, state, centroid))
        db.execute(
            "INSERT INTO history (at, round, leaf, kind, reason, state, centroid) "
            "VALUES (1700000000, 1, ?, 'born', 'of 300', ?, ?)",
            (id_, state, centroid),
        )
    db.execute("INSERT INTO meta VALUES ('births', 2)")
    db.executemany("INSERT INTO member VALUES (?, ?)", [("s1", A), ("s2", A), ("s3", B)])
    db.execute("INSERT INTO lineage VALUES (?, 's1', 'train', 1)", (A,))
    db.execute(
        "INSERT INTO round VALUES (1, 1700000000, 'train', NULL, '{\"due\":[],\"done\":{}}')"
    )
    db.commit()
    db.close()
    return path


def test_a_store_of_the_first_version_keeps_all_that_it_holds(old: Path) -> None:
    store = ForestStore(old, b"\1" * 32)
    forest = store.forest()
    assert (forest.births, [leaf.id for leaf in forest.live()]) == (2, [A, B])
    assert forest.leaves[A].stage is Stage.SPROUT and forest.leaves[A].sessions == 300
    assert [entry.reason for entry in store.history(A)] == ["of 300"]
    assert store.members(A) == ["s1", "s2"] and store.used(A, Role.TRAIN) == {"s1"}
    row = store.open_round()
    assert row is not None and row.phase == "train"
    assert store.proposals.all() == [] and store.rule_changes() == []


def test_looks_that_were_taken_before_they_were_counted_count(old: Path) -> None:
    forest = ForestStore(old, b"\1" * 32).forest()
    assert (forest.leaves[A].attempts, forest.leaves[B].attempts) == (4, 0)


def test_no_session_of_before_has_a_trained_leaf_trained_again(old: Path) -> None:
    store = ForestStore(old, b"\1" * 32)
    assert store.fresh() == {B: 1}
    store.assign({"s1": A, "s2": A, "s3": B, "s4": A})
    assert store.fresh() == {A: 1, B: 1}


def test_a_store_is_brought_up_once(old: Path) -> None:
    ForestStore(old, b"\1" * 32).close()
    before = sqlite3.connect(old).execute("SELECT * FROM lineage").fetchall()
    again = ForestStore(old, b"\1" * 32)
    again.assign({"s1": A, "s4": A})
    again.close()
    assert ForestStore(old, b"\1" * 32).fresh() == {A: 1}
    assert sqlite3.connect(old).execute("SELECT * FROM lineage").fetchall() == before


def test_a_migration_that_fails_leaves_the_store_as_it_was(old: Path) -> None:
    with sqlite3.connect(old) as db:
        db.execute("UPDATE leaf SET state = 'not json' WHERE id = ?", (A,))
    before = sorted(sqlite3.connect(old).iterdump())
    with pytest.raises(msgspec.DecodeError):
        ForestStore(old, b"\1" * 32)
    assert sorted(sqlite3.connect(old).iterdump()) == before


def test_a_newer_store_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    app = App(home)
    app.forests.close()
    with sqlite3.connect(home / "leaves.db") as db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (VERSION + 1,))
    before = (home / "leaves.db").read_bytes()
    with pytest.raises(StoreVersionError):
        ForestStore(home / "leaves.db", b"\1" * 32)
    with pytest.raises(OwnerError, match=f"version {VERSION + 1}.*up to {VERSION}") as refused:
        _ = App(home).forests
    assert refused.value.unchanged and "newer" in refused.value.next_step
    assert (home / "leaves.db").read_bytes() == before


def test_what_the_owner_changed_under_rules_is_written_down_by_the_next_round(
    tmp_path: Path,
) -> None:
    store = ForestStore(tmp_path / "leaves.db", b"\1" * 32)
    first = store.begin_round(Instant(1), "embed", {}, Rules())
    assert store.rule_changes() == []
    store.finish_round(first.id, Instant(2))
    changed = Rules(seed_sessions=300, approve="ask")
    row = store.begin_round(Instant(3), "embed", {}, changed)
    told = [(change.name, change.old, change.new) for change in store.rule_changes(row.id)]
    assert told == [("seed_sessions", 200, 300), ("approve", "auto", "ask")]
    store.begin_round(Instant(4), "embed", {}, changed)
    assert [change.round for change in store.rule_changes()] == [row.id, row.id]


def test_rules_set_before_the_first_round_are_told_against_the_defaults(tmp_path: Path) -> None:
    store = ForestStore(tmp_path / "leaves.db", b"\1" * 32)
    store.begin_round(Instant(1), "embed", {}, Rules(dormant_days=60))
    assert [(c.name, c.old, c.new) for c in store.rule_changes()] == [("dormant_days", 30, 60)]
