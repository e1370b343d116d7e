"""A round that splits, merges, prefers and proposes, killed after each of its lasting steps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny_llama
from support_engine import Killed
from support_reshaping import ASKS, Reshaping, Wire, asked, day, everything, prepared, the_round

from leaves.lifecycle import Merged, Split
from leaves.model import Stage
from leaves.proposals import Ended


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("chassis"))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory, chassis: Path) -> Path:
    """A home before the round, its split and its merge approved."""
    home = tmp_path_factory.mktemp("before") / "home"
    bench = prepared(home, chassis)
    bench.store.close()
    return home


@pytest.fixture
def home(before: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(before, tmp_path / "home"))


@pytest.fixture(scope="module")
def unbroken(
    before: Path, chassis: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """What the round comes to without a kill, and its lasting steps."""
    home = Path(shutil.copytree(before, tmp_path_factory.mktemp("unbroken") / "home"))
    bench, wire = the_round(home, chassis), Wire()
    wire.tie(bench)
    bench.round().run(day(3))
    yield everything(bench), wire.steps


def test_the_round_does_all_four(home: Path, chassis: Path) -> None:
    bench = the_round(home, chassis)
    bench.round().run(day(3))
    forest = bench.store.forest()
    stages = {leaf.name: leaf.stage for leaf in forest}
    assert stages["tides"] is stages["waves"] is Stage.MERGED
    parts = [leaf for leaf in forest.live() if leaf.level == 3]
    assert [leaf.parent for leaf in parts] == [bench.leaf("gears")] * 2
    assert next(leaf for leaf in forest if leaf.name == "late").method == "sft+dpo"
    assert [p.leaves for p in bench.store.proposals.waiting()] == [(bench.leaf("poems"),)]
    assert {p.ended for p in bench.store.proposals.all() if p.yes} == {Ended.DONE}
    told = {told.event for told in bench.told}
    assert {"split", "merge", "proposed"} <= told


def broken_at(at: int, before: Path, chassis: Path, folder: Path) -> tuple[dict[str, Any], bool]:
    """What the round comes to if it is killed after one of its lasting steps and taken up again;
    and whether anything was trained twice."""
    home = Path(shutil.copytree(before, folder))
    killed = the_round(home, chassis)
    Wire(at).tie(killed)
    with pytest.raises(Killed):
        killed.round().run(day(3))
    killed.store.close()
    again = the_round(home, chassis)
    if again.store.open_round() is not None:
        again.round().run(day(4))
    trained = killed.trainer.trained + again.trainer.trained
    return everything(again), len(trained) != len(set(trained))


def test_killed_here_and_there_it_comes_to_the_same(
    before: Path, chassis: Path, unbroken: tuple[dict[str, Any], list[str]], tmp_path: Path
) -> None:
    whole, steps = unbroken
    assert {"commit", "append", "train", "prefer", "put"} <= set(steps)
    for at in (5, steps.index("prefer") + 1, len(steps)):  # split and merged, preferred, finished
        came_to = broken_at(at, before, chassis, tmp_path / str(at))
        assert came_to == (whole, False), f"killed after step {at}, {steps[at - 1]}"


@pytest.mark.slow
def test_killed_after_any_lasting_step_it_comes_to_the_same(
    before: Path, chassis: Path, unbroken: tuple[dict[str, Any], list[str]], tmp_path: Path
) -> None:
    whole, steps = unbroken
    for at in range(1, len(steps) + 1):
        came_to = broken_at(at, before, chassis, tmp_path / str(at))
        assert came_to == (whole, False), f"killed after step {at}, {steps[at - 1]}"


def test_a_proposal_is_in_the_history_once_however_often_a_round_comes_to_it(
    home: Path, chassis: Path
) -> None:
    bench = the_round(home, chassis)
    bench.round().run(day(3))
    bench.round().run(day(4))
    poems = bench.leaf("poems")
    kinds = [entry.kind for entry in bench.store.history(poems)]
    assert kinds.count("proposed") == 1
    proposal = bench.store.proposals.waiting()[0]
    assert (proposal.at, proposal.seen) == (day(3), day(4))
    assert isinstance(proposal.change, Split) and len(proposal.change.children) == 2


def test_what_was_refused_is_not_asked_again_until_it_has_grown(home: Path, chassis: Path) -> None:
    bench = the_round(home, chassis)
    bench.round().run(day(3))
    bench.say(False, "split")
    bench.captured += asked(("poems",), 120, 10)
    bench.round().run(day(4))
    assert bench.store.proposals.waiting() == []
    bench.captured += asked(("poems",), 130, 100)
    bench.round().run(day(5))
    assert [proposal.kind for proposal in bench.store.proposals.waiting()] == ["split"]


def test_an_approved_change_that_holds_no_more_is_not_made(home: Path, chassis: Path) -> None:
    bench = the_round(home, chassis)
    bench.parted = frozenset()  # the parts of gears do not show any more
    bench.round().run(day(3))
    assert not [leaf for leaf in bench.store.forest() if leaf.level == 3]
    ended = {p.kind: p.ended for p in bench.store.proposals.all()}
    assert ended == {"merge": Ended.DONE, "split": Ended.GONE}


def test_without_a_word_nothing_is_split_or_merged(home: Path, chassis: Path) -> None:
    bench = the_round(home, chassis)
    for proposal in bench.store.proposals.current():
        bench.store._db.execute("UPDATE proposal SET yes = NULL WHERE id = ?", (proposal.id,))
    bench.round().run(day(3))
    forest = bench.store.forest()
    assert not [leaf for leaf in forest if leaf.level == 3 or leaf.stage is Stage.MERGED]
    assert len(bench.store.proposals.waiting()) == 3


def test_with_auto_nobody_is_asked(home: Path, chassis: Path) -> None:
    bench = the_round(home, chassis)
    bench.rules = msgspec.structs.replace(ASKS, approve="auto")
    bench.round().run(day(3))
    assert bench.store.proposals.current() == []
    assert len([leaf for leaf in bench.store.forest() if leaf.level == 3]) == 4


def test_what_is_forgotten_is_in_no_proposal(home: Path, chassis: Path) -> None:
    bench = the_round(home, chassis)
    bench.round().run(day(3))
    assert any(isinstance(p.change, Merged) for p in bench.store.proposals.all())
    bench.store.forget(["poems-0000"])
    assert bench.store.proposals.waiting() == []
    assert {p.change for p in bench.store.proposals.all()} == {None}


def test_a_plan_names_what_will_be_asked(home: Path, chassis: Path) -> None:
    bench = the_round(home, chassis)
    plan = bench.round().plan(day(3))
    assert [what for what, _, _ in plan.transitions].count("ask (split)") == 1
    assert {what for what, _, _ in plan.transitions} >= {"split", "merged"}
    assert len(plan.trainings) == 3  # of what is embedded: late's new sessions are not yet
    bench.embeddings.append(
        [s.session_id for s in bench.captured[-100:]],
        [1] * 100,
        bench.encoder().encode([s.prompt for s in bench.captured[-100:]]),
    )
    plan = bench.round().plan(day(3))
    row = bench.round().run(day(3))
    assert len(plan.trainings) == len(row.state["due"]) == 4


def test_a_leaf_of_many_sessions_is_not_trained_again_for_those_it_left_lying(
    tmp_path: Path, chassis: Path
) -> None:
    held = [replace(s, terms_class="restricted") for s in asked(("tides",), 70, 60)]
    bench = Reshaping(tmp_path, chassis, asked(("gears", "tides"), 0, 70) + held)
    bench.round().run(day(0))
    assert set(bench.store.fresh().values()) <= {0}
    trained = list(bench.trainer.trained)
    bench.round().run(day(1))
    assert bench.trainer.trained == trained
    bench.captured += asked(("tides",), 130, 60)
    bench.round().run(day(2))
    assert bench.store.forest().leaves[bench.leaf("tides")].trainings == 2
