"""When a node may work by itself: its nights, the machine's gates, and what it says of them."""

from __future__ import annotations

import datetime
import itertools
from dataclasses import replace
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaves.model import Instant
from node.config import Config, NightConfig
from node.governor import BETWEEN_S, MISSED_IDLE_S, Governor, Record, Senses, State, Verdict, Work
from node.windows import Night, Window, around, night

SECRET = b"of this node"
BERLIN = ZoneInfo("Europe/Berlin")
MIN, HOUR, DAY = 60, 3600, 86_400
ZONES = [
    ZoneInfo(name)
    for name in (
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",  # half an hour of summer time
        "Africa/Casablanca",  # an hour less in a month that moves
        "Pacific/Apia",  # skipped a day
        "America/St_Johns",  # changed at a minute past midnight
        "Asia/Kathmandu",
    )
]
QUIET = Senses(
    idle_s=6 * HOUR,
    on_battery=False,
    battery=1.0,
    load=0.02,
    metered=False,
    low_power=False,
    disk_free_bytes=50_000_000_000,
    temperature_c=45.0,
    model_server="",
)

windows = st.builds(
    lambda opens, long: (
        f"{opens // 60:02}:{opens % 60:02}-"
        f"{(opens + long) % 1440 // 60:02}:{(opens + long) % 60:02}"
    ),
    st.integers(0, 1439),
    st.integers(1, 20 * 60),
)
moments = st.integers(1_000_000_000, 2_200_000_000).map(Instant)
maybe_times = st.none() | st.floats(0, 1e6)
senses = st.builds(
    Senses,
    idle_s=maybe_times,
    on_battery=st.none() | st.booleans(),
    battery=st.none() | st.floats(0, 1),
    load=st.none() | st.floats(0, 1),
    metered=st.none() | st.booleans(),
    low_power=st.none() | st.booleans(),
    disk_free_bytes=st.none() | st.integers(0, 10**12),
    temperature_c=st.none() | st.floats(-20, 120),
    model_server=st.none() | st.sampled_from(["", "ollama"]),
)
records = st.builds(
    Record,
    since=moments,
    began=st.none() | moments,
    date=st.sampled_from(["", "2026-11-22", "2026-11-22 made up"]),
    finished=st.booleans(),
    bytes=st.integers(0, 10**9),
    cpu_s=st.floats(0, 1e7),
    paused=st.booleans(),
    paused_until=st.none() | moments,
)


def at(text: str, zone: ZoneInfo = BERLIN) -> Instant:
    return Instant(int(datetime.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()))


def governor(zone: ZoneInfo = BERLIN, **config: object) -> Governor:
    made = Governor(msgspec.convert(config, NightConfig), SECRET, zone)
    made.knows(Record(since=at("2026-01-01T00:00")))
    return made


def tonight(window: str = "01:00-05:00", day: str = "2026-11-23") -> Night:
    parsed = Window.parse(window)
    assert parsed is not None
    return night(parsed, datetime.date.fromisoformat(day), SECRET, BERLIN)


# Of the night before the one that tests are about: nothing was missed.
BEFORE = Record(
    since=at("2026-01-01T00:00"),
    began=Instant(tonight(day="2026-11-22").starts),
    date="2026-11-22",
    finished=True,
)


def look(seen: Senses, now: Instant, record: Record = BEFORE, **config: object) -> Verdict:
    made = governor(**config)
    made.knows(record)
    return made.look(seen, now)


# ---- windows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["1:00-5:00", "25:00-26:00", "03:00-03:00", "night", "", "24:00-01:00"]
)
def test_a_window_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Window.parse(text)
    with pytest.raises(msgspec.ValidationError):
        msgspec.toml.decode(f'[night]\nwindow = "{text}"'.encode(), type=Config)


def test_a_window_may_span_midnight_or_a_whole_day() -> None:
    assert Window.parse("23:00-05:00") == Window(23 * 60, 6 * 60)
    assert Window.parse("00:00-24:00") == Window(0, 24 * 60)
    assert Window.parse("always") is None


@given(windows, moments, st.sampled_from(ZONES), st.binary(min_size=1, max_size=32))
def test_nights_open_in_order_and_a_node_s_own_moment_lies_within(
    text: str, now: Instant, zone: ZoneInfo, secret: bytes
) -> None:
    window = Window.parse(text)
    assert window is not None
    last, coming = around(window, now, secret, zone)
    assert last.opens <= now < coming.opens <= now + 2 * DAY + 2 * HOUR
    for each in (last, coming):
        assert each.opens <= each.starts < each.closes
        assert each.closes - each.opens <= window.long_min * MIN + 2 * HOUR
    assert around(window, now, secret, zone) == (last, coming)


@given(st.dates(datetime.date(2000, 1, 1), datetime.date(2040, 1, 1)), st.sampled_from(ZONES))
def test_a_window_opens_and_closes_by_the_clock_on_the_wall(
    day: datetime.date, zone: ZoneInfo
) -> None:
    """In summer and winter; a wall time that there is not, or twice, is another moment."""
    found = night(Window(23 * 60, 6 * 60), day, SECRET, zone)
    opens = datetime.datetime.combine(day, datetime.time(23), zone)
    closes = datetime.datetime.combine(day + datetime.timedelta(1), datetime.time(5), zone)
    for instant, wall in ((found.opens, opens), (found.closes, closes)):
        there = datetime.datetime.fromtimestamp(instant, zone)
        exists = wall.astimezone(datetime.UTC).astimezone(zone).replace(fold=0) == wall
        if exists:
            assert there.replace(tzinfo=None) == wall.replace(tzinfo=None)


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 3), ("2026-10-25", 5), ("2026-06-01", 4)]
)
def test_a_night_of_the_change_is_an_hour_shorter_or_longer(day: str, hours: int) -> None:
    found = tonight("01:00-05:00", day)
    assert found.closes - found.opens == hours * HOUR


def test_a_window_in_the_hour_that_is_skipped_is_an_hour_later() -> None:
    found = tonight("02:10-02:40", "2026-03-29")
    assert (found.opens, found.closes) == (at("2026-03-29T03:10"), at("2026-03-29T03:40"))


def test_moments_are_spread_over_the_window_and_differ_from_night_to_night() -> None:
    window = Window(60, 240)
    offsets = [
        each.starts - each.opens
        for n in range(400)
        for each in [night(window, datetime.date(2026, 6, 1), f"node {n}".encode(), BERLIN)]
    ]
    quarter = 3 * HOUR / 4
    counts = [sum(n * quarter <= each < (n + 1) * quarter for each in offsets) for n in range(4)]
    assert sum(counts) == 400 and all(70 <= count <= 130 for count in counts)
    days = [datetime.date(2026, 6, n) for n in range(1, 31)]
    assert len({(x := night(window, day, SECRET, BERLIN)).starts - x.opens for day in days}) > 25


# ---- nights ------------------------------------------------------------------------------------


def test_a_night_begins_at_the_node_s_own_moment_and_stops_hard_at_the_end_of_the_window() -> None:
    now = tonight()
    early = look(QUIET, Instant(now.starts - 1))
    assert (early.state, early.at) == (State.RESTS, now.starts)
    assert look(QUIET, now.starts).works
    begun = replace(BEFORE, began=now.starts, date=now.date, finished=False)
    assert look(QUIET, Instant(now.closes - 1), begun).works
    assert look(QUIET, now.closes, begun).state is State.RESTS


def test_a_finished_night_is_not_begun_again_and_the_next_one_is_named() -> None:
    now = tonight()
    done = replace(BEFORE, began=now.starts, date=now.date)
    verdict = look(QUIET, Instant(now.starts + HOUR), done)
    assert verdict.state is State.RESTS
    assert verdict.at == max(tonight(day="2026-11-24").starts, now.starts + BETWEEN_S)
    assert verdict.until.startswith("next night Tue 0")


@given(st.integers(0, 30), senses, st.sampled_from(["01:00-05:00", "23:00-05:00", "00:00-24:00"]))
@settings(max_examples=50)
def test_never_do_two_nights_begin_within_20_hours(
    first_min: int, seen: Senses, window: str
) -> None:
    made = governor(window=window)
    record, begun = Record(since=at("2026-11-20T12:00")), []
    for minute in range(first_min, 5 * 1440, 10):
        now = Instant(at("2026-11-20T12:00") + minute * MIN)
        made.knows(record)
        quiet = replace(QUIET, idle_s=(seen.idle_s or 0.0) + minute * MIN % (7 * HOUR))
        verdict = made.look(quiet, now)
        if verdict.works and (record.finished or made.date != record.date):
            begun.append(now)
            record = replace(record, began=now, date=made.date, finished=True)
    assert all(b - a >= BETWEEN_S for a, b in itertools.pairwise(begun))
    assert begun


def test_a_night_that_the_machine_slept_through_is_made_up_at_the_next_idleness() -> None:
    noon = at("2026-11-23T12:00")
    waiting = look(replace(QUIET, idle_s=9 * MIN), noon)
    assert waiting.state is State.WAITS and "missed" in waiting.why
    assert look(replace(QUIET, idle_s=MISSED_IDLE_S + 30 * MIN), noon).works
    made = governor()
    made.knows(BEFORE)
    assert made.look(QUIET, noon).works and made.date == "2026-11-23 made up"


def test_a_new_node_has_missed_nothing() -> None:
    noon = at("2026-11-23T12:00")
    assert look(QUIET, noon, Record(since=noon)).state is State.RESTS


def test_a_made_up_night_is_as_long_as_the_window() -> None:
    began = at("2026-11-23T21:00")
    made_up = replace(BEFORE, began=began, date="2026-11-23 made up", finished=False)
    assert look(QUIET, at("2026-11-24T00:59"), made_up).works
    assert look(QUIET, at("2026-11-24T01:00"), made_up).state is State.RESTS


def test_a_night_that_began_is_not_made_up_when_its_window_closed_on_it() -> None:
    now = tonight()
    begun = replace(BEFORE, began=now.starts, date=now.date, finished=False)
    assert look(QUIET, Instant(now.closes + 5 * HOUR), begun).state is State.RESTS


def test_a_clock_that_was_set_back_stops_no_night() -> None:
    now = tonight()
    future = replace(BEFORE, began=Instant(now.starts + 90 * DAY), date="2027-02-21")
    assert look(QUIET, now.starts, future).works


@pytest.mark.parametrize("back_s", [1, 600, 3 * HOUR, BETWEEN_S - 1])
def test_a_clock_that_was_set_back_a_little_brings_no_second_night(back_s: int) -> None:
    now = tonight()
    done = replace(BEFORE, began=Instant(now.starts + back_s), date=now.date, finished=True)
    verdict = look(QUIET, now.starts, done)
    assert verdict.state is State.RESTS and verdict.at is not None
    assert verdict.at - (now.starts + back_s) >= BETWEEN_S


# ---- gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "cause", "words"),
    [
        (
            {"on_battery": True, "battery": 0.62},
            "battery",
            "on battery (62 %); goes on when plugged",
        ),
        ({"low_power": True}, "low power", "saves power"),
        ({"metered": True}, "metered", "another network"),
        ({"disk_free_bytes": 1_900_000_000}, "disk", "1.9 GB free"),
        ({"temperature_c": 97.0}, "heat", "97 °C"),
        ({"model_server": "ollama"}, "model server", "your ollama is at work"),
        ({"served_s": 3.0}, "endpoint", "you ask the endpoint"),
        ({"idle_s": 3.0}, "you", "you are at the machine"),
        ({"idle_s": 14 * MIN}, "idle", "14 of 15 min"),
        ({"load": 0.3}, "load", "30 % of the cores"),
    ],
)
def test_each_gate_stops_a_night_and_says_what_opens_it(
    changes: dict[str, object], cause: str, words: str
) -> None:
    verdict = look(replace(QUIET, **changes), tonight().starts)  # type: ignore[arg-type]
    assert (verdict.state, verdict.cause) == (State.WAITS, cause)
    assert words in verdict.line().replace("0%", "0 %").replace("2%", "2 %")
    assert "goes on" in verdict.until


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({"on_battery": True, "battery": 0.61}, {"on_battery": True}),
        ({"on_battery": True, "battery": None}, {"on_battery": True}),
        ({"metered": True}, {"metered": True}),
        ({"load": 0.29}, {}),
        ({"idle_s": 15 * MIN}, {}),
        ({"served_s": 60.0}, {}),
        ({"disk_free_bytes": 2_000_000_000}, {}),
    ],
)
def test_what_is_just_enough_or_allowed_does_not_stop_it(
    changes: dict[str, object], config: dict[str, object]
) -> None:
    assert look(replace(QUIET, **changes), tonight().starts, **config).works  # type: ignore[arg-type]


def test_a_battery_below_what_was_opted_in_stops_it() -> None:
    low = replace(QUIET, on_battery=True, battery=0.59)
    assert not look(low, tonight().starts, on_battery=True).works


def test_what_no_sense_can_tell_stops_nothing() -> None:
    assert look(Senses(), tonight().starts).works


@pytest.mark.parametrize("changes", [{"idle_s": 0.0}, {"model_server": "vllm"}, {"load": 0.9}])
def test_work_gives_way_at_once_and_goes_on_after_some_quiet(changes: dict[str, object]) -> None:
    start = tonight().starts
    made = governor()
    made.knows(BEFORE)
    assert made.look(QUIET, start).works
    made.knows(replace(BEFORE, began=start, date=made.date, finished=False))
    assert not made.look(replace(QUIET, **changes), Instant(start + 1)).works  # type: ignore[arg-type]
    assert not made.look(QUIET, Instant(start + 2)).works
    assert not made.look(QUIET, Instant(start + 3 * MIN)).works
    assert made.look(QUIET, Instant(start + 3 * MIN + 1)).works


def test_idleness_of_three_minutes_is_enough_to_go_on_but_not_to_begin() -> None:
    seen = replace(QUIET, idle_s=200.0)
    now = tonight()
    begun = replace(BEFORE, began=now.starts, date=now.date, finished=False)
    assert look(seen, now.starts, begun).works
    assert not look(seen, now.starts).works


def test_the_energy_of_a_night_is_a_budget_and_the_next_night_has_its_own() -> None:
    now = tonight()
    hours = 150 / 8  # of one core, at 8 W
    spent = replace(BEFORE, began=now.starts, date=now.date, finished=False, cpu_s=hours * HOUR)
    verdict = look(QUIET, now.starts, spent)
    assert verdict.state is State.RESTS and "150 Wh" in verdict.why
    assert look(QUIET, tonight(day="2026-11-24").closes - 1, spent).works  # type: ignore[arg-type]


def test_the_bytes_of_a_night_are_a_budget_for_fetching_alone() -> None:
    now = tonight()
    made = governor()
    made.knows(replace(BEFORE, began=now.starts, date=now.date, finished=False, bytes=200_000_000))
    assert made.look(QUIET, now.starts).works
    assert made.allows(Work.ROUND) and not made.allows(Work.FETCH) and made.allows(Work.SERVE)
    made.knows(replace(BEFORE, bytes=200_000_000))  # of the night before
    assert made.look(QUIET, now.starts).works and made.allows(Work.FETCH)


# ---- the owner ---------------------------------------------------------------------------------


def test_a_pause_stands_above_everything_until_it_ends_or_is_taken_back() -> None:
    now = tonight().starts
    paused = replace(BEFORE, paused=True)
    for config in ({}, {"window": "always"}):
        verdict = look(QUIET, now, paused, **config)
        assert verdict.state is State.PAUSED and "groove-node resume" in verdict.until
        for_a_while = replace(paused, paused_until=Instant(now + 5))
        assert look(QUIET, now, for_a_while, **config).at == now + 5
        assert look(QUIET, Instant(now + 5), for_a_while, **config).works


@given(senses, moments)
def test_always_heeds_nothing_but_a_pause(seen: Senses, now: Instant) -> None:
    made = governor(window="always")
    assert made.look(seen, now).works
    assert all(made.allows(work) for work in Work)


@given(senses, moments, records, windows | st.just("always"), st.sampled_from(ZONES))
def test_any_machine_at_any_time_gets_a_verdict_with_its_reason_and_its_end(
    seen: Senses, now: Instant, record: Record, window: str, zone: ZoneInfo
) -> None:
    made = governor(zone, window=window)
    made.knows(record)
    verdict = made.look(seen, now)
    assert verdict.why and verdict.line().startswith(verdict.state.value)
    assert verdict.works or verdict.until
    assert verdict.at is None or verdict.at >= now
    assert made.allows(Work.ROUND) is verdict.works
    assert made.look(seen, now).works in (verdict.works, False)


@given(senses, records, windows, moments)
def test_outside_of_what_is_quiet_nothing_works(
    seen: Senses, record: Record, window: str, now: Instant
) -> None:
    made = governor(window=window)
    made.knows(record)
    if made.look(seen, now).works:
        assert not seen.on_battery and not seen.low_power and not seen.metered
        assert not seen.model_server and (seen.load or 0) < 0.3
        assert seen.idle_s is None or seen.idle_s >= MIN
