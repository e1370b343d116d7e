"""The queue on the hot path: bounded, quick, and never the caller's trouble."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support_capture import USER, Capture, capture

from node.capture import CaptureItem, CaptureQueue, CaptureSession, SessionEnd
from node.capture.corpus import CorpusError
from node.capture.queue import BYTES_MAX, open_queue
from node.capture.sizes import NODES_MAX
from node.home import get_or_create_user_id
from node.tally import Tally


class Held:
    """Opens sessions only once it is let go: a worker on a slow disk."""

    def __init__(self, open_session: Callable[[str], CaptureSession]) -> None:
        self._open = open_session
        self.reached, self.release = threading.Event(), threading.Event()

    def __call__(self, session_id: str) -> CaptureSession:
        self.reached.set()
        self.release.wait(60)
        return self._open(session_id)


@pytest.fixture
def made(tmp_path: Path) -> Capture:
    return capture(tmp_path)


@pytest.fixture
def queue(made: Capture) -> Iterator[CaptureQueue]:
    queue = CaptureQueue(made.session).start()
    yield queue
    queue.close(60)


def contents(made: Capture) -> list[str]:
    return [record.content for record in made.corpus.records() if not record.closes]


def test_what_is_offered_is_in_the_corpus_when_the_queue_is_closed(
    made: Capture, queue: CaptureQueue
) -> None:
    assert queue.offer(CaptureItem("s", "ask ann@example.com", "prompt", {"model_name": "qwen3"}))
    assert queue.offer({"session_id": "s", "content": "done", "content_type": "completion"})
    assert queue.offer(SessionEnd("s", "accepted"))
    assert queue.close(60)
    assert contents(made) == ["ask [EMAIL]", "done"]
    (session,) = made.corpus.sessions()
    assert (session.outcome, session.closed) == ("accepted", True)
    assert queue.counters.captured == 2
    assert queue.counters.waiting == 0


def test_a_full_queue_drops_and_counts_and_does_not_wait(made: Capture) -> None:
    held = Held(made.session)
    queue = CaptureQueue(held, items_max=10).start()
    item = CaptureItem("s", "text", "prompt")
    assert queue.offer(item)
    assert held.reached.wait(60)
    accepted = sum(queue.offer(item) for _ in range(50))
    assert accepted == 10
    assert queue.counters.dropped_full == 40
    held.release.set()
    queue.close(60)
    assert queue.counters.captured == 11


def test_a_closed_queue_takes_nothing(queue: CaptureQueue) -> None:
    assert queue.close(60)
    assert not queue.offer(CaptureItem("s", "text", "prompt"))
    assert queue.counters.dropped_full == 1


def test_whatever_is_offered_no_exception_reaches_the_caller_and_the_worker_goes_on(
    made: Capture, queue: CaptureQueue
) -> None:
    for nonsense in (None, 7, {}, {"session_id": "s"}, CaptureItem("s", "t", "thought")):
        queue.offer(nonsense)  # type: ignore[arg-type]
    queue.offer(CaptureItem("s", None, "prompt"))  # type: ignore[arg-type]
    queue.offer(CaptureItem("s", "text", "prompt"))
    queue.close(60)
    assert contents(made) == ["text"]
    assert queue.counters.captured == 1
    assert queue.counters.dropped_error == 6


def test_a_failing_disk_is_counted_and_nothing_more(
    made: Capture, queue: CaptureQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(record: Any, **how: Any) -> None:
        raise CorpusError("the disk is full")

    monkeypatch.setattr(made.corpus, "add_record", broken)
    assert queue.offer(CaptureItem("s", "text", "prompt"))
    queue.close(60)
    assert queue.counters.dropped_error >= 1
    assert queue.counters.captured == 0


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "ENOSPC"),
        (OSError(errno.EROFS, "Read-only file system"), "EROFS"),
        (sqlite3.OperationalError("database is locked"), "consent database: database is locked"),
        (CorpusError("the corpus cannot be written"), "the corpus cannot be written"),
        (RuntimeError("with the text: a private thought"), "RuntimeError"),
    ],
)
def test_each_cause_of_failure_is_warned_of_once_and_every_loss_is_counted(
    made: Capture, caplog: pytest.LogCaptureFixture, problem: Exception, said: str
) -> None:
    def broken(session_id: str) -> CaptureSession:
        raise problem

    queue = CaptureQueue(broken).start()
    with caplog.at_level(logging.DEBUG):
        assert all(queue.offer(CaptureItem("s", "a private thought", "prompt")) for _ in range(20))
        assert queue.close(60)
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert [each.getMessage() for each in warnings] == [
        f"capture failed reason={said}; further ones are only counted"
    ]
    assert queue.counters.dropped_error == 20
    assert "private" not in caplog.text


def test_a_consent_database_that_another_process_writes_to_holds_no_capture_up(
    made: Capture, queue: CaptureQueue
) -> None:
    other = sqlite3.connect(made.home / "consent.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert queue.offer(CaptureItem("s", "text", "prompt"))
    assert queue.close(60)
    other.execute("ROLLBACK")
    other.close()
    assert queue.counters.captured == 1


def test_a_read_only_home_means_no_queue_and_no_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("GROOVE_HOME", str(home))
    made = capture(home)
    user = get_or_create_user_id(home)
    made.consent.record_consent(user, opted_in=True, consent_version="1.0")

    def refused(*args: object, **how: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("node.capture.queue.TrainingCorpus", refused)
    assert open_queue() is None
    assert "capture is off" in caplog.text


def test_the_counters_reach_the_home_when_the_queue_is_closed_and_add_up(
    made: Capture, tmp_path: Path
) -> None:
    tally = Tally(tmp_path)
    for _ in range(2):
        queue = CaptureQueue(made.session, tally=tally).start()
        queue.offer(CaptureItem("s", "text", "prompt"))
        queue.offer(CaptureItem("s", "text", "thought"))
        assert queue.close(60)
    assert tally.read().queue == {"captured": 2, "dropped_error": 2}
    assert (tmp_path / "capture_counts.json").stat().st_mode & 0o777 == 0o600


def test_counters_that_cannot_be_written_are_counted_and_said_to_nobody(
    made: Capture, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = CaptureQueue(made.session, tally=Tally(tmp_path / "absent")).start()
    queue.offer(CaptureItem("s", "text", "prompt"))
    assert queue.close(60)
    assert (queue.counters.captured, queue.counters.untold) == (1, 1)
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_a_batch_asks_for_consent_once_and_again_at_its_writing(
    made: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    really = made.consent.may_capture

    def counting(*about: str) -> bool:
        asked.append(about[0])
        return really(*about)

    held = Held(made.session)
    queue = CaptureQueue(held).start()
    queue.offer(CaptureItem("s", "first", "prompt"))
    assert held.reached.wait(60)
    for number in range(200):
        queue.offer(CaptureItem("s", f"text {number}", "prompt"))
    monkeypatch.setattr(made.consent, "may_capture", counting)
    held.release.set()
    queue.close(60)
    assert queue.counters.captured == 201
    assert len(asked) < 12


def test_sessions_that_end_in_one_batch_are_each_closed_with_their_outcome(
    made: Capture,
) -> None:
    held = Held(made.session)
    queue = CaptureQueue(held).start()
    for number in range(5):
        queue.offer(CaptureItem(f"s{number}", f"ask {number}", "prompt"))
        queue.offer(SessionEnd(f"s{number}", "accepted", corrections=number))
    held.release.set()
    assert queue.close(60)
    sessions = list(made.corpus.sessions())
    assert [each.quality for each in sessions] == [90, 80, 70, 60, 50]
    assert all(each.closed for each in sessions)


def test_after_a_revocation_nothing_that_waits_is_kept(made: Capture) -> None:
    held = Held(made.session)
    queue = CaptureQueue(held).start()
    queue.offer(CaptureItem("s", "one", "prompt"))
    queue.offer(CaptureItem("s", "two", "completion"))
    assert held.reached.wait(60)
    made.consent.revoke_consent(USER)
    held.release.set()
    queue.close(60)
    assert contents(made) == []
    assert queue.counters.dropped_no_consent == 2


def test_a_close_without_time_discards_what_waits(made: Capture) -> None:
    held = Held(made.session)
    queue = CaptureQueue(held).start()
    for _ in range(100):
        queue.offer(CaptureItem("s", "text", "prompt"))
    assert held.reached.wait(60)
    assert queue.close(0) is False
    held.release.set()
    assert queue.close(60)
    assert len(contents(made)) < 100


def test_many_threads_and_an_event_loop_lose_nothing(made: Capture, queue: CaptureQueue) -> None:
    def offer(name: str) -> None:
        for number in range(50):
            assert queue.offer(CaptureItem(name, f"{name} {number}", "prompt"))

    async def from_a_loop() -> None:
        offer("loop")

    threads = [threading.Thread(target=offer, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    asyncio.run(from_a_loop())
    for thread in threads:
        thread.join()
    assert queue.close(60)
    assert queue.counters.captured == 250
    assert len(set(contents(made))) == 250


@pytest.mark.parametrize(
    "poison",
    [
        CaptureItem("\ud800", "fine", "prompt"),
        CaptureItem(12, "fine", "prompt"),  # type: ignore[arg-type]
        CaptureItem(["s0"], "fine", "prompt"),  # type: ignore[arg-type]
        CaptureItem("z", b"fine", "prompt"),  # type: ignore[arg-type]
        CaptureItem("z", "fine", "prompt", {"nan": float("nan"), "huge": 10**400}),
        CaptureItem("z", "fine", "prompt", [1, 2]),  # type: ignore[arg-type]
        SessionEnd("unknown"),
        SessionEnd("s0", ["accepted"]),  # type: ignore[arg-type]
        SessionEnd("s0", "accepted", corrections="many"),  # type: ignore[arg-type]
        SessionEnd("s0", "accepted", errors=10**30),
        SessionEnd("s0", "accepted", routing=[1]),  # type: ignore[arg-type]
        SessionEnd("s0", "accepted", routing={"a": object()}),
    ],
    ids=lambda item: type(item).__name__,  # a repr would name an address in memory
)
def test_one_bad_item_costs_the_others_of_its_batch_nothing(
    made: Capture, poison: CaptureItem | SessionEnd
) -> None:
    held = Held(made.session)
    queue = CaptureQueue(held).start()
    queue.offer(CaptureItem("first", "text", "prompt"))
    assert held.reached.wait(60)
    for number in range(20):
        queue.offer(CaptureItem(f"s{number}", f"good {number}", "prompt"))
    queue.offer(poison)
    for number in range(20):
        queue.offer(CaptureItem(f"s{number}", f"better {number}", "completion"))
        queue.offer(SessionEnd(f"s{number}", "accepted"))
    held.release.set()
    assert queue.close(60)
    kept = contents(made)
    assert sum(text.startswith(("good", "better")) for text in kept) == 40
    assert made.corpus.damaged_lines == 0
    assert queue.counters.captured == len(kept)
    closed = [session.session_id for session in made.corpus.sessions() if session.closed]
    assert {f"s{number}" for number in range(1, 20)} <= set(closed)


def test_a_text_of_a_deleted_session_leaves_the_other_sessions_open(
    made: Capture, queue: CaptureQueue
) -> None:
    made.corpus.delete_sessions(["gone"])
    for session in ("gone", "kept"):
        queue.offer(CaptureItem(session, f"of {session}", "prompt"))
    while queue.counters.captured + queue.counters.dropped_deleted < 2:
        pass
    queue.offer(CaptureItem("gone", "once more", "prompt"))
    queue.offer(SessionEnd("kept", "accepted"))
    assert queue.close(60)
    (session,) = made.corpus.sessions()
    assert (session.session_id, session.outcome) == ("kept", "accepted")
    counters = queue.counters
    assert (counters.dropped_deleted, counters.dropped_no_consent) == (2, 0)


def test_metadata_count_for_the_room_that_waiting_items_have(made: Capture) -> None:
    held = Held(made.session)
    queue = CaptureQueue(held).start()
    queue.offer(CaptureItem("s", "text", "prompt"))
    assert held.reached.wait(60)
    about = {"list": [{"deep": "x" * 2**20}]}
    accepted = sum(queue.offer(CaptureItem("s", "text", "prompt", about)) for _ in range(200))
    assert accepted == BYTES_MAX // 2**20 - 1
    assert queue.counters.dropped_full == 200 - accepted
    queue.close(0)
    held.release.set()
    assert queue.close(60)


def test_room_that_was_taken_is_given_back_even_if_the_caller_changes_what_was_offered(
    made: Capture,
) -> None:
    queue = CaptureQueue(made.session).start()
    for _ in range(3):
        about = {"text": "x" * (BYTES_MAX // 2)}
        while not queue.offer(CaptureItem("s", "text", "thought", about)):
            pass
        about.clear()
    assert queue.close(60)
    assert queue.counters.dropped_error == 3


@pytest.mark.parametrize("kind", ["wide", "in itself"])
def test_more_values_than_the_scrubber_reads_are_refused_at_the_door(
    queue: CaptureQueue, kind: str
) -> None:
    about: dict[str, Any] = {"values": list(range(NODES_MAX + 1))}
    if kind == "in itself":
        about["values"] = about
    assert not queue.offer(CaptureItem("s", "text", "prompt", about))
    assert queue.counters.dropped_too_long == 1
