"""The gate over many nights: what luck may do, what a real gain must be able to."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import gate as bench

from leaves.bundle import EvaluationFigures, GainFigures
from leaves.model import Instant, Verdict
from leaves.ports import Schedule
from leaves.training.alpha import BUDGET, confidence_at
from leaves.training.bounds import bootstrap, by_group, lower_bound, lower_bounds, percentiles
from leaves.training.evaluate import judge
from leaves.training.margin import (
    MARGIN_MIN,
    PAIRS_MAX,
    RECIPES_MAX,
    STYLE_MARGIN,
    Calibration,
    margin_from,
    mean_difference,
    recipe,
)
from node.show import evaluation_line

MEASURED = (0.050, 0.016, 0.011)  # pairs of style controls of other seeds
NULL, GAIN = (
    next(each for each in bench.SCENARIOS if each.name == name)
    for name in ("null_100", "gain_0.20_100")
)
few = st.lists(st.floats(-3, 3), min_size=2, max_size=40)


def normal(mean: float, deviation: float, count: int, seed: int = 0) -> list[float]:
    drawn = np.random.Generator(np.random.PCG64(seed)).normal(0, deviation, count)
    return [float(value) for value in drawn - drawn.mean() + mean]


# The confidence of a look


def test_all_looks_together_spend_no_more_than_the_budget() -> None:
    spent = math.fsum(1 - confidence_at(attempt) for attempt in range(1, 10_001))
    assert 0.99 * BUDGET < spent < BUDGET


def test_each_look_asks_for_more_than_the_one_before() -> None:
    asked = [confidence_at(attempt) for attempt in range(1, 1_000)]
    assert asked == sorted(asked) and asked[0] == 0.975 and asked[-1] < 1


@pytest.mark.parametrize("attempt", [0, -1])
def test_there_is_no_look_before_the_first(attempt: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        confidence_at(attempt)


# The bound that decides


def test_without_groups_and_skewness_the_bound_is_students() -> None:
    bound = lower_bound([1.0, 2.0, 3.0, 4.0, 5.0], confidence=0.95)
    assert bound == pytest.approx(1.4925, abs=1e-4)


def test_a_tail_to_the_left_lowers_the_bound_and_one_to_the_right_does_not_raise_it() -> None:
    values = [0.0] * 16 + [4.0, 5.0, 6.0, 9.0]
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(20)
    student = 2.0930 * spread  # t of 19 degrees of freedom at 0.975
    assert lower_bound(values, confidence=0.975) == pytest.approx(mean - student, abs=1e-3)
    turned = [-value for value in values]
    assert lower_bound(turned, confidence=0.975) < -mean - 1.2 * student


def test_copies_of_sessions_are_no_further_evidence() -> None:
    values = normal(0.1, 0.3, 30)
    groups = [str(index) for index in range(30)]
    alone = lower_bound(values, confidence=0.99)
    assert lower_bound(values * 4, groups * 4, confidence=0.99) == pytest.approx(alone)
    assert lower_bound(values * 4, confidence=0.99) > alone + 0.03


def test_one_large_group_cannot_hide_behind_its_own_mean() -> None:
    values = [1.0] * 90 + [0.0] * 10
    groups = ["large"] * 90 + [str(index) for index in range(10)]
    assert lower_bound(values, groups, confidence=0.975) < 0


def test_one_group_alone_bounds_nothing() -> None:
    assert lower_bound([1.0, 1.1, 1.2], ["a"] * 3, confidence=0.95) == -math.inf


def test_equal_differences_are_their_own_bound() -> None:
    assert lower_bound([0.25] * 20, confidence=0.9999) == pytest.approx(0.25)


@given(few, st.floats(0.6, 0.9999), st.floats(-2, 2))
def test_the_bound_lies_below_the_mean_and_moves_with_the_values(
    values: list[float], confidence: float, shift: float
) -> None:
    bound = lower_bound(values, confidence=confidence)
    assert bound <= np.mean(values) + 1e-9
    moved = lower_bound([value + shift for value in values], confidence=confidence)
    if np.ptp(values) > 1e-3:  # else what is left of the spread is the rounding of the shift
        assert moved == pytest.approx(bound + shift, rel=1e-6, abs=1e-6)


def test_far_out_the_bound_is_above_the_mean_hardly_more_often_than_asked() -> None:
    for tail, share in bench.coverage(seed=1, draws=20_000).items():
        for held_out in (20, 40, 100):
            assert share[held_out]["0.025"] < 1.4, (tail, held_out, share)
            assert share[held_out]["0.005"] < 2.4, (tail, held_out, share)


@given(st.lists(st.tuples(st.floats(-3, 3), st.sampled_from("abcde")), min_size=1, max_size=30))
def test_rows_are_bounded_as_one_set_of_differences_is(pairs: list[tuple[float, str]]) -> None:
    values, groups = [value for value, _ in pairs], [group for _, group in pairs]
    sums, counts = by_group(values, groups)
    rows = np.stack([sums, -sums, sums])
    assert lower_bounds(rows, counts, 0.99)[2] == lower_bound(values, groups, confidence=0.99)
    low = percentiles(rows, counts, [0.05], 500)[0][0]
    assert low == pytest.approx(bootstrap(values, groups, resamples=500).low, abs=1e-9)


# The margin


def test_without_pairs_the_margin_is_what_it_begins_with() -> None:
    assert margin_from([]) == pytest.approx(STYLE_MARGIN)
    assert margin_from([], start=0.05) == pytest.approx(0.05)
    assert margin_from([], start=0.0) == 0


def test_the_pairs_that_were_measured_first_confirm_the_margin() -> None:
    assert margin_from(MEASURED) == pytest.approx(STYLE_MARGIN, abs=0.005)


def test_a_few_quiet_pairs_lower_the_margin_a_little_and_many_to_its_floor() -> None:
    some = [margin_from([0.01] * count) for count in (0, 1, 3, 10)]
    assert some == sorted(some, reverse=True) and some[2] > 0.055
    assert margin_from([0.001] * 32) == MARGIN_MIN


def test_controls_that_differ_widely_raise_the_margin_above_what_they_differ_by() -> None:
    assert margin_from([0.1, -0.12, 0.09]) > 0.2


@given(st.lists(st.floats(-1, 1), max_size=8), st.floats(-1, 1))
def test_signs_do_not_matter_and_a_larger_difference_asks_for_more(
    differences: list[float], more: float
) -> None:
    turned = [-each for each in differences]
    assert margin_from(differences) == margin_from(turned)
    larger = [*differences, math.copysign(abs(more) + 0.1, more)]
    assert margin_from([*differences, more]) <= margin_from(larger)


def test_differences_of_one_recipe_say_nothing_of_another() -> None:
    schedule = Schedule()
    here = recipe("0011223344556677", schedule)
    assert here == recipe("0011223344556677", replace(schedule, seed=7))
    there = recipe("0011223344556677", replace(schedule, steps=48))
    known = Calibration().with_difference(here, 0.2).with_difference(here, -0.2)
    assert known.pairs(here) == 2 and known.pairs(there) == 0
    assert known.margin(here) > 0.2 and known.margin(there) == pytest.approx(STYLE_MARGIN)


def test_a_calibration_comes_back_from_plain_data_and_stays_small() -> None:
    known = Calibration()
    for number in range(RECIPES_MAX + 3):
        known = known.with_difference(f"recipe {number}", 0.01)
    for number in range(PAIRS_MAX + 5):
        known = known.with_difference("recipe 5", number / 100)
    plain = json.loads(json.dumps(known.to_plain()))
    assert Calibration.from_plain(plain) == known
    assert len(plain) == RECIPES_MAX and "recipe 0" not in plain
    assert plain["recipe 5"][-1] == 0.36 and known.pairs("recipe 5") == PAIRS_MAX


@pytest.mark.parametrize("data", [[], {"a": 1}, {"a": ["x"]}, {"a": [True]}, {1: []}, None])
def test_what_is_no_calibration_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="an object of lists of numbers"):
        Calibration.from_plain(data)


def test_a_control_that_went_astray_is_no_pair() -> None:
    with pytest.raises(ValueError, match="is a number, not nan"):
        Calibration().with_difference("a", mean_difference([math.nan], [1.0]))


# A judgement


def losses(over_style: float, count: int = 100, deviation: float = 0.449) -> dict[str, list[float]]:
    return {
        "candidate": [0.0] * count,
        "parent": normal(1.0, deviation, count, 1),
        "style": normal(over_style, deviation, count, 2),
    }


def test_a_gain_that_wins_at_the_first_look_may_not_at_the_thirtieth() -> None:
    first, late = (
        judge(losses(0.2), confidence=confidence_at(look), attempt=look, at=Instant(1))
        for look in (1, 30)
    )
    assert first.won and first.verdict is Verdict.BETTER
    assert not late.won and late.verdict is Verdict.NOT_BETTER
    assert first.over_style == late.over_style, "what is shown is at 95 % at every look"
    assert (late.confidence, late.attempt, late.margin) == (confidence_at(30), 30, STYLE_MARGIN)
    assert first.decided is not None and late.decided is not None
    assert late.decided[1] < STYLE_MARGIN < first.decided[1] < first.over_style.low


def test_a_wider_margin_asks_for_a_larger_gain() -> None:
    assert judge(losses(0.2), style_margin=0.08, at=Instant(1)).won
    assert not judge(losses(0.2), style_margin=0.16, at=Instant(1)).won


def test_sessions_that_are_all_near_copies_are_too_few_however_many() -> None:
    evaluation = judge(losses(0.5), groups=["one"] * 100, at=Instant(1))
    assert evaluation.verdict is Verdict.TOO_FEW and not evaluation.won
    assert evaluation.decided is None


def test_what_decides_is_never_above_what_is_shown() -> None:
    for seed in range(20):
        values = normal(0.2, 0.4, 20, seed)
        evaluation = judge(
            {"candidate": [0.0] * 20, "parent": values, "style": values},
            confidence=0.6,
            at=Instant(1),
        )
        assert evaluation.decided is not None
        assert evaluation.decided[1] <= evaluation.over_style.low


def test_a_label_from_before_a_figure_was_known_is_still_the_one_json_of_its_content() -> None:
    import msgspec

    gain = GainFigures(1.0, 0.9, 1.1)
    figures = EvaluationFigures(40, 2.0, gain, gain, None, None, "better", 1)
    old = msgspec.json.encode(figures, order="sorted")
    assert b"attempt" not in old and b"preference" not in old
    new = msgspec.json.encode(
        EvaluationFigures(40, 2.0, gain, gain, None, None, "better", 1, attempt=2), order="sorted"
    )
    for data in (old, new):
        decoded = msgspec.json.decode(data, type=EvaluationFigures)
        assert msgspec.json.encode(decoded, order="sorted") == data


def test_a_late_look_says_what_it_asked_for() -> None:
    look = judge(losses(0.2), confidence=confidence_at(6), attempt=6, at=Instant(1))
    line = evaluation_line(replace(look, right=(0.1, 0.35), answers=20))
    assert "look 6 decided at 99.88%" in line and "and 0.080 were wanted" in line
    assert line.endswith("right answers 10% before, 35% now, of 20")
    assert evaluation_line(judge(losses(0.2), at=Instant(1))).endswith("on 100 held-out sessions")


# Many nights


def test_of_leaves_without_a_gain_hardly_any_ever_wins_in_thirty_nights() -> None:
    figures = bench.simulate(NULL, leaves=200, nights=30, seed=7)
    assert figures["won"] <= 0.05 and figures["mature"] <= 0.05, f"seed 7: {figures}"
    assert figures["old_won"] > 0.1, "a bound that forgets the nights before lets luck pass"


def test_a_converged_leaf_is_called_regressed_by_chance_and_hardly_ever_surely() -> None:
    warm = next(each for each in bench.SCENARIOS if each.name == "null_100_warm")
    figures = bench.simulate(warm, leaves=200, nights=10, seed=7)
    assert figures["surely_worse"] < 0.02 < 0.1 < figures["regressed"], f"seed 7: {figures}"


def test_leaves_with_a_gain_of_0_2_nats_win_and_mature_within_thirty_nights() -> None:
    figures = bench.simulate(GAIN, leaves=200, nights=30, seed=7)
    assert figures["won"] >= 0.8 and figures["mature"] >= 0.8, f"seed 7: {figures}"
