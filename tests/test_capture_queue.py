"""The queue on the hot path: bounded, quick, and never the caller's trouble."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support_capture import USER, Capture, capture

from node.capture import CaptureItem, CaptureQueue, CaptureSession, SessionEnd
from node.capture.corpus import CorpusError


class Held:
    """Opens sessions only once it is let go: a worker on a slow disk."""

    def __init__(self, open_session: Callable[[str], CaptureSession]) -> None:
        self._open = open_session
        self.reached, self.release = threading.Event(), threading.Event()

    def __call__(self, session_id: str) -> CaptureSession:
        self.reached.set()
        self.release.wait(30)
        return self._open(session_id)


@pytest.fixture
def made(tmp_path: Path) -> Capture:
    return capture(tmp_path)


@pytest.fixture
def queue(made: Capture) -> Iterator[CaptureQueue]:
    queue = CaptureQueue(made.session).start()
    yield queue
    queue.close(10)


def contents(made: Capture) -> list[str]:
    return [record.content for record in made.corpus.records() if not record.closes]


def test_what_is_offered_is_in_the_corpus_when_the_queue_is_closed(
    made: Capture, queue: CaptureQueue
) -> None:
    assert queue.offer(CaptureItem("s", "ask ann@example.com", "prompt", {"model_name": "qwen3"}))
    assert queue.offer({"session_id": "s", "content": "done", "content_type": "completion"})
    assert queue.offer(SessionEnd("s", "accepted"))
    assert queue.close(10)
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
    assert held.reached.wait(10)
    accepted = sum(queue.offer(item) for _ in range(50))
    assert accepted == 10
    assert queue.counters.dropped_full == 40
    held.release.set()
    queue.close(10)
    assert queue.counters.captured == 11


def test_a_closed_queue_takes_nothing(queue: CaptureQueue) -> None:
    assert queue.close(10)
    assert not queue.offer(CaptureItem("s", "text", "prompt"))
    assert queue.counters.dropped_full == 1


def test_whatever_is_offered_no_exception_reaches_the_caller_and_the_worker_goes_on(
    made: Capture, queue: CaptureQueue
) -> None:
    for nonsense in (None, 7, {}, {"session_id": "s"}, CaptureItem("s", "t", "thought")):
        queue.offer(nonsense)  # type: ignore[arg-type]
    queue.offer(CaptureItem("s", None, "prompt"))  # type: ignore[arg-type]
    queue.offer(CaptureItem("s", "text", "prompt"))
    queue.close(10)
    assert contents(made) == ["text"]
    assert queue.counters.captured == 1
    assert queue.counters.dropped_error == 6


def test_a_failing_disk_is_counted_and_nothing_more(
    made: Capture, queue: CaptureQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(record: Any) -> None:
        raise CorpusError("the disk is full")

    monkeypatch.setattr(made.corpus, "add_record", broken)
    assert queue.offer(CaptureItem("s", "text", "prompt"))
    queue.close(10)
    assert queue.counters.dropped_error >= 1
    assert queue.counters.captured == 0


def test_after_a_revocation_nothing_that_waits_is_kept(made: Capture) -> None:
    held = Held(made.session)
    queue = CaptureQueue(held).start()
    queue.offer(CaptureItem("s", "one", "prompt"))
    queue.offer(CaptureItem("s", "two", "completion"))
    assert held.reached.wait(10)
    made.consent.revoke_consent(USER)
    held.release.set()
    queue.close(10)
    assert contents(made) == []
    assert queue.counters.dropped_no_consent == 2


def test_a_close_without_time_discards_what_waits(made: Capture) -> None:
    held = Held(made.session)
    queue = CaptureQueue(held).start()
    for _ in range(100):
        queue.offer(CaptureItem("s", "text", "prompt"))
    assert held.reached.wait(10)
    assert queue.close(0) is False
    held.release.set()
    assert queue.close(10)
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
    assert queue.close(30)
    assert queue.counters.captured == 250
    assert len(set(contents(made))) == 250


def test_offering_costs_at_most_fifty_microseconds_in_99_of_100_calls(
    queue: CaptureQueue,
) -> None:
    item = CaptureItem("s", "In networkx, what does is_matching(G, matching) do? " * 20, "prompt")
    taken = []
    for _ in range(3_000):
        begun = time.perf_counter_ns()
        queue.offer(item)
        taken.append(time.perf_counter_ns() - begun)
    assert sorted(taken)[int(len(taken) * 0.99)] <= 50_000
