"""A sleep and a change of network are noticed, and nothing else is taken for one."""

from __future__ import annotations

import threading

import pytest
import trio

from gossip.wakefulness import SLEPT_S_MIN, Reading, Wakefulness, WakeLoop, Woke, read_now

HOME = ("192.168.1.7", "fd00::7", "fe80::7")


def looks(*readings: Reading) -> list[Woke | None]:
    one = Wakefulness()
    return [one.look(reading) for reading in readings]


def test_clocks_that_go_together_say_nothing() -> None:
    steady = [Reading(100.0 + s, 5000.0 + s, HOME) for s in (0, 2, 4, 900)]  # a loop may be late
    assert looks(*steady) == [None] * 4


def test_a_clock_that_went_on_alone_is_a_sleep() -> None:
    assert looks(Reading(100.0, 5000.0, HOME), Reading(102.0, 8602.0, HOME)) == [
        None,
        Woke(3600.0, moved=False),
    ]
    nodded = Reading(102.0, 5002.0 + SLEPT_S_MIN - 0.1, HOME)
    assert looks(Reading(100.0, 5000.0, HOME), nodded)[1] is None


def test_a_time_of_day_set_back_is_a_look_too_many_and_no_sleep() -> None:
    found = looks(Reading(100.0, 5000.0, HOME), Reading(102.0, 1402.0, HOME))
    assert found[1] == Woke(0.0, moved=False)


@pytest.mark.parametrize(
    ("hosts", "moved"),
    [
        (("10.0.0.9", "fd00::7", "fe80::7"), True),
        ((), True),
        ((*HOME, "10.8.0.2"), True),
        (("192.168.1.7", "fd00::1234:5678", "fe80::7"), False),  # a new privacy address
        ((*HOME, "fe80::99"), False),  # a container was started
        (("192.168.1.7", "2001:db8::7", "fe80::7"), True),
    ],
)
def test_another_network_is_told_by_its_addresses(hosts: tuple[str, ...], moved: bool) -> None:
    found = looks(Reading(0.0, 0.0, HOME), Reading(2.0, 2.0, hosts))
    assert found[1] == (Woke(0.0, moved=True) if moved else None)


def test_this_machine_can_be_read() -> None:
    reading = read_now()
    assert reading.going_s >= reading.awake_s > 0
    assert all("%" not in host for host in reading.hosts)
    assert threading.active_count() >= 1


async def test_the_loop_tells_of_each_reading_and_of_waking(
    autojump_clock: trio.testing.MockClock,
) -> None:
    readings = [Reading(0.0, 0.0), Reading(2.0, 2.0), Reading(4.0, 1004.0), Reading(6.0, 1006.0)]
    given, looked, woke = iter(readings), [], []

    async def until_it_is_all_read() -> None:
        loop = WakeLoop(woke.append, looked.append, read=lambda: next(given))
        with pytest.raises(RuntimeError):  # of the iterator's end
            await loop.run()

    await until_it_is_all_read()
    assert looked == readings and woke == [Woke(1000.0, moved=False)]
