"""POST /v1/feedback: what it takes, and how plainly it says what it does not."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from starlette.applications import Starlette

from node.api import feedback_route
from node.api.recording import Feedback


class ScriptedRecorder:
    """Knows one exchange for each thing that may become of feedback."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str | None]] = []

    def mark(self, exchange: str, signal: str, text: str | None) -> Feedback:
        self.heard.append((exchange, signal, text))
        return Feedback[exchange]


def post(body: bytes) -> tuple[httpx.Response, ScriptedRecorder]:
    recorder = ScriptedRecorder()
    app = Starlette(routes=feedback_route.routes(recorder))  # type: ignore[arg-type]

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://groove") as client:
            return await client.post("/v1/feedback", content=body)

    return trio.run(main), recorder


def test_a_word_on_a_known_exchange_is_taken() -> None:
    answer, recorder = post(b'{"exchange":"TAKEN","signal":"modified","text":"better"}')
    assert answer.status_code == 202
    assert answer.json() == {
        "object": "groove.feedback",
        "exchange": "TAKEN",
        "signal": "modified",
    }
    assert recorder.heard == [("TAKEN", "modified", "better")]


@pytest.mark.parametrize(
    ("exchange", "status"), [("UNKNOWN", 404), ("OVER", 410), ("NOT_LAST", 409), ("BUSY", 503)]
)
def test_what_cannot_be_marked_is_said(exchange: str, status: int) -> None:
    answer, _ = post(f'{{"exchange":"{exchange}","signal":"accepted"}}'.encode())
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, exchange.lower())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"exchange":"TAKEN"}',
        b'{"exchange":"TAKEN","signal":"loved"}',
        b'{"exchange":"TAKEN","signal":"accepted","text":"why text?"}',
        b'{"exchange":7,"signal":"accepted"}',
        b'{"exchange":"TAKEN","signal":"accepted","more":1}',
        b'{"exchange":"' + b"x" * 200 + b'","signal":"accepted"}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_what_is_no_feedback_is_refused(body: bytes) -> None:
    answer, recorder = post(body)
    assert (answer.status_code, recorder.heard) == (400, [])
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
