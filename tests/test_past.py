"""The forest of a past day: what changed since, and the way back to it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
)
from leaves.store import Role
from node import past
from node.app import App
from node.cli import main
from node.errors import MisuseError
from node.past import OpenRoundError

DIMENSIONS = 384
FIRST = 20_000  # 2024-10-04
THEN, LATER, TODAY = "2024-10-05", "2024-10-10", "2024-10-20"


def at(day: int) -> Instant:
    return Instant((FIRST + day) * DAY_S)


class Clock:
    def now_s(self) -> float:
        return float(at(16))


def grown(birth: int, name: str, **fields: object) -> Leaf:
    leaf = Leaf(
        id=leaf_id(b"\1" * 32, birth), name=name, stage=Stage.SPROUT, stage_since=at(0), level=2,
        kind=Kind.SKILL, grown_from=GrownFrom.DATA, parent=None, lineage=(), created=at(0),
        sessions=300, growth_per_day=1.0, centroid=np.eye(DIMENSIONS, dtype=np.float32)[birth],
    )  # fmt: skip
    return replace(leaf, **fields)  # type: ignore[arg-type]


@pytest.fixture
def app(tmp_path: Path) -> App:
    """Gears and tides grew; then tides and waves were merged, and gears matured and was split."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    app = App(home, Clock())
    store = app.forests
    bundle = app.bundles.put(b"the first version")
    adapter = Adapter(bundle, "", bundle, "00", 8)
    gears = grown(0, "gears", adapter=adapter, trainings=1, wins=1, attempts=1)
    tides, waves = grown(1, "tides"), grown(2, "waves", sessions=100)
    for leaf in (gears, tides, waves):
        store.change(leaf, "born", "found", at(0))
    lost = Adapter("ab" * 32, "", "ab" * 32, "00", 8)
    matured = replace(
        gears, stage=Stage.MATURE, stage_since=at(5), sessions=500, adapter=lost, attempts=3,
        version=9, trainings=3, name="cogs", named_by_owner=True,
    )  # fmt: skip
    store.change(matured, "promoted", "won", at(5))
    part = grown(3, "small-gears", level=3, parent=gears.id, lineage=(gears.id,), created=at(6))
    store.change(part, "split", "parts", at(6))
    both = grown(4, "tides-2", sessions=400, lineage=(tides.id, waves.id), created=at(6))
    store.change(both, "merged", "alike", at(6))
    for leaf in (tides, waves):
        ended = replace(leaf, stage=Stage.MERGED, stage_since=at(6))
        store.change(ended, "merged", "alike", at(6))
    eye = np.eye(DIMENSIONS, dtype=np.float32)
    ids = ["g1", "g2", "t1", "w1"]
    app.embeddings.append(ids, [FIRST] * 4, eye[[0, 3, 1, 2]])
    store.assign({"g1": gears.id, "g2": part.id, "t1": both.id, "w1": both.id})
    return app


def names(app: App) -> dict[str, Leaf]:
    return {leaf.name: leaf for leaf in app.forests.forest()}


def test_two_days_are_told_apart(app: App) -> None:
    changes = past.differences(past.at_end_of(app, THEN), past.at_end_of(app, LATER))
    told = {(change.name, change.what) for change in changes}
    assert told == {
        ("tides-2", "appeared"), ("small-gears", "appeared"), ("tides", "went"), ("waves", "went"),
        ("cogs", "changed stage"),
    }  # fmt: skip
    went = next(change for change in changes if change.name == "tides")
    assert went.row() == ("tides", "went", "sprout, 300", "merged", "-300")


def test_nothing_changed_between_a_day_and_itself(app: App) -> None:
    then = past.at_end_of(app, THEN)
    assert past.differences(then, then) == []
    assert past.summary([], THEN, "now") == f"nothing changed from {THEN} to now"


def test_growth_is_a_difference_too(app: App) -> None:
    before = app.forests.forest()
    small = replace(names(app)["tides-2"], sessions=401)
    after = before.with_leaf(small)
    assert [c.what for c in past.differences(before, after)] == ["grew"]
    assert [c.what for c in past.differences(after, before)] == ["shrank"]


def test_the_forest_of_a_day_comes_back(app: App) -> None:
    births = app.forests.forest().births
    done = past.restore(app, THEN)
    found = names(app)
    live = {name for name, leaf in found.items() if leaf.stage.live}
    assert live == {"cogs", "tides", "waves"}
    cogs = found["cogs"]
    assert (cogs.stage, cogs.sessions, cogs.trainings) == (Stage.SPROUT, 300, 1)
    assert cogs.adapter is not None and app.bundles.path(cogs.adapter.bundle)
    assert found["small-gears"].stage is Stage.DISSOLVED
    assert app.forests.forest().births == births and done.kept_out == []
    assert past.differences(past.at_end_of(app, THEN), app.forests.forest()) == []


def test_what_is_of_the_world_stays_as_it_is_today(app: App) -> None:
    past.restore(app, THEN)
    cogs = names(app)["cogs"]
    assert cogs.named_by_owner and cogs.attempts == 3  # it cannot win by being tried again
    assert cogs.version == 10 and cogs.stage_since == at(16)


def test_sessions_go_to_the_leaves_that_came_back(app: App) -> None:
    past.restore(app, THEN)
    found = names(app)
    assert app.forests.assignment() == {
        "g1": found["cogs"].id,
        "g2": found["cogs"].id,
        "t1": found["tides"].id,
        "w1": found["waves"].id,
    }


def test_every_leaf_has_it_in_its_history_and_there_is_a_way_forth_again(app: App) -> None:
    before = app.forests.forest()
    past.restore(app, THEN)
    for leaf in before:
        last = app.forests.history(leaf.id)[-1]
        assert (last.kind, last.at) == ("restored", at(16))
        assert THEN in last.reason
    assert past.at_end_of(app, LATER).leaves.keys() == before.leaves.keys()
    stages = {leaf.id: leaf.stage for leaf in past.at_end_of(app, LATER)}
    assert stages == {leaf.id: leaf.stage for leaf in before}


def test_to_restore_the_day_that_it_is_changes_nothing(app: App) -> None:
    before = app.forests.revision()
    names_now = names(app)
    lost = replace(names_now["cogs"], adapter=None)
    app.forests.change(lost, "drifted", "", at(15))
    assert past.restore(app, TODAY).leaves == {}
    assert app.forests.revision() == before + 1


def test_an_adapter_that_is_gone_is_told_and_trained_anew(app: App) -> None:
    then = names(app)["cogs"]
    past.restore(app, THEN)
    assert then.adapter is not None
    done = past.restore(app, LATER)  # whose version of gears is nowhere
    assert done.kept_out == [
        "cogs: its adapter of that day is gone; it comes back as a seed and is trained anew"
    ]
    cogs = names(app)["cogs"]
    assert (cogs.stage, cogs.adapter, cogs.trainings) == (Stage.SEED, None, 0)


def test_what_was_made_of_deleted_sessions_stays_as_it_is(app: App) -> None:
    cogs = names(app)["cogs"]
    bare = replace(cogs, stage=Stage.DISSOLVED, adapter=None, version=11)
    app.forests.change(bare, "withdrawn", "sessions that it was trained on are gone", at(10))
    done = past.restore(app, THEN)
    assert names(app)["cogs"].stage is Stage.DISSOLVED
    assert any("deleted since; it stays dissolved" in line for line in done.kept_out)


def test_a_version_comes_not_back_when_it_is_not_known_what_it_learned(app: App) -> None:
    cogs = names(app)["cogs"]
    first = app.forests.history(cogs.id)[0].leaf.adapter
    assert first is not None and app.bundles.path(first.bundle)  # left lying by a kill
    app.forests.change(replace(cogs, adapter=first), "trained", "", at(1))
    app.forests.change(cogs, "trained", "", at(8))
    app.forests.use(cogs.id, Role.TRAIN, ["g1"], 8)
    done = past.restore(app, THEN)
    assert done.kept_out == [
        "cogs: its adapter of that day is gone; it comes back as a seed and is trained anew"
    ]


def test_leaves_that_changed_places_do_not_come_back_as_each_others_parents() -> None:
    one, two = grown(0, "one"), grown(1, "two", level=3, parent=grown(0, "one").id)
    then = Forest({one.id: one, two.id: two}, 2, b"\1" * 32)
    below, above = replace(one, level=3, parent=two.id), replace(two, level=2, parent=None)
    now = Forest({one.id: below, two.id: above}, 2, b"\1" * 32)

    def back(*withdrawn: LeafId) -> past.Restoration:
        return past.restored(then, now, THEN, at(16), lambda root: True, withdrawn)

    assert back().forest.leaves[two.id].parent == one.id and not back().kept_out
    found = back(one.id)  # which stays where it is, so the other does too
    assert found.forest.leaves[one.id] == below
    assert (found.forest.leaves[two.id].parent, found.forest.leaves[two.id].level) == (None, 2)
    assert found.forest.leaves[two.id] == found.leaves[two.id][0]
    assert found.kept_out[-1] == "two: what it was below is below it now; it stays where it is"


def test_a_round_that_is_open_is_finished_first(app: App) -> None:
    app.forests.begin_round(at(16), "embed", {})
    before = app.forests.revision()
    with pytest.raises(OpenRoundError) as refused:
        past.restore(app, THEN)
    assert "groove-node round" in refused.value.next_step
    assert app.forests.revision() == before


@pytest.mark.parametrize(("day", "why"), [("2001-01-01", "no leaves yet"), ("soon", "is no date")])
def test_a_day_that_cannot_be_meant_is_refused(app: App, day: str, why: str) -> None:
    with pytest.raises(MisuseError, match=why):
        past.restore(app, day)


def test_a_leaf_that_was_retracted_is_told_to_stay_gone_for_peers(app: App) -> None:
    from node.mailbox import Retract

    app.mailbox.post(Retract(LeafId(names(app)["tides"].id)), at(16))
    done = past.plan(app, THEN)
    assert done.kept_out == ["tides: it was retracted, and peers never take it again"]


def test_the_commands_show_the_difference_ask_and_restore(
    app: App,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert app.identity.origin
    monkeypatch.setenv("GROOVE_HOME", str(app.home))
    monkeypatch.setenv("GROOVE_STATE", str(tmp_path / "state"))

    def said(*arguments: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json"])
        assert not ended.value.code
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    apart = said("tree", "--diff", THEN, "now")["changes"]
    assert {change["what"] for change in apart} == {"appeared", "went", "changed stage"}
    asked = said("restore", THEN)  # nobody is there to say yes
    assert asked["restored"] is None and len(asked["changes"]) == len(apart)
    assert said("tree", "--diff", THEN, "now")["changes"] == apart
    assert said("restore", THEN, "--yes")["restored"] == 5
    assert said("tree", "--diff", THEN, "now")["changes"] == []
    assert said("restore", THEN, "--yes")["restored"] == 0
    assert said("tree", "--diff", THEN)["to"] == "now"
    assert said("tree", "--diff", LATER, THEN)["from"] == THEN  # in the order of time
    monkeypatch.setattr("node.app.SystemClock", Clock)
    for wrong in (
        ["tree", "--empty-diff"],
        ["tree", "--at", "2024-10-21"],
        ["tree", "--diff", THEN, "2024-10-21"],
        ["tree", "--diff", THEN, LATER, TODAY],
        ["restore", "2024-10-21"],
        ["restore", THEN, "--table", "1"],
        ["tree", "--diff", THEN, "now", "--at", THEN],
    ):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2, wrong
    assert "2024-10-21 is still to come" in capsys.readouterr().err
