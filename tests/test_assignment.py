"""Which session is in which leaf: written by difference, asked without reading all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaves.model import LeafId
from leaves.store import ForestStore

MEMBERS = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from([LeafId("x"), LeafId("y")]))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ForestStore]:
    opened = ForestStore(tmp_path / "leaves.db", b"o" * 32)
    yield opened
    opened.close()


@settings(max_examples=30, deadline=None)
@given(history=st.lists(MEMBERS, max_size=6))
def test_the_last_assignment_stands(
    tmp_path_factory: pytest.TempPathFactory, history: list[dict[str, LeafId]]
) -> None:
    store = ForestStore(tmp_path_factory.mktemp("store") / "leaves.db", b"o" * 32)
    for members in history:
        store.assign(members)
        assert store.assignment() == members
        assert list(store.assignment()) == sorted(members)
        assert store.leaf_of("abz") == {s: leaf for s, leaf in members.items() if s in "ab"}
        for leaf in ("x", "y"):
            here = sorted(session for session, of in members.items() if of == leaf)
            assert store.members(LeafId(leaf)) == here
            assert store.sizes().get(LeafId(leaf), 0) == len(here)
    store.close()


def test_the_leaves_of_some_sessions_can_be_asked_for(store: ForestStore) -> None:
    store.assign({f"s{n}": LeafId(f"leaf-{n % 3}") for n in range(2000)})
    asked = [f"s{n}" for n in range(1500)]
    assert store.leaf_of([*asked, "unknown"]) == {s: f"leaf-{int(s[1:]) % 3}" for s in asked}


def test_only_what_changed_is_written(tmp_path: Path, store: ForestStore) -> None:
    members = {f"s{n}": LeafId("x") for n in range(50)}
    store.assign(members)
    with sqlite3.connect(tmp_path / "leaves.db") as db:
        db.execute("CREATE TABLE seen (session TEXT)")
        for event in ("INSERT", "UPDATE", "DELETE"):
            row = "OLD" if event == "DELETE" else "NEW"
            db.execute(
                f"CREATE TRIGGER t{event} AFTER {event} ON member "
                f"BEGIN INSERT INTO seen VALUES ({row}.session); END"
            )
    del members["s7"]
    store.assign({**members, "s8": LeafId("y"), "new": LeafId("y")})
    with sqlite3.connect(tmp_path / "leaves.db") as db:
        assert sorted(s for (s,) in db.execute("SELECT session FROM seen")) == ["new", "s7", "s8"]
    db.close()
