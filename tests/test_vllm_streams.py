"""Streams of servers of others: however the bytes are cut, and whatever goes wrong in them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
import tiny_llama
import trio
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from support_adapters import home_of
from support_api import served

from node.api.backends.event_lines import LINE_BYTES_MAX, EventLines, TooLongError
from node.api.backends.openai_server import refusal
from node.api.backends.vllm import Vllm
from node.api.config import ApiConfig
from node.api.ports import Ask, BackendError, Piece

HELLO = ({"role": "user", "content": "hello"},)


@given(st.lists(st.binary(max_size=30), max_size=8), st.lists(st.integers(0, 400), max_size=8))
def test_events_do_not_depend_on_how_the_bytes_are_cut(datas: list[bytes], at: list[int]) -> None:
    clean = [data.replace(b"\n", b"").replace(b"\r", b"").strip() for data in datas]
    stream = b": a remark\r\n" + b"".join(b"data: " + data + b"\r\n\r\n" for data in clean)
    cuts = [0, *sorted(min(cut, len(stream)) for cut in at), len(stream)]
    lines, found = EventLines(), []
    for begin, end in pairwise(cuts):
        found += lines.push(stream[begin:end])
    assert found == [data for data in clean if data]


def test_a_line_without_an_end_is_not_kept() -> None:
    lines = EventLines()
    lines.push(b"data: " + b"x" * (LINE_BYTES_MAX - 10))
    with pytest.raises(TooLongError):
        lines.push(b"x" * 10)


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


BROKEN = {
    "cut_short": [chunk("a")],
    "malformed_answer": [chunk("a"), b"data: {not json\n\n"],
    "backend_failed": [
        chunk("a"),
        b'data: {"error": {"message": "/secret/path", "code": 500}}\n\n',
    ],
    "backend_late": [chunk("a"), b"wait"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    home_of(folder, tiny_llama.build(folder / "chassis"))
    return folder


def heard(folder: Path, answer: list[bytes], status: int = 200) -> tuple[list[Piece], str]:
    """The pieces of an answer that a server gives in these parts, and the kind of what went
    wrong."""
    from node.app import App

    async def parts() -> AsyncIterator[bytes]:
        for part in answer:
            if part == b"wait":
                await trio.sleep(5)
            else:
                yield part

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [{"id": "base"}]})

    async def chat(request: Request) -> Response:
        return StreamingResponse(parts(), status_code=status)

    routes = [Route("/v1/models", models), Route("/v1/chat/completions", chat, methods=["POST"])]
    pieces: list[Piece] = []

    async def main(url: str) -> str:
        config = ApiConfig(backend="vllm", backend_url=url, upstream_within_s=0.3)
        backend, kind = Vllm(App(folder / "home"), config), ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.run)
            try:
                async with backend.answer(Ask(messages=HELLO)) as stream:
                    async for piece in stream:
                        pieces.append(piece)
            except BackendError as problem:
                assert "/" not in str(problem)
                kind = problem.kind
            nursery.cancel_scope.cancel()
        return kind

    with served(Starlette(routes=routes)) as here:
        return pieces, trio.run(main, here.url)


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_an_answer_that_breaks_gives_what_came_and_then_its_cause(folder: Path, kind: str) -> None:
    pieces, found = heard(folder, BROKEN[kind])
    assert [piece.text for piece in pieces] == ["a"]
    assert found == kind


def test_a_server_that_breaks_off_after_the_end_has_answered(folder: Path) -> None:
    pieces, kind = heard(folder, [chunk("a"), chunk("", "stop")])
    assert kind == ""
    assert pieces[-1].finish == "stop"


@pytest.mark.parametrize(
    ("status", "message", "kind", "answered"),
    [
        (400, "This model's maximum context length is 512 tokens", "too_long", 400),
        (400, "tools[0] is wrong", "backend_refused", 400),
        (401, "Unauthorized", "backend_key", 502),
        (404, "The model `x` does not exist", "backend_model", 502),
        (503, "Loading model", "backend_busy", 503),
        (500, "/home/owner/model died of a prompt", "backend_failed", 502),
    ],
)
def test_a_refusal_is_told_by_its_cause_and_never_in_the_servers_words(
    status: int, message: str, kind: str, answered: int
) -> None:
    problem = refusal(status, {"error": {"message": message}})
    assert (problem.kind, problem.status) == (kind, answered)
    assert message not in str(problem)
