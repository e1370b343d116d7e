"""A round, whole: what it does, and that killed anywhere it comes to the same as one unbroken."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_llama
from msgspec import structs
from support_engine import RULES, TOPICS, Bench, Killed, TopicTrainer, sessions

from leaves.lifecycle import Rules
from leaves.model import DAY_S, Forest, Instant, Stage, Verdict
from leaves.store import ForestStore, Role
from node.classroom import Classroom

NOW = Instant(1_700_100_000)
LATER = Instant(NOW + 86_400)


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("chassis"))


def stages(forest: Forest) -> list[Stage]:
    return [leaf.stage for leaf in forest if leaf.level == 2]


def test_three_topics_sprout_in_the_first_round_and_mature_in_the_second(
    tmp_path: Path, chassis: Path
) -> None:
    bench = Bench(tmp_path, chassis, sessions(100))
    bench.round().run(NOW)
    assert stages(bench.store.forest()) == [Stage.SPROUT] * 3
    assert {leaf.evaluation.verdict for leaf in bench.store.forest() if leaf.evaluation} == {
        Verdict.BETTER
    }
    bench.captured += sessions(100, start=100)
    bench.round().run(LATER)
    assert stages(bench.store.forest()) == [Stage.MATURE] * 3
    assert bench.deployed == 2


def test_what_judged_a_leaf_never_trained_it(tmp_path: Path, chassis: Path) -> None:
    bench = Bench(tmp_path, chassis, sessions(100))
    bench.round().run(NOW)
    bench.captured += sessions(100, start=100)
    bench.round().run(LATER)
    for leaf in bench.store.forest():
        trained = bench.store.used(leaf.id, Role.TRAIN)
        assert trained and not trained & bench.store.used(leaf.id, Role.HELD_OUT)


def test_a_style_control_sees_nothing_of_its_leaf(tmp_path: Path, chassis: Path) -> None:
    bench = Bench(tmp_path, chassis, sessions(100))
    bench.round().run(NOW)
    for leaf in bench.store.forest():
        own = set(bench.store.members(leaf.id))
        control = bench.store.used(leaf.id, Role.CONTROL)
        assert control and not control & own


def test_a_second_round_without_news_trains_nothing(tmp_path: Path, chassis: Path) -> None:
    bench = Bench(tmp_path, chassis, sessions(100))
    bench.round().run(NOW)
    trained = list(bench.trainer.trained)
    bench.round().run(LATER)
    assert bench.trainer.trained == trained


def test_a_leaf_that_waits_for_sessions_to_judge_it_by_says_so_once_and_trains_nothing(
    tmp_path: Path, chassis: Path
) -> None:
    bench = Bench(tmp_path, chassis, sessions(100))
    bench.round().run(NOW)
    trained = list(bench.trainer.trained)
    more = [replace(s, group=f"{s.session_id[:5]}-alike") for s in sessions(40, start=100)]
    bench.captured = [*bench.captured, *more]
    for day in range(1, 4):
        bench.told.clear()
        row = bench.round().run(Instant(NOW + day * DAY_S))
        assert len(row.state["due"]) == 3 and bench.trainer.trained == trained
        events = [told.event for told in bench.told]
        assert events.count("not trained") == (3 if day == 1 else 0) and "training" not in events


def test_a_round_that_is_taken_up_teaches_by_the_rules_that_it_began_with(
    tmp_path: Path, chassis: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, chassis, sessions(100))

    def dies() -> None:
        raise Killed

    bench.trainer.before = dies
    with pytest.raises(Killed):
        bench.round().run(NOW)
    bench.trainer.before = lambda: None
    given: list[Rules] = []

    def classroom(rules: Rules = RULES) -> Classroom:
        given.append(rules)
        return Bench.classroom(bench, rules)

    monkeypatch.setattr(bench, "classroom", classroom)
    bench.round(structs.replace(RULES, mature_wins=1)).run(NOW)
    assert given == [RULES]


def test_without_the_scope_leaves_stay_seeds(tmp_path: Path, chassis: Path) -> None:
    bench = Bench(tmp_path, chassis, sessions(100), train=False)
    bench.round().run(NOW)
    assert stages(bench.store.forest()) == [Stage.SEED] * 3
    assert bench.trainer.trained == []


def test_too_few_sessions_only_embed(tmp_path: Path, chassis: Path) -> None:
    bench = Bench(tmp_path, chassis, sessions(10))
    bench.round().run(NOW)
    assert len(bench.embeddings) == 10 * len(TOPICS)
    assert not list(bench.store.forest())


def test_sessions_whose_terms_forbid_it_train_nothing(tmp_path: Path, chassis: Path) -> None:
    from dataclasses import replace

    held = [replace(s, terms_class="restricted") for s in sessions(100)]
    bench = Bench(tmp_path, chassis, held)
    bench.round().run(NOW)
    assert bench.trainer.trained == []
    assert any("100 more are left out" in told.text for told in bench.told)


def test_a_plan_says_what_a_round_would_do_and_changes_nothing(
    tmp_path: Path, chassis: Path
) -> None:
    bench = Bench(tmp_path, chassis, sessions(100), train=False)
    before = bench.round().plan(NOW)
    assert before.to_embed == 300 and bench.store.revision() == 0
    assert [each.step for each in before.expected] == ["embed", "cluster", "deploy"]
    assert "about 4 min each" not in before.note  # nothing may be trained
    assert "about 4 min each" in Bench(tmp_path, chassis, sessions(100)).round().plan(NOW).note
    bench.round().run(NOW)
    revision = bench.store.revision()
    plan = bench.round().plan(LATER)
    assert [what for what, _, _ in plan.trainings] == ["train (first)"] * 3
    assert bench.store.revision() == revision


def dying(after: int) -> Callable[[], None]:
    calls = 0

    def before() -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise Killed

    return before


def facts(store: ForestStore) -> list[tuple[object, ...]]:
    """All that must not depend on where a round was killed."""
    return [
        (
            leaf.id,
            leaf.name,
            leaf.stage,
            leaf.trainings,
            leaf.wins,
            leaf.adapter,
            leaf.evaluation,
            tuple(store.members(leaf.id)),
            tuple(sorted(store.used(leaf.id, Role.TRAIN))),
        )
        for leaf in store.forest()
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, chassis: Path) -> list[tuple[object, ...]]:
    bench = Bench(tmp_path_factory.mktemp("unbroken"), chassis, sessions(100))
    bench.round().run(NOW)
    return facts(bench.store)


@pytest.mark.parametrize("training", range(1, 7))
def test_a_round_killed_before_any_training_comes_to_the_same(
    tmp_path: Path, chassis: Path, unbroken: list[tuple[object, ...]], training: int
) -> None:
    bench = Bench(tmp_path, chassis, sessions(100), trainer=TopicTrainer(before=dying(training)))
    with pytest.raises(Killed):
        bench.round().run(NOW)
    again = Bench(tmp_path, chassis, sessions(100))
    again.round().run(LATER)
    assert facts(again.store) == unbroken
    asked = bench.trainer.trained + again.trainer.trained
    assert len(asked) == len(set(asked)) == 6, "nothing is trained twice"


STEPS = [
    ("store", "advance_round"),
    ("store", "carry_out"),
    ("store", "assign"),
    ("store", "use"),
    ("store", "finish_round"),
    ("embeddings", "append"),
    ("bundles", "put"),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize(("owner", "method"), STEPS)
def test_a_round_killed_around_any_write_comes_to_the_same(
    tmp_path: Path,
    chassis: Path,
    unbroken: list[tuple[object, ...]],
    owner: str,
    method: str,
    nth: int,
    when: str,
) -> None:
    bench = Bench(tmp_path, chassis, sessions(100))
    target = getattr(bench, owner)
    original = getattr(target, method)
    calls = 0

    def failing(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth and when == "before":
            raise Killed
        result = original(*args, **kwargs)
        if calls == nth:
            raise Killed
        return result

    setattr(target, method, failing)
    with suppress(Killed):
        bench.round().run(NOW)
    again = Bench(tmp_path, chassis, sessions(100))
    if again.store.open_round() is not None or not again.store.revision():
        again.round().run(NOW)
    assert facts(again.store) == unbroken
    assert again.store.open_round() is None


def test_a_forest_of_the_past_can_be_shown_and_history_gives_reasons(
    tmp_path: Path, chassis: Path
) -> None:
    bench = Bench(tmp_path, chassis, sessions(100))
    bench.round().run(NOW)
    bench.captured += sessions(100, start=100)
    bench.round().run(LATER)
    assert stages(bench.store.forest_at(NOW)) == [Stage.SPROUT] * 3
    leaf = next(iter(bench.store.forest()))
    kinds = [entry.kind for entry in bench.store.history(leaf.id)]
    assert kinds == ["born", "trained", "drifted", "trained", "promoted"]
    assert all(entry.reason for entry in bench.store.history(leaf.id))


def test_what_is_forgotten_leaves_no_trace_and_its_leaves_are_known(
    tmp_path: Path, chassis: Path
) -> None:
    bench = Bench(tmp_path, chassis, sessions(100))
    bench.round().run(NOW)
    leaf = next(iter(bench.store.forest()))
    some = sorted(bench.store.used(leaf.id, Role.TRAIN))[:3]
    assert bench.store.made_of(some) == [leaf.id]
    bench.store.forget(some)
    assert bench.store.made_of(some) == []
    bench.store.close()
    raw = b"".join(path.read_bytes() for path in tmp_path.glob("leaves.db*"))
    assert not any(session.encode() in raw for session in some)


def test_a_rename_made_while_a_leaf_trains_is_kept(tmp_path: Path, chassis: Path) -> None:
    from dataclasses import replace

    bench = Bench(tmp_path, chassis, sessions(100))

    def rename_all() -> None:
        for leaf in bench.store.forest():
            if leaf.name != f"mine-{leaf.id[:4]}":
                renamed = replace(leaf, name=f"mine-{leaf.id[:4]}")
                bench.store.change(renamed, "renamed", "by the owner", NOW)

    bench.trainer.before = rename_all
    bench.round().run(NOW)
    assert {leaf.name[:5] for leaf in bench.store.forest()} == {"mine-"}
