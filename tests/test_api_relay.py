"""Passing on to an upstream: bytes as they come, nothing of ours, clear errors when it is gone."""

from __future__ import annotations

import gzip
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trio
from support_api import Bench, Served, served

from node import gate
from node.api.config import ApiConfig
from node.api.errors import quoted
from node.api.heard import Hearing
from node.api.recording import Recorder
from node.logfile import FILE, log_to

CHAT = "/v1/chat/completions"
ASK = b'{ "model":"gpt-x",  "messages":[{"role":"user","content":"hi"}], "odd": 1e2 }'
ODD = b'{"error": {"message":  "model overloaded \xf0\x9f\x94\xa5"}}'


@dataclass
class Upstream:
    """An upstream that keeps what it is sent and answers as it is told."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    chunks: tuple[bytes, ...] = (b'{"x": 1}',)
    cut: bool = False  # ends without an end
    stall_at: int | None = None  # waits for `go` before this chunk; 0 is before its head
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    hung_up: bool = False

    def __post_init__(self) -> None:
        self.go = trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path = scope["raw_path"].decode() + "?" + scope["query_string"].decode()
        self.seen.append((scope["method"], path, headers, body))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, receive)
            await self._say(send)
            nursery.cancel_scope.cancel()

    async def _watch(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.hung_up = True
        self.go.set()

    async def _say(self, send: Any) -> None:
        if self.stall_at == 0:
            await self.go.wait()
        raw = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        for n, chunk in enumerate(self.chunks, 1):
            if n == self.stall_at:
                await self.go.wait()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if not self.cut:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


@contextmanager
def both(upstream: Upstream, **changes: Any) -> Iterator[tuple[Bench, Served, Served]]:
    """The endpoint before an upstream, each on a port."""
    with served(upstream) as far:
        settings = {"upstream": f"{far.url}/v1", "anthropic": far.url} | changes
        bench = Bench(config=ApiConfig(**settings))
        with bench.served() as near:
            yield bench, near, far


def _dead_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def test_a_request_is_passed_on_byte_for_byte_without_what_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "upstreams-own")
    upstream = Upstream()
    ours = {
        "authorization": "Bearer our-token",
        "x-api-key": "our-token",
        "cookie": "groove_4022=session",
        "x-groove-no-capture": "1",
        "origin": "http://127.0.0.1",
        "sec-fetch-site": "same-origin",
        "connection": "keep-alive, x-hop",
        "x-hop": "1",
        "openai-beta": "x=1",
        "content-type": "application/json",
    }
    with both(upstream) as (bench, near, _):
        response = httpx.post(f"{near.url}{CHAT}?a=%2F&b", content=ASK, headers=ours)
    (method, path, headers, body), *_ = upstream.seen
    assert response.content == b'{"x": 1}'
    assert (method, path, body) == ("POST", CHAT + "?a=%2F&b", ASK)
    assert headers["authorization"] == "Bearer upstreams-own"
    assert headers["openai-beta"] == "x=1"
    assert "our-token" not in str(headers)
    assert not {"cookie", "x-api-key", "x-groove-no-capture", "origin", "x-hop"} & set(headers)
    assert not [name for name in headers if name.startswith("sec-")]
    assert bench.counts.answered == {"upstream": 1}
    assert bench.counts.streams == 0


def test_without_a_key_of_its_own_the_upstream_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "of-anthropic")
    upstream = Upstream()
    with both(upstream) as (_, near, _far):
        httpx.post(near.url + CHAT, content=ASK, headers={"authorization": "Bearer our-token"})
        version = {"anthropic-version": "2023-06-01", "x-api-key": "our-token"}
        httpx.post(f"{near.url}/v1/messages", content=ASK, headers=version)
    first, second = (headers for _, _, headers, _ in upstream.seen)
    assert "authorization" not in first
    assert (second["x-api-key"], second["anthropic-version"]) == ("of-anthropic", "2023-06-01")


def test_an_answer_comes_back_byte_for_byte_without_leave_for_other_origins() -> None:
    sent = {
        "content-type": "application/json; x=y",
        "x-request-id": "abc",
        "set-cookie": "a=b",
        "access-control-allow-origin": "*",
        "x-groove-leaf": "forged",
        "retry-after": "7",
    }
    upstream = Upstream(429, sent, (ODD[:9], ODD[9:]))
    with both(upstream) as (_, near, _far):
        response = httpx.post(near.url + CHAT, content=ASK)
    assert (response.status_code, response.content) == (429, ODD)
    assert response.headers["content-type"] == "application/json; x=y"
    assert (response.headers["x-request-id"], response.headers["retry-after"]) == ("abc", "7")
    assert not {"set-cookie", "access-control-allow-origin", "x-groove-leaf"} & set(
        response.headers
    )


def test_chunks_are_not_held_back() -> None:
    upstream = Upstream(
        headers={"content-type": "text/event-stream"},
        chunks=(b"data: 1\n\n", b"data: 2\n\n"),
        stall_at=2,
    )
    with (
        both(upstream) as (_, near, far),
        httpx.stream("POST", near.url + CHAT, content=ASK) as response,
    ):
        chunks = response.iter_raw()
        assert next(chunks) == b"data: 1\n\n"
        far.call(upstream.go.set)
        assert b"".join(chunks) == b"data: 2\n\n"


@pytest.mark.parametrize("stall_at", [0, 2])
def test_who_hangs_up_ends_the_upstreams_work(stall_at: int) -> None:
    upstream = Upstream(
        headers={"content-type": "text/event-stream"},
        chunks=(b"data: 1\n\n", b"data: 2\n\n"),
        stall_at=stall_at,
    )
    with both(upstream) as (bench, near, _):
        if stall_at:
            with httpx.stream("POST", near.url + CHAT, content=ASK) as response:
                next(response.iter_raw())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(near.url + CHAT, content=ASK, timeout=0.3)
        _until(lambda: upstream.hung_up and bench.counts.aborted == 1)
        assert bench.counts.streams == 0


def _until(true: Callable[[], bool]) -> None:
    async def wait() -> None:
        with trio.fail_after(10):
            while not true():
                await trio.sleep(0.01)

    trio.run(wait)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/embeddings"])
def test_an_upstream_that_is_down_is_a_clear_error(path: str) -> None:
    url = f"http://127.0.0.1:{_dead_port()}"
    bench = Bench(config=ApiConfig(upstream=url, anthropic=url))
    with bench.served() as near:
        response = httpx.post(near.url + path, content=ASK)
    error = response.json()["error"]
    assert response.status_code == 502
    assert "cannot be reached" in error["message"]
    assert url not in error["message"]
    if path == "/v1/messages":
        assert error["type"] == "api_error"
    else:
        assert (error["type"], error["code"]) == ("server_error", "upstream_down")
    assert bench.counts.failures == {"upstream_down": 1}


def test_an_upstream_that_is_late_is_a_clear_error() -> None:
    with both(Upstream(stall_at=0), upstream_within_s=0.2) as (bench, near, _):
        response = httpx.post(near.url + CHAT, content=ASK)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "upstream_late")
        assert bench.counts.failures == {"upstream_late": 1}


def test_a_stream_that_the_upstream_breaks_off_ends_with_an_error_event() -> None:
    upstream = Upstream(
        headers={"content-type": "text/event-stream"}, chunks=(b"data: 1\n\ndata: {",), cut=True
    )
    with both(upstream) as (bench, near, _):
        response = httpx.post(near.url + CHAT, content=ASK)
        assert response.content.startswith(b"data: 1\n\ndata: {\n\ndata: ")
        assert b"upstream_broke" in response.content
        assert bench.counts.failures == {"upstream_broke": 1}


def test_an_answer_that_the_upstream_breaks_off_has_no_end() -> None:
    with (
        both(Upstream(cut=True)) as (bench, near, _),
        pytest.raises(httpx.RemoteProtocolError),
    ):
        httpx.post(near.url + CHAT, content=ASK)
    assert bench.counts.failures == {"upstream_broke": 1}


def test_an_answer_is_as_long_as_the_upstream_says() -> None:
    sent = {"content-type": "application/json", "content-length": "8"}
    with both(Upstream(headers=sent)) as (_, near, _far):
        response = httpx.post(near.url + CHAT, content=ASK)
    assert (response.headers["content-length"], response.content) == ("8", b'{"x": 1}')


def test_other_paths_are_passed_on_and_dots_are_not() -> None:
    upstream = Upstream()
    with both(upstream) as (bench, near, _):
        posted = httpx.post(f"{near.url}/v1/embeddings", content=b"anything at all")
        got = httpx.get(f"{near.url}/v1/files/a%2Fb?x=1")
        deleted = httpx.delete(f"{near.url}/v1/files/a")
        dots = httpx.get(f"{near.url}/v1/%2e%2e/admin")
        httpx.get(f"{near.url}/v1/models/gpt-x")
    assert [r.status_code for r in (posted, got, deleted, dots)] == [200, 200, 200, 404]
    assert [(method, path) for method, path, _, _ in upstream.seen] == [
        ("POST", "/v1/embeddings?"),
        ("GET", "/v1/files/a%2Fb?x=1"),
        ("DELETE", "/v1/files/a?"),
        ("GET", "/v1/models/gpt-x?"),
    ]
    assert bench.counts.failures == {"path": 1}


def test_without_an_upstream_other_paths_are_not_found() -> None:
    bench = Bench()
    with bench.served() as near:
        response = httpx.post(f"{near.url}/v1/embeddings", content=b"{}")
    assert response.status_code == 404
    assert "[api] upstream" in response.json()["error"]["message"]
    assert bench.counts.failures == {"path": 1}


def test_models_of_the_upstream_follow_ours() -> None:
    listed = b'{"object":"list","data":[{"id":"gpt-x","object":"model"},{"no":"id"}]}'
    with both(Upstream(chunks=(listed,))) as (_, near, _far):
        names = [row["id"] for row in httpx.get(f"{near.url}/v1/models").json()["data"]]
    assert names == ["groove/auto", "groove/chassis", "groove/async-python", "gpt-x"]


@pytest.mark.parametrize("listed", [b"[]", b"not json", b'{"data": 3}', b'{"data": null}'])
def test_a_list_of_models_that_is_none_hides_nothing(listed: bytes) -> None:
    with both(Upstream(chunks=(listed,))) as (bench, near, _):
        names = [row["id"] for row in httpx.get(f"{near.url}/v1/models").json()["data"]]
    assert names == ["groove/auto", "groove/chassis", "groove/async-python"]
    assert bench.counts.failures == {"upstream_models": 1}


class _Queue:
    """Stands for capture being on: the relay only looks whether there is a queue."""


def _kept(
    monkeypatch: pytest.MonkeyPatch,
    upstream: Upstream,
    path: str = CHAT,
    ask: bytes = ASK,
    headers: Mapping[str, str] | None = None,
) -> Bench:
    monkeypatch.setattr(gate, "queue", _Queue())
    with both(upstream) as (bench, near, _):
        httpx.post(near.url + path, content=ask, headers=headers)
        if headers is None:
            _until(lambda: bool(bench.recorder.ends))
    return bench


STREAMED = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\ndata: {"choices":[{"del',
    b'ta":{"content":"lo"}}]}\n\ndata: {"choices":[],"usage":{"prompt_tokens":3,',
    b'"completion_tokens":2}}\n\ndata: [DONE]\n\n',
)


def test_what_was_passed_on_is_recorded_after_its_last_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upstream = Upstream(headers={"content-type": "text/event-stream"}, chunks=STREAMED)
    bench = _kept(monkeypatch, upstream)
    (exchange,) = bench.recorder.begun
    assert (exchange.model, exchange.provider, exchange.choice) == ("gpt-x", "openai", None)
    assert exchange.messages == ({"role": "user", "content": "hi"},)
    ((text, outcome, usage),) = bench.recorder.ends
    assert (text, outcome) == ("Hello", "ok")
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 2)


def test_an_answer_of_anthropics_shape_is_recorded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = (
        b'{"type":"message","content":[{"type":"text","text":"Hello"},{"type":"tool_use"}],'
        b'"usage":{"input_tokens":3,"output_tokens":2}}'
    )
    ask = (
        b'{"model":"claude-x","system":[{"type":"text","text":"be brief"}],'
        b'"messages":[{"role":"user","content":[{"type":"image"},{"type":"text","text":"hi"}]}]}'
    )
    bench = _kept(monkeypatch, Upstream(chunks=(answer,)), "/v1/messages", ask)
    (exchange,) = bench.recorder.begun
    assert exchange.messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    )
    assert bench.recorder.ends[0][:2] == ("Hello", "ok")


def test_an_error_of_the_upstream_is_recorded_as_one_without_its_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = _kept(monkeypatch, Upstream(500, chunks=(ODD,)))
    assert bench.recorder.ends == [("", "error", None)]


def test_a_call_that_is_not_to_be_captured_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = _kept(monkeypatch, Upstream(), headers={"x-groove-no-capture": "1"})
    assert bench.recorder.begun == []


def test_with_capture_off_nothing_is_copied() -> None:
    with both(Upstream()) as (bench, near, _):
        assert httpx.post(near.url + CHAT, content=ASK).status_code == 200
    assert bench.recorder.begun == []
    assert bench.counts.failures == {}


def test_what_is_heard_in_a_rush_is_recorded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "queue", _Queue())
    bench = Bench()
    hearing = Hearing(cast(Recorder, bench.recorder), bench.counts)
    scope = {"method": "POST", "path": CHAT, "headers": []}
    for n in range(500):
        heard = hearing.begin(scope, ASK if n else b"no json", "openai")
        assert heard is not None
        heard.status = 200
        heard.add(b"".join(STREAMED))
        hearing.end(heard, "ok")

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hearing.run)
            with trio.fail_after(10):
                while len(bench.recorder.ends) < 499:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(run)
    assert {text for text, _, _ in bench.recorder.ends} == {"Hello"}
    assert bench.counts.failures == {"recorder": 1}


def test_a_line_that_is_full_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "queue", _Queue())
    bench = Bench()
    hearing = Hearing(cast(Recorder, bench.recorder), bench.counts)
    scope = {"method": "POST", "path": CHAT, "headers": []}
    mebibyte = bytes(1 << 20)
    for chunks in [(mebibyte,)] * 40 + [(mebibyte, b"x")]:
        heard = hearing.begin(scope, ASK, "openai")
        assert heard is not None
        for chunk in chunks:
            heard.add(chunk)
        hearing.end(heard, "ok")
    assert bench.counts.failures["recorder_busy"] == 40 - 31
    assert bench.counts.failures["too_long_to_record"] == 1


def test_a_redirect_to_another_origin_is_refused() -> None:
    upstream = Upstream(status=307, headers={"location": "http://other.example/evil"})
    with both(upstream) as (bench, near, _):
        response = httpx.post(f"{near.url}{CHAT}", content=ASK)
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_redirect"
    assert "location" not in response.headers
    assert bench.counts.failures["upstream_redirect"] == 1


def test_a_redirect_within_the_upstream_leads_to_our_own_path() -> None:
    upstream = Upstream(status=307, headers={"location": "/v1/other?a=1"})
    with both(upstream) as (_, near, _far):
        response = httpx.post(f"{near.url}{CHAT}", content=ASK)
    assert (response.status_code, response.headers["location"]) == (307, "/v1/other?a=1")


def test_a_status_that_there_is_not_is_told_as_a_bad_answer() -> None:
    with both(Upstream(status=999)) as (_, near, _far):
        response = httpx.post(f"{near.url}{CHAT}", content=ASK)
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_malformed"


def test_a_packed_list_of_models_is_not_unpacked() -> None:
    packed = gzip.compress(b'{"data": [{"id": "far"}]}')
    upstream = Upstream(headers={"content-encoding": "gzip"}, chunks=(packed,))
    with both(upstream) as (bench, near, _):
        listed = httpx.get(f"{near.url}/v1/models").json()["data"]
    assert "far" not in [row["id"] for row in listed]
    assert upstream.seen[0][2]["accept-encoding"] == "identity"
    assert bench.counts.failures["upstream_models"] == 1


def test_what_is_quoted_of_a_list_is_its_type() -> None:
    assert quoted([1] * 10) == "a list"
    assert quoted("x" * 1000).endswith("…")


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root, named = logging.getLogger(), ("httpx", "httpcore")
    before = root.handlers[:], root.level, logging.raiseExceptions
    levels = [logging.getLogger(name).level for name in named]
    yield
    for added in set(root.handlers) - set(before[0]):
        added.close()
    root.handlers[:], logging.raiseExceptions = before[0], before[2]
    root.setLevel(before[1])
    for name, level in zip(named, levels, strict=True):
        logging.getLogger(name).setLevel(level)


def test_a_relayed_query_is_not_in_the_log(tmp_path: Path, logging_as_before: None) -> None:
    log_to(tmp_path, verbose=False)
    with both(Upstream()) as (_, near, _far):
        httpx.post(f"{near.url}{CHAT}?q=private-words", content=ASK)
    logging.getLogger("node").info("written")
    kept = (tmp_path / FILE).read_text()
    assert "written" in kept
    assert "private-words" not in kept
