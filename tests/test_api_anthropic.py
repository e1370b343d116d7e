"""Anthropic's shape: what is read, the events of a stream, and tools both ways."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_api import Bench, ScriptedBackend
from test_api_openai import CALLS

from node.api import sse
from node.api.ports import BackendError, Piece, Usage

PATH = "/v1/messages"
ASK: dict[str, Any] = {
    "model": "groove/auto",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hi"}],
}


def _events(content: bytes) -> list[tuple[str, Any]]:
    """Each event's name and data; the name is the data's own type."""
    import msgspec

    names = [line[7:].decode() for line in content.split(b"\n") if line.startswith(b"event: ")]
    found = [msgspec.json.decode(each) for each in sse.events(content)]
    assert names == [each["type"] for each in found]
    return list(zip(names, found, strict=True))


async def test_an_answer_is_a_message_with_blocks_and_usage() -> None:
    response = await Bench().post(PATH, ASK)
    body = response.json()
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "groove/auto")
    assert body["content"] == [{"type": "text", "text": "Hello there"}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"] == {"input_tokens": 7, "output_tokens": 2}
    assert body["groove"]["leaf"] == response.headers["x-groove-leaf"] == "async-python"


async def test_a_stream_is_the_sequence_of_events_that_clients_expect() -> None:
    events = _events((await Bench().post(PATH, ASK | {"stream": True})).content)
    assert [name for name, _ in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0][1]["message"]["groove"] == events[-2][1]["groove"]
    assert events[-2][1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2][1]["usage"] == {"input_tokens": 7, "output_tokens": 2}


@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=8))
async def test_a_stream_joined_is_the_answer_that_is_not_streamed(texts: list[str]) -> None:
    pieces = [*map(Piece, texts), Piece(finish="length", usage=Usage(1, 1))]
    bench = Bench(ScriptedBackend(pieces))
    whole = (await bench.post(PATH, ASK)).json()
    events = _events((await bench.post(PATH, ASK | {"stream": True})).content)
    deltas = [data["delta"]["text"] for name, data in events if name == "content_block_delta"]
    assert "".join(deltas) == whole["content"][0]["text"] == "".join(texts)
    assert whole["stop_reason"] == events[-2][1]["delta"]["stop_reason"] == "max_tokens"
    names = [name for name, _ in events]
    assert names.count("content_block_start") == names.count("content_block_stop") == 1


async def test_the_stop_sequence_that_was_met_is_named() -> None:
    last = Piece(finish="stop", delta={"stop_sequence": "END"})
    bench = Bench(ScriptedBackend((Piece("a"), last)))
    asked = ASK | {"stop_sequences": ["END"]}
    body = (await bench.post(PATH, asked)).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "END")
    assert bench.backend.asks[0].stop == ("END",)
    chat = {**ASK, "stream": True, "stop": "END"}
    assert b"stop_sequence" not in (await bench.post("/v1/chat/completions", chat)).content


async def test_system_and_blocks_are_read_as_one_talk() -> None:
    bench = Bench()
    cached = {"cache_control": {"type": "ephemeral"}}
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "one", **cached}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "well"},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "sky"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "blue"},
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be brief.", **cached}, {"type": "text", "text": "Really."}]
    tools = [{"name": "look", "description": "d", "input_schema": {"type": "object"}}]
    asked = {"system": system, "messages": talk, "tools": tools, "metadata": {"user_id": "u"}}
    choice = {"type": "tool", "name": "look"}
    response = await bench.post(PATH, {**ASK, **asked, "tool_choice": choice})
    assert response.status_code == 200
    (ask,) = bench.backend.asks
    function = {"name": "look", "arguments": '{"at":"sky"}'}
    assert list(ask.messages) == [
        {"role": "system", "content": "Be brief.\nReally."},
        {"role": "user", "content": "one"},
        {
            "role": "assistant",
            "content": "well",
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "blue"},
        {"role": "user", "content": "so?"},
    ]
    described = {"name": "look", "description": "d", "parameters": {"type": "object"}}
    assert ask.extra == {
        "tools": [{"type": "function", "function": described}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
    }


async def test_a_tool_that_is_called_is_a_block_of_its_own() -> None:
    bench = Bench(ScriptedBackend([Piece("let me see"), *CALLS]))
    body = (await bench.post(PATH, ASK)).json()
    assert body["stop_reason"] == "tool_use"
    assert body["content"] == [
        {"type": "text", "text": "let me see"},
        {"type": "tool_use", "id": "call-0", "name": "look", "input": {"at": "sky"}},
        {"type": "tool_use", "id": "call-1", "name": "go", "input": {}},
    ]
    events = _events((await bench.post(PATH, ASK | {"stream": True})).content)
    blocks = [(name, data["index"]) for name, data in events if name.startswith("content_block_s")]
    assert blocks == [
        (f"content_block_{what}", index) for index in range(3) for what in ("start", "stop")
    ]
    parts = [
        (data["index"], data["delta"]["partial_json"])
        for name, data in events
        if name == "content_block_delta" and data["delta"]["type"] == "input_json_delta"
    ]
    assert parts == [(1, '{"at":'), (1, '"sky"}'), (2, "{}")]


async def test_an_answer_that_breaks_ends_with_an_error_event() -> None:
    breaks = BackendError("backend_down", "it went away", 503)
    bench = Bench(ScriptedBackend((Piece("a"),), breaks=breaks))
    name, data = _events((await bench.post(PATH, ASK | {"stream": True})).content)[-1]
    assert name == "error"
    assert data["error"] == {"type": "overloaded_error", "message": "it went away"}


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": None},
        {"max_tokens": 0},
        {"temperature": 1.5},
        {"messages": []},
        {"messages": None},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "user", "content": ["x"]}]},
        {"system": 3},
        {"system": [{"type": "image"}]},
        {"stop_sequences": 3},
        {"tools": {}},
        {"tools": [{}]},
        {"tool_choice": {"type": "some"}},
        {"stream": 1},
        {"model": None},
    ],
)
async def test_a_refusal_has_the_shape_that_clients_expect(change: dict[str, Any]) -> None:
    bench = Bench()
    response = await bench.post(PATH, ASK | change)
    body = response.json()
    assert (response.status_code, body["type"]) == (400, "error")
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"]
    assert bench.counts.failures == {"malformed": 1}
    assert bench.backend.asks == []


async def test_a_model_that_nobody_has_is_not_found() -> None:
    response = await Bench().post(PATH, ASK | {"model": "claude-x"})
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
    counted = await Bench().post("/v1/messages/count_tokens", ASK)
    assert (counted.status_code, counted.json()["error"]["type"]) == (404, "not_found_error")
