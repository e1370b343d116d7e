"""A running node's nights: their phases, what they give way to, what a kill leaves of them."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from trio.testing import MockClock

from gossip.driver import PeerStats
from gossip.ports import PeerId
from leaves.model import Instant
from node import heard, night_book
from node.adapters import Adapters, Pace
from node.app import App
from node.config import NightConfig
from node.consent import Scope
from node.governor import Senses
from node.held import Worker
from node.night import Nights, Patience, governor_of
from node.night_book import Book, Phase
from node.schedule import Begun, Scheduler
from node.senses import SensesPort
from node.told import Told
from node.windows import Window, around
from simnet.fakes import QuietMachine, TopicEvaluator

QUIET = Senses(idle_s=36_000.0, on_battery=False, load=0.0, metered=False, model_server="")
EVENING = Instant(1_795_386_600)  # 2026-11-22 22:30 UTC
HOUR, DAY = 3600, 86_400


class Clock:
    """The time of day of a simulated loop; it can jump, as when a machine has slept."""

    def __init__(self) -> None:
        self.start = float(EVENING)
        self._loop_s: float | None = None  # when the loop was first asked: it begins anywhere

    def now_s(self) -> float:
        try:
            now_s = trio.current_time()
        except RuntimeError:  # no loop runs yet
            return self.start
        if self._loop_s is None:
            self._loop_s = now_s
        return self.start + now_s - self._loop_s


class Judge(TopicEvaluator):
    """Knows whether it was stopped."""

    def __init__(self) -> None:
        self.stopped = False

    def pause(self) -> None:
        self.stopped = True

    def resume(self) -> None:
        self.stopped = False


class Machine(Adapters):
    """A machine as the test says that it is; all that it does in threads, it does at once."""

    pace = Pace(night_s=20.0)

    def __init__(self) -> None:
        self.seen = QuietMachine(QUIET)
        self.judge = Judge()

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return work()

    async def in_spare_thread(self, work: Callable[[], Any]) -> Any:
        return await self.in_thread(work)

    def senses(self, home: Path, config: NightConfig) -> SensesPort:
        return self.seen

    def evaluator(self, threads: int) -> Judge:
        return self.judge


@dataclass
class Mesh:
    """Peers that answer each reconciliation with some bytes."""

    there: int = 1
    syncs: int = 0
    held: bool = False
    serving_held: bool = False
    stats: list[PeerStats] = field(default_factory=list)

    def peers(self) -> tuple[PeerStats, ...]:
        while len(self.stats) < self.there:
            self.stats.append(PeerStats(PeerId(f"peer {len(self.stats)}"), "", 0.0))
        return tuple(self.stats[: self.there])

    async def sync(self) -> None:
        await trio.lowlevel.checkpoint()
        self.syncs += 1
        for peer in self.peers():
            peer.bytes_in["sync"] += 1000
            peer.bytes_out["sync"] += 100

    def hold_bundles(self, on: bool) -> None:
        self.held = on

    def hold_serving(self, on: bool) -> None:
        self.serving_held = on


@dataclass
class Fetching:
    """Fetches for a while."""

    long_s: float = 60.0
    by_hand: bool = False
    passes: int = 0

    def wake(self) -> None:
        """A night waits for `at_rest`."""

    async def at_rest(self) -> None:
        self.passes += 1
        await trio.sleep(self.long_s)


@dataclass
class Rounds:
    """Stands for the processes of rounds, each of which lasts for a while."""

    long_s: float = 600.0
    started: list[float] = field(default_factory=list)
    ended: int = 0

    async def __call__(
        self, command: list[str], environment: Mapping[str, str], begun: Begun
    ) -> int:
        self.started.append(trio.current_time())
        await trio.sleep(self.long_s)
        self.ended += 1
        return 0


@dataclass
class Bench:
    """One home, and a node in it that can be killed and started again."""

    home: Path
    clock: Clock = field(default_factory=Clock)
    machine: Machine = field(default_factory=Machine)
    mesh: Mesh = field(default_factory=Mesh)
    fetching: Fetching = field(default_factory=Fetching)
    rounds: Rounds = field(default_factory=Rounds)
    told: list[Told] = field(default_factory=list)
    published: int = 0
    patience: Patience = field(default_factory=Patience)
    asked: int = 0  # of the endpoint
    answering: int = 0

    def app(self) -> App:
        return App(self.home, self.clock, self.machine)

    @asynccontextmanager
    async def node(self) -> AsyncIterator[Nights]:
        """A running node; it ends as by a kill: what is on disk is all that is left."""
        app = self.app()
        governor = governor_of(app)
        scheduler = Scheduler(app, self.told.append, self.rounds, lambda: governor.verdict.works)
        nights = Nights(
            app,
            governor,
            scheduler,
            self.mesh,
            self.fetching,
            self.publish,
            self.told.append,
            self.patience,
            asked=lambda: (self.asked, self.answering),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nights.run)
            try:
                yield nights
            finally:
                nursery.cancel_scope.cancel()

    async def publish(self) -> None:
        await trio.lowlevel.checkpoint()
        self.published += 1

    def reports(self) -> list[dict[str, Any]]:
        return [each.data for each in self.told if each.event == "night"]

    def touch(self, **changes: Any) -> None:
        """The machine is another from now on."""
        self.machine.seen.now = replace(self.machine.seen.now, **changes)


@pytest.fixture
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's own zone, wherever tests run."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def bench(tmp_path: Path, in_utc: None) -> Bench:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    made = Bench(home)
    app = made.app()
    app.consent.record_consent(app.user_id, True, "1.0", scopes=set(Scope))
    app.forests.begin_round(EVENING, "train", {})  # so that one is due in each night
    return made


@pytest.fixture
def mock_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


async def until(check: Callable[[], object], within_s: float = 2 * DAY) -> float:
    """Wait until something holds, and return the loop's time."""
    with trio.fail_after(within_s):
        while not check():
            await trio.sleep(5.0)
    return trio.current_time()


# ---- phases --------------------------------------------------------------------------------------


async def test_each_night_goes_once_through_its_phases_and_is_reported(
    bench: Bench, mock_clock: MockClock
) -> None:
    async with bench.node() as nights:
        await until(bench.reports)
        assert bench.rounds.ended == bench.fetching.passes == 1 and bench.published
        assert bench.mesh.syncs >= 2  # before the round and after it
        (report,) = bench.reports()
        assert report["left"] == [] and 11 <= report["minutes"] <= 15
        assert report["bytes_in"] >= 1000
        assert nights.state()["state"] == "rests" and "next night" in nights.state()["until"]
        with trio.fail_after(5 * DAY):  # the last one's moment may be later than the first one's
            while len(bench.reports()) < 5:
                await trio.sleep(HOUR)
    assert len(bench.reports()) == len(bench.rounds.started) == 5
    assert all(b - a >= 20 * HOUR - 60 for a, b in itertools.pairwise(bench.rounds.started))
    hours = [(bench.clock.start + at) % DAY / HOUR for at in bench.rounds.started]
    assert all(1 <= hour < 5 for hour in hours) and len({round(hour, 2) for hour in hours}) > 1


async def test_a_node_killed_in_any_phase_goes_on_with_it_and_repeats_no_other(
    bench: Bench, mock_clock: MockClock
) -> None:
    def done() -> tuple[Phase, ...]:
        pages = night_book.read(bench.home)
        return pages.done if pages else ()

    kills = 0
    for phase in (Phase.CATCH_UP, Phase.ROUND, Phase.PUBLISH, Phase.RECONCILE, Phase.FETCH):
        async with bench.node():
            with trio.fail_after(2 * DAY):
                while phase not in done() and not bench.reports():
                    await trio.sleep(1.0)
            kills += 1
    async with bench.node():
        await until(bench.reports)
    assert kills == 5
    assert bench.rounds.ended == 1 and bench.published == 1
    assert len(bench.reports()) == 1 and done()[-1] is Phase.REPORT


async def test_a_night_whose_node_was_killed_for_good_is_reported_by_the_next(
    bench: Bench, mock_clock: MockClock
) -> None:
    async with bench.node():
        await until(lambda: bench.rounds.started)
    bench.clock.start += 10 * HOUR
    async with bench.node():
        await until(bench.reports, within_s=HOUR)
    assert "round" in bench.reports()[0]["left"]


async def test_what_a_night_has_cost_is_counted_across_restarts(
    bench: Bench, mock_clock: MockClock
) -> None:
    bench.rounds.long_s = 1800.0
    for _ in range(2):
        async with bench.node():
            await until(lambda: bench.rounds.started)
            bench.rounds.started.clear()
            bench.machine.seen.own_cpu_s += 3600.0
            await trio.sleep(130.0)
            bench.machine.seen.own_cpu_s = 0.0  # of the next process
    pages = night_book.read(bench.home)
    assert pages is not None and pages.cpu_s == 7200.0
    assert pages.bytes_in >= 2000


# ---- giving way ----------------------------------------------------------------------------------


async def test_a_night_waits_while_somebody_is_there_and_says_what_for(
    bench: Bench, mock_clock: MockClock
) -> None:
    bench.touch(on_battery=True, battery=0.62)
    async with bench.node() as nights:
        await until(lambda: nights.state()["state"] == "waits")
        assert nights.state()["why"] == "on battery (62%)"
        assert nights.state()["until"] == "goes on when plugged in"
        bench.touch(on_battery=False)
        await until(lambda: bench.rounds.started, within_s=60)


async def test_at_the_end_of_the_window_a_night_stops_and_its_rest_is_left(
    bench: Bench, mock_clock: MockClock
) -> None:
    bench.rounds.long_s = DAY
    async with bench.node():
        await until(bench.reports)
    (report,) = bench.reports()
    assert report["left"] == ["round", "publish", "reconcile", "fetch and judge"]
    assert report["ended"] % DAY // 60 == 5 * 60
    assert bench.rounds.ended == 0 and bench.mesh.held


async def test_bundles_and_judging_are_held_by_day_but_not_from_who_asks_by_hand(
    bench: Bench, mock_clock: MockClock
) -> None:
    async with bench.node():
        await until(lambda: bench.mesh.held and bench.machine.judge.stopped)
        assert not bench.mesh.serving_held
        bench.fetching.by_hand = True
        await until(lambda: not bench.mesh.held and not bench.machine.judge.stopped, 60)
        bench.fetching.by_hand = False
        await until(lambda: bench.mesh.held, 60)
        await until(lambda: bench.rounds.started)
        assert not bench.mesh.held and not bench.machine.judge.stopped


# ---- the owner -----------------------------------------------------------------------------------


async def test_a_pause_is_heeded_by_the_next_look_and_by_the_next_node_until_it_ends(
    bench: Bench, mock_clock: MockClock
) -> None:
    night_book.pause(bench.home, EVENING, 6 * HOUR)
    async with bench.node() as nights:
        await until(lambda: bench.mesh.serving_held, 60)
        assert nights.state()["state"] == "paused"
    async with bench.node() as nights:
        await until(lambda: nights.state()["state"] == "paused", 60)
        at = await until(lambda: bench.rounds.started)
        assert bench.clock.start + at >= EVENING + 6 * HOUR
        night_book.pause(bench.home, bench.app().now(), None)
        await until(lambda: nights.state()["why"] == "by you", 60)
        assert night_book.resume(bench.home) and not night_book.resume(bench.home)
        await until(lambda: nights.state()["state"] != "paused", 60)


def test_a_pause_that_cannot_be_read_is_one(tmp_path: Path) -> None:
    (tmp_path / night_book.PAUSE_FILE).write_text("{")
    assert Book(tmp_path, EVENING).record().paused


def test_a_damaged_book_begins_anew_and_has_missed_nothing(tmp_path: Path) -> None:
    (tmp_path / night_book.FILE).write_bytes(b"\xff{")
    book = Book(tmp_path, EVENING)
    assert book.record().since == EVENING and book.record().began is None


# ---- processes -----------------------------------------------------------------------------------

SPIN = "while True: pass"
BELOW = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SPIN!r}])"
TREE = (
    "import subprocess, sys\n"
    f"subprocess.Popen([sys.executable, '-c', {BELOW!r}], start_new_session=True)\n{SPIN}"
)


def states(pid: int) -> list[str]:
    """Of a process and all below it."""
    try:
        root = psutil.Process(pid)
        return [each.status() for each in (root, *root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


async def wait_for(check: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not check():
            await trio.sleep(0.02)


@dataclass
class Spinning:
    """Rounds that are real processes with children in sessions of their own."""

    pids: list[int] = field(default_factory=list)

    async def __call__(
        self, command: list[str], environment: Mapping[str, str], begun: Begun
    ) -> int:
        from node.schedule import start_idle

        def told(pid: int) -> None:
            self.pids.append(pid)
            begun(pid)

        return await start_idle([sys.executable, "-c", TREE], environment, told)


@pytest.fixture
def busy(bench: Bench) -> Bench:
    """In a night at once, with rounds that are processes."""
    bench.machine.pace = Pace(night_s=0.05)
    bench.patience = Patience(peer_s=0.0, answer_s=0.0)
    bench.rounds = Spinning()  # type: ignore[assignment]
    (bench.home / "groove.toml").write_text('[night]\nwindow = "00:00-24:00"\nagain_min = 0\n')
    app = bench.app()
    window = Window.parse(app.config.night.window)
    assert window is not None
    _, coming = around(window, app.now(), governor_of(app).secret)
    Book(bench.home, coming.starts).works(None)  # nothing before was missed
    bench.clock.start = float(coming.starts + 1)
    return bench


async def test_a_round_and_all_that_it_started_is_stopped_and_goes_on_and_is_ended(
    busy: Bench,
) -> None:
    rounds: Any = busy.rounds
    async with busy.node() as nights:
        await wait_for(lambda: bool(rounds.pids) and len(states(rounds.pids[0])) == 3)
        root = rounds.pids[0]
        for gone, back in (
            ({"model_server": "ollama"}, {"model_server": ""}),
            ({"idle_s": 0.0}, {"idle_s": 9e4}),
        ):
            busy.touch(**gone)
            await wait_for(lambda: set(states(root)) == {psutil.STATUS_STOPPED})
            assert nights.state()["phase"] == "round"
            busy.touch(**back)
            await wait_for(lambda: psutil.STATUS_STOPPED not in states(root))
            assert len(states(root)) == 3
        busy.touch(idle_s=0.0)
        await wait_for(lambda: set(states(root)) == {psutil.STATUS_STOPPED})
        tree = [root, *(each.pid for each in psutil.Process(root).children(recursive=True))]
    for pid in tree:
        await wait_for(lambda pid=pid: not _runs(pid))  # type: ignore[misc]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_round_that_is_held_for_long_is_ended_and_taken_up_again(
    busy: Bench,
) -> None:
    busy.patience = replace(busy.patience, held_s=0.2)
    rounds: Any = busy.rounds
    async with busy.node():
        await wait_for(lambda: bool(rounds.pids))
        busy.touch(load=0.9)
        await wait_for(lambda: not _runs(rounds.pids[0]))
        busy.touch(load=0.0)
        await wait_for(lambda: len(rounds.pids) == 2)
    assert Scheduler(busy.app(), busy.told.append).tries().failures == 0


async def test_a_round_that_a_killed_node_left_stopped_is_ended_by_the_next(bench: Bench) -> None:
    left = subprocess.Popen([sys.executable, "-c", TREE], start_new_session=True)
    try:
        psutil.Process(left.pid).suspend()
        Book(bench.home, EVENING).works(Worker.of(left.pid))
        async with bench.node():
            await wait_for(lambda: not _runs(left.pid))
    finally:
        left.kill()
        left.wait()
    pages = night_book.read(bench.home)
    assert pages is not None and pages.worker is None


def test_a_process_that_has_the_number_of_a_former_one_is_not_taken_for_it() -> None:
    this = Worker.of(psutil.Process().pid)
    assert this is not None and this.lives()
    assert not Worker(this.pid, this.created - 60.0).lives()


# ---- after a long silence ------------------------------------------------------------------------


async def test_a_node_that_peers_were_silent_to_for_a_week_hears_them_out_and_notes_it(
    bench: Bench, mock_clock: MockClock
) -> None:
    heard.note(bench.home, Instant(EVENING - 8 * DAY))
    assert heard.silent(bench.home, EVENING)
    async with bench.node():
        await until(lambda: not heard.silent(bench.home, bench.app().now()), 600)
        syncs = bench.mesh.syncs
        bench.clock.start += 9 * DAY  # the machine sleeps, the loop's clock stands still
        assert heard.silent(bench.home, bench.app().now())
        await until(lambda: not heard.silent(bench.home, bench.app().now()), 600)
        assert bench.mesh.syncs > syncs


async def test_without_a_peer_a_silence_lasts(bench: Bench, mock_clock: MockClock) -> None:
    bench.mesh.there = 0
    heard.note(bench.home, Instant(EVENING - 8 * DAY))
    async with bench.node():
        await trio.sleep(HOUR)
        assert heard.silent(bench.home, bench.app().now())
        bench.mesh.there = 1
        await until(lambda: not heard.silent(bench.home, bench.app().now()), 600)


def test_a_node_that_never_heard_anybody_has_nothing_to_leave_out(tmp_path: Path) -> None:
    assert not heard.silent(tmp_path, EVENING)
    heard.note(tmp_path, Instant(EVENING + 90 * DAY))  # and then the clock was set back
    assert not heard.silent(tmp_path, EVENING)


async def test_work_waits_as_long_as_the_endpoint_answers_somebody_and_for_some_quiet_after(
    bench: Bench, mock_clock: MockClock
) -> None:
    bench.rounds.long_s = 3 * HOUR
    async with bench.node() as nights:
        await until(lambda: bench.rounds.started)
        bench.answering = 1  # a long answer that has only begun
        asked_s = await until(lambda: nights.state()["state"] == "waits", 60.0)
        assert nights.state()["why"] == "you ask the endpoint"
        await trio.sleep(HOUR)
        assert nights.state()["state"] == "waits", asked_s
        bench.asked, bench.answering = 1, 0
        ended_s = trio.current_time()
        back_s = await until(lambda: nights.state()["state"] == "works", HOUR)
        assert back_s - ended_s >= 60.0
