"""A new table against the one in force: what is measured, what refuses it, and what never does."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_routing import ABLE, Routed, leaf_id, near, routed, towards

from leaves.lifecycle import Rules
from leaves.model import LeafId, Stage
from node import deploying
from node.replay import Case, chance_of, compare
from node.tables import Kind
from router.table import Entry, Table

RULES = Rules(starters_sessions=100, replay_sessions=600)
TOPICS = ("tides", "poems", "gears")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Routed:
    made = routed(tmp_path, monkeypatch, RULES)
    made.grown(*TOPICS, sessions=100, **ABLE)
    made.deploy()
    return made


def entry(topic: str, *, at: str | None = None, **about: Any) -> Entry:
    return Entry(leaf_id(topic), topic, 2, Stage.SEED, towards(at or topic), **about)


def table(*entries: Entry) -> Table:
    return Table.build(b"12345678", 384, entries)


def cases(per_topic: int, **about: Any) -> tuple[list[Case], Any]:
    made = [(topic, n) for topic in TOPICS for n in range(per_topic)]
    vectors = np.stack([near(topic, n) for topic, n in made])
    return [Case(f"{t}-{n}", leaf_id(t), **about) for t, n in made], vectors


def same(leaf: LeafId) -> LeafId:
    return leaf


GOOD = table(*(entry(topic) for topic in TOPICS))


def worse(new: Table, per_topic: int = 60, old: Table = GOOD) -> list[str]:
    found = compare(old.route, new.route, *cases(per_topic), same, RULES)
    return [measure.name for measure in found.worse]


def test_the_same_table_is_not_worse_than_itself() -> None:
    assert worse(GOOD) == []


def test_a_better_table_is_not_refused() -> None:
    assert worse(GOOD, old=table(entry("tides"))) == []


def test_leaves_that_changed_places_are_noticed() -> None:
    swapped = table(entry("tides", at="poems"), entry("poems", at="tides"), entry("gears"))
    assert worse(swapped) == ["agreement"]


def test_gates_that_refuse_everything_are_noticed() -> None:
    assert worse(table(*(entry(topic, gate=0.99) for topic in TOPICS))) == ["coverage"]


def test_gates_that_refuse_one_in_twenty_by_design_are_not_held_against_a_table() -> None:
    scores = np.array([float(near(t, n) @ towards(t)) for t in TOPICS for n in range(100)])
    gate = float(np.quantile(scores, 0.06))
    assert worse(table(*(entry(topic, gate=gate) for topic in TOPICS)), 100) == []


def test_one_leaf_for_everything_is_noticed_although_it_agrees_with_itself() -> None:
    everything = near("tides", 0) + near("poems", 0) + near("gears", 0)
    one = Entry(leaf_id("all"), "all", 2, Stage.SEED, (everything / 3**0.5).astype(np.float32))
    made, vectors = cases(60)
    blind = [Case(case.session, None, leaf_id("all"), True) for case in made]
    found = compare(GOOD.route, table(one).route, blind, vectors, same, RULES)
    assert [measure.name for measure in found.worse] == ["company"]


def test_what_users_rejected_and_is_still_routed_there_counts_against_a_table() -> None:
    made, vectors = cases(60, voted=leaf_id("tides"), well=False)
    made, vectors = made[60:120], vectors[60:120]  # poems that tides answered, badly
    all_to_tides = table(entry("tides", at="poems"), entry("gears"))
    found = compare(GOOD.route, all_to_tides.route, made, vectors, same, RULES)
    assert "outcomes" in [measure.name for measure in found.worse]


@pytest.mark.parametrize("per_topic", [0, 1, 2])
def test_a_handful_of_sessions_never_refuses_a_table(per_topic: int) -> None:
    made, vectors = cases(per_topic) if per_topic else ([], np.zeros((0, 384), np.float32))
    nothing = table(*(entry(topic, gate=0.99) for topic in TOPICS))
    assert compare(GOOD.route, nothing.route, made, vectors, same, RULES).worse == ()


def test_a_drop_that_is_certain_but_small_does_not_refuse_a_table() -> None:
    made, vectors = cases(400)
    astray = [Case(case.session, leaf_id("poems")) for case in made[:10]] + made[10:]
    taken = {topic: GOOD.route(towards(topic)) for topic in TOPICS}
    right = iter([taken["poems"]] * 10 + [GOOD.route(vector) for vector in vectors[10:]])
    found = compare(lambda vector: next(right), GOOD.route, astray, vectors, same, RULES)
    agreement = next(measure for measure in found.measures if measure.name == "agreement")
    assert agreement.chance < RULES.replay_doubt and agreement.new < agreement.old
    assert found.worse == ()


@given(losses=st.integers(0, 40), wins=st.integers(0, 40))
def test_chance_is_that_of_a_fair_coin(losses: int, wins: int) -> None:
    tosses = losses + wins
    exact = sum(comb(tosses, k) for k in range(wins + 1)) / 2**tosses
    assert chance_of(losses, wins) == pytest.approx(exact, rel=1e-9)


# ---- in a home -----------------------------------------------------------------------------------


def test_a_worse_table_is_refused_told_with_figures_and_journaled(home: Routed) -> None:
    before = home.app.tables.current()
    assert before is not None
    for topic in TOPICS:
        home.leaf(topic, at=f"not {topic}", **ABLE)
    figures = home.deploy()
    after = home.app.tables.current()
    assert after is not None and after.number == before.number and after.note.held
    assert figures["kept"] and [m["name"] for m in figures["measures"] if m["worse"]]
    told = next(told for told in home.told if told.event == "table kept")
    assert "does worse on replay: coverage 9" in told.text and "restore --table 2" in told.text


def test_a_refused_table_can_be_put_in_force_by_the_owner(home: Routed) -> None:
    for topic in TOPICS:
        home.leaf(topic, at=f"not {topic}", **ABLE)
    home.deploy()
    refused = home.app.tables.history()[0]
    assert refused.note is not None and refused.note.kind is Kind.REFUSED and not refused.in_force
    deploying.restore(home.app, refused.number, pin=False)
    current = home.app.tables.current()
    assert current is not None and current.note.kind is Kind.RESTORED
    found = {entry.name: entry for entry in current.table.entries}
    assert float(found["tides"].centroid @ towards("not tides")) > 0.99


def test_a_table_refused_every_night_is_kept_once(home: Routed) -> None:
    for night in range(3):
        for topic in TOPICS:
            home.leaf(topic, at=f"not {topic} {night}", **ABLE)
        home.deploy()
    kinds = [row.note.kind for row in home.app.tables.history() if row.note]
    assert kinds == [Kind.REFUSED, Kind.ROUND]


def test_leaves_of_a_refused_table_do_not_slip_in_between_rounds(home: Routed) -> None:
    for topic in TOPICS:
        home.leaf(topic, at=f"not {topic}", **ABLE)
    home.leaf("new")
    home.deploy()
    home.app.deploy()
    assert "new" not in home.names()


def test_a_table_that_is_kept_loses_what_was_archived(home: Routed) -> None:
    home.leaf("gears", stage=Stage.ARCHIVED)
    for topic in ("tides", "poems"):
        home.leaf(topic, at=f"not {topic}", **ABLE)
    home.deploy()
    assert home.events() == ["table kept"] and home.names() == {"tides", "poems"}


def test_the_next_round_that_does_as_well_ends_the_hold(home: Routed) -> None:
    for topic in TOPICS:
        home.leaf(topic, at=f"not {topic}", **ABLE)
    home.deploy()
    for topic in TOPICS:
        home.leaf(topic)
    home.leaf("new")
    assert home.deploy()["kept"] is False
    current = home.app.tables.current()
    assert current is not None and not current.note.held and "new" in home.names()


def test_a_merge_is_not_held_against_a_table(home: Routed) -> None:
    for topic in ("tides", "poems"):
        home.leaf(topic, stage=Stage.MERGED)
    both = towards("tides") + towards("poems")
    merged = home.leaf(
        "waters",
        lineage=(leaf_id("tides"), leaf_id("poems")),
        centroid=(both / np.linalg.norm(both)).astype(np.float32),
    )
    members = home.app.forests.assignment()
    home.assign({s: merged.id for s in members if not s.startswith("gears")})
    assert home.deploy()["kept"] is False
    assert home.names() == {"waters", "gears"}


def test_the_accuracy_of_each_table_is_in_its_history(home: Routed) -> None:
    note = home.app.tables.history()[0].note
    assert note is not None and note.replayed == 300
    assert note.accuracy is not None and note.accuracy > 0.9


@pytest.mark.parametrize("end", [lambda home: home.app.deploy(), lambda home: home.deploy()])
def test_a_pinned_table_stays_until_it_is_unpinned(
    home: Routed, end: Callable[[Routed], object]
) -> None:
    deploying.pin(home.app, True)
    home.grown("new", sessions=100)
    end(home)
    assert "new" not in home.names()
    deploying.pin(home.app, False)
    home.deploy()
    assert "new" in home.names()
