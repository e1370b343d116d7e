"""What becomes of exchanges: sessions with consent, nothing without it, and never a late byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support_api import Bench, KeptRecorder, choice_of

from node import gate, overview, show
from node.api.config import ApiConfig
from node.api.counts import Counts
from node.api.recording import OWN, WAITING_MAX, Exchange, Feedback, Heard, Recorder
from node.api.talks import Talks
from node.app import App
from node.capture import CaptureItem, SessionEnd
from node.capture.sessions import Session, turns_of
from node.consent import Scope

LEAF = "ab" * 16
SECRET = "ghp_" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8"
ROUTING = {
    "leaf_id": LEAF,
    "leaf_lifecycle_stage": "mature",
    "routing_confidence": 0.7,
    "fallback_used": False,
    "parent_leaf_id": None,
}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    yield App.open(create=True)
    gate.close_gate(10)


def allow(app: App, *sources: str) -> None:
    app.consent.grant(app.user_id, [Scope.CAPTURE], sources=sources or ["endpoint"])


def exchange(number: int, *said: str, **changes: Any) -> Exchange:
    """Its messages are by turns the user's and the assistant's."""
    roles = ("user", "assistant")
    messages = tuple({"role": roles[n % 2], "content": text} for n, text in enumerate(said))
    whole = Exchange(f"x{number}", "groove/auto", OWN, messages, None, "test", None, False)
    return replace(whole, **changes)


@asynccontextmanager
async def recording(app: App, **config: Any) -> AsyncIterator[Recorder]:
    """A recorder at work; at the end all that it took is written."""
    recorder = Recorder(app, ApiConfig(**config), Counts())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        with trio.fail_after(30):
            while app.allows("capture") and gate.queue is None:
                await trio.sleep(0.005)
        yield recorder
        nursery.cancel_scope.cancel()


def record(app: App, *exchanges: tuple[Exchange, str, str]) -> Recorder:
    async def main() -> Recorder:
        async with recording(app) as recorder:
            for each, text, outcome in exchanges:
                recorder.begin(each)
                recorder.finished(each, text, outcome, None)
        return recorder

    return trio.run(main)


def sessions(app: App) -> list[Session]:
    return list(app.corpus.sessions())


def turns(app: App) -> list[list[str]]:
    by_session: dict[str, list[Any]] = {}
    for each in app.corpus.records():
        by_session.setdefault(each.session_id, []).append(each)
    return [[turn["content"] for turn in turns_of(records)] for records in by_session.values()]


def test_a_talk_of_three_turns_is_one_session_with_each_message_once(app: App) -> None:
    allow(app)
    record(
        app,
        (exchange(1, "How do I sort?"), "Use sorted.", "ok"),
        (exchange(2, "How do I sort?", "Use sorted. ", "And backwards?"), "reverse=True", "ok"),
        (
            exchange(
                3, "How do I sort?", "Use sorted.", "And backwards?", "reverse=True", "thanks"
            ),
            "You are welcome",
            "ok",
        ),
    )
    assert turns(app) == [
        [
            *("How do I sort?", "Use sorted.", "And backwards?", "reverse=True"),
            *("thanks", "You are welcome"),
        ]
    ]
    (session,) = sessions(app)
    assert (session.prompt, session.source) == ("How do I sort?", "endpoint")
    assert (session.outcome, session.closed) == ("accepted", True)


def test_an_ask_that_finds_fault_is_a_correction_of_the_answer_before(app: App) -> None:
    allow(app)
    record(
        app,
        (exchange(1, "How do I sort?"), "Use sort().", "ok"),
        (exchange(2, "How do I sort?", "Use sort().", "No, that's wrong"), "Use sorted()", "ok"),
        (
            exchange(
                3, "How do I sort?", "Use sort().", "No, that's wrong", "Use sorted()", "perfect"
            ),
            "Good",
            "ok",
        ),
    )
    (session,) = sessions(app)
    assert (session.outcome, session.corrections) == ("iterated", 1)


def test_an_answer_that_the_client_broke_off_is_not_kept_and_the_session_is_rejected(
    app: App,
) -> None:
    allow(app)
    record(app, (exchange(1, "How do I sort?"), "Use half an ans", "aborted"))
    (session,) = sessions(app)
    assert (session.outcome, session.completion) == ("rejected", "")


def test_an_error_is_an_outcome_and_the_same_ask_again_goes_on_with_the_session(app: App) -> None:
    allow(app)
    ask = exchange(1, "How do I sort?")
    record(app, (ask, "", "error"))
    assert [each.outcome for each in sessions(app)] == ["error"]
    gate.capture_gate()
    record(app, (ask, "", "error"), (replace(ask, id="x2"), "sorted()", "ok"))
    assert turns(app)[1:] == [["How do I sort?", "sorted()"]]


def test_another_answer_to_the_same_ask_is_a_correction_and_the_ask_stands_once(app: App) -> None:
    allow(app)
    second = exchange(2, "Sort?", "sorted", "Backwards?")
    record(
        app,
        (exchange(1, "Sort?"), "sorted", "ok"),
        (second, "no idea", "ok"),
        (replace(second, id="x3"), "reverse", "ok"),
    )
    assert turns(app) == [["Sort?", "sorted", "Backwards?", "no idea", "reverse"]]
    assert sessions(app)[0].corrections == 1


def test_two_talks_that_begin_alike_are_two_sessions(app: App) -> None:
    allow(app)
    record(app, (exchange(1, "Hi"), "Hello", "ok"), (exchange(2, "Hi"), "Good morning", "ok"))
    assert turns(app) == [["Hi", "Hello"], ["Hi", "Good morning"]]


def test_a_talk_with_an_id_goes_on_even_if_the_client_sends_the_last_message_alone(
    app: App,
) -> None:
    allow(app)
    record(
        app,
        (exchange(1, "Sort?", conversation="c"), "sorted", "ok"),
        (exchange(2, "Backwards?", conversation="c"), "reverse", "ok"),
        (exchange(3, "Sort?", conversation="d"), "sort", "ok"),
    )
    assert turns(app) == [["Sort?", "sorted", "Backwards?", "reverse"], ["Sort?", "sort"]]


def test_system_prompts_tool_output_and_injected_context_are_left_out(app: App) -> None:
    allow(app)
    messages = (
        {"role": "system", "content": "You are a secret agent"},
        {"role": "user", "content": "<system-reminder>injected</system-reminder>Sort a list"},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "tool", "content": "the whole file"},
    )
    record(app, (exchange(1, messages=messages), "Done", "ok"))
    assert turns(app) == [["Sort a list", "Done"]]
    on_disk = b"".join(p.read_bytes() for p in app.home.rglob("*") if p.is_file())
    for text in (b"secret agent", b"injected", b"whole file"):
        assert text not in on_disk


def test_no_secret_of_any_field_reaches_the_disk(app: App, caplog: Any) -> None:
    allow(app)
    caplog.set_level("DEBUG")
    record(
        app,
        (
            exchange(
                1,
                f"my key is {SECRET}",
                client=f"curl {SECRET}",
                conversation=SECRET,
                model=SECRET,
                provider="openai",
            ),
            f"so it is {SECRET}",
            "ok",
        ),
    )
    assert len(sessions(app)) == 1
    on_disk = b"".join(p.read_bytes() for p in app.home.rglob("*") if p.is_file())
    assert SECRET.encode() not in on_disk
    assert SECRET not in caplog.text


def test_without_the_source_nothing_is_kept_and_with_it_taken_away_nothing_more(app: App) -> None:
    allow(app, "llm")
    record(app, (exchange(1, "Sort?"), "sorted", "ok"))
    assert list(app.corpus.records()) == []

    async def main() -> None:
        async with recording(app) as recorder:
            recorder.finished(exchange(2, "One?"), "one", "ok", None)
            await _until(lambda: len(list(app.corpus.records())) == 2)
            app.consent.withdraw(app.user_id, sources=["endpoint"])
            recorder.finished(exchange(3, "Two?"), "two", "ok", None)

    allow(app)
    trio.run(main)
    assert turns(app) == [["One?", "one"]]


def test_consent_given_and_taken_while_the_node_runs_is_followed(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.api.recording.LOOK_S", 0.01)

    async def main() -> None:
        async with recording(app) as recorder:
            recorder.finished(exchange(1, "Before?"), "no", "ok", None)
            allow(app)
            await _until(lambda: gate.queue is not None)
            recorder.finished(exchange(2, "During?"), "yes", "ok", None)
            await _until(lambda: len(list(app.corpus.records())) == 2)
            app.consent.revoke_consent(app.user_id)
            await _until(lambda: gate.queue is None)
            recorder.finished(exchange(3, "After?"), "no", "ok", None)

    trio.run(main)
    assert turns(app) == [["During?", "yes"]]


async def _until(true: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not true():
            await trio.sleep(0.01)


def test_an_exchange_that_is_not_to_be_kept_is_not(app: App) -> None:
    allow(app)
    record(app, (exchange(1, "Sort?", no_capture=True), "sorted", "ok"))
    assert list(app.corpus.records()) == []


def test_what_is_not_to_be_kept_is_not_brought_in_by_the_next_ask_that_repeats_it(
    app: App,
) -> None:
    allow(app)
    private = exchange(2, "Sort?", "sorted", "my test was positive", no_capture=True)
    record(
        app,
        (exchange(1, "Sort?"), "sorted", "ok"),
        (private, "I am sorry", "ok"),
        (
            exchange(3, "Sort?", "sorted", "my test was positive", "I am sorry", "And backwards?"),
            "reverse=True",
            "ok",
        ),
    )
    assert turns(app) == [["Sort?", "sorted", "And backwards?", "reverse=True"]]


@pytest.mark.parametrize("conversation", [None, "1"])
def test_an_ask_without_an_answer_that_was_not_to_be_kept_stays_out(
    app: App, conversation: str | None
) -> None:
    allow(app)
    private = exchange(1, "my test was positive", no_capture=True, conversation=conversation)
    two = ({"role": "user", "content": "my test was positive"}, {"role": "user", "content": "Hi"})
    record(
        app,
        (private, "", "aborted"),
        (exchange(2, messages=two, conversation=conversation), "Hello", "ok"),
    )
    assert turns(app) == [["Hi", "Hello"]]


def test_what_is_said_while_the_source_is_not_allowed_stays_out_when_it_is_again(app: App) -> None:
    allow(app, "endpoint", "otlp")

    async def main() -> None:
        private = ("Sort?", "sorted", "my test was positive")
        async with recording(app) as recorder:
            recorder.finished(exchange(1, "Sort?"), "sorted", "ok", None)
            await _until(lambda: len(list(app.corpus.records())) == 2)
            app.consent.withdraw(app.user_id, sources=["endpoint"])
            recorder.finished(exchange(2, *private), "", "error", None)
            await _until(lambda: recorder._counts.refused["consent_endpoint"] == 1)
            allow(app, "endpoint", "otlp")
            recorder.finished(exchange(3, *private, "Hm", "And backwards?"), "yes", "ok", None)

    trio.run(main)
    assert sorted(turns(app)) == [["And backwards?", "yes"], ["Sort?", "sorted"]]


@pytest.mark.parametrize("conversation", [None, "1"])
def test_talks_of_two_clients_that_stand_alike_are_not_mixed(
    app: App, conversation: str | None
) -> None:
    allow(app)
    about = {"conversation": conversation}
    record(
        app,
        (exchange(1, "hi", client="alice", **about), "Hello", "ok"),
        (exchange(2, "hi", client="bob", **about), "Hello", "ok"),
        (exchange(3, "hi", "Hello", "Sort?", client="alice", **about), "sorted", "ok"),
    )
    assert sorted(turns(app)) == [["hi", "Hello"], ["hi", "Hello", "Sort?", "sorted"]]


def test_an_ask_that_goes_on_with_either_of_two_talks_goes_on_with_neither(app: App) -> None:
    allow(app)
    record(
        app,
        (exchange(1, "hi"), "Hello", "ok"),
        (exchange(2, "hi"), "Hello", "ok"),
        (exchange(3, "hi", "Hello", "Sort?"), "sorted", "ok"),
    )
    assert sorted(turns(app)) == [["Sort?", "sorted"], ["hi", "Hello"], ["hi", "Hello"]]


def test_while_nobody_has_consented_capture_is_not_loaded(tmp_path: Path) -> None:
    script = """
import sys, trio
from node.app import App
from node.api.config import ApiConfig
from node.api.counts import Counts
from node.api import feedback_route, litellm_log, otlp
from node.api.recording import Exchange, Recorder
app = App.open(create=True)
recorder = Recorder(app, ApiConfig(), Counts())
async def main():
    with trio.move_on_after(0.3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            said = ({"role": "user", "content": "hi"},)
            each = Exchange("x", "m", "groove", said, None, "", None, False)
            recorder.finished(each, "hello", "ok", None)
trio.run(main)
assert not recorder.feedback("x", "accepted")
print([name for name in sys.modules if name.startswith("node.capture")])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"GROOVE_HOME": str(tmp_path / "home"), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_leafs_answer_is_of_the_chassis_terms_and_counts_as_its_vote(app: App) -> None:
    from node.feedback import votes

    allow(app)
    routed = replace(choice_of("async-python"), routing=ROUTING)
    record(
        app,
        (exchange(1, "Sort?", choice=routed), "sorted", "ok"),
        (exchange(2, "Sort?", "sorted", "thanks!", choice=routed), "ok", "ok"),
    )
    (session,) = sessions(app)
    assert session.terms_class == "open"
    (vote,) = votes(app.corpus.files()).values()
    assert (vote.leaf, vote.well) == (LEAF, True)


@pytest.mark.parametrize(
    ("provider", "model", "terms"),
    [
        ("openai", "gpt-4o", "restricted"),
        ("openai", "qwen2.5-coder:7b", "open"),
        ("openai", "llama3", "unknown"),
        ("anthropic", "some-new-model", "restricted"),
    ],
)
def test_what_is_passed_on_is_of_the_terms_of_the_model_that_answers(
    app: App, provider: str, model: str, terms: str
) -> None:
    allow(app)
    record(app, (exchange(1, "Sort?", provider=provider, model=model), "sorted", "ok"))
    assert [each.terms_class for each in sessions(app)] == [terms]


def test_feedback_decides_how_a_session_went(app: App) -> None:
    allow(app)

    async def main() -> None:
        async with recording(app) as recorder:
            for n, signal in enumerate(("accepted", "modified", "rejected")):
                recorder.finished(exchange(n, f"Sort {n}?"), f"sorted {n}", "ok", None)
                text = "sorted better" if signal == "modified" else None
                assert recorder.feedback(f"x{n}", signal, text)
            assert not recorder.feedback("nobody's", "accepted")
            assert not recorder.feedback("x1", "loved")

    trio.run(main)
    found = {each.prompt: each for each in sessions(app)}
    assert [each.outcome for each in found.values()] == ["accepted", "modified", "rejected"]
    assert (found["Sort 1?"].edited, found["Sort 1?"].edited_from) == ("sorted better", "sorted 1")


def test_feedback_is_refused_for_an_answer_that_others_followed_and_once_it_is_over(
    app: App,
) -> None:
    allow(app)

    async def main() -> None:
        async with recording(app) as recorder:
            recorder.finished(exchange(1, "Sort?"), "sorted", "ok", None)
            recorder.finished(exchange(2, "Sort?", "sorted", "More?"), "no", "ok", None)
            await _until(lambda: len(list(app.corpus.records())) == 4)
            assert recorder.mark("x1", "rejected") is Feedback.NOT_LAST
            assert recorder.mark("x2", "accepted") is Feedback.TAKEN
        gate.capture_gate()
        assert recorder.mark("x2", "accepted") is Feedback.OVER

    trio.run(main)
    assert [each.outcome for each in sessions(app)] == ["accepted"]


def test_a_signal_with_the_next_ask_is_of_the_answer_before(app: App) -> None:
    allow(app)
    record(
        app,
        (exchange(1, "Sort?"), "sorted", "ok"),
        (exchange(2, "Sort?", "sorted", "Tell more", feedback="rejected"), "reverse", "ok"),
    )
    (session,) = sessions(app)
    assert session.corrections == 1


def test_idle_talks_are_closed_and_marked_ones_sooner(app: App) -> None:
    talks, offered = Talks("SmolLM2"), list[CaptureItem | SessionEnd]()

    def offer(item: CaptureItem | SessionEnd) -> bool:
        offered.append(item)
        return True

    for n in range(2):
        talks.take(Heard(exchange(n, f"Sort {n}?"), "sorted", "ok"), 1000.0, offer)
    marked = talks.take(Heard(exchange(9, "Nine?"), "nine", "ok"), 1000.0, offer)
    talks.mark(marked, "accepted")
    talks.idle(before_s=0, marked_before_s=1000, offer=offer)
    assert (len(talks), marked.closed) == (2, True)
    talks.idle(before_s=1000, marked_before_s=1000, offer=offer)
    assert len(talks) == 0
    assert sum(isinstance(each, SessionEnd) for each in offered) == 3


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_what_a_client_asks_over_http_is_a_session_and_its_headers_are_heard(
    app: App, path: str
) -> None:
    allow(app)

    async def main() -> None:
        async with recording(app) as recorder:
            bench = Bench(recorder=cast(KeptRecorder, recorder))
            said: list[dict[str, str]] = []

            async def ask(text: str, **headers: str) -> None:
                said.append({"role": "user", "content": text})
                body = {"model": "groove/auto", "messages": said, "max_tokens": 9}
                answer = await bench.post(path, body, headers)
                assert answer.status_code == 200
                said.append({"role": "assistant", "content": "Hello there"})
                exchanges.append(answer.headers["x-groove-exchange"])

            exchanges: list[str] = []
            await ask("Greet me")
            await ask("In French", **{"X-Groove-Feedback": "rejected"})
            await ask("Not to be kept", **{"X-Groove-No-Capture": "1"})
            assert recorder.feedback(exchanges[1], "accepted")
            assert not recorder.feedback(exchanges[2], "accepted")

    trio.run(main)
    assert turns(app) == [["Greet me", "Hello there", "In French", "Hello there"]]
    (session,) = sessions(app)
    assert (session.outcome, session.corrections) == ("iterated", 1)


@pytest.mark.slow
def test_a_burst_loses_nothing_that_was_taken_and_counts_the_rest(app: App) -> None:
    """All before the thread has a chance: what does not fit is refused at once, and counted."""
    allow(app)
    burst = WAITING_MAX + 100

    async def main() -> Recorder:
        counts = Counts()
        async with trio.open_nursery() as nursery:
            recorder = Recorder(app, ApiConfig(), counts)
            gate.capture_gate()
            for n in range(burst):
                recorder.finished(exchange(n, f"Ask {n}?"), f"Answer {n}", "ok", None)
            nursery.start_soon(recorder.run)
            with trio.fail_after(300):
                while recorder.waiting:
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert counts.failures == {"recorder_full": 100}
        return recorder

    recorder = trio.run(main)
    assert (recorder.taken, recorder.full) == (WAITING_MAX, 100)
    asked = [each.content for each in app.corpus.records() if each.content_type == "prompt"]
    assert sorted(asked) == sorted(f"Ask {n}?" for n in range(WAITING_MAX))
    assert sum(each.closed for each in sessions(app)) == WAITING_MAX


@settings(max_examples=60)
@given(st.data())
def test_talks_in_any_order_each_have_a_session_with_each_message_once(data: Any) -> None:
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    order = data.draw(st.permutations([n for n, many in enumerate(lengths) for _ in range(many)]))
    retries = data.draw(st.sets(st.integers(0, len(order) - 1)))
    named = data.draw(st.booleans())
    talks, offered = Talks("SmolLM2"), list[CaptureItem | SessionEnd]()

    def offer(item: CaptureItem | SessionEnd) -> bool:
        offered.append(item)
        return True

    said: list[list[str]] = [[] for _ in lengths]
    for step, n in enumerate(order):
        said[n].append(f"ask {n} {len(said[n])}" if said[n] else "the same opening")
        asked = exchange(step, *said[n], conversation=str(n) if named else None)
        if step in retries and said[n] != ["the same opening"]:
            talks.take(Heard(asked, "", "error"), 0, offer)
        said[n].append(f"answer {n} {len(said[n])}")
        talks.take(Heard(asked, said[n][-1], "ok"), 0, offer)
    found: dict[str, list[str]] = {}
    for item in offered:
        assert isinstance(item, CaptureItem)
        found.setdefault(item.session_id, []).append(item.content)
    assert sorted(found.values()) == sorted(said)


def test_talks_are_bounded_and_the_longest_untouched_is_closed() -> None:
    from node.api import talks as module

    talks, offered = Talks("SmolLM2"), list[CaptureItem | SessionEnd]()

    def offer(item: CaptureItem | SessionEnd) -> bool:
        offered.append(item)
        return True

    for n in range(module.OPEN_MAX + 5):
        talks.take(Heard(exchange(n, f"Ask {n}?"), "yes", "ok"), float(n), offer)
    assert len(talks) == module.OPEN_MAX
    assert sum(isinstance(each, SessionEnd) for each in offered) == 5


def test_status_and_consent_show_the_source_with_its_counts(app: App) -> None:
    allow(app)
    record(app, (exchange(1, "Sort?"), "sorted", "ok"))
    (source,) = [each for each in overview.status(app)["sources"] if each["source"] == "endpoint"]
    assert (source["sessions"], source["records"], source["allowed"]) == (1, 2, True)
    ((name, told),) = show.source_facts([source], watched=True)
    assert name == "endpoint"
    assert told.startswith("heard; 1 session, 2 records")
    from node import consenting

    assert "endpoint" in consenting.standing(app)["sources"]


def test_what_is_deleted_is_gone(app: App) -> None:
    allow(app)
    record(app, (exchange(1, "Sort the zebras?"), "sorted", "ok"))
    (session,) = sessions(app)
    app.corpus.delete_sessions([session.session_id])
    assert sessions(app) == []
    files = b"".join(p.read_bytes() for p in (app.home / "training_data").rglob("*") if p.is_file())
    assert b"zebras" not in files
