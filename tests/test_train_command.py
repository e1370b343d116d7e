"""Training by hand: each step alone, in order as in a round, and what is said out of order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import tiny_llama
from support_engine import RULES, Bench, Killed, TopicTrainer, rated, sessions

from leaves.model import Instant, Leaf, Stage
from leaves.ports import silent
from leaves.store import Role
from node import by_hand as by_hand_module
from node.app import App, ConsentMissingError
from node.by_hand import ByHand, Done, NotAdoptedError, NotTrainableError, NotYetError
from node.consent import Scope
from node.notes import Step
from node.overview import UnknownLeafError

NOW = Instant(1_700_100_000)
ORDER = list(Step)


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("chassis"))


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory, chassis: Path) -> Path:
    """A home whose leaves are seeds: clustered, not trained."""
    home = tmp_path_factory.mktemp("clustered")
    made = Bench(home, chassis, sessions(100), train=False)
    made.round().run(NOW)
    made.store.close()
    return home


@pytest.fixture
def bench(tmp_path: Path, clustered: Path, chassis: Path) -> Iterator[Bench]:
    shutil.copytree(clustered, tmp_path / "home")
    made = Bench(tmp_path / "home", chassis, sessions(100))
    yield made
    made.store.close()


def some_leaf(bench: Bench) -> Leaf:
    return next(leaf for leaf in bench.store.forest() if leaf.level == 2)


def by_hand(bench: Bench) -> ByHand:
    captured = {session.session_id: session for session in bench.captured}
    return ByHand(bench.store, RULES, bench.classroom(), captured, some_leaf(bench), NOW)


def done(bench: Bench, *steps: Step) -> list[Done]:
    """Each step by a command of its own."""
    return [by_hand(bench).do(step) for step in steps]


def test_the_steps_in_order_come_to_what_a_round_comes_to(bench: Bench) -> None:
    came = {each.step: each.figures for each in done(bench, *ORDER)}
    bench.round().run(NOW)
    leaf = some_leaf(bench)
    assert leaf.adapter is not None and leaf.evaluation is not None
    assert came[Step.PACKAGE]["bundle"] == leaf.adapter.bundle
    assert came[Step.EVALUATE]["evaluation"]["verdict"] == leaf.evaluation.verdict
    assert len(bench.store.used(leaf.id, Role.TRAIN)) == came[Step.PREPROCESS]["train"]


def test_only_the_count_of_looks_changes_in_the_forest_until_it_is_adopted(bench: Bench) -> None:
    before = list(bench.store.forest())
    done(bench, *ORDER)
    assert some_leaf(bench).attempts == 1
    after = [replace(leaf, attempts=0, looked=()) for leaf in bench.store.forest()]
    assert after == before
    assert bench.store.open_round() is None
    assert not bench.store.used(some_leaf(bench).id, Role.TRAIN)


def test_what_is_adopted_is_journaled_as_a_round_of_one_training(bench: Bench) -> None:
    came = done(bench, *ORDER)[-1]
    by_hand(bench).adopt()
    leaf = some_leaf(bench)
    assert leaf.stage is Stage.SPROUT and leaf.adapter is not None
    assert leaf.adapter.bundle == came.figures["bundle"]
    assert bench.store.used(leaf.id, Role.TRAIN)
    open_round = bench.store.open_round()
    assert open_round is not None and open_round.phase == "deploy"
    trained = list(bench.trainer.trained)
    assert bench.round().run(NOW).id == open_round.id
    assert bench.trainer.trained == trained, "the round only builds a routing table"
    assert bench.store.history(leaf.id)[-1].round == open_round.id


def test_a_look_by_hand_counts_once_however_often_it_is_repeated_or_adopted(bench: Bench) -> None:
    for _ in range(3):
        done(bench, *ORDER)
    by_hand(bench).do(Step.EVALUATE)
    leaf = some_leaf(bench)
    assert leaf.attempts == 1
    assert [entry.kind for entry in bench.store.history(leaf.id)].count("looked") == 1
    by_hand(bench).adopt()
    leaf = some_leaf(bench)
    assert leaf.evaluation is not None and leaf.evaluation.attempt == 1
    assert (leaf.trainings, leaf.attempts, leaf.looked) == (1, 1, ())


def test_a_look_on_another_split_is_another_and_the_gate_is_stricter(bench: Bench) -> None:
    first = done(bench, *ORDER)[3].figures["evaluation"]
    trained = _trained_one(bench)
    bench.captured = [s for s in bench.captured if s.session_id != trained]
    second = done(bench, *ORDER)[3].figures["evaluation"]
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert second["confidence"] > first["confidence"]
    assert some_leaf(bench).attempts == 2
    by_hand(bench).adopt()
    assert some_leaf(bench).attempts == 2


def test_a_look_at_a_preference_step_by_hand_counts_once_too(bench: Bench) -> None:
    leaf = some_leaf(bench)
    more = rated(bench.store.members(leaf.id)[0].split("-")[0], 160)
    bench.captured += more
    members = dict.fromkeys((session.session_id for session in more), leaf.id)
    bench.store.assign({**bench.store.assignment(), **members})
    for _ in range(2):
        shown = done(bench, *ORDER)[2].figures["evaluation"]
        assert (shown["verdict"], shown["attempt"]) == ("better", 1)
        leaf = some_leaf(bench)
        assert (leaf.attempts, leaf.preference_looks) == (1, 1)
    by_hand(bench).adopt()
    leaf = some_leaf(bench)
    assert leaf.method == "sft+dpo"
    assert (leaf.attempts, leaf.preference_looks, leaf.looked) == (1, 1, ())


@pytest.mark.parametrize("same", [True, False])
def test_a_round_counts_a_look_that_was_not_taken_by_hand(bench: Bench, same: bool) -> None:
    done(bench, *ORDER)
    if not same:
        trained = _trained_one(bench)
        bench.captured = [s for s in bench.captured if s.session_id != trained]
    bench.round().run(NOW)
    leaf = some_leaf(bench)
    assert leaf.trainings == 1 and leaf.attempts == (1 if same else 2)


@pytest.mark.parametrize(("before", "step"), list(pairwise(ORDER)))
def test_a_step_out_of_order_says_which_comes_first(bench: Bench, step: Step, before: Step) -> None:
    with pytest.raises(NotYetError, match="run `groove-node train preprocess"):
        by_hand(bench).do(step)
    wanted = Step.SFT if before is Step.DPO else before  # there need be no preference step
    done(bench, *ORDER[: ORDER.index(wanted)])
    with pytest.raises(NotYetError, match=f"run `groove-node train {wanted}"):
        by_hand(bench).do(step)


def test_a_split_done_again_after_a_training_asks_for_a_new_training(bench: Bench) -> None:
    done(bench, Step.PREPROCESS, Step.SFT)
    bench.captured = bench.captured[: -len(bench.captured) // 10]
    bench.captured = [s for s in bench.captured if s.session_id != _trained_one(bench)]
    with pytest.raises(NotYetError, match="is of other data than now"):
        by_hand(bench).do(Step.EVALUATE)
    done(bench, Step.PREPROCESS)
    with pytest.raises(NotYetError, match="run `groove-node train sft"):
        by_hand(bench).do(Step.EVALUATE)


def _trained_one(bench: Bench) -> str:
    return bench.store.members(some_leaf(bench).id)[0]


def test_a_split_of_before_a_rounds_training_is_out_of_date(bench: Bench) -> None:
    done(bench, Step.PREPROCESS, Step.SFT)
    bench.round().run(NOW)
    with pytest.raises(NotYetError, match="train preprocess"):
        by_hand(bench).do(Step.EVALUATE)


@pytest.mark.parametrize("training", [1, 2])
def test_a_step_that_was_killed_goes_on(bench: Bench, training: int) -> None:
    done(bench, Step.PREPROCESS)
    calls = 0

    def before() -> None:
        nonlocal calls
        calls += 1
        if calls == training:
            raise Killed

    kept = bench.trainer
    bench.trainer = TopicTrainer(before=before)
    with pytest.raises(Killed):
        by_hand(bench).do(Step.SFT)
    bench.trainer = kept
    came = done(bench, *ORDER[1:])[-1].figures["bundle"]
    bench.round().run(NOW)
    adapter = some_leaf(bench).adapter
    assert adapter is not None and adapter.bundle == came


def test_a_leaf_with_too_few_sessions_is_split_and_not_trained(bench: Bench) -> None:
    bench.captured = [s for n, s in enumerate(bench.captured) if n % 100 < 20]
    split = by_hand(bench).do(Step.PREPROCESS)
    assert split.figures["teachable"] is False
    told = dict(split.facts)
    assert "not needed" in told["on neither side"] or told["on neither side"] == "none"
    with pytest.raises(NotTrainableError, match="sessions to judge it by, 20 wanted: "):
        by_hand(bench).do(Step.SFT)


def test_a_training_that_was_done_says_so(bench: Bench) -> None:
    first, again = done(bench, Step.PREPROCESS, Step.SFT)[1], by_hand(bench).do(Step.SFT)
    assert "done already" not in dict(first.facts) and "done already" in dict(again.facts)


def test_a_seed_below_its_threshold_is_told_that_it_cannot_be_adopted(bench: Bench) -> None:
    leaf = replace(some_leaf(bench), sessions=3)
    captured = {session.session_id: session for session in bench.captured}
    work = ByHand(bench.store, RULES, bench.classroom(), captured, leaf, NOW)
    told = dict(work.do(Step.PREPROCESS).facts)
    assert "seed of 3 sessions" in told["adopting"] and told["left out"] == "none"


def test_nothing_is_adopted_while_a_round_is_open(bench: Bench) -> None:
    done(bench, *ORDER)
    bench.store.begin_round(NOW, "embed", {"due": [], "done": {}})
    with pytest.raises(NotAdoptedError, match="stopped in the middle"):
        by_hand(bench).adopt()


def test_nothing_is_adopted_before_it_is_packed(bench: Bench) -> None:
    done(bench, *ORDER[:-1])
    with pytest.raises(NotYetError, match="train package"):
        by_hand(bench).adopt()


def test_each_step_says_what_it_did_in_numbers(bench: Bench) -> None:
    said = {each.step: dict(each.facts) for each in done(bench, *ORDER)}
    assert "sessions" in said[Step.PREPROCESS]["trains on"]
    assert "tokens/s" in said[Step.SFT]["leaf"] and "->" in said[Step.SFT]["style control"]
    assert said[Step.DPO]["preferences"].startswith("preference step skipped")
    assert said[Step.EVALUATE]["verdict"] == "better, won"
    assert "held-out sessions" in said[Step.EVALUATE]["evaluation"]
    assert said[Step.PACKAGE]["privacy checks"] == "passed"


def test_training_by_hand_needs_the_owners_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GROOVE_STATE", str(tmp_path / "state"))
    app = App.open(create=True)
    app.consent.record_consent(app.user_id, True, "1.0", scopes=(Scope.CAPTURE,))
    with pytest.raises(ConsentMissingError, match="`train` is not granted"):
        list(by_hand_module.run(app, "any", ORDER, lambda told: None, silent))
    app.consent.record_consent(app.user_id, True, "1.0", scopes=(Scope.CAPTURE, Scope.TRAIN))
    with pytest.raises(UnknownLeafError, match="no leaf is called 'any'"):
        list(by_hand_module.run(app, "any", ORDER, lambda told: None, silent))
