"""What is told of the use of peers' leaves, and what comes of what peers tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support_capture import NOON, HandClock, record

from gossip import wire
from leaves.lifecycle import Archived, Rules, decide
from leaves.model import (
    DAY_S,
    Adapter,
    Forest,
    GrownFrom,
    Instant,
    Kind,
    Leaf,
    LeafId,
    Stage,
    leaf_id,
    unit,
)
from leaves.observe import Observations
from leaves.store import ForestStore
from node import usage
from node.app import App
from node.capture.record import TrainingRecord
from node.foreign import TRUSTED, Foreign, Known, State
from node.mesh import ForeignLeaf
from node.trial import tried

THEIRS, OURS = "02" * 32, "01" * 32
LEAF = leaf_id(b"\2" * 32, 0)
WEEK = usage.week_of(NOON)
CENTRE = unit(np.ones((1, 384), np.float32))[0]


def foreign_leaf(number: int = 0, root: str = "e" * 64) -> ForeignLeaf:
    id_ = leaf_id(b"\2" * 32, number)
    return ForeignLeaf(THEIRS, id_, 1, Stage.MATURE, 9, root, "f" * 64, 10, "d" * 16, CENTRE)


def said(
    leaf: LeafId = LEAF, *, week: int = WEEK, routed: int = 4, accepted: int = 3
) -> wire.Usage:
    return wire.Usage(bytes.fromhex(THEIRS), bytes.fromhex(leaf), week, routed, accepted)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GROOVE_STATE", str(tmp_path / "state"))
    opened: Any = App.open(create=True)
    opened.clock = HandClock()
    found: App = opened
    return found


def accepted(app: App, *leaves: ForeignLeaf) -> None:
    app.foreign.replace_origin(THEIRS, leaves)
    for known in app.foreign.all():
        app.foreign.settle(known, State.ACCEPTED, {"gate": 0.4})


def close(
    number: int,
    leaf: str = LEAF,
    outcome: str = "accepted",
    *,
    at: float = NOON,
    fallback: bool = False,
    session: str = "",
) -> TrainingRecord:
    routing = {"leaf_id": leaf, "fallback_used": fallback}
    about = {"event": "SESSION_CLOSE", "outcome": outcome, "routing": routing}
    return record(
        number,
        at=at,
        session_id=session or f"session-{number}",
        content_type="workflow",
        content="SESSION_CLOSE",
        metadata=about,
    )


def test_sessions_that_a_peers_leaf_answered_are_counted_by_week(app: App) -> None:
    accepted(app, foreign_leaf())
    app.corpus.add_records(
        [
            close(1),
            close(2, outcome="rejected"),
            close(3, fallback=True),
            close(4, leaf="a" * 32),
            close(5, at=NOON - 8 * DAY_S),
            close(6, at=NOON - usage.WEEKS * 7 * DAY_S),
            close(7, session="twice", outcome="rejected"),
            close(8, session="twice"),
        ]
    )
    usage.count(app)
    assert usage.published(app) == (
        said(week=usage.week_of(NOON - 8 * DAY_S), routed=1, accepted=1),
        said(routed=wire.to_log2(3), accepted=wire.to_log2(2)),
    )


def test_of_a_leaf_that_is_gone_or_that_two_origins_claim_nothing_is_told(app: App) -> None:
    accepted(app, foreign_leaf())
    app.corpus.add_records([close(1)])
    usage.count(app)
    app.foreign.retract(THEIRS, LEAF)
    assert usage.published(app) == ()
    accepted(app, foreign_leaf())
    app.foreign.replace_origin("03" * 32, [ForeignLeaf("03" * 32, *_fields(foreign_leaf())[1:])])
    for known in app.foreign.all():
        app.foreign.settle(known, State.ACCEPTED, {"gate": 0.4})
    assert usage.origins_of(app) == {}


def _fields(leaf: ForeignLeaf) -> tuple[Any, ...]:
    return tuple(getattr(leaf, name) for name in leaf.__slots__)


def test_of_too_many_rows_the_most_used_are_published() -> None:
    used = [
        usage.Used(THEIRS, leaf_id(b"\2" * 32, n), WEEK, n + 1, 0)
        for n in range(wire.USAGE_ROWS_MAX + 40)
    ]
    told = usage.rows(used, {(each.origin, each.leaf) for each in used})
    assert len(told) == wire.USAGE_ROWS_MAX
    assert {row.leaf.hex() for row in told} == {each.leaf for each in used[40:]}


def test_a_damaged_count_tells_nothing(app: App) -> None:
    (app.home / usage.FILE).write_bytes(b"{")
    assert usage.published(app) == ()


def test_others_who_use_a_leaf_are_counted_once_each_and_only_of_late(tmp_path: Path) -> None:
    known = Foreign(tmp_path)
    for by in ("04" * 32, "05" * 32, THEIRS):  # what an owner says of its own leaf counts nothing
        known.replace_usage(by, [said(), said(week=WEEK - 1)])
    known.replace_usage("06" * 32, [said(week=WEEK - usage.WEEKS)])
    known.replace_usage("07" * 32, [said(routed=0, accepted=0)])
    since = usage.told_of(Instant(int(NOON)))
    assert known.users(THEIRS, since) == {LEAF: 2}
    assert known.attesting(THEIRS, LEAF, since, without="04" * 32) == 1
    known.replace_usage("05" * 32, [])
    assert known.users(THEIRS, since) == {LEAF: 1}


def test_what_is_told_of_weeks_yet_to_come_does_not_count_until_then(tmp_path: Path) -> None:
    known = Foreign(tmp_path)
    known.replace_usage("04" * 32, [said(week=2**32 - 1)])
    known.replace_usage("05" * 32, [said(week=WEEK + 1)])  # its clock may be ahead
    known.replace_usage("06" * 32, [said(week=WEEK + 2)])
    weeks = usage.told_of(Instant(int(NOON)))
    assert known.users(THEIRS, weeks) == {LEAF: 1}
    assert known.attesting(THEIRS, LEAF, weeks, without="00" * 32) == 1


def test_a_forest_knows_how_many_others_use_a_leaf(tmp_path: Path) -> None:
    store = ForestStore(tmp_path / "leaves.db", b"\1" * 32)
    store.change(resting(), "born", "by a test", Instant(1))
    store.used_by = {resting().id: 4}
    assert store.forest().leaves[resting().id].used_by == 4
    store.used_by = {}
    assert store.forest().leaves[resting().id].used_by == 0


def resting(used_by: int = 0) -> Leaf:
    """A leaf that nobody here has asked for two months."""
    return Leaf(
        id=leaf_id(b"\1" * 32, 0),
        name="resting",
        stage=Stage.MATURE,
        stage_since=Instant(0),
        level=2,
        kind=Kind.SKILL,
        grown_from=GrownFrom.DATA,
        parent=None,
        lineage=(),
        created=Instant(0),
        sessions=600,
        growth_per_day=0.0,
        centroid=CENTRE,
        trainings=2,
        trained_at=Instant(0),
        wins=2,
        adapter=Adapter("b" * 64, "d" * 64, "c" * 64, "e" * 16, 8),
        used_by=used_by,
    )


@pytest.mark.parametrize(("origins", "rests"), [(0, True), (1, False)])
def test_an_owner_does_not_archive_what_others_rely_on(origins: int, rests: bool) -> None:
    leaf = resting(origins)
    forest = Forest({leaf.id: leaf}, 1, b"\1" * 32)
    seen = Observations((), full=True, sessions=0, noise=0)
    changes = decide(forest, seen, Instant(60 * DAY_S), Rules())
    assert any(isinstance(each, Archived) for each in changes) is rests


@pytest.mark.parametrize(("origins", "state"), [(2, State.WAITING), (3, State.ACCEPTED)])
def test_a_leaf_that_cannot_be_judged_here_is_routed_to_on_the_word_of_three(
    app: App, origins: int, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.foreign.replace_origin(THEIRS, [foreign_leaf()])
    for number in range(origins):
        app.foreign.replace_usage(f"{number + 16:02x}" * 32, [said()])
    monkeypatch.setattr(App, "region", lambda self, leaf: [])
    monkeypatch.setattr(App, "chassis", SimpleNamespace(tag8=b"\xdd" * 8), raising=False)
    [known] = app.foreign.all()
    came, detail = tried(app, known, "c" * 64)
    assert came is state and f"{origins} " in detail["reason"]
    settled = app.foreign.settle(known, came, detail)
    trusted: list[Known] = app.foreign.on_trust("d" * 16)
    assert trusted == ([settled] if state is State.ACCEPTED else [])
    app.foreign.settle(settled, State.ACCEPTED, {TRUSTED: 0})
    assert app.foreign.on_trust("d" * 16) == [], "it was judged"
