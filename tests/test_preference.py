"""Which pairs train and which judge, and what the judgement asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaves.model import Verdict
from leaves.ports import Example, Preference
from leaves.training.preference import (
    PairLosses,
    PairRules,
    PreparedPairs,
    answers,
    judge_preferences,
    paired,
    sound,
    split_pairs,
)


def pair(number: int, **changes: str) -> Preference:
    made = Preference(
        prompt=f"how is part {number} of the engine {number * 7919 % 1000} taken out and cleaned",
        chosen=f"with tool {number}",
        rejected=f"with force {number}",
        session=f"a{number:03}",
        rejected_session=f"c{number:03}",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def pairs(count: int) -> list[Preference]:
    return [pair(number) for number in range(count)]


def asks(side: Sequence[Preference]) -> set[str]:
    return {each.prompt for each in side}


def test_a_quarter_of_the_pairs_judges_and_the_rest_trains() -> None:
    split = split_pairs(pairs(120))
    assert (len(split.held_out), len(split.train), split.too_few) == (30, 90, False)
    assert len(set(split.groups)) == len(split.groups) == 30


def test_the_split_does_not_hang_on_the_order_of_the_pairs() -> None:
    turned = pairs(60)
    Random(1).shuffle(turned)
    assert split_pairs(turned) == split_pairs(pairs(60))


def test_all_answers_to_one_ask_stand_on_one_side_and_count_as_one_witness() -> None:
    many = [
        pair(number, chosen=f"with tool {other}", rejected_session=f"c{number}-{other}")
        for number in range(15)
        for other in range(8)
    ]
    split = split_pairs(many)
    assert split.too_few, "fifteen asks are no twenty, however many answers they have"
    assert not asks(split.train) & asks(split.held_out)


def test_near_copies_of_an_ask_do_not_judge_what_it_has_trained() -> None:
    copied = [
        each
        for number, ask in enumerate(pairs(60))
        for each in (ask, pair(1000 + number, prompt=f"{ask.prompt} again please, if you can"))
    ]
    split = split_pairs(copied)
    trained = {ask.removesuffix(" again please, if you can") for ask in asks(split.train)}
    assert split.train
    assert not trained & {
        ask.removesuffix(" again please, if you can") for ask in asks(split.held_out)
    }


def test_sessions_of_one_group_stand_on_one_side() -> None:
    grouped = [replace(each, group=f"g{number // 3}") for number, each in enumerate(pairs(120))]
    split = split_pairs(grouped)
    assert not {each.group for each in split.train} & {each.group for each in split.held_out}
    assert len(set(split.groups)) == 20, "so many are needed, if half can be spared"


def test_an_ask_that_has_trained_the_leaf_never_judges_in_whatever_words_of_the_same() -> None:
    known = [
        Example("s1", pair(1).prompt.upper() + "?", "an answer"),  # the same ask, another session
        Example("s2", "what else", "an answer", group="together"),
    ]
    mine = [replace(each, group="together") if n == 2 else each for n, each in enumerate(pairs(40))]
    trained = {"s1", "s2", "a003", "c004"}
    split = split_pairs(mine, trained_before=trained, sessions=known)
    assert {pair(number).prompt for number in (1, 2, 3, 4)} <= asks(split.train)


def test_an_ask_that_judges_the_leaf_never_trains_it() -> None:
    held = {f"a{number:03}" for number in range(30)}
    split = split_pairs(pairs(120), held)
    assert {each.session for each in split.held_out} == held
    assert not {each.session for each in split.train} & held
    assert len(split.train) == 90


def test_what_has_both_trained_and_judged_does_neither() -> None:
    split = split_pairs(pairs(80), {"a005"}, {"c005"})
    assert pair(5) not in split.train and pair(5) not in split.held_out


def test_the_newest_judge() -> None:
    days = {f"a{number:03}": 100 + number // 25 for number in range(100)}
    split = split_pairs(pairs(100), days=days)
    assert {each.session for each in split.held_out} == {f"a{n:03}" for n in range(75, 100)}


def test_no_more_pairs_are_taken_than_the_schedule_can_see() -> None:
    assert len(split_pairs(pairs(120), samples=16).train) == 16


def test_no_pairs_are_too_few() -> None:
    assert split_pairs([]) == PreparedPairs((), (), (), too_few=True)


@pytest.mark.parametrize(
    "broken",
    [
        pair(1, chosen="  "),
        pair(1, prompt=""),
        pair(1, rejected="with tool 1 "),
    ],
    ids=["no answer", "no ask", "the same answer twice"],
)
def test_a_pair_that_says_nothing_is_dropped(broken: Preference) -> None:
    assert sound([broken, pair(2)]) == [pair(2)]


def test_repeated_pairs_count_once_and_contradicting_ones_not_at_all() -> None:
    again = pair(1, session="b", chosen="with  tool 1\n", prompt=pair(1).prompt + "?")
    assert sound([pair(1), again]) == [pair(1)]
    turned = pair(1, session="b", chosen=pair(1).rejected, rejected=pair(1).chosen)
    assert sound([pair(1), turned, pair(2)]) == [pair(2)]


def test_answers_that_differ_in_case_or_indentation_alone_are_two_answers() -> None:
    case = pair(1, chosen="ls -R", rejected="ls -r")
    indented = pair(2, chosen="if a:\n    b\nc", rejected="if a:\n    b\n    c")
    assert sound([case, indented]) == [case, indented]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_ask_or_group_is_ever_on_both_sides(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 90))
    numbers = st.integers(0, 60)
    made = [
        pair(
            data.draw(numbers),
            session=f"a{data.draw(numbers)}",
            rejected_session=f"c{n}",
            group=data.draw(st.sampled_from(["", "", "g1", "g2", "g3"])),
        )
        for n in range(count)
    ]
    held = set(data.draw(st.lists(st.sampled_from([each.session for each in made] or [""]))))
    trained = set(data.draw(st.lists(st.sampled_from([each.session for each in made] or [""]))))
    split = split_pairs(made, held, trained, rules=PairRules(minimum=3))
    for mark in ("prompt", "session", "group"):
        sides = [{getattr(each, mark) for each in side} for side in (split.train, split.held_out)]
        assert not (sides[0] & sides[1]) - {""}, mark
    assert not {each.session for each in split.train} & held
    assert not {each.session for each in split.held_out} & trained
    assert len(split.groups) == len(split.held_out)


def losses(right: Sequence[bool]) -> list[PairLosses]:
    return [PairLosses(1.0, 1.5) if each else PairLosses(1.5, 1.0) for each in right]


STEADY = [2.0] * 40
GROUPS = [str(n) for n in range(100)]


def test_more_pairs_told_right_beyond_chance_is_better() -> None:
    before, after = losses([n < 55 for n in range(100)]), losses([n < 70 for n in range(100)])
    judged = judge_preferences(before, after, STEADY, STEADY, GROUPS)
    assert judged.verdict is Verdict.BETTER
    assert (judged.pairs, judged.accuracy_before, judged.accuracy_after) == (100, 0.55, 0.70)
    assert judged.gain.mean == pytest.approx(0.15) and 0 < judged.gain.low < 0.15


def test_a_gain_that_chance_explains_is_not_better() -> None:
    before, after = losses([n < 55 for n in range(100)]), losses([n >= 43 for n in range(100)])
    judged = judge_preferences(before, after, STEADY, STEADY, GROUPS)
    assert judged.accuracy_after > judged.accuracy_before
    assert judged.gain.low < 0 and judged.verdict is Verdict.NOT_BETTER


def test_a_wider_margin_between_the_same_answers_is_no_gain() -> None:
    before = losses([n < 55 for n in range(100)])
    after = [PairLosses(3 * each.chosen, 3 * each.rejected) for each in before]
    judged = judge_preferences(before, after, STEADY, STEADY, GROUPS)
    assert judged.verdict is Verdict.NOT_BETTER


@pytest.mark.parametrize(
    ("rise", "verdict"), [(0.019, Verdict.BETTER), (0.021, Verdict.NOT_BETTER)]
)
def test_what_the_leafs_own_answers_may_lose_is_bounded(rise: float, verdict: Verdict) -> None:
    before, after = losses([False] * 100), losses([n < 60 for n in range(100)])
    judged = judge_preferences(before, after, STEADY, [2 + rise] * 40, GROUPS)
    assert judged.loss_rise == pytest.approx(rise)
    assert judged.verdict is verdict


@pytest.mark.parametrize("sessions", [19, 40])
@pytest.mark.parametrize("asks", [19, 20])
def test_below_twenty_asks_or_sessions_there_is_no_verdict(asks: int, sessions: int) -> None:
    groups = [str(n % asks) for n in range(100)]
    before, after = losses([False] * 100), losses([True] * 100)
    steady = [2.0] * sessions
    judged = judge_preferences(before, after, steady, steady, groups)
    enough = asks >= 20 and sessions >= 20
    assert judged.verdict is (Verdict.BETTER if enough else Verdict.TOO_FEW)


def test_a_later_look_asks_for_more() -> None:
    before, after = losses([n < 50 for n in range(100)]), losses([n < 54 for n in range(100)])
    first = judge_preferences(before, after, STEADY, STEADY, GROUPS, confidence=0.95)
    thirtieth = judge_preferences(before, after, STEADY, STEADY, GROUPS, confidence=0.9999)
    assert (first.verdict, thirtieth.verdict) == (Verdict.BETTER, Verdict.NOT_BETTER)


def test_answers_are_measured_in_the_order_in_which_their_losses_are_paired() -> None:
    both = answers([pair(1), pair(2)])
    assert [each.session for each in both] == ["a001", "a002", "c001", "c002"]
    assert paired([1.0, 2.0, 3.0, 4.0]) == [PairLosses(1.0, 3.0), PairLosses(2.0, 4.0)]


def test_of_equally_likely_answers_half_are_right() -> None:
    tied = [PairLosses(1.0, 1.0)] * 100
    judged = judge_preferences(tied, tied, STEADY, STEADY, GROUPS)
    assert judged.accuracy_before == judged.accuracy_after == 0.5
