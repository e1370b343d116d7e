"""From records to sessions, at once and on from a position."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from support_capture import NOON, USER, HandClock, record

from node.capture import TrainingCorpus, TrainingRecord
from node.capture.sessions import Position

DAY_S = 86_400.0


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def corpus(tmp_path: Path, clock: HandClock) -> TrainingCorpus:
    return TrainingCorpus(tmp_path / "training_data", clock=clock)


def ask(session: str, number: int, *, at: float = NOON) -> TrainingRecord:
    return record(number, at=at, session_id=session, content=f"ask {session}")


def answer(session: str, number: int, *, at: float = NOON + 1) -> TrainingRecord:
    return record(
        number,
        at=at,
        session_id=session,
        content_type="completion",
        content=f"answer {session}",
        terms_class="open",
    )


def close(session: str, number: int, *, at: float = NOON + 2) -> TrainingRecord:
    metadata = {
        "event": "SESSION_CLOSE",
        "outcome": "accepted",
        "quality": 90,
        "source": "pydoc",
        "group": "networkx.matching",
    }
    return record(number, at=at, session_id=session, content_type="workflow", metadata=metadata)


def test_a_session_is_its_first_ask_its_answer_and_its_end(corpus: TrainingCorpus) -> None:
    again = record(9, session_id="a", content="a second ask")
    corpus.add_records([ask("a", 1), answer("a", 2), again, close("a", 3)])
    (session,) = corpus.sessions()
    assert (session.session_id, session.user_id) == ("a", USER)
    assert (session.prompt, session.completion) == ("ask a", "answer a")
    assert (session.opened, session.last, session.closed) == (NOON, NOON + 2, True)
    assert (session.outcome, session.quality) == ("accepted", 90)
    assert (session.source, session.group) == ("pydoc", "networkx.matching")
    assert (session.domain, session.terms_class) == ("code", "open")
    assert "ask a" not in repr(session)


def test_a_session_tells_how_it_went_by_its_last_closing_record(corpus: TrainingCorpus) -> None:
    late = {"event": "SESSION_CLOSE", "outcome": "accepted", "corrections": 3, "errors": 1}
    corpus.add_records(
        [
            record(1, session_id="a", metadata={"workflow_type": "code_editor"}),
            answer("a", 2),
            close("a", 3),
            record(4, session_id="a", content_type="workflow", metadata=late),
        ]
    )
    (session,) = corpus.sessions()
    assert (session.quality, session.tier) == (55, "B")
    assert (session.corrections, session.errors) == (3, 1)
    assert session.workflow_type == "code_editor"


def test_an_edit_is_of_the_answer_before_it_and_is_never_shown(corpus: TrainingCorpus) -> None:
    edit = {"event": "EDIT"}
    corpus.add_records(
        [
            record(1, session_id="a", content_type="workflow", content="of nothing", metadata=edit),
            ask("a", 2),
            answer("a", 3),
            record(4, session_id="a", content_type="workflow", content="first", metadata=edit),
            record(5, session_id="a", content_type="workflow", content="mine", metadata=edit),
            close("a", 6),
        ]
    )
    (session,) = corpus.sessions()
    assert (session.edited, session.edited_from, session.edited_ask, session.edited_terms) == (
        "mine",
        "answer a",
        "ask a",
        "open",
    )
    assert "mine" not in repr(session) and "answer a" not in repr(session)


def test_a_conversation_alone_gives_its_first_turns(corpus: TrainingCorpus) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "second"},
        {"role": "user", "content": "third"},
    ]
    talk = record(1, content_type="conversation", content=json.dumps(messages))
    corpus.add_records([talk])
    (session,) = corpus.sessions()
    assert (session.prompt, session.completion) == ("first", "second")
    assert (session.closed, session.quality, session.source) == (False, None, "live")


def test_interleaved_and_repeated_records_make_one_session_each(corpus: TrainingCorpus) -> None:
    corpus.add_records([ask("a", 1), ask("b", 2), answer("b", 3), answer("a", 4), answer("a", 4)])
    corpus.add_records([close("b", 5), close("a", 6, at=NOON + DAY_S)])
    found = {session.session_id: session for session in corpus.sessions()}
    assert sorted(found) == ["a", "b"]
    assert found["a"].last == NOON + DAY_S
    assert [s.session_id for s in corpus.sessions(only=["b", "unknown"])] == ["b"]


def test_reading_on_gives_each_closed_session_once_and_whole(corpus: TrainingCorpus) -> None:
    corpus.add_records([ask("a", 1), answer("a", 2), close("a", 3), ask("b", 4)])
    first = corpus.read_sessions()
    assert [session.session_id for session in first.sessions] == ["a"]
    assert corpus.read_sessions(first.position).sessions == ()
    corpus.add_records([answer("b", 5), close("b", 6, at=NOON + DAY_S)])
    second = corpus.read_sessions(first.position)
    (session,) = second.sessions
    assert (session.prompt, session.completion, session.closed) == ("ask b", "answer b", True)
    assert corpus.read_sessions(second.position).sessions == ()


def test_a_position_survives_as_json_and_holds_no_text(corpus: TrainingCorpus) -> None:
    corpus.add_records([ask("a", 1), answer("a", 2)])
    position = corpus.read_sessions().position
    data = msgspec.json.encode(position)
    assert b"ask" not in data
    corpus.add_records([close("a", 3)])
    (session,) = corpus.read_sessions(msgspec.json.decode(data, type=Position)).sessions
    assert session.prompt == "ask a"


def test_a_session_that_never_closes_is_given_once_it_has_been_idle_for_a_day(
    corpus: TrainingCorpus, clock: HandClock
) -> None:
    corpus.add_records([ask("a", 1), answer("a", 2)])
    first = corpus.read_sessions()
    assert first.sessions == ()
    clock.time_s += DAY_S + 2
    second = corpus.read_sessions(first.position)
    assert [session.closed for session in second.sessions] == [False]
    assert corpus.read_sessions(second.position).sessions == ()


def test_what_follows_a_session_gives_it_again_whole(corpus: TrainingCorpus) -> None:
    corpus.add_records([ask("a", 1), answer("a", 2), close("a", 3)])
    first = corpus.read_sessions()
    corpus.add_records([close("a", 4, at=NOON + DAY_S)])
    (session,) = corpus.read_sessions(first.position).sessions
    assert (session.prompt, session.last) == ("ask a", NOON + DAY_S)


def test_reading_on_after_a_deletion_starts_the_changed_file_again(corpus: TrainingCorpus) -> None:
    others = record(9, user="other", session_id="o")
    corpus.add_records([ask("a", 1), others, answer("a", 2), close("a", 3), ask("b", 4)])
    first = corpus.read_sessions()
    corpus.delete_user(USER)
    corpus.add_records([ask("c", 5), close("c", 6)])
    second = corpus.read_sessions(first.position)
    assert [session.session_id for session in second.sessions] == ["c"]


def test_reading_on_leaves_a_half_written_line_for_the_next_time(corpus: TrainingCorpus) -> None:
    corpus.add_records([ask("a", 1), answer("a", 2), close("a", 3)])
    (path,) = corpus.files()
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    first = corpus.read_sessions()
    assert first.sessions == ()
    path.write_bytes(whole)
    assert [s.session_id for s in corpus.read_sessions(first.position).sessions] == ["a"]
