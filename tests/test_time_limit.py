"""The time limit of an order: what is counted, and what is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from leaves.training.time_limit import TimeLimit


class Hand:
    """A clock that is moved by hand, with the timers that were set on it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[Alarm] = []

    def timer(self, seconds: float, over: Callable[[], None]) -> Alarm:
        return Alarm(self, self.now_s + seconds, over)

    def move(self, seconds: float) -> None:
        self.now_s += seconds
        for alarm in [each for each in self.timers if each.at_s <= self.now_s]:
            self.timers.remove(alarm)
            alarm.over()


class Alarm:
    def __init__(self, hand: Hand, at_s: float, over: Callable[[], None]) -> None:
        self._hand, self.at_s, self.over = hand, at_s, over

    def start(self) -> None:
        self._hand.timers.append(self)

    def cancel(self) -> None:
        if self in self._hand.timers:
            self._hand.timers.remove(self)


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def over() -> list[float]:
    return []


@pytest.fixture
def limit(hand: Hand, over: list[float]) -> TimeLimit:
    return TimeLimit(
        30, lambda: over.append(hand.now_s), now_s=lambda: hand.now_s, timer=hand.timer
    )


def test_an_order_that_takes_longer_is_over_once(
    hand: Hand, over: list[float], limit: TimeLimit
) -> None:
    limit.begin()
    hand.move(29)
    assert not over
    hand.move(1)
    hand.move(100)
    assert over == [30]


def test_the_time_stands_still_while_it_is_held_and_goes_on_with_what_is_left(
    hand: Hand, over: list[float], limit: TimeLimit
) -> None:
    limit.begin()
    for _ in range(2):
        hand.move(10)
        limit.hold()
        limit.hold()
        hand.move(1000)
        limit.release()
        limit.release()
    assert not over
    hand.move(9)
    assert not over
    hand.move(1)
    assert len(over) == 1


def test_an_order_that_begins_while_the_time_is_held_has_all_of_it(
    hand: Hand, over: list[float], limit: TimeLimit
) -> None:
    limit.hold()
    limit.begin()
    hand.move(1000)
    limit.release()
    hand.move(29)
    assert not over
    hand.move(1)
    assert len(over) == 1


def test_each_order_has_the_whole_time_and_none_after_its_end(
    hand: Hand, over: list[float], limit: TimeLimit
) -> None:
    for _ in range(3):
        limit.begin()
        hand.move(20)
        limit.end()
    limit.release()
    hand.move(1000)
    assert not over and not hand.timers


def test_without_a_limit_nothing_is_ever_over(hand: Hand, over: list[float]) -> None:
    limit = TimeLimit(None, lambda: over.append(0.0), now_s=lambda: hand.now_s, timer=hand.timer)
    limit.begin()
    limit.hold()
    limit.release()
    assert not hand.timers
