"""A withdrawal is over once nothing more can come in by what was allowed before it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support_capture import USER, Capture, capture, record

from node import writers
from node.consent import ConsentManager, Scope
from node.writers import wait_for_writers


class Slow:
    """Records that come one by one, as many as were let through: a writer in its turn."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[object]:
        yield record(1)
        self.begun.set()
        self.go.wait(60)
        yield from (record(number) for number in range(2, 50))


@pytest.fixture
def made(tmp_path: Path) -> Capture:
    made = capture(tmp_path)
    made.consent.grant(USER, sources=["llm"])
    return made


@pytest.mark.parametrize(
    "withdraw",
    [
        lambda consent: consent.revoke_consent(USER),
        lambda consent: consent.revoke_scope(USER, Scope.CAPTURE),
        lambda consent: consent.disallow(USER, sources=["llm"]),
        lambda consent: consent.record_consent(USER, False, "1.0"),
        lambda consent: consent.suspend("it was restored"),
    ],
    ids=["revoke", "scope", "source", "record", "suspend"],
)
def test_after_a_withdrawal_has_returned_nothing_is_written_by_what_stood_before_it(
    made: Capture, withdraw: Callable[[ConsentManager], object]
) -> None:
    slow, sizes = Slow(), []

    def allowed() -> bool:
        return made.consent.may_capture(USER, "llm")

    def revoke() -> None:
        with ConsentManager(made.home / "consent.db") as another:  # as a process of its own has
            withdraw(another)
            sizes.append(made.corpus.size_bytes())

    def write() -> None:
        made.corpus.add_records(slow, allowed=allowed)  # type: ignore[arg-type]

    writer = threading.Thread(target=write)
    writer.start()
    assert slow.begun.wait(60)
    revoker = threading.Thread(target=revoke)
    revoker.start()
    while allowed():  # the decision stands at once
        threading.Event().wait(0.01)
    slow.go.set()
    writer.join(60)
    revoker.join(60)
    assert sizes == [made.corpus.size_bytes()]
    assert made.corpus.add_records([record(99)], allowed=allowed) == 0


def test_a_grant_waits_for_nobody_and_without_a_corpus_a_withdrawal_does_neither(
    tmp_path: Path,
) -> None:
    with ConsentManager(tmp_path / "consent.db") as consent:
        consent.grant(USER, [Scope.CAPTURE])
        assert consent.revoke_consent(USER)
        assert not (tmp_path / writers.CORPUS).exists()
        made = capture(tmp_path, granted=False)
        slow = Slow()
        writer = threading.Thread(target=made.corpus.add_records, args=(slow,))
        writer.start()
        assert slow.begun.wait(60)
        consent.grant(USER, [Scope.CAPTURE])
        slow.go.set()
        writer.join(60)


def test_a_writer_that_does_not_end_keeps_no_withdrawal_from_returning(
    made: Capture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writers, "WAIT_S", 0.0)
    slow = Slow()
    writer = threading.Thread(target=made.corpus.add_records, args=(slow,))
    writer.start()
    assert slow.begun.wait(60)
    assert wait_for_writers(made.home) is False
    assert made.consent.revoke_consent(USER)
    assert "still being written" in caplog.text
    slow.go.set()
    writer.join(60)
    assert wait_for_writers(made.home)
