"""Failing open: trouble with a leaf, the recorder or the client costs nobody else an answer."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
import trio
from support_api import LEAVES, Bench, KeptRecorder, ScriptedBackend, choice_of, served, stream_of

from node.api.completing import TEXT_CHARS_MAX
from node.api.config import ApiConfig
from node.api.ports import AdapterError, BackendError, Piece, Usage

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "groove/auto", "messages": [{"role": "user", "content": "hi"}]}
GONE = AdapterError("gone", "this leaf is not here")
DOWN = BackendError("backend_down", "the back end does not run", 503)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_leaf_that_cannot_be_put_on_is_answered_for_by_the_chassis(stream: bool) -> None:
    bench = Bench(ScriptedBackend(raises={"async-python": GONE}))
    response = await bench.post(CHAT, ASK | {"stream": stream})
    assert response.status_code == 200
    assert response.headers["x-groove-leaf"] == "async-python"
    assert response.headers["x-groove-fallback"] == "adapter"
    body = stream_of(response)[-1] if stream else response.json()
    assert body["groove"]["served_by"] == "chassis"
    assert body["groove"]["fallback"] == "adapter"
    assert [ask.adapter for ask in bench.backend.asks] == [LEAVES["async-python"], None]
    assert bench.counts.fallbacks == {"adapter": 1}
    assert bench.counts.answered == {"chassis": 1}
    (exchange,) = bench.recorder.begun
    assert exchange.choice is not None
    assert exchange.choice.fallback == "adapter"


async def test_a_leaf_that_fails_at_its_first_piece_is_answered_for_by_the_chassis() -> None:
    tries: list[int] = []

    async def first_fails(_: int) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise GONE

    bench = Bench(ScriptedBackend(gate=first_fails))
    response = await bench.post(CHAT, ASK)
    assert response.json()["choices"][0]["message"]["content"] == "Hello there"
    assert bench.backend.open == 0
    assert bench.counts.fallbacks == {"adapter": 1}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_a_back_end_that_is_down_is_a_clear_error(stream: bool, path: str) -> None:
    bench = Bench(ScriptedBackend(raises={"async-python": DOWN}))
    response = await bench.post(path, ASK | {"stream": stream, "max_tokens": 5})
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "the back end does not run"
    assert bench.counts.failures == {"backend_down": 1}
    assert bench.counts.fallbacks == {}
    assert [outcome for _, outcome, _ in bench.recorder.ends] == ["error"]


async def test_a_chassis_that_fails_after_the_leaf_did_is_an_error() -> None:
    bench = Bench(ScriptedBackend(raises={"async-python": GONE, "": DOWN}))
    assert (await bench.post(CHAT, ASK)).status_code == 503
    assert bench.counts.failures == {"backend_down": 1}
    assert bench.counts.fallbacks == {"adapter": 1}


@pytest.mark.parametrize("problem", [KeyError("secret words"), ExceptionGroup("", [DOWN])])
async def test_a_back_end_with_a_bug_is_a_counted_error_without_its_text(
    problem: Exception,
) -> None:
    bench = Bench(ScriptedBackend(raises={"async-python": problem}))
    response = await bench.post(CHAT, ASK)
    assert response.status_code in (500, 503)
    assert "secret" not in response.text
    assert sum(bench.counts.failures.values()) == 1


async def test_an_answer_that_breaks_ends_with_an_error_event() -> None:
    bench = Bench(ScriptedBackend(pieces=(Piece("Hel"),), breaks=DOWN))
    response = await bench.post(CHAT, ASK | {"stream": True})
    assert response.status_code == 200
    *_, text, last = stream_of(response)
    assert text["choices"][0]["delta"]["content"] == "Hel"
    assert last["error"]["code"] == "backend_down"
    assert b"[DONE]" not in response.content
    assert bench.counts.failures == {"backend_down": 1}
    assert bench.recorder.ends == [("Hel", "error", None)]


async def test_an_answer_that_breaks_before_it_is_sent_is_an_error() -> None:
    bench = Bench(ScriptedBackend(pieces=(Piece("Hel"),), breaks=DOWN))
    response = await bench.post(CHAT, ASK)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "backend_down")
    assert bench.counts.failures == {"backend_down": 1}


async def test_an_answer_without_end_is_ended() -> None:
    long = Piece("x" * (TEXT_CHARS_MAX // 2 + 1))
    bench = Bench(ScriptedBackend(pieces=(long, long, long)))
    response = await bench.post(CHAT, ASK)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "too_long")


async def test_a_recorder_that_fails_does_not_show() -> None:
    bench = Bench(recorder=KeptRecorder(fails=True))
    assert (await bench.post(CHAT, ASK)).json()["choices"][0]["message"]["content"] == "Hello there"
    assert bench.counts.failures == {"recorder": 1}


async def test_an_exchange_is_recorded_with_who_asked_and_what_was_said() -> None:
    bench = Bench()
    headers = {
        "user-agent": "editor/1.0",
        "x-groove-conversation": "c" * 300,
        "x-groove-no-capture": "1",
        "x-groove-feedback": "Rejected",
    }
    response = await bench.post(CHAT, ASK, headers)
    (exchange,) = bench.recorder.begun
    assert exchange.id == response.headers["x-groove-exchange"]
    assert (exchange.model, exchange.client) == ("groove/auto", "editor/1.0")
    assert exchange.messages == ({"role": "user", "content": "hi"},)
    assert exchange.no_capture
    assert exchange.feedback == "rejected"
    assert exchange.conversation == "c" * 200
    assert bench.recorder.ends == [("Hello there", "ok", Usage(7, 2))]
    assert bench.chooser.heard == [("hi", "c" * 200)]


async def test_nothing_is_recorded_where_the_owner_wants_none() -> None:
    bench = Bench(config=ApiConfig(capture=False))
    await bench.post(CHAT, ASK)
    assert bench.recorder.begun == []


async def test_a_starter_is_its_words_before_those_of_the_client() -> None:
    bench = Bench()
    bench.chooser.routed = choice_of("chassis", system="You know Rust.", name="rust")
    await bench.post(CHAT, ASK)
    talk = [{"role": "system", "content": "Be brief."}, *ASK["messages"]]
    await bench.post(CHAT, ASK | {"messages": talk})
    first, second = bench.backend.asks
    assert first.messages[0] == {"role": "system", "content": "You know Rust."}
    assert second.messages[0] == {"role": "system", "content": "You know Rust.\n\nBe brief."}
    assert bench.counts.answered == {"starter": 2}


async def test_a_name_of_any_letters_stands_in_a_header() -> None:
    bench = Bench()
    bench.chooser.routed = choice_of("Größe 'ß'\r\nx: y")
    response = await bench.post(CHAT, ASK)
    assert response.status_code == 200
    assert response.headers["x-groove-leaf"] == "Gr%C3%B6%C3%9Fe %27%C3%9F%27%0D%0Ax: y"


class Waits:
    """A gate that lets the first piece through, and then none."""

    def __init__(self, at: int) -> None:
        self._at = at

    async def __call__(self, n: int) -> None:
        if n == self._at:
            await trio.sleep_forever()


async def _until(true: Any) -> None:
    with trio.fail_after(10):
        while not true():
            await trio.sleep(0.01)


@pytest.mark.parametrize(("at", "stream"), [(0, True), (1, True), (1, False)])
async def test_who_hangs_up_frees_the_back_end_at_once(at: int, stream: bool) -> None:
    bench = Bench(ScriptedBackend(gate=Waits(at)))
    content = msgspec.json.encode(ASK | {"stream": stream})
    with served(bench.app) as server:
        url = httpx.URL(server.url)
        assert url.port is not None
        client = await trio.open_tcp_stream("127.0.0.1", url.port)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        await client.send_all(head.encode() + content)
        if stream and at:
            received = b""
            while b"Hello" not in received:
                received += await client.receive_some()
        else:
            await _until(lambda: bench.backend.open == 1)
        await client.aclose()
        await _until(lambda: bench.counts.aborted == 1)
        assert bench.backend.open == 0
    text = "Hello" if at else ""
    assert bench.recorder.ends == [(text, "aborted", None)]
    assert bench.counts.streams == 0
    assert bench.counts.failures == {}


async def test_a_piece_is_sent_before_the_next_is_there() -> None:
    go = trio.Event()

    async def gate(n: int) -> None:
        if n == 1:
            await go.wait()

    bench = Bench(ScriptedBackend(gate=gate))
    with served(bench.app) as server:
        async with (
            httpx.AsyncClient() as client,
            client.stream("POST", server.url + CHAT, json=ASK | {"stream": True}) as response,
        ):
            received = ""
            async for text in response.aiter_text():
                received += text
                if "Hello" in received and not go.is_set():
                    assert "there" not in received
                    server.call(go.set)
    assert received.endswith("data: [DONE]\n\n")


async def test_answers_are_made_side_by_side() -> None:
    met = [0]
    all_here = trio.Event()

    async def gate(n: int) -> None:
        if n == 1:
            met[0] += 1
            if met[0] == 20:
                all_here.set()
            await all_here.wait()

    bench = Bench(ScriptedBackend(gate=gate))
    answers: list[int] = []

    async def one() -> None:
        answers.append((await bench.post(CHAT, ASK | {"stream": True})).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    assert answers == [200] * 20
    assert bench.backend.ended == 20
