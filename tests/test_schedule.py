"""When a round is due, what it is expected to take, and what a running node does about both."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from leaves.model import Instant
from node import planning, rounds, schedule
from node.app import App
from node.capture import CURRENT_CONSENT_VERSION, Scope, TrainingRecord
from node.config import RoundsConfig
from node.rounds import round_due
from node.schedule import BACK_OFF_S, BACK_OFF_S_MAX, Scheduler, Tries, back_off_s
from node.told import Told

NOW = Instant(1_700_000_000)
HOUR = 3600


@pytest.mark.parametrize(
    ("last", "new", "due"),
    [
        (None, 0, False),
        (None, 1, True),
        (NOW - HOUR, 0, False),
        (NOW - HOUR, 199, False),
        (NOW - HOUR, 200, True),
        (NOW - 20 * HOUR + 1, 0, False),  # nights may be some hours less than a day apart
        (NOW - 20 * HOUR, 0, True),
        (NOW + HOUR, 0, True),  # the clock was set back: it is not put off for ever
    ],
)
def test_a_round_is_due_daily_or_when_enough_sessions_are_new(
    last: int | None, new: int, due: bool
) -> None:
    begun = Instant(last) if last is not None else None
    assert (round_due(begun, NOW, new, RoundsConfig()) is not None) is due


@given(st.integers(0, 10**9))
def test_the_more_a_round_fails_the_longer_it_is_left_alone(failures: int) -> None:
    assert back_off_s(failures) <= back_off_s(failures + 1) <= BACK_OFF_S_MAX
    assert (back_off_s(failures) == 0) is (failures == 0)


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def now_s(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(tmp_path: Path, clock: Clock) -> App:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "groove.toml").write_text("[rounds]\nauto = true\n")
    app = App(home, clock)
    app.consent.record_consent(app.user_id, True, CURRENT_CONSENT_VERSION, scopes=(Scope.CAPTURE,))
    return app


def capture(app: App, sessions: int, start: int = 0) -> None:
    for number in range(start, start + sessions):
        for kind in ("prompt", "completion"):
            app.corpus.add_record(
                TrainingRecord(
                    record_id=f"{kind[0]}{number:031x}",
                    user_id=app.user_id,
                    session_id=f"s{number}",
                    timestamp=float(NOW),
                    domain="code",
                    content_type=kind,
                    content=f"why {number}?",
                    metadata={},
                    consent_version=CURRENT_CONSENT_VERSION,
                )
            )


class Starts:
    """Stands for the processes that the node starts."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.commands: list[list[str]] = []
        self.homes: list[str] = []

    async def __call__(
        self, command: list[str], environment: Mapping[str, str], begun: Callable[[int], None]
    ) -> int:
        self.commands.append(command)
        self.homes.append(environment["GROOVE_HOME"])
        return self.code


def looks(app: App, starts: Starts, times: int = 1, told: list[Told] | None = None) -> None:
    scheduler = Scheduler(app, (told if told is not None else []).append, starts)

    async def run() -> None:
        for _ in range(times):
            await scheduler.look()

    trio.run(run)


def test_a_node_starts_no_round_by_itself_if_its_owner_said_so(app: App) -> None:
    capture(app, 1)
    app.forests.begin_round(NOW, "embed", {})
    app.config = msgspec.structs.replace(app.config, rounds=RoundsConfig(auto=False))
    looks(app, starts := Starts())
    assert starts.commands == []


def test_a_node_starts_no_round_without_consent(app: App) -> None:
    capture(app, 1)
    app.consent.revoke_consent(app.user_id)
    looks(app, starts := Starts())
    assert starts.commands == []


def test_sessions_are_counted_by_the_child_and_only_when_there_are_more(
    app: App, clock: Clock
) -> None:
    looks(app, starts := Starts(), times=2)
    assert starts.commands == []  # there is nothing yet
    capture(app, 1)
    looks(app, starts, times=3)
    assert len(starts.commands) == 1
    assert starts.commands[0][1:] == ["-m", "node.cli", "round", "--if-due", "--json"]
    assert starts.homes == [str(app.home)]


def test_a_round_that_was_killed_is_taken_up_again(app: App) -> None:
    app.forests.begin_round(NOW, "train", {})
    looks(app, starts := Starts())
    assert len(starts.commands) == 1


def test_a_round_that_fails_is_not_tried_in_a_hot_loop_even_by_a_new_node(
    app: App, clock: Clock
) -> None:
    app.forests.begin_round(NOW, "train", {})
    told: list[Told] = []
    looks(app, starts := Starts(code=1), times=5, told=told)
    assert len(starts.commands) == 1
    looks(app, starts, told=told)  # of another process
    assert len(starts.commands) == 1
    assert [each.data["failures"] for each in told] == [1]
    clock.now += BACK_OFF_S
    looks(app, starts, times=5, told=told)
    clock.now += BACK_OFF_S
    looks(app, starts, times=5, told=told)
    assert len(starts.commands) == 2
    clock.now += BACK_OFF_S
    looks(app, starts, told=told)
    assert [each.data["failures"] for each in told] == [1, 2, 3]
    starts.code = 0
    clock.now += BACK_OFF_S_MAX
    looks(app, starts)
    assert Scheduler(app, told.append).tries().failures == 0


def test_a_clock_that_was_set_back_does_not_stop_rounds(app: App, clock: Clock) -> None:
    app.forests.begin_round(NOW, "train", {})
    looks(app, Starts(code=1))
    clock.now -= 10 * BACK_OFF_S_MAX
    looks(app, starts := Starts())
    assert len(starts.commands) == 1


def test_a_damaged_note_of_tries_is_none(app: App) -> None:
    (app.home / "rounds").mkdir()
    (app.home / "rounds" / schedule.FILE).write_text("{")
    assert Scheduler(app, lambda told: None).tries() == Tries()


def test_while_a_round_runs_no_other_is_started(app: App) -> None:
    app.forests.begin_round(NOW, "train", {})
    with app.lock("round"):
        looks(app, starts := Starts())
    assert starts.commands == []


def test_a_child_runs_at_the_lowest_priority_and_its_code_is_told() -> None:
    program = "import os,time,sys\nwhile os.nice(0) < 19: time.sleep(0.01)\nsys.exit(7)"

    async def run() -> int:
        with trio.fail_after(60):
            return await schedule.start_idle([sys.executable, "-c", program], {}, lambda pid: None)

    assert trio.run(run) == 7


def test_new_sessions_are_those_that_the_last_round_did_not_know(app: App, clock: Clock) -> None:
    app.config = msgspec.structs.replace(app.config, rounds=RoundsConfig(sessions=2, every_h=1e6))
    assert rounds.due(app) is None
    capture(app, 3)
    clock.now += 48 * HOUR  # they are finished
    assert rounds.due(app) == "there was none yet"
    row = app.forests.begin_round(NOW, "embed", {"sessions": 3})
    assert rounds.due(app) == "one was begun and is not finished"
    app.forests.finish_round(row.id, NOW)
    assert rounds.due(app) is None
    capture(app, 2, start=3)
    clock.now += 48 * HOUR
    assert rounds.due(app) == "2 new sessions, 2 wanted"


# ---- how long ------------------------------------------------------------------------------------


def test_without_measurements_minutes_are_a_guess_and_said_to_be() -> None:
    expected = planning.expect({"embed": 6000, "train": 2, "deploy": 1}, [])
    assert [step.step for step in expected] == ["embed", "train", "deploy"]
    assert not any(step.measured for step in expected)
    assert all("guess" in by for _, _, by in planning.told(expected))


def test_minutes_are_as_former_rounds_took_for_as_much_work() -> None:
    state = planning.with_step({}, "train", 100.0, 1)
    state = planning.with_step(state, "train", 200.0, 1)
    expected = planning.expect({"train": 4}, [state])
    assert expected == (planning.Expected("train", 4, 10.0, True),)
    assert planning.told(expected) == [("training 4 leaves", "10 min", "as measured here")]


def test_a_step_too_short_to_be_measured_is_guessed() -> None:
    state = planning.with_step({}, "embed", 0.2, 3)
    assert not planning.expect({"embed": 10}, [state])[0].measured


@given(st.dictionaries(st.sampled_from(planning.STEPS), st.integers(0, 10**7)))
def test_a_plan_of_any_size_is_told(units: dict[str, int]) -> None:
    expected = planning.expect(units, [])
    assert {step.step for step in expected} == {step for step, count in units.items() if count}
    assert all(math.isfinite(step.minutes) and step.minutes >= 0 for step in expected)
    assert len(planning.told(expected)) == len(expected)
