"""Every row of the lifecycle table, at its boundary."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaves.lifecycle import (
    Archived,
    Born,
    Dissolved,
    Drifted,
    Missed,
    Outcome,
    Promoted,
    Purpose,
    Revived,
    Rules,
    Trained,
    Transition,
    apply,
    conclude,
    decide,
    due,
)
from leaves.model import (
    DAY_S,
    Adapter,
    Evaluation,
    Forest,
    GrownFrom,
    Instant,
    Interval,
    Kind,
    Leaf,
    LeafId,
    PreferenceEvaluation,
    Stage,
    Verdict,
)
from leaves.observe import Observations, Seen

RULES = Rules()
NOW = Instant(1_800_000_000)
ID = LeafId("0" * 32)
CENTROID = np.array([1.0, 0.0], np.float32)


def leaf(**changes: object) -> Leaf:
    base = Leaf(
        id=ID,
        name="graphs",
        stage=Stage.SEED,
        stage_since=NOW,
        level=2,
        kind=Kind.SKILL,
        grown_from=GrownFrom.DATA,
        parent=None,
        lineage=(),
        created=NOW,
        sessions=200,
        growth_per_day=5.0,
        centroid=CENTROID,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def forest(*leaves: Leaf) -> Forest:
    return Forest({x.id: x for x in leaves}, len(leaves), b"\1" * 32)


def cluster(sessions: int, known: LeafId | None = None, level: int = 2, day: int = 0) -> Seen:
    return Seen(
        leaf=known,
        parent=None,
        level=level,
        members=tuple(f"s{i:05d}" for i in range(sessions)),
        centroid=CENTROID,
        kind=Kind.SKILL,
        growth_per_day=5.0,
        name="graphs",
        newest=NOW,
        days=(day,) * sessions,
        week=sessions if day else 0,
    )


def seen(*clusters: Seen, full: bool = True) -> Observations:
    return Observations(clusters, full, sum(c.sessions for c in clusters), 0)


def adapter(name: str) -> Adapter:
    return Adapter(name * 64, "d" * 64, "c" * 64, "e" * 16, 8)


def judged(verdict: Verdict, won: bool) -> Outcome:
    gain = Interval(0.2, 0.15, 0.25)
    worse = Interval(-0.1, -0.15, -0.05) if verdict is Verdict.REGRESSED else None
    evaluation = Evaluation(60, 2.0, gain, gain, worse, None, won, verdict, NOW)
    return Outcome(evaluation, adapter("b"), "no A/C pairs")


def step(before: Forest, transitions: list[Transition]) -> Forest:
    for transition in transitions:
        before = apply(before, transition, NOW)
    return before


def test_a_cluster_of_200_without_a_leaf_is_born_a_seed_and_one_of_199_is_not() -> None:
    [born] = decide(forest(), seen(cluster(200)), NOW, RULES)
    assert isinstance(born, Born)
    assert born.leaf.stage is Stage.SEED
    assert decide(forest(), seen(cluster(199)), NOW, RULES) == []


def test_an_unknown_specialisation_is_no_birth() -> None:
    assert decide(forest(), seen(cluster(300, level=3)), NOW, RULES) == []


def test_ids_depend_on_the_origin_and_the_count_of_births_alone() -> None:
    first = decide(forest(), seen(cluster(200), cluster(210)), NOW, RULES)
    again = decide(forest(), seen(cluster(300), cluster(400)), NOW, RULES)
    ids = [t.leaf.id for t in first if isinstance(t, Born)]
    assert ids == [t.leaf.id for t in again if isinstance(t, Born)]
    assert len(set(ids)) == 2


def test_a_seed_not_found_in_three_full_reclusters_is_dissolved() -> None:
    standing = forest(leaf())
    for _ in range(2):
        [missed] = decide(standing, seen(), NOW, RULES)
        assert isinstance(missed, Missed)
        standing = step(standing, [missed])
    [gone] = decide(standing, seen(), NOW, RULES)
    assert isinstance(gone, Dissolved)
    assert step(standing, [gone]).leaves[ID].stage is Stage.DISSOLVED


def test_an_incremental_look_misses_nobody() -> None:
    assert decide(forest(leaf()), seen(full=False), NOW, RULES) == []


def test_a_seed_found_again_starts_its_misses_anew() -> None:
    standing = forest(leaf(missed=2))
    changes = decide(standing, seen(cluster(210, ID)), NOW, RULES)
    assert isinstance(changes[0], Drifted)
    assert step(standing, changes).leaves[ID].missed == 0


@pytest.mark.parametrize(
    ("kind", "sessions", "trained"),
    [
        (Kind.SKILL, 499, False),
        (Kind.SKILL, 500, True),
        (Kind.REASONING, 299, False),
        (Kind.REASONING, 300, True),
    ],
)
def test_a_seed_is_trained_at_its_kinds_threshold(kind: Kind, sessions: int, trained: bool) -> None:
    wanted = due(forest(leaf(kind=kind, sessions=sessions)), NOW, RULES)
    assert [d.purpose for d in wanted] == ([Purpose.FIRST] if trained else [])


def test_a_branch_is_never_trained() -> None:
    assert due(forest(leaf(level=1, sessions=5000)), NOW, RULES) == []


def test_a_first_training_makes_a_sprout_even_if_it_did_not_win() -> None:
    standing = forest(leaf(sessions=500))
    changes = conclude(standing, {ID: judged(Verdict.NOT_BETTER, False)}, NOW, RULES)
    after = step(standing, changes).leaves[ID]
    assert [type(c) for c in changes] == [Trained]
    assert (after.stage, after.wins, after.trainings) == (Stage.SPROUT, 0, 1)


def sprout(**changes: object) -> Leaf:
    given_: dict[str, object] = {
        "stage": Stage.SPROUT,
        "stage_since": NOW,
        "trained_at": NOW,
        "trainings": 1,
        "wins": 1,
        "sessions": 600,
        "sessions_at_training": 500,
        "adapter": adapter("a"),
    }
    return leaf(**{**given_, **changes})


def test_a_sprout_is_retrained_after_100_new_sessions() -> None:
    assert [d.purpose for d in due(forest(sprout()), NOW, RULES)] == [Purpose.RETRAIN]
    assert due(forest(sprout(sessions=599)), NOW, RULES) == []


@pytest.mark.parametrize("verdict", [Verdict.IMPROVED, Verdict.HOLDS])
def test_a_sprout_that_won_twice_matures(verdict: Verdict) -> None:
    standing = forest(sprout())
    changes = conclude(standing, {ID: judged(verdict, True)}, NOW, RULES)
    assert [type(c) for c in changes] == [Trained, Promoted]
    after = step(standing, changes).leaves[ID]
    assert (after.stage, after.matured_at) == (Stage.MATURE, NOW)


def test_the_old_adapter_stays_when_the_new_one_only_holds() -> None:
    standing = forest(sprout())
    held = step(standing, conclude(standing, {ID: judged(Verdict.HOLDS, True)}, NOW, RULES))
    better = step(standing, conclude(standing, {ID: judged(Verdict.IMPROVED, True)}, NOW, RULES))
    assert held.leaves[ID].adapter == adapter("a")
    assert better.leaves[ID].adapter == adapter("b")


@pytest.mark.parametrize(
    ("changes", "verdict", "won"),
    [
        ({"wins": 0}, Verdict.IMPROVED, True),  # one round won, two wanted
        ({}, Verdict.IMPROVED, False),  # the last round was not won
        ({"sessions": 499}, Verdict.IMPROVED, True),
        ({}, Verdict.REGRESSED, True),
        ({"trainings": 0, "wins": 5}, Verdict.HOLDS, True),  # never retrained
    ],
)
def test_a_sprout_that_lacks_one_condition_does_not_mature(
    changes: dict[str, object], verdict: Verdict, won: bool
) -> None:
    standing = forest(sprout(**changes))
    after = step(standing, conclude(standing, {ID: judged(verdict, won)}, NOW, RULES))
    assert after.leaves[ID].stage is Stage.SPROUT


def mature(**changes: object) -> Leaf:
    return sprout(**{"stage": Stage.MATURE, "matured_at": NOW, "trainings": 2, **changes})


def test_a_mature_leaf_is_retrained_every_500_sessions_or_monthly() -> None:
    assert due(forest(mature(sessions=999)), NOW, RULES) == []
    assert due(forest(mature(sessions=1000)), NOW, RULES)[0].purpose is Purpose.RETRAIN
    later = Instant(NOW + 30 * DAY_S)
    assert due(forest(mature(sessions=501)), later, RULES)[0].purpose is Purpose.RETRAIN
    assert due(forest(mature(sessions=500)), later, RULES) == []


def test_a_trained_leaf_unrouted_for_30_days_is_archived_and_one_day_earlier_is_not() -> None:
    standing = forest(mature())
    found = seen()
    early = decide(standing, found, Instant(NOW + 30 * DAY_S - 1), RULES)
    late = decide(standing, found, Instant(NOW + 30 * DAY_S), RULES)
    assert not any(isinstance(t, Archived) for t in early)
    assert [t.reason for t in late if isinstance(t, Archived)] == ["not routed to for 30 days"]


def test_a_leaf_whose_domain_still_has_sessions_is_not_dormant() -> None:
    later = Instant(NOW + 40 * DAY_S)
    fresh = replace(cluster(600, ID), newest=later)
    assert not any(
        isinstance(t, Archived) for t in decide(forest(mature()), seen(fresh), later, RULES)
    )


def test_a_leaf_with_few_new_sessions_is_archived_unless_others_use_it() -> None:
    later = Instant(NOW + 30 * DAY_S)
    quiet = mature(growth_per_day=0.3, last_routed=later)
    [archived] = decide(forest(quiet), seen(full=False), later, RULES)
    assert isinstance(archived, Archived)
    used = replace(quiet, used_by=2)
    assert decide(forest(used), seen(full=False), later, RULES) == []


def test_three_regressions_running_archive_a_leaf_that_is_old_enough() -> None:
    old = Instant(NOW - 31 * DAY_S)
    standing = forest(mature(regressions=2, created=old, stage_since=old))
    changes = conclude(standing, {ID: judged(Verdict.REGRESSED, True)}, NOW, RULES)
    assert [type(c) for c in changes] == [Trained, Archived]
    young = forest(mature(regressions=2, stage_since=old))
    assert len(conclude(young, {ID: judged(Verdict.REGRESSED, True)}, NOW, RULES)) == 1


@pytest.mark.parametrize(
    ("high", "counted"), [(0.01, 2), (-0.02, 2), (-0.021, 3)], ids=["maybe", "edge", "sure"]
)
def test_a_regression_that_may_be_chance_brings_no_leaf_nearer_to_the_archive(
    high: float, counted: int
) -> None:
    standing = forest(mature(regressions=2))
    outcome = judged(Verdict.REGRESSED, True)
    evaluation = replace(outcome.evaluation, over_previous=Interval(-0.03, -0.07, high))
    after = step(
        standing, conclude(standing, {ID: replace(outcome, evaluation=evaluation)}, NOW, RULES)
    )
    assert after.leaves[ID].regressions == counted
    after = step(after, conclude(after, {ID: judged(Verdict.HOLDS, True)}, NOW, RULES))
    assert after.leaves[ID].regressions == 0


def test_looks_at_preference_steps_are_counted_unless_there_was_too_little_to_judge_by() -> None:
    standing = forest(mature(adapter=adapter("a")))
    for verdict in (Verdict.BETTER, Verdict.TOO_FEW, Verdict.NOT_BETTER):
        seen = PreferenceEvaluation(40, 0.5, 0.6, Interval(0.1, 0.01, 0.2), 0.0, verdict)
        outcome = judged(Verdict.HOLDS, True)
        outcome = replace(outcome, evaluation=replace(outcome.evaluation, preference=seen))
        standing = step(standing, conclude(standing, {ID: outcome}, NOW, RULES))
    standing = step(standing, conclude(standing, {ID: judged(Verdict.HOLDS, True)}, NOW, RULES))
    assert standing.leaves[ID].preference_looks == 2
    elsewhere = replace(adapter("b"), chassis="f" * 16)
    moved = replace(judged(Verdict.BETTER, True), adapter=elsewhere)
    after = step(standing, conclude(standing, {ID: moved}, NOW, RULES))
    assert after.leaves[ID].preference_looks == 0, "those were of other weights"


def test_an_archived_leaf_is_revived_by_200_sessions_newer_than_its_archiving() -> None:
    standing = forest(mature(stage=Stage.ARCHIVED))
    today = NOW // DAY_S
    assert decide(standing, seen(cluster(200, ID, day=today)), NOW, RULES) == []
    changes = decide(standing, seen(cluster(200, ID, day=today + 1)), NOW, RULES)
    assert [type(c) for c in changes] == [Revived]
    after = apply(standing, changes[0], Instant(NOW + 1))
    assert after.leaves[ID].stage is Stage.SPROUT
    assert due(after, Instant(NOW + 1), RULES)[0].purpose is Purpose.REVIVAL


def test_rules_refuse_what_makes_no_sense() -> None:
    for rules in (
        {"seed_sessions": -1},
        {"skill_sessions": 0},
        {"merge_cosine": 7.0},
        {"merge_cosine": float("nan")},
        {"surge": float("inf")},
        {"drift_share": 1.5},
    ):
        with pytest.raises(ValueError, match=r"must be .* to .*, not"):
            Rules(**rules)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not exceed"):
        Rules(child_sessions=300)


@given(
    st.lists(st.tuples(st.integers(1, 900), st.booleans()), max_size=6),
    st.integers(0, 400),
)
def test_whatever_is_seen_every_leaf_keeps_one_stage_and_its_id(
    clusters: list[tuple[int, bool]], days: int
) -> None:
    known = mature()
    claimed = False
    found = []
    for size, claims in clusters:
        found.append(cluster(size, ID if claims and not claimed else None))
        claimed = claimed or claims
    standing = forest(known)
    now = Instant(NOW + days * DAY_S)
    after = standing
    for transition in decide(standing, seen(*found), now, RULES):
        after = apply(after, transition, now)
    assert set(standing.leaves) <= set(after.leaves)
    assert after.births == len(after.leaves)
    assert all(key == value.id for key, value in after.leaves.items())
