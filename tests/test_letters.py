"""Orders to a running node whose mailbox is full, held or long; and its tasks, kept apart."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from node.app import App
from node.daemon import Daemon
from node.fencing import WAIT_S, WAIT_S_MAX, Fence
from node.letters import Letters
from node.mailbox import ANSWERED_KEPT_MAX, ANSWERED_KEPT_S, Dial, Fetch, Letter, Mailbox, Retract

FETCH = Fetch("aa" * 32, "bb")
HANGS_S = 60.0


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    opened = App.open(create=True)
    assert opened.origin
    return opened


@contextmanager
def held(home: Path) -> Iterator[None]:
    """As a program that copies the database holds it."""
    with closing(sqlite3.connect(home / "mailbox.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


class Doing:
    """Carries orders out and counts how often."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.fails: Exception | None = None

    async def __call__(self, letter: Letter) -> dict[str, Any]:
        self.done.append(letter.id)
        if self.fails is not None:
            raise self.fails
        return {"of": letter.id}


async def test_an_order_whose_answer_cannot_be_written_is_carried_out_once_and_answered_later(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    doing = Doing()
    letters = Letters(app, doing)
    app.mailbox.wait_at_most(0.01)
    first, second = app.mailbox.post(Dial("x"), 1.0), app.mailbox.post(FETCH, 1.0)
    with trio.fail_after(HANGS_S):
        async with trio.open_nursery() as fetches:
            with held(app.home):
                for _ in range(3):
                    await letters.look(fetches)
                    await trio.testing.wait_all_tasks_blocked()
            assert app.mailbox.answer_to(first) is None
            await letters.look(fetches)
    assert doing.done == [first, second]
    assert app.mailbox.answer_to(first) == {"of": first}
    assert app.mailbox.answer_to(second) == {"of": second}
    assert sum("mailbox cannot be used" in line for line in caplog.messages) == 1


async def test_the_loop_goes_on_while_another_program_holds_the_mailbox(app: App) -> None:
    letters = Letters(app, Doing())
    app.mailbox.post(FETCH, 1.0)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.sleep(0.01)

    with trio.fail_after(HANGS_S), held(app.home):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await letters.look()
            nursery.cancel_scope.cancel()
    assert turns > 10


@pytest.mark.network
async def test_a_fetch_order_on_a_full_disk_does_not_end_the_node(app: App) -> None:
    daemon = Daemon(app, "/ip4/127.0.0.1/tcp/0", lambda told: None)
    mailbox: Any = app.mailbox
    letter = app.mailbox.post(FETCH, 1.0)
    (pages,) = mailbox._db.execute("PRAGMA page_count").fetchone()
    mailbox._db.execute(f"PRAGMA max_page_count = {pages}")
    mailbox._db.execute(
        "CREATE TEMP TRIGGER full BEFORE UPDATE ON letter BEGIN "
        "INSERT INTO letter (order_, posted) VALUES (zeroblob(1000000), 0); END"
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.run)
        with trio.fail_after(HANGS_S):
            while letter not in daemon._letters._answers:
                await trio.sleep(0.01)
            await trio.sleep(1.2)  # two polls that cannot write
            assert app.mailbox.answer_to(letter) is None
            mailbox._db.execute("DROP TRIGGER full")  # there is room again
            while app.mailbox.answer_to(letter) is None:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_a_fetch_fails_alone_whatever_it_fails_of(app: App) -> None:
    doing = Doing()
    doing.fails = sqlite3.OperationalError("database or disk is full")
    letters = Letters(app, doing)
    letter = app.mailbox.post(FETCH, 1.0)
    async with trio.open_nursery() as fetches:
        await letters.look(fetches)
    await letters.look()
    assert "full" in (app.mailbox.answer_to(letter) or {})["error"]


async def test_a_retraction_that_fails_of_the_machine_stays_an_order(app: App) -> None:
    doing = Doing()
    doing.fails = sqlite3.OperationalError("database or disk is full")
    letters = Letters(app, doing)
    letter = app.mailbox.post(Retract(None), 1.0)
    with pytest.raises(sqlite3.OperationalError):
        await letters.look()
    doing.fails = None
    await letters.look()
    assert app.mailbox.answer_to(letter) == {"of": letter}


def test_old_answers_and_all_but_the_latest_are_forgotten_and_no_order_is(tmp_path: Path) -> None:
    box = Mailbox(tmp_path)
    waits = box.post(Retract(None), 0.0)
    old = [box.post(FETCH, 0.0) for _ in range(3)]
    box.answer_all({id_: {} for id_ in old}, 0.0)
    many = [box.post(FETCH, 0.0) for _ in range(ANSWERED_KEPT_MAX + 5)]
    box.answer_all({id_: {} for id_ in many}, ANSWERED_KEPT_S + 1.0)
    assert [letter.id for letter in box.waiting()] == [waits]
    assert [id_ for id_ in old if box.answer_to(id_) is not None] == []
    assert [id_ for id_ in many if box.answer_to(id_) is not None] == many[5:]


def test_no_number_of_a_letter_is_given_twice(tmp_path: Path) -> None:
    box = Mailbox(tmp_path)
    last = [box.post(FETCH, 0.0) for _ in range(3)][-1]
    box.answer_all({1: {}, 2: {}, 3: {}}, 0.0)
    box.answer_all({last: {}}, 0.0)
    fresh = box.post(FETCH, 0.0)
    box.answer_all({fresh: {}}, 2 * ANSWERED_KEPT_S)
    assert box.post(FETCH, 0.0) == fresh + 1 == last + 2


def test_an_idle_poll_reads_no_answered_letter(tmp_path: Path) -> None:
    box: Any = Mailbox(tmp_path)
    plan = box._db.execute(
        "EXPLAIN QUERY PLAN SELECT id, order_ FROM letter WHERE answer IS NULL ORDER BY id"
    ).fetchall()
    assert ["letter_waiting" in row[-1] for row in plan] == [True]


# ---- the fence -----------------------------------------------------------------------------------


async def test_a_task_that_goes_on_failing_is_tried_less_and_less_and_said_once_at_length(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    at: list[float] = []

    async def work() -> None:
        at.append(trio.current_time())
        raise OSError("no space left")

    with trio.move_on_after(3_000):
        await Fence(work).every(1.0)
    waits = [round(b - a) for a, b in pairwise(at)]
    assert waits[:3] == [WAIT_S, 2 * WAIT_S, 4 * WAIT_S] and max(waits) == WAIT_S_MAX
    failures = [record for record in caplog.records if "task failed" in record.message]
    assert ["in Fence.every" in record.message for record in failures] == [True] + [False] * (
        len(at) - 1
    )
    assert all("no space left" in record.message for record in failures)


async def test_what_a_task_was_working_on_is_not_in_the_log_when_it_fails(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        raise ValueError("my secret prompt")

    with trio.move_on_after(3):
        await Fence(work).keep()
    assert "ValueError in " in caplog.text and "secret" not in caplog.text


async def test_a_task_that_has_worked_since_is_tried_soon_again(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    at: list[float] = []

    async def work() -> None:
        at.append(trio.current_time())
        if len(at) not in (4, 5):
            raise OSError("no space left")

    with trio.move_on_after(60):
        await Fence(work).every(1.0)
    assert [round(b - a) for a, b in pairwise(at)][:6] == [5, 10, 20, 1, 1, 5]


async def test_a_long_task_that_fails_after_a_while_is_started_again_soon(
    autojump_clock: trio.testing.MockClock,
) -> None:
    at: list[float] = []

    async def work() -> None:
        at.append(trio.current_time())
        await trio.sleep(100)
        raise OSError("lost")

    with trio.move_on_after(320):
        await Fence(work).keep()
    assert [round(b - a) for a, b in pairwise(at)] == [105, 105, 105]


async def test_an_order_of_another_process_is_found_after_any_number_of_quiet_looks(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    doing = Doing()
    letters = Letters(app, doing)
    read: list[int] = []
    waiting = app.mailbox.waiting
    monkeypatch.setattr(app.mailbox, "waiting", lambda: read.append(1) or waiting())
    for _ in range(20):
        await letters.look()
    assert len(read) < 5  # a quiet mailbox is not read
    with closing(Mailbox(app.home)) as others:
        letter = others.post(Dial("x"), 1.0)
    for _ in range(2):
        await letters.look()
    assert doing.done == [letter]
    with closing(Mailbox(app.home)) as others:
        assert others.answer_to(letter) == {"of": letter}
