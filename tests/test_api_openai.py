"""OpenAI's shapes: what is read, what is answered, what is refused and how."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_api import ALL, Bench, ScriptedBackend, stream_of

from node.api.ports import Capabilities, Piece, Usage

CHAT = "/v1/chat/completions"
RAW = "/v1/completions"
ASK = {"model": "groove/async-python", "messages": [{"role": "user", "content": "hi"}]}


async def test_an_answer_has_text_reason_usage_and_who_gave_it() -> None:
    response = await Bench().post(CHAT, ASK)
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert body["groove"]["leaf"] == body["groove"]["served_by"] == "async-python"
    assert response.headers["x-groove-leaf"] == "async-python"
    assert response.headers["x-groove-confidence"] == "0.7500"
    assert response.headers["x-groove-level"] == "3"
    assert response.headers["x-groove-backend"] == "builtin"
    assert response.headers["x-groove-exchange"] == body["groove"]["exchange"]
    assert "x-groove-fallback" not in response.headers


async def test_a_stream_begins_with_the_role_and_ends_with_done() -> None:
    response = await Bench().post(CHAT, ASK | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.content.endswith(b"data: [DONE]\n\n")
    first, *middle, last = stream_of(response)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in middle] == ["Hello", " there"]
    assert last["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert first["groove"] == last["groove"]
    assert all("usage" not in chunk for chunk in (first, *middle, last))


async def test_a_stream_tells_its_usage_in_a_chunk_of_its_own_if_asked() -> None:
    asked = ASK | {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = stream_of(await Bench().post(CHAT, asked))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


@pytest.mark.parametrize("path", [CHAT, RAW])
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=8))
async def test_a_stream_joined_is_the_answer_that_is_not_streamed(
    path: str, texts: list[str]
) -> None:
    pieces = [*map(Piece, texts), Piece(finish="length", usage=Usage(1, 1))]
    bench = Bench(ScriptedBackend(pieces))
    asked = {"model": "groove/chassis", "prompt": "p", "messages": ASK["messages"]}
    whole = (await bench.post(path, asked)).json()["choices"][0]
    chunks = [c["choices"][0] for c in stream_of(await bench.post(path, asked | {"stream": True}))]
    if path == CHAT:
        streamed = "".join(chunk["delta"].get("content", "") for chunk in chunks)
        assert streamed == whole["message"]["content"] == "".join(texts)
    else:
        assert "".join(chunk["text"] for chunk in chunks) == whole["text"] == "".join(texts)
    assert [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]] == ["length"]


async def test_what_is_asked_reaches_the_back_end() -> None:
    bench = Bench()
    given: dict[str, Any] = {
        "max_tokens": 9,
        "temperature": 0,
        "top_p": 0.5,
        "seed": -3,
        "stop": ["a", "", "b", "a"],
        "user": "u",
        "top_k": 40,
        "presence_penalty": None,
    }
    assert (await bench.post(CHAT, ASK | given)).status_code == 200
    (ask,) = bench.backend.asks
    assert (ask.tokens_max, ask.temperature, ask.top_p, ask.seed) == (9, 0, 0.5, -3)
    assert ask.stop == ("a", "b")
    assert ask.extra == {"top_k": 40}
    assert ask.adapter is not None
    assert ask.adapter.name == "async-python"


async def test_the_newer_name_of_the_limit_goes_before_the_older() -> None:
    bench = Bench()
    await bench.post(CHAT, ASK | {"max_tokens": 9, "max_completion_tokens": 5, "stop": "x"})
    await bench.post(CHAT, ASK)
    assert [ask.tokens_max for ask in bench.backend.asks] == [5, bench.config.tokens_max]
    assert bench.backend.asks[0].stop == ("x",)


async def test_messages_come_to_the_back_end_as_plain_text() -> None:
    bench = Bench()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    talk = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "go on"},
    ]
    await bench.post(CHAT, ASK | {"model": "groove/auto", "messages": talk})
    assert bench.backend.asks[0].messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo", "name": "ann"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "go on"},
    )
    assert bench.chooser.heard == [("one\ntwo", None)]


async def test_a_raw_prompt_is_gone_on_from() -> None:
    bench = Bench()
    asked = {"model": "groove/chassis", "prompt": ["def f("], "max_tokens": 4}
    body = (await bench.post(RAW, asked)).json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "Hello there"
    assert (bench.backend.asks[0].prompt, bench.backend.asks[0].messages) == ("def f(", ())


_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": [], "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0]",
    ),
    ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0].tool_calls"),
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"model": "x" * 300}, "model"),
    ({"n": 2}, "n"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_completion_tokens": "9"}, "max_completion_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"seed": 1.0}, "seed"),
    ({"seed": 1 << 63}, "seed"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stop": "x" * 2000}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": 1}, "stream_options"),
    ({"logprobs": True}, "logprobs"),
]


@pytest.mark.parametrize(("change", "param"), _WRONG)
async def test_a_refusal_names_the_field(change: dict[str, Any], param: str) -> None:
    bench = Bench()
    response = await bench.post(CHAT, ASK | change)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert bench.backend.asks == []
    assert bench.counts.failures == {"malformed": 1}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
    ],
)
async def test_a_refusal_of_a_raw_prompt_names_the_field(
    change: dict[str, Any], param: str
) -> None:
    asked = {"model": "groove/chassis", "prompt": "p"} | change
    response = await Bench().post(RAW, asked)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    [*ASK, "stop", "n", "tools", "tool_choice", "response_format", "prompt", "stream", "system"]
)


@given(
    path=st.sampled_from([CHAT, RAW, "/v1/messages", "/v1/messages/count_tokens"]),
    changes=st.dictionaries(_FIELDS, _VALUES, max_size=4),
)
async def test_no_json_of_any_form_is_an_error_of_ours(path: str, changes: dict[str, Any]) -> None:
    bench = Bench()
    asked = ASK | {"max_tokens": 5} | changes
    response = await bench.post(path, msgspec.json.encode(asked))
    assert response.status_code < 500
    if response.status_code >= 400:
        assert sum(bench.counts.failures.values()) == 1


@given(path=st.sampled_from([CHAT, RAW, "/v1/messages"]), body=st.binary(max_size=40))
async def test_no_bytes_of_any_form_are_an_error_of_ours(path: str, body: bytes) -> None:
    bench = Bench()
    response = await bench.post(path, body)
    assert 400 <= response.status_code < 500
    assert response.json()["error"]["message"]
    assert sum(bench.counts.failures.values()) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"model": "groove/auto"',
        b'{"model": "\xff"}',
        b'{"model": "groove/auto", "x": ' + b"[" * 100_000,
        b'{"model": "groove/auto", "messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"model": "groove/auto", "temperature": 1e999}',
        b'{"model": "\\ud800"}',
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    bench = Bench()
    response = await bench.post(CHAT, body)
    assert 400 <= response.status_code < 500
    assert sum(bench.counts.failures.values()) == 1


async def test_a_model_that_nobody_has_is_not_found() -> None:
    bench = Bench()
    for model in ("gpt-5", "groove/none"):
        response = await bench.post(CHAT, ASK | {"model": model})
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (404, "model_not_found")
    assert bench.counts.failures == {"model_not_found": 2}


async def test_only_post_is_taken() -> None:
    import httpx

    transport = httpx.ASGITransport(Bench().app)
    async with httpx.AsyncClient(transport=transport, base_url="http://groove") as client:
        response = await client.get(CHAT)
        posted = await client.post("/v1/models", content=b"{}")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD")
    assert response.json()["error"]["type"] == "invalid_request_error"


NO_TOOLS = Capabilities(
    adapters=True,
    adapters_at_run_time=True,
    raw_prompts=False,
    tools=False,
    seed=True,
    at_once=1,
)
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


async def test_tools_that_the_back_end_has_not_are_left_out_and_it_is_said() -> None:
    bench = Bench(ScriptedBackend(capabilities=NO_TOOLS))
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    talk = [
        *ASK["messages"],
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
    ]
    asked = ASK | {"messages": talk, "tools": [TOOL], "tool_choice": "auto"}
    response = await bench.post(CHAT, asked)
    assert response.json()["groove"]["ignored"] == ["tools", "tool_choice"]
    (ask,) = bench.backend.asks
    assert ask.extra == {}
    assert [message["role"] for message in ask.messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
async def test_an_answer_that_could_not_be_as_it_must_is_refused(
    change: dict[str, Any], param: str
) -> None:
    bench = Bench(ScriptedBackend(capabilities=NO_TOOLS))
    response = await bench.post(CHAT, ASK | change)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert bench.counts.failures == {"unsupported": 1}
    assert (await Bench().post(CHAT, ASK | change)).status_code == 200


async def test_a_back_end_that_chats_alone_is_given_no_raw_prompt() -> None:
    bench = Bench(ScriptedBackend(capabilities=NO_TOOLS))
    response = await bench.post(RAW, {"model": "groove/chassis", "prompt": "p"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


def _called(index: int, **function: str) -> Piece:
    call: dict[str, Any] = {"index": index, "function": function}
    if "name" in function:
        call |= {"id": f"call-{index}", "type": "function"}
    return Piece(delta={"tool_calls": [call]})


CALLS = [
    _called(0, name="look", arguments=""),
    _called(0, arguments='{"at":'),
    _called(0, arguments='"sky"}'),
    _called(1, name="go", arguments="{}"),
    Piece(finish="tool_calls"),
]


async def test_tool_calls_of_a_server_are_passed_on_and_joined() -> None:
    bench = Bench(ScriptedBackend(CALLS, capabilities=ALL))
    chunks = stream_of(await bench.post(CHAT, ASK | {"tools": [TOOL], "stream": True}))
    assert chunks[2]["choices"][0]["delta"] == CALLS[1].delta
    choice = (await bench.post(CHAT, ASK | {"tools": [TOOL]})).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [
        {"name": "look", "arguments": '{"at":"sky"}'},
        {"name": "go", "arguments": "{}"},
    ]
    assert bench.backend.asks[0].extra == {"tools": [TOOL]}


async def test_models_are_listed_and_found_by_their_names() -> None:
    import httpx

    transport = httpx.ASGITransport(Bench().app)
    async with httpx.AsyncClient(transport=transport, base_url="http://groove") as client:
        listed = (await client.get("/v1/models")).json()
        one = await client.get("/v1/models/groove/async-python")
        none = await client.get("/v1/models/groove/none")
    assert [row["id"] for row in listed["data"]] == [
        "groove/auto",
        "groove/chassis",
        "groove/async-python",
    ]
    assert one.json() in listed["data"]
    assert (none.status_code, none.json()["error"]["code"]) == (404, "model_not_found")
