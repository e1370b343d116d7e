"""Files of nights that hold anything at all, clocks that are stepped, and looks that fail: a node
starts all the same, and does less by itself rather than more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from test_night import EVENING, HOUR, TREE, Bench, in_utc, wait_for
from test_night import bench as bench
from test_night import busy as busy

from leaves.model import Instant
from node import held, night_book, show_night
from node.governor import Record, State, Work
from node.held import Worker
from node.night_book import Book, Phase
from node.senses import MachineSenses
from node.windows import Window, around

__all__ = ["in_utc"]  # a fixture of the benches

DEEP = b"[" * 100_000
BOOKS = {
    "bytes that are no text": b'{"since":0,"date":"\xff"}',
    "deep": b'{"since":0,"report":{"a":' + DEEP,
    "deep in what is not known": b'{"since":0,"later":' + DEEP,
    "a time after all calendars": b'{"since":1000000000000000}',
    "a beginning after all calendars": b'{"since":0,"began":1000000000000000}',
    "a time before the first": b'{"since":-5}',
    "a negative cost": b'{"since":0,"bytes_in":-1}',
    "the process of the whole machine": b'{"since":0,"worker":{"pid":1,"created":0}}',
    "a group of processes": b'{"since":0,"worker":{"pid":-5,"created":0}}',
    "a process beyond all": b'{"since":0,"worker":{"pid":1e30,"created":0}}',
    "many phases": b'{"since":0,"done":[' + b",".join([b'"round"'] * 9) + b"]}",
    "large": b'{"since":0,"date":"' + b"x" * (2 << 20) + b'"}',
}
PAUSES = {
    "bytes that are no text": b'{"at":0,"x":"\xff"}',
    "deep": DEEP,
    "until after all calendars": b'{"at":0,"until":1000000000000000}',
    "until a fraction": b'{"at":0,"until":1.5}',
    "nothing": b"",
}


@pytest.mark.parametrize("blob", BOOKS.values(), ids=BOOKS.keys())
def test_a_book_that_holds_anything_begins_anew_and_is_kept_aside(
    tmp_path: Path, blob: bytes
) -> None:
    (tmp_path / night_book.FILE).write_bytes(blob)
    assert night_book.read(tmp_path) is None
    book = Book(tmp_path, EVENING)
    assert book.record() == Record(since=EVENING)
    aside = tmp_path / f"{night_book.FILE}.damaged"
    assert aside.read_bytes() == blob and aside.name in book.damaged
    book.finish(Phase.ROUND)
    assert Book(tmp_path, EVENING).pages.done == (Phase.ROUND,)


@pytest.mark.parametrize("blob", PAUSES.values(), ids=PAUSES.keys())
def test_a_pause_that_holds_anything_lasts_until_it_is_taken_back(
    tmp_path: Path, blob: bytes
) -> None:
    (tmp_path / night_book.PAUSE_FILE).write_bytes(blob)
    record = Book(tmp_path, EVENING).record()
    assert (record.paused, record.paused_until) == (True, None)
    assert night_book.resume(tmp_path) and not Book(tmp_path, EVENING).record().paused


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in (night_book.FILE, night_book.PAUSE_FILE):
        os.mkfifo(tmp_path / name)
    assert Book(tmp_path, EVENING).record().paused


@given(st.binary(max_size=200) | st.from_regex(rb'\{"since":\d{1,20}(,"began":\d{1,20})?\}'))
@settings(max_examples=200, deadline=None)
def test_no_bytes_break_a_book(tmp_path_factory: pytest.TempPathFactory, blob: bytes) -> None:
    home = tmp_path_factory.mktemp("home")
    for name in (night_book.FILE, night_book.PAUSE_FILE):
        (home / name).write_bytes(blob)
    assert Book(home, EVENING).record().paused


def test_a_report_that_cannot_be_shown_is_left_out_and_its_book_stands(tmp_path: Path) -> None:
    for report in (
        b'{"a":1}',
        b'{"began":1000000000000000}',
        b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
    ):
        (tmp_path / night_book.FILE).write_bytes(b'{"since":7,"report":' + report + b"}")
        pages = night_book.read(tmp_path)
        assert pages is not None and (pages.since, pages.report) == (7, {})


async def test_a_node_with_damaged_files_runs_tells_so_and_is_paused(bench: Bench) -> None:
    (bench.home / night_book.FILE).write_bytes(BOOKS["deep"])
    (bench.home / night_book.PAUSE_FILE).write_bytes(PAUSES["until after all calendars"])
    assert show_night.standing(bench.app(), None)["state"] == State.PAUSED
    async with bench.node() as nights:
        await wait_for(lambda: bench.mesh.serving_held)
        assert nights.state()["why"] == "pause.json cannot be read"
        assert "groove-node resume" in nights.state()["until"]
    assert [each.event for each in bench.told] == ["nights damaged"]


async def test_a_pause_that_is_damaged_while_a_round_runs_stops_it(busy: Bench) -> None:
    rounds: Any = busy.rounds
    async with busy.node() as nights:
        await wait_for(lambda: bool(rounds.pids))
        (busy.home / night_book.PAUSE_FILE).write_bytes(PAUSES["until after all calendars"])
        await wait_for(lambda: psutil.Process(rounds.pids[0]).status() == psutil.STATUS_STOPPED)
        assert nights.state()["state"] == "paused" and busy.mesh.held


async def test_a_judgement_that_fails_is_that_nothing_may_work_until_one_does_not(
    busy: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: Any = busy.rounds
    async with busy.node() as nights:
        await wait_for(lambda: bool(rounds.pids))
        with monkeypatch.context() as broken:
            broken.setattr(Book, "record", _fails)
            await wait_for(lambda: nights.state()["state"] == "waits")
            assert "OSError" in nights.state()["why"]
            root = psutil.Process(rounds.pids[0])
            await wait_for(lambda: root.status() == psutil.STATUS_STOPPED)
            assert busy.mesh.held and busy.mesh.serving_held
        await wait_for(lambda: nights.state()["state"] == "works")
        await wait_for(lambda: root.status() != psutil.STATUS_STOPPED)
        assert not busy.mesh.held and not busy.mesh.serving_held


async def test_nights_that_fail_leave_nothing_at_work_and_can_be_run_again(busy: Bench) -> None:
    rounds: Any = busy.rounds
    read = busy.machine.seen.read
    with pytest.raises(ExceptionGroup):
        async with busy.node() as nights:
            await wait_for(lambda: bool(rounds.pids))
            busy.machine.seen.read = _fails  # type: ignore[method-assign]
            await wait_for(lambda: False)
    assert nights.state()["state"] == "waits" and "OSError" in nights.state()["why"]
    assert not any(nights._governor.allows(work) for work in Work)
    assert busy.mesh.held and busy.mesh.serving_held
    await wait_for(lambda: not psutil.pid_exists(rounds.pids[0]))
    busy.machine.seen.read = read  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nights.run)
        await wait_for(lambda: len(rounds.pids) == 2)
        nursery.cancel_scope.cancel()


def _fails(*_: object) -> Any:
    raise OSError("gone")


# ---- clocks --------------------------------------------------------------------------------------


def test_a_worker_is_known_again_after_the_clock_was_stepped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """psutil dates processes by the wall, and by when the machine was started: both move."""
    child = subprocess.Popen([sys.executable, "-c", TREE], start_new_session=True)
    try:
        worker = Worker.of(child.pid)
        assert worker is not None and worker.lives()
        if sys.platform == "linux":
            dated = psutil.Process.create_time
            monkeypatch.setattr(psutil.Process, "create_time", lambda self: dated(self) + 10.0)
            assert worker.lives()
            assert not Worker(worker.pid, worker.created, "another boot").lives()
        assert not Worker(worker.pid, worker.created + 100.0, worker.boot).lives()
    finally:
        held.end(child.pid)
        child.wait()
    assert not worker.lives()


@pytest.mark.parametrize("pid", [-5, 0, 1, 2**31, 10**30])
def test_what_is_no_process_of_a_round_is_never_taken_for_one(pid: int) -> None:
    assert Worker.of(pid) is None and not Worker(pid, 0.0).lives()


@pytest.mark.parametrize(
    "zone", ["garbage", ":/etc/passwd", "AAA+167:59:59", "AAA-167:59", "AAA+24BBB,0/0,J365/167", ""]
)
def test_a_zone_that_is_none_still_has_nights(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window.parse("23:00-05:00")
    assert window is not None
    try:
        with monkeypatch.context() as patched:
            patched.setenv("TZ", zone)
            time.tzset()
            for hour in range(0, 366 * 24, 7):
                now = Instant(EVENING + hour * HOUR)
                last, coming = around(window, now, b"secret")
                assert last.opens <= now < coming.opens and last.opens < last.closes
    finally:
        time.tzset()


# ---- senses --------------------------------------------------------------------------------------


def test_a_terminal_that_closes_between_two_looks_is_left_out(tmp_path: Path) -> None:
    from node.config import NightConfig

    senses = MachineSenses(
        tmp_path, NightConfig(), system="other", terminals=lambda: [tmp_path / "gone"]
    )
    assert senses.read().idle_s is None
