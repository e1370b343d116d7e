"""What LiteLLM's generic callback reports: each format, under consent, and LiteLLM itself."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from support_api import served
from support_ingest import allow, posted, talks

from node import gate
from node.api import litellm_log
from node.api.config import ApiConfig
from node.api.counts import Counts
from node.api.recording import Recorder
from node.app import App
from node.tally import Tally


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    yield App.open(create=True)
    gate.close_gate(10)


_ids = itertools.count()


def payload(ask: str = "Sort?", text: str = "sorted", **changes: Any) -> dict[str, Any]:
    answer = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return {
        "id": f"{next(_ids)}",
        "call_type": "acompletion",
        "status": "success",
        "model": "gpt-4o",
        "custom_llm_provider": "openai",
        "messages": [{"role": "system", "content": "Be terse"}, {"role": "user", "content": ask}],
        "response": answer,
        "metadata": {},
    } | changes


def lines(*payloads: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(each).encode() for each in payloads)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(payload()).encode(),
        json.dumps([payload()]).encode(),
        lines(payload()) + b"\n",
    ],
)
def test_one_or_an_array_or_one_a_line(app: App, body: bytes) -> None:
    allow(app, "litellm")
    (answer,) = posted(app, litellm_log.routes, "/ingest/litellm", body)
    assert (answer.status_code, answer.json()) == (200, {"accepted": 1, "rejected": 0})
    assert talks(app) == [["Sort?", "sorted"]]
    (session,) = app.corpus.sessions()
    assert (session.source, session.terms_class) == ("litellm", "restricted")


def test_a_failure_is_an_outcome_and_a_conversation_goes_on(app: App) -> None:
    allow(app, "litellm")
    about = {"requester_metadata": {"session_id": "c"}}
    body = lines(
        payload(metadata=about),
        payload("More?", metadata=about),
        payload("Broken?", status="failure", response={}),
    )
    posted(app, litellm_log.routes, "/ingest/litellm", body)
    assert sorted(talks(app)) == [["Broken?"], ["Sort?", "sorted", "More?", "sorted"]]
    assert {each.outcome for each in app.corpus.sessions()} == {"error", ""}


def test_other_calls_and_withheld_messages_are_counted_and_skipped(app: App) -> None:
    allow(app, "litellm")
    body = lines(payload(call_type="aembedding"), payload(messages=None), {"hello": 1})
    (answer,) = posted(app, litellm_log.routes, "/ingest/litellm", body)
    assert answer.json() == {"accepted": 0, "rejected": 0}
    assert Tally(app.home).read().sources["litellm"].unknown == {
        "call_type aembedding": 1,
        "messages that LiteLLM keeps to itself": 1,
        "not a StandardLoggingPayload": 1,
    }


def test_without_consent_nothing_is_kept_and_the_sender_is_told(app: App) -> None:
    allow(app, "endpoint")
    (answer,) = posted(app, litellm_log.routes, "/ingest/litellm", lines(payload()))
    told = answer.json()
    assert (answer.status_code, told["accepted"], told["rejected"]) == (200, 0, 0)
    assert "consent grant capture --source litellm" in told["message"]
    assert list(app.corpus.records()) == []
    assert "litellm" not in Tally(app.home).read().sources


def test_what_is_no_json_is_refused(app: App) -> None:
    allow(app, "litellm")
    answers = posted(
        app, litellm_log.routes, "/ingest/litellm", b"{", b"\xff", b"[" * 100_000, b"{}\n{"
    )
    assert [each.status_code for each in answers] == [400] * 4


LITELLM = """
import asyncio, litellm, sys
from litellm.integrations.generic_api.generic_api_callback import GenericAPILogger

async def main():
    logger = GenericAPILogger(endpoint=sys.argv[1], log_format="ndjson", flush_interval=1)
    litellm.callbacks = [logger]
    for ask in ("How do I sort?", "And backwards?"):
        await litellm.acompletion(
            "gpt-4o", [{"role": "user", "content": ask}], mock_response=f"Answer to {ask}",
            metadata={"session_id": "the talk"},
        )
    for _ in range(200):
        if len(logger.log_queue) >= 2:
            break
        await asyncio.sleep(0.02)
    await logger.flush_queue()

asyncio.run(main())
"""


@pytest.mark.slow
def test_litellm_itself_reports_what_it_answered(app: App, tmp_path: Path) -> None:
    pytest.importorskip("litellm", reason="litellm is not installed")
    allow(app, "litellm")
    counts = Counts()
    recorder = Recorder(app, ApiConfig(), counts)
    gate.capture_gate()
    asgi = Starlette(routes=litellm_log.routes(recorder, app))
    with served(asgi, recorder.run) as server:
        done = subprocess.run(
            [sys.executable, "-c", LITELLM, f"{server.url}/ingest/litellm"],
            env={"PATH": "", "HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    told = [text for talk in talks(app) for text in talk]
    assert told == [
        *("How do I sort?", "Answer to How do I sort?"),
        *("And backwards?", "Answer to And backwards?"),
    ]


def test_a_report_that_is_sent_twice_is_kept_once(app: App) -> None:
    allow(app, "litellm")
    body = lines(payload(id="one"))
    answers = posted(app, litellm_log.routes, "/ingest/litellm", body, body)
    assert [each.json()["accepted"] for each in answers] == [1, 0]
    assert len(list(app.corpus.sessions())) == 1


def test_a_call_type_that_is_no_word_is_not_written_down(app: App) -> None:
    allow(app, "litellm")
    said = "my card is 4111 1111 1111 1111"
    body = lines(payload(call_type=said), payload(call_type={"pw": "hunter2"}))
    posted(app, litellm_log.routes, "/ingest/litellm", body)
    assert Tally(app.home).read().sources["litellm"].unknown == {
        "(another name)": 1,
        "call_type (no word)": 1,
    }
