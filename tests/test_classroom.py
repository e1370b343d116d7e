"""The steps of a training: what each begins with, what it leaves, and what judges what."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_llama
from support_engine import RULES, Bench, Killed, rated, sessions
from support_publishing import Probing

from leaves.bundle import BundleError, decode_label, read_label, unpack
from leaves.lifecycle import conclude
from leaves.model import (
    DAY_S,
    Forest,
    Instant,
    Leaf,
    LeafId,
    PreferenceEvaluation,
    Stage,
    Verdict,
)
from leaves.ports import EvaluateJob, Losses, Report, silent
from leaves.store import Role
from leaves.training.alpha import confidence_at
from leaves.training.chassis import open_chassis
from leaves.training.evaluate import PARENT_MARGIN
from leaves.training.preference import judge_preferences
from leaves.training.temper import TEMPERED as TEMPERED_FILE
from node import preferring, set_aside
from node.app import App
from node.classroom import Lesson
from node.config import Config, TrainingConfig
from node.examining import Gate
from node.judging import margin_of, wants_second
from node.notes import Notes, Step
from node.preferring import NO_PAIRS
from node.routing import entries
from node.starts import Begun
from node.teaching import prepare

NOW = Instant(1_700_100_000)
# What is measured of a first version, by job.
TEMPERED, ON_ITS_OWN = ("adapter", "bare"), ("parent", "style", "candidate")
ON_GENERAL_TEXT = ("parent", "candidate")  # the others' is asked by nobody


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


def teach(bench: Bench, leaf: Leaf, round_id: int = 2) -> Lesson:
    captured = {session.session_id: session for session in bench.captured}
    return bench.classroom().teach(leaf, bench.store.forest(), captured, round_id, NOW)


def recorded(bench: Bench, lesson: Lesson, round_id: int = 2) -> Leaf:
    """Have a lesson's outcome in the store, as a round does."""
    assert lesson.outcome is not None
    forest, room = bench.store.forest(), bench.classroom()
    outcomes = {lesson.leaf: lesson.outcome}
    transitions = conclude(forest, outcomes, NOW, RULES)
    after = bench.store.carry_out(
        forest, transitions, NOW, round_id, lambda forest: room.record(lesson, round_id)
    )
    room.clean(lesson)
    return after.leaves[lesson.leaf]


def begun(bench: Bench, leaf: Leaf, forest: Forest | None = None) -> Begun:
    return bench.classroom().desk.starts.of(leaf, forest or bench.store.forest()).begun


def test_a_lesson_leaves_numbers_and_ids_and_no_text(bench: Bench) -> None:
    lesson = teach(bench, some_leaf(bench))
    files = [path for path in lesson.folder.rglob("*") if path.is_file()]
    assert {"preprocess.json", "sft.json", "evaluate.json", "package.json"} <= {
        path.name for path in files
    }
    everything = b"".join(path.read_bytes() for path in files)
    assert not any(s.prompt.encode() in everything for s in bench.captured)
    assert not any(s.completion.encode() in everything for s in bench.captured)


@pytest.mark.parametrize("step", ["train", "losses", "put", "write"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_lesson_killed_anywhere_and_given_again_comes_to_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    leaf = some_leaf(bench)
    whole = teach(bench, leaf)
    bench.classroom().clean(whole)
    from node import notes

    owner = {"train": bench.trainer, "losses": bench.evaluator, "put": bench.bundles}
    target: object = owner.get(step, notes.Notes)
    original, calls = getattr(target, step), []

    def dying(*args: object, **kwargs: object) -> object:
        calls.append(step)
        if len(calls) == nth:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, step, dying)
        with suppress(Killed):
            teach(bench, leaf)
    assert teach(bench, leaf) == whole


def test_what_was_measured_is_not_measured_again(bench: Bench) -> None:
    leaf = some_leaf(bench)
    teach(bench, leaf)
    asked = list(bench.evaluator.asked)
    teach(bench, leaf)
    assert bench.evaluator.asked == asked == [TEMPERED, ON_ITS_OWN, ON_GENERAL_TEXT]


def spoiling(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """General text suffers from an adapter of full strength."""
    losses = bench.evaluator.losses

    def spoilt(job: EvaluateJob, report: Report = silent) -> Losses:
        found = losses(job, report)
        adapter = dict(job.adapters).get("adapter")
        if adapter is None or adapter.name == TEMPERED_FILE:
            return found
        worse = tuple(loss + 0.1 for loss in found.by_label["adapter"])
        return replace(found, by_label={**found.by_label, "adapter": worse})

    monkeypatch.setattr(bench.evaluator, "losses", spoilt)


def test_a_lesson_killed_after_its_adapter_was_made_weaker_comes_to_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiling(bench, monkeypatch)
    leaf = some_leaf(bench)
    whole = teach(bench, leaf)
    assert json.loads((whole.folder / "sft.json").read_bytes())["what"]["adapter"]["strength"] < 1
    bench.classroom().clean(whole)
    write = Notes.write

    def dying(notes: Notes, step: Step, *rest: Any) -> str:
        if step is Step.SFT:
            raise Killed
        return write(notes, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Notes, "write", dying)
        with pytest.raises(Killed):
            teach(bench, leaf)
    bench.evaluator.asked.clear()
    assert teach(bench, leaf) == whole
    assert TEMPERED not in bench.evaluator.asked, "it is not measured again"


def test_an_adapter_that_is_refused_when_other_text_is_measured_is_a_training_gone_astray(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(job: EvaluateJob, report: Report = silent) -> Losses:
        raise BundleError("a loss under 'adapter' is not finite")

    monkeypatch.setattr(bench.evaluator, "losses", refused)
    lesson = teach(bench, some_leaf(bench))
    assert lesson.outcome is None
    assert lesson.note == "training went astray: a loss under 'adapter' is not finite"


def test_a_first_training_begins_with_the_chassis_and_the_next_with_the_version_in_force(
    bench: Bench,
) -> None:
    leaf = some_leaf(bench)
    assert begun(bench, leaf) is Begun.NOTHING
    trained = recorded(bench, teach(bench, leaf))
    assert trained.attempts == 1
    assert begun(bench, trained) is Begun.OWN


def test_a_version_that_learned_from_what_is_left_out_now_is_not_begun_from(bench: Bench) -> None:
    trained = recorded(bench, teach(bench, some_leaf(bench)))
    used = sorted(bench.store.used(trained.id, Role.CONTROL))
    bench.left_out = frozenset(used[:1])
    assert begun(bench, trained) is Begun.NOTHING


def begun_anew(bench: Bench) -> tuple[Leaf, Leaf]:
    """A version that learned from what is left out now, and the one that replaced it."""
    before = recorded(bench, teach(bench, some_leaf(bench)))
    bench.left_out = frozenset(sorted(bench.store.used(before.id, Role.TRAIN))[:1])
    after = recorded(bench, teach(bench, before, 3), 3)
    assert before.adapter is not None and after.adapter is not None
    assert after.adapter.bundle != before.adapter.bundle
    return before, after


def test_a_version_goes_when_what_it_learned_is_not_on_record_any_more(bench: Bench) -> None:
    before, after = begun_anew(bench)
    assert before.adapter is not None and after.adapter is not None
    gone, kept = before.adapter, after.adapter
    assert bench.bundles.path(gone.bundle) is bench.bundles.path(gone.control) is None
    assert bench.bundles.path(kept.bundle) and bench.bundles.path(kept.control)
    assert not bench.left_out & bench.store.used(after.id, Role.TRAIN)
    assert bench.store.unrecorded(after.id) == {gone.bundle, gone.control}


def test_a_version_that_a_kill_left_lying_goes_with_the_next_round(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bench.bundles, "delete", lambda address: False)  # killed before it
        before, _ = begun_anew(bench)
    assert before.adapter is not None and bench.bundles.path(before.adapter.bundle)
    bench.classroom().drop_unrecorded([before.id])
    assert bench.bundles.path(before.adapter.bundle) is None


def test_a_version_that_was_replaced_by_what_grew_out_of_it_stays(bench: Bench) -> None:
    before = recorded(bench, teach(bench, some_leaf(bench)))
    fresh = {each.session_id: each for each in sessions(60, 100)}
    topic = bench.store.members(before.id)[0].split("-")[0]
    theirs = {id_: before.id for id_ in fresh if id_.startswith(topic)}
    bench.store.assign(bench.store.assignment() | theirs)
    bench.captured += fresh.values()
    after = recorded(bench, teach(bench, before, 3), 3)
    assert before.adapter is not None and after.adapter != before.adapter
    assert bench.store.unrecorded(after.id) == set()
    assert bench.bundles.path(before.adapter.bundle) is not None


def child_of(*origins: Leaf) -> Leaf:
    return replace(
        origins[0], id=LeafId("c" * 32), stage=Stage.SPROUT, adapter=None, trainings=0, wins=0,
        lineage=tuple(leaf.id for leaf in origins), parent=origins[0].id, evaluation=None,
        attempts=0,
    )  # fmt: skip


def test_a_child_of_a_split_begins_with_its_parents_adapter_and_is_judged_by_what_that_never_saw(
    bench: Bench,
) -> None:
    parent = recorded(bench, teach(bench, some_leaf(bench)))
    child = child_of(parent)
    forest = bench.store.forest().with_leaf(child)
    assert begun(bench, child, forest) is Begun.PARENT
    members = bench.store.members(parent.id)
    bench.store.assign({**bench.store.assignment(), **dict.fromkeys(members, child.id)})
    captured = {session.session_id: session for session in bench.captured}
    room = bench.classroom()
    pupil = room.pupil(child, forest, captured, 3, NOW, "3")
    material = prepare(room.desk, pupil)
    seen = bench.store.used(parent.id, Role.TRAIN)
    judged = bench.store.used(parent.id, Role.HELD_OUT)
    assert not seen & set(material.split.held_out)
    assert judged & set(material.split.held_out), "they have not judged the child yet"
    assert not judged & set(material.split.train)


def test_a_trained_parent_is_to_be_beaten_by_more_than_runs_differ_and_the_chassis_by_anything(
    bench: Bench,
) -> None:
    first = teach(bench, some_leaf(bench))
    assert first.outcome is not None and first.outcome.evaluation.parent_margin == 0
    parent = recorded(bench, first)
    below = replace(child_of(parent), parent=parent.id)
    forest = bench.store.forest().with_leaf(below)
    members = bench.store.members(parent.id)
    bench.store.assign({**bench.store.assignment(), **dict.fromkeys(members, below.id)})
    captured = {session.session_id: session for session in bench.captured}
    lesson = bench.classroom().teach(below, forest, captured, 3, NOW)
    assert lesson.outcome is not None
    assert lesson.outcome.evaluation.parent_margin == PARENT_MARGIN


def test_a_merged_leaf_begins_with_what_its_parts_learned(bench: Bench) -> None:
    parts = [leaf for leaf in bench.store.forest() if leaf.level == 2][:2]
    trained = [recorded(bench, teach(bench, leaf, 2 + n), 2 + n) for n, leaf in enumerate(parts)]
    forest = bench.store.forest()
    for leaf in trained:
        forest = forest.with_leaf(replace(leaf, stage=Stage.MERGED))
    merged = child_of(*trained)
    starts = bench.classroom().desk.starts
    start = starts.of(merged, forest)
    assert start.begun is Begun.MERGED and len(start.roots) == 2
    path = bench.home / "merged.safetensors"
    assert starts.file(start, bench.classroom().desk.schedule, path, control=False) == path
    first = path.read_bytes()
    starts.file(start, bench.classroom().desk.schedule, path, control=False)
    assert path.read_bytes() == first


def test_an_adapter_of_another_chassis_is_neither_begun_from_nor_compared_with(
    bench: Bench, tmp_path: Path
) -> None:
    trained = recorded(bench, teach(bench, some_leaf(bench)))
    assert trained.adapter is not None
    bench.chassis = tiny_llama.build(tmp_path / "other", seed=7)
    assert begun(bench, trained) is Begun.NOTHING
    bench.evaluator.asked.clear()
    judged = bench.store.used(trained.id, Role.HELD_OUT)
    lesson = teach(bench, trained, 3)
    asked = [TEMPERED, ON_ITS_OWN, ON_GENERAL_TEXT]
    assert bench.evaluator.asked == asked, "not with the one before"
    assert lesson.outcome is not None
    assert lesson.outcome.adapter.chassis != trained.adapter.chassis
    assert lesson.outcome.evaluation.verdict is Verdict.BETTER
    assert lesson.outcome.evaluation.attempt == 1, "looks on another chassis do not count"
    assert judged & lesson.used[Role.HELD_OUT], "sessions of that exam have not judged this one"
    assert not judged & lesson.used[Role.TRAIN]


def test_a_second_control_is_trained_until_enough_pairs_are_known(bench: Bench) -> None:
    bench.control_pairs = 2
    leaves = [leaf for leaf in bench.store.forest() if leaf.level == 2]
    for number, leaf in enumerate(leaves):
        recorded(bench, teach(bench, leaf, 2 + number), 2 + number)
    seconds = [name for name in bench.trainer.trained if name.endswith("/control-2")]
    assert len(seconds) == 2
    desk = bench.classroom().desk
    assert margin_of(desk, leaves[0].id, None) < 0.08, "controls differ by 0.02 only"


def test_a_difference_of_controls_counts_once_however_often_it_is_measured(bench: Bench) -> None:
    bench.control_pairs = 4
    leaf = some_leaf(bench)
    desk = bench.classroom().desk
    once = margin_of(desk, leaf.id, 0.05)
    assert margin_of(desk, leaf.id, 0.05) == once == margin_of(desk, leaf.id, None)
    assert margin_of(desk, LeafId("d" * 32), 0.3) > once


def test_retraining_asks_for_no_second_control(bench: Bench) -> None:
    bench.control_pairs = 4
    trained = recorded(bench, teach(bench, some_leaf(bench)))
    captured = {session.session_id: session for session in bench.captured}
    room = bench.classroom()
    pupil = room.pupil(trained, bench.store.forest(), captured, 3, NOW, "3")
    assert not wants_second(room.desk, pupil, prepare(room.desk, pupil))


def with_pairs(bench: Bench, stage: Stage) -> Leaf:
    leaf = replace(some_leaf(bench), stage=stage)
    topic = bench.store.members(leaf.id)[0].split("-")[0]
    more = rated(topic, 160)
    bench.captured += more
    bench.store.assign(
        {**bench.store.assignment(), **dict.fromkeys((s.session_id for s in more), leaf.id)}
    )
    return leaf


def test_the_preference_step_comes_with_maturity_and_its_adapter_is_taken_if_it_wins(
    bench: Bench,
) -> None:
    leaf = with_pairs(bench, Stage.MATURE)
    lesson = teach(bench, leaf)
    assert lesson.outcome is not None
    preference = lesson.outcome.evaluation.preference
    assert preference is not None and preference.verdict is Verdict.BETTER
    assert lesson.outcome.method == "sft+dpo"
    blob = bench.bundles.get(lesson.outcome.adapter.bundle)
    assert blob is not None and decode_label(unpack(blob).label).method == "sft+dpo"
    assert not lesson.used[Role.TRAIN] & lesson.used[Role.HELD_OUT]
    assert any(id_.endswith("-c") for id_ in lesson.used[Role.TRAIN]), "bad answers are used too"


def test_a_preference_step_that_is_tried_again_has_to_be_surer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def judged(*losses: Any, confidence: float, **about: Any) -> PreferenceEvaluation:
        asked.append(confidence)
        return judge_preferences(*losses, confidence=confidence, **about)

    monkeypatch.setattr(preferring, "judge_preferences", judged)
    leaf = with_pairs(bench, Stage.MATURE)
    for looks in (0, 4):
        teach(bench, replace(leaf, preference_looks=looks), round_id=looks + 2)
    assert asked == [confidence_at(1), confidence_at(5)]


def test_what_a_preference_step_learned_is_looked_for_in_the_adapter(bench: Bench) -> None:
    probing = Probing()
    bench.gate = Gate(open_chassis(bench.chassis), probing, None, "7")
    leaf = with_pairs(bench, Stage.MATURE)
    bench.captured = [
        replace(s, completion=f"{s.completion} " * 8) if s.tier == "A" else s
        for s in bench.captured
    ]
    lesson = teach(bench, leaf)
    assert lesson.outcome is not None and lesson.outcome.method == "sft+dpo"
    sought = {each.session for job in probing.asked for each in job.examples}
    liked = {s.session_id for s in bench.captured if s.tier == "A"} & lesson.used[Role.TRAIN]
    supervised = json.loads((lesson.folder / "preprocess.json").read_bytes())["what"]["train"]
    assert len((liked - set(supervised)) & sought) > 20
    path = bench.bundles.path(lesson.outcome.adapter.bundle)
    assert path is not None
    assert read_label(path).privacy.sessions == len(lesson.used[Role.TRAIN]), "both sides learned"


def test_a_seed_with_pairs_is_not_preferred_yet(bench: Bench) -> None:
    lesson = teach(bench, with_pairs(bench, Stage.SEED))
    assert lesson.outcome is not None and lesson.outcome.method == "sft"
    assert "comes with maturity" in lesson.note


def test_without_pairs_a_mature_leaf_keeps_the_supervised_adapter(bench: Bench) -> None:
    lesson = teach(bench, replace(some_leaf(bench), stage=Stage.MATURE))
    assert lesson.outcome is not None and lesson.outcome.method == "sft"
    assert lesson.note == NO_PAIRS


def test_on_another_chassis_each_leaf_is_set_aside_and_trained_anew_in_the_next_round(
    bench: Bench, tmp_path: Path
) -> None:
    bench.round().run(NOW)
    before = {leaf.id: leaf for leaf in bench.store.forest() if leaf.adapter}
    assert before
    bench.chassis = tiny_llama.build(tmp_path / "other", seed=7)
    tag = open_chassis(bench.chassis).tag8.hex()
    table = {entry.leaf: entry for entry in entries(bench.store.forest(), (), tag)}
    assert not any(table[id_].servable for id_ in before), "their parent answers"
    bench.round().run(Instant(NOW + DAY_S))
    for id_, leaf in before.items():
        now = bench.store.forest().leaves[id_]
        assert leaf.adapter and now.adapter and now.adapter.chassis == tag != leaf.adapter.chassis
        assert now.evaluation is not None and now.evaluation.over_previous is None
    assert any("on another chassis" in told.text for told in bench.told)
    table = {entry.leaf: entry for entry in entries(bench.store.forest(), (), tag)}
    assert all(table[id_].servable for id_ in before)


class Home:
    """As much of an app as tells which chassis is in use."""

    def __init__(self, home: Path, chassis: Path) -> None:
        self.home, self.chassis = home, open_chassis(chassis)
        self.config = Config(training=TrainingConfig(chassis=str(chassis)))


def test_which_chassis_is_in_use_is_known_once_a_round_has_seen_it_and_then_at_once(
    bench: Bench, tmp_path: Path
) -> None:
    trained = recorded(bench, teach(bench, some_leaf(bench)))
    home: Any = Home(tmp_path, bench.chassis)
    assert set_aside.tag(home) is None and not set_aside.of_another(trained, None)
    assert set_aside.remember(home) == set_aside.tag(home)
    assert not set_aside.of_another(trained, set_aside.tag(home))
    other: Any = Home(tmp_path, tiny_llama.build(tmp_path / "other", seed=7))
    assert set_aside.changed(other) and not set_aside.changed(home)
    assert set_aside.of_another(trained, set_aside.tag(other)), "before a round has seen it"
    assert set_aside.of_another(trained, set_aside.remember(other))
    assert not set_aside.changed(other)


def test_on_a_chassis_that_cannot_be_opened_no_adapter_sits(bench: Bench, tmp_path: Path) -> None:
    trained = recorded(bench, teach(bench, some_leaf(bench)))
    home: Any = Home(tmp_path, bench.chassis)
    set_aside.remember(home)
    gone = App(tmp_path)
    any_app: Any = gone
    any_app.config = Config(training=TrainingConfig(chassis=str(tmp_path / "gone")))
    assert set_aside.of_another(trained, set_aside.tag(gone))
