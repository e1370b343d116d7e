"""Splits, merges and what stays with a leaf; the owner's word; a change of chassis; stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_lifecycle_legal import adapter, leaf

from leaves.descent import Change, Descent, Share
from leaves.lifecycle import (
    Answer,
    Archived,
    Born,
    Drifted,
    Merged,
    Outcome,
    Promoted,
    Proposed,
    Purpose,
    Revived,
    Rules,
    Split,
    Trained,
    Transition,
    apply_all,
    assignment,
    conclude,
    decide,
    due,
    key_of,
    size_of,
    would_mature,
)
from leaves.model import (
    DAY_S,
    Evaluation,
    Forest,
    Instant,
    Interval,
    Kind,
    Leaf,
    LeafId,
    Stage,
    Vector,
    Verdict,
    unit,
)
from leaves.observe import Observations, Seen

RULES = Rules()
ASK = Rules(approve="ask")
NOW = Instant(1_800_000_000)
TODAY = NOW // DAY_S
ONE, OTHER = (LeafId(digit * 32) for digit in "12")
X, Y, Z = np.eye(3, dtype=np.float32)
GAIN = Interval(0.2, 0.15, 0.25)


def towards(one: Vector, other: Vector, cosine: float) -> Vector:
    turned: Vector = unit((cosine * one + np.sqrt(1 - cosine**2) * other)[None])[0]
    return turned


def forest(*leaves: Leaf) -> Forest:
    return Forest({x.id: x for x in leaves}, 2, b"\1" * 32)


def cluster(
    name: str,
    sessions: int,
    centre: Vector = X,
    *,
    known: LeafId | None = None,
    level: int = 2,
    parent: LeafId | int | None = None,
    week: int = 0,
) -> Seen:
    members = tuple(f"{name}{i:04d}" for i in range(sessions))
    days = (TODAY,) * sessions
    growth = sessions / 30
    return Seen(
        known, parent, level, members, centre, Kind.SKILL, growth, name, NOW, days, None, week
    )


def look(*clusters: Seen, **more: object) -> Observations:
    total = sum(c.sessions for c in clusters if c.level == 2)
    return Observations(clusters, True, total, 0, **more)  # type: ignore[arg-type]


def old(id_: LeafId, stage: Stage, **changes: object) -> Leaf:
    """A leaf that has been what it is for a good while."""
    ago = Instant(NOW - 60 * DAY_S)
    given: dict[str, object] = {"stage_since": ago, "created": ago, "newest": NOW}
    return leaf(id_, stage, **{**given, **changes})


def in_parts(sizes: tuple[int, int] = (150, 120), cosine: float = 0.3) -> Observations:
    """A domain of two parts, each with sessions of its own names."""
    a = cluster("a", sizes[0], X, level=3, parent=ONE)
    b = cluster("b", sizes[1], towards(X, Y, cosine), level=3, parent=ONE)
    whole = replace(cluster("w", 0, X, known=ONE), members=a.members + b.members)
    return look(whole, a, b)


def lived(standing: Forest, seen: Observations, rules: Rules = RULES, days: int = 1) -> Forest:
    """The forest after the same look on several days."""
    for _ in range(days):
        standing = apply_all(standing, decide(standing, seen, NOW, rules), NOW)
    return standing


def of(kind: type[Transition], changes: list[Transition]) -> list[Transition]:
    return [change for change in changes if isinstance(change, kind)]


def test_a_mature_leaf_splits_once_its_parts_have_shown_in_three_looks_running() -> None:
    standing, seen = forest(old(ONE, Stage.MATURE)), in_parts()
    assert not of(Split, decide(lived(standing, seen, days=1), seen, NOW, RULES))
    standing = lived(standing, seen, days=2)
    (split,) = of(Split, decide(standing, seen, NOW, RULES))
    assert isinstance(split, Split)
    assert [(c.stage, c.level, c.parent, c.lineage) for c in split.children] == [
        (Stage.SPROUT, 3, ONE, (ONE,))
    ] * 2
    assert "2 parts of 150, 120 sessions, 3 full looks running" in split.reason
    after = lived(standing, seen)
    assert after.leaves[ONE].stage is Stage.MATURE
    assert [d.purpose for d in due(after, NOW, RULES) if d.id != ONE] == [Purpose.FIRST] * 2


def test_a_look_without_parts_begins_the_count_anew() -> None:
    standing = lived(forest(old(ONE, Stage.MATURE)), in_parts(), days=2)
    standing = lived(standing, look(cluster("w", 270, known=ONE)))
    assert standing.leaves[ONE].parts == 0


@pytest.mark.parametrize(
    ("stage", "sizes", "cosine"),
    [
        (Stage.SPROUT, (150, 120), 0.3),  # not mature
        (Stage.MATURE, (150, 99), 0.3),  # the second is too small
        (Stage.MATURE, (150, 120), 0.91),  # so near that they might merge again
    ],
)
def test_what_lacks_a_condition_does_not_split(
    stage: Stage, sizes: tuple[int, int], cosine: float
) -> None:
    standing = lived(forest(old(ONE, stage)), in_parts(sizes, cosine), days=5)
    assert standing.births == 2


def test_children_have_their_sessions_and_are_not_born_again() -> None:
    standing, seen = lived(forest(old(ONE, Stage.MATURE)), in_parts(), days=2), in_parts()
    changes = decide(standing, seen, NOW, RULES)
    after = apply_all(standing, changes, NOW)
    (split,) = of(Split, changes)
    assert isinstance(split, Split)
    first, second = (child.id for child in split.children)
    members = assignment(seen, changes, after)
    assert members["a0000"] == first and members["b0000"] == second
    whole, a, b = seen.seen
    known = look(whole, replace(a, leaf=first), replace(b, leaf=second))
    assert lived(after, known, days=5).births == after.births


def test_a_third_part_that_comes_later_is_born_alone() -> None:
    child = old(OTHER, Stage.SPROUT, level=3, parent=ONE, lineage=(ONE,))
    standing = forest(old(ONE, Stage.MATURE), child)
    seen = look(
        cluster("w", 400, known=ONE),
        cluster("a", 150, X, known=OTHER, level=3, parent=ONE),
        cluster("b", 120, Y, level=3, parent=ONE),
    )
    (split,) = of(Split, decide(lived(standing, seen, days=2), seen, NOW, RULES))
    assert isinstance(split, Split)
    assert (len(split.children), split.parts) == (1, 2)


def close_pair(one: int = 300, other: int = 250, **more: object) -> tuple[Forest, Observations]:
    near = towards(X, Y, 0.95)
    standing = forest(
        old(ONE, Stage.SEED, sessions=one, centroid=X),
        old(OTHER, Stage.SEED, sessions=other, centroid=near, **more),
    )
    seen = look(
        cluster("a", one, X, known=ONE),
        cluster("b", other, near, known=OTHER),
        close=((ONE, OTHER, 0.95),),
    )
    return standing, seen


def test_two_near_and_small_leaves_become_one_of_both() -> None:
    standing, seen = close_pair()
    changes = decide(standing, seen, NOW, RULES)
    (merged,) = of(Merged, changes)
    assert isinstance(merged, Merged)
    after = apply_all(standing, changes, NOW)
    assert {after.leaves[x].stage for x in (ONE, OTHER)} == {Stage.MERGED}
    union = after.leaves[merged.leaf.id]
    assert (union.sessions, union.lineage, union.stage) == (550, (ONE, OTHER), Stage.SPROUT)
    assert "0.950 alike" in merged.reason and "550 sessions together" in merged.reason
    members = assignment(seen, changes, after)
    assert set(members.values()) == {union.id} and len(members) == 550


def test_of_too_few_sessions_a_seed_is_made() -> None:
    standing, seen = close_pair(230, 220)
    (merged,) = of(Merged, decide(standing, seen, NOW, RULES))
    assert isinstance(merged, Merged)
    assert merged.leaf.stage is Stage.SEED


def test_near_leaves_with_800_sessions_stay_two() -> None:
    standing, seen = close_pair(500, 300)
    assert not of(Merged, decide(standing, seen, NOW, RULES))
    standing, seen = close_pair(500, 299)
    assert of(Merged, decide(standing, seen, NOW, RULES))


def test_two_that_merged_and_are_found_as_two_stay_one_for_ever() -> None:
    standing, seen = close_pair()
    standing = lived(standing, seen)
    (union,) = standing.live()
    a, b = seen.seen
    # The larger part is known by its sessions; the other is new to the observer, and comes from it.
    whence = Descent(None, 1, (Change.NEW,), came=(Share(union.id, 250),))
    again = look(replace(a, leaf=union.id), replace(b, leaf=None), descents=(whence,))
    for _ in range(10):
        changes = decide(standing, again, NOW, RULES)
        standing = apply_all(standing, changes, NOW)
        assert set(assignment(again, changes, standing).values()) == {union.id}
    assert standing.births == 3
    assert standing.leaves[union.id].sessions == 550


def cut() -> Observations:
    """A domain of 500 whose cluster is cut in two: one half is new to the observer."""
    whence = Descent(None, 1, (Change.NEW,), came=(Share(ONE, 240),))
    return look(
        cluster("a", 260, X, known=ONE), cluster("b", 240, towards(X, Y, 0.7)), descents=(whence,)
    )


def test_a_cut_of_one_day_bears_nothing_and_takes_nothing() -> None:
    standing = forest(old(ONE, Stage.SEED, sessions=500))
    seen = cut()
    changes = decide(standing, seen, NOW, RULES)
    assert [type(change) for change in changes] == [Drifted]
    after = apply_all(standing, changes, NOW)
    assert after.leaves[ONE].sessions == 500
    assert set(assignment(seen, changes, after).values()) == {ONE}


def test_a_cut_that_lasts_three_looks_is_a_birth() -> None:
    standing = forest(old(ONE, Stage.SEED, sessions=500))
    standing = lived(standing, cut(), days=2)
    changes = decide(standing, cut(), NOW, RULES)
    assert len(of(Born, changes)) == 1
    assert apply_all(standing, changes, NOW).leaves[ONE].sessions == 260


def test_sessions_that_stay_with_a_leaf_not_found_are_not_counted_twice() -> None:
    standing = forest(old(ONE, Stage.SEED, sessions=300), old(OTHER, Stage.SEED, sessions=250))
    kept = {f"b{i:04d}": OTHER for i in range(250)}
    one = cluster("a", 300, known=ONE)
    seen = look(
        replace(one, members=one.members + tuple(kept)),
        descents=(
            Descent(ONE, 0, (Change.MERGED,), levels=(2, 2), came=(Share(OTHER, 250),)),
            Descent(OTHER, None, (Change.VANISHED,), held=250),
        ),
        kept=kept,
    )
    after = lived(standing, seen)
    assert after.leaves[ONE].sessions == 300


def test_sessions_of_an_archived_leaf_go_to_the_pool_above_it() -> None:
    quiet = Instant(NOW - 40 * DAY_S)
    standing = forest(
        old(ONE, Stage.SEED, level=1, sessions=2000),
        old(OTHER, Stage.MATURE, parent=ONE, trainings=2, newest=quiet),
    )
    seen = Observations((), False, 1, 0, kept={"s": OTHER})
    changes = decide(standing, seen, NOW, RULES)
    assert [type(change) for change in changes] == [Archived]
    assert assignment(seen, changes, apply_all(standing, changes, NOW)) == {"s": ONE}


def test_asked_for_a_change_waits_for_the_owner() -> None:
    standing, seen = close_pair()
    (proposed,) = of(Proposed, decide(standing, seen, NOW, ASK))
    assert isinstance(proposed, Proposed)
    assert key_of(proposed.change) == ("merge", (ONE, OTHER))
    sessions, parts = size_of(proposed.change)
    yes = {key_of(proposed.change): Answer(True, sessions, parts)}
    assert of(Merged, decide(standing, seen, NOW, ASK, yes))
    no = {key_of(proposed.change): Answer(False, sessions, parts)}
    assert not of(Merged, decide(standing, seen, NOW, ASK, no))
    assert not of(Proposed, decide(standing, seen, NOW, ASK, no))


def test_a_refused_split_is_proposed_again_once_it_is_half_as_large_again() -> None:
    standing, seen = lived(forest(old(ONE, Stage.MATURE)), in_parts(), ASK, days=2), in_parts()
    (proposed,) = of(Proposed, decide(standing, seen, NOW, ASK))
    assert isinstance(proposed, Proposed)
    no = {key_of(proposed.change): Answer(False, *size_of(proposed.change))}
    assert not of(Proposed, decide(standing, in_parts((200, 204)), NOW, ASK, no))
    assert of(Proposed, decide(standing, in_parts((200, 205)), NOW, ASK, no))


def judged(verdict: Verdict, won: bool = True, chassis: str = "e", method: str = "sft") -> Outcome:
    worse = Interval(-0.1, -0.15, -0.05) if verdict is Verdict.REGRESSED else None
    evaluation = Evaluation(60, 2.0, GAIN, GAIN, worse, None, won, verdict, NOW)
    return Outcome(evaluation, adapter(chassis), "", method)


def test_an_adapter_of_another_chassis_is_made_anew_and_proves_itself_again() -> None:
    mature = old(
        ONE, Stage.MATURE, sessions=600, trainings=4, wins=3, attempts=5, adapter=adapter("e"),
        sessions_at_training=600, trained_at=Instant(NOW - DAY_S), regressions=2,
    )  # fmt: skip
    standing = forest(mature)
    assert due(standing, NOW, RULES, adapter("e").chassis) == []
    (wanted,) = due(standing, NOW, RULES, adapter("f").chassis)
    assert wanted.purpose is Purpose.CHASSIS
    changes = conclude(standing, {ONE: judged(Verdict.BETTER, chassis="f")}, NOW, RULES)
    after = apply_all(standing, changes, NOW).leaves[ONE]
    assert (after.stage, after.wins, after.attempts, after.regressions) == (Stage.SPROUT, 1, 1, 0)
    assert after.adapter == adapter("f")


def test_a_leaf_of_another_chassis_waits_for_sessions_enough() -> None:
    small = old(ONE, Stage.SPROUT, sessions=499, trainings=1, adapter=adapter("e"))
    assert due(forest(small), NOW, RULES, adapter("f").chassis) == []


def test_looks_are_counted_while_a_leaf_is_a_sprout_and_had_a_verdict() -> None:
    standing = forest(old(ONE, Stage.SEED, sessions=500))
    counted = []
    for verdict in (Verdict.NOT_BETTER, Verdict.TOO_FEW, Verdict.REGRESSED):
        changes = conclude(standing, {ONE: judged(verdict, won=False)}, NOW, RULES)
        standing = apply_all(standing, changes, NOW)
        counted.append(standing.leaves[ONE].attempts)
    assert counted == [1, 1, 2]
    mature = forest(old(ONE, Stage.MATURE, attempts=2, trainings=3, adapter=adapter("e")))
    changes = conclude(mature, {ONE: judged(Verdict.IMPROVED)}, NOW, RULES)
    assert apply_all(mature, changes, NOW).leaves[ONE].attempts == 2


def test_the_method_is_that_of_the_adapter_in_force() -> None:
    standing = forest(old(ONE, Stage.MATURE, trainings=3, adapter=adapter("e"), method="sft+dpo"))
    for verdict, method in ((Verdict.HOLDS, "sft+dpo"), (Verdict.IMPROVED, "sft")):
        (trained,) = conclude(standing, {ONE: judged(verdict)}, NOW, RULES)
        assert isinstance(trained, Trained)
        assert trained.method == method


def sprout(**changes: object) -> Leaf:
    given: dict[str, object] = {
        "sessions": 600,
        "trainings": 1,
        "wins": 1,
        "adapter": adapter("e"),
        "trained_at": Instant(NOW - 8 * DAY_S),
    }
    return old(ONE, Stage.SPROUT, **{**given, **changes})


def test_whether_an_evaluation_matures_a_leaf_is_known_before_it_is_recorded() -> None:
    for outcome in (judged(Verdict.IMPROVED), judged(Verdict.HOLDS, won=False)):
        changes = conclude(forest(sprout()), {ONE: outcome}, NOW, RULES)
        assert would_mature(sprout(), outcome.evaluation, RULES) is bool(of(Promoted, changes))


@pytest.mark.parametrize(
    ("changes", "promoted"),
    [
        ({"stage_since": Instant(NOW - 7 * DAY_S)}, True),
        ({"stage_since": Instant(NOW - 7 * DAY_S + 1)}, False),  # it might go back and forth
        ({"stage_since": NOW, "week": 539}, False),
        ({"stage_since": NOW, "week": 540}, True),  # 60 a week ago: tenfold
        ({"stage_since": NOW, "created": NOW}, True),  # none a week ago
        ({"stage_since": NOW, "created": Instant(NOW + DAY_S)}, False),  # the clock went back
    ],
)
def test_a_sprout_matures_after_a_week_or_tenfold_traffic(
    changes: dict[str, object], promoted: bool
) -> None:
    standing = forest(sprout(**changes))
    out = conclude(standing, {ONE: judged(Verdict.IMPROVED)}, NOW, RULES)
    assert bool(of(Promoted, out)) is promoted


def test_regressions_that_came_too_soon_archive_a_leaf_once_its_stay_is_over() -> None:
    soon = old(ONE, Stage.MATURE, stage_since=Instant(NOW - 6 * DAY_S), trainings=5, regressions=2)
    standing = forest(replace(soon, adapter=adapter("e")))
    changes = conclude(standing, {ONE: judged(Verdict.REGRESSED)}, NOW, RULES)
    assert not of(Archived, changes)
    standing = apply_all(standing, changes, NOW)
    seen = look(cluster("a", 600, known=ONE))
    tomorrow = Instant(NOW + DAY_S)
    assert of(Archived, decide(standing, seen, tomorrow, RULES))


@pytest.mark.parametrize(("week", "revived"), [(199, False), (200, True)])
def test_what_was_just_archived_comes_back_for_tenfold_traffic_alone(
    week: int, revived: bool
) -> None:
    archived = Instant(NOW - 2 * DAY_S)
    standing = forest(old(ONE, Stage.ARCHIVED, stage_since=archived, trainings=2, week=20))
    seen = look(cluster("a", 300, known=ONE, week=week))
    assert bool(of(Revived, decide(standing, seen, NOW, RULES))) is revived


def test_new_sessions_are_counted_even_while_others_leave() -> None:
    shrunk = sprout(sessions=550, sessions_at_training=600)
    assert due(forest(shrunk), NOW, RULES) == []
    (wanted,) = due(forest(shrunk), NOW, RULES, fresh={ONE: 120})
    assert wanted.reason == "120 sessions since its last training"
    assert due(forest(shrunk), NOW, RULES, fresh={}) == []
