"""The owner's word: what waits is listed, shown with what it would do, approved or refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_llama
from support_engine import DIMENSIONS, TopicEncoder
from support_reshaping import NOW, Reshaping, day, prepared, the_round

from leaves.embeddings import EmbeddingStore
from leaves.lifecycle import Split
from leaves.model import Stage
from leaves.proposals import decoded, encoded
from node import approvals
from node.app import App
from node.approvals import Effect, NoProposalError
from node.cli import main
from node.errors import MisuseError


class Clock:
    def now_s(self) -> float:
        return float(day(3))


class Home(App):
    """A home of the simulated encoder."""

    enc8 = TopicEncoder.enc8  # type: ignore[assignment]
    dimensions = DIMENSIONS  # type: ignore[assignment]

    @property
    def embeddings(self) -> EmbeddingStore:
        return EmbeddingStore.open(self.home / "emb", self.enc8, self.dimensions)


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("chassis"))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory, chassis: Path) -> Path:
    """A home in which a split of gears and a merge of tides and waves wait."""
    home = tmp_path_factory.mktemp("before") / "home"
    bench = prepared(home, chassis)
    bench.store._db.execute("UPDATE proposal SET yes = NULL, answered = NULL")
    bench.store.close()
    home.chmod(0o700)
    return home


@pytest.fixture
def bench(before: Path, tmp_path: Path, chassis: Path) -> Reshaping:
    return the_round(Path(shutil.copytree(before, tmp_path / "home")), chassis)


@pytest.fixture
def app(bench: Reshaping) -> Home:
    app = Home(bench.home, Clock())
    app.__dict__["forests"] = bench.store  # of another origin than the keys of this home
    return app


def test_what_waits_is_listed_with_its_reason_in_names(app: Home) -> None:
    listed = {each["kind"]: each for each in approvals.listed(app)}
    assert listed["split"]["leaves"] == ["gears"]
    assert sorted(listed["merge"]["leaves"]) == ["tides", "waves"]
    assert "tides" in listed["merge"]["reason"] and "0.92" in listed["merge"]["reason"]
    assert not listed["merge"]["reason"].startswith("waits")  # which `stands` says
    assert {each["stands"] for each in listed.values()} == {"waits for you"}


def test_a_split_shows_where_the_last_sessions_would_go(app: Home) -> None:
    effect = approvals.effect(app, approvals.find(app, "gears"))
    assert isinstance(effect, Effect)
    assert effect.sessions == 550 and effect.changed > 100
    shifts = {shift.leaf: (shift.before, shift.after) for shift in effect.shifts}
    assert shifts["gears"][0] > 100 and shifts["gears"][1] < 20
    parts = [after for name, (was, after) in shifts.items() if was == 0 and name != "no leaf"]
    assert len(parts) == 2 and sum(parts) > 100
    assert effect.score_after > effect.score_before


def test_a_merge_shows_that_both_leaves_sessions_go_to_one(app: Home) -> None:
    effect = approvals.effect(app, approvals.find(app, "waves"))
    assert isinstance(effect, Effect)
    shifts = {shift.leaf: (shift.before, shift.after) for shift in effect.shifts}
    assert shifts["tides"][1] == shifts["waves"][1] == 0
    assert shifts["tides-2"][1] > 200


def test_looking_changes_nothing(app: Home) -> None:
    before = app.forests.revision(), app.forests.proposals.all()
    for proposal in app.forests.proposals.waiting():
        approvals.effect(app, proposal)
    assert (app.forests.revision(), app.forests.proposals.all()) == before
    assert not (app.home / "router").exists() or app.tables.current() is None


def test_what_is_approved_is_carried_out_by_the_next_round_and_what_is_refused_is_not(
    app: Home, bench: Reshaping
) -> None:
    approvals.answer(app, approvals.find(app, "gears"), True)
    approvals.answer(app, approvals.find(app, "tides"), False)
    bench.round().run(day(3))
    kinds = {leaf.name: leaf.stage.value for leaf in app.forests.forest()}
    assert len([leaf for leaf in app.forests.forest() if leaf.level == 3]) == 2
    assert kinds["tides"] == kinds["waves"] == "mature"


def test_a_mind_may_be_changed_until_the_round(app: Home) -> None:
    found = approvals.find(app, "gears")
    approvals.answer(app, found, False)
    assert approvals.answer(app, approvals.find(app, str(found.id)), True).yes is True
    assert approvals.listed(app)[0]["answer"] in ("yes", None)


def test_a_proposal_that_ended_meanwhile_cannot_be_answered(app: Home) -> None:
    found = approvals.find(app, "gears")
    app.forests.proposals.end_but([], NOW)
    with pytest.raises(MisuseError, match="no longer holds"):
        approvals.answer(app, found, True)


def test_a_leaf_that_has_gone_is_said_and_not_replayed(app: Home) -> None:
    found = approvals.find(app, "gears")
    leaf = app.forests.forest().leaves[found.leaves[0]]
    app.forests.change(replace(leaf, stage=Stage.ARCHIVED), "archived", "by hand", NOW)
    assert "not what they were" in str(approvals.effect(app, found))


def test_a_change_is_kept_whole(app: Home) -> None:
    change = approvals.find(app, "gears").change
    assert isinstance(change, Split)
    again = decoded("split", encoded(change))
    assert again == change and isinstance(again, Split)
    assert all(
        (one.centroid == other.centroid).all()
        for one, other in zip(again.children, change.children, strict=True)
    )


@pytest.mark.parametrize("name", ["nobody", "99", ""])
def test_what_names_no_proposal_is_told_with_the_way_on(app: Home, name: str) -> None:
    with pytest.raises(NoProposalError) as refused:
        approvals.find(app, name)
    assert refused.value.next_step.startswith("`groove-node approve`")


def test_the_command_lists_asks_and_answers(
    bench: Reshaping,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    App(bench.home).identity  # noqa: B018 - a home has keys
    monkeypatch.setenv("GROOVE_HOME", str(bench.home))
    monkeypatch.setenv("GROOVE_STATE", str(tmp_path / "state"))

    def said(*arguments: str) -> dict[str, object]:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json"])
        assert not ended.value.code
        document: dict[str, object] = json.loads(capsys.readouterr().out)
        return document

    assert len(said("approve")["proposals"]) == 2  # type: ignore[arg-type]
    assert said("approve", "gears")["answer"] is None  # nobody to ask
    assert said("approve", "gears", "--yes")["answer"] == "yes"
    assert said("approve", "waves", "--refuse")["answer"] == "no"
    assert said("status")["proposals"] == 0
    with pytest.raises(SystemExit) as ended:
        main(["approve", "gears", "--yes", "--refuse"])
    assert ended.value.code == 2
