"""What back ends share that are servers of others: both speak OpenAI's form over HTTP.

A server's words are not passed on to a client: they may name a folder or repeat a prompt. What went
wrong is told by its status and by the few causes that a client can do something about.
"""

from __future__ import annotations

import logging
import os
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import trio

from node.api.config import ApiConfig
from node.api.ports import Adapter, Ask, BackendError, Capabilities, Piece, Usage
from node.app import App

from .event_lines import EventLines, TooLongError

log = logging.getLogger(__name__)

CONNECT_S = 5.0
LOOK_S = 3.0
ANSWER_BYTES_MAX = 4 << 20  # of an answer that is no stream: a list of models, an error
_CLOSE_S = 1.0
_OURS = frozenset(
    (
        *("model", "messages", "prompt", "stream", "stream_options", "n", "best_of"),
        *("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop"),
        *("lora", "lora_path", "id_slot", "echo"),
    )
)
_CONTEXT = re.compile(r"context (size|length|window)|maximum context|max_model_len", re.IGNORECASE)


class OpenAiServer(ABC):
    """One server. Subclasses say which model's name and which fields an adapter is asked by."""

    def __init__(self, app: App, config: ApiConfig) -> None:
        self._app, self._config = app, config
        self._client: httpx.AsyncClient | None = None
        self._opened = trio.Event()
        self.url = config.backend_url.strip().rstrip("/").removesuffix("/v1")

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    async def fields(self, adapter: Adapter | None) -> dict[str, Any]:
        """What of a request's body says who answers. Raises AdapterError or BackendError."""

    @abstractmethod
    async def look(self) -> Mapping[str, Any]: ...

    async def warm(self, adapter: Adapter) -> None:
        await self.fields(adapter)

    @asynccontextmanager
    async def using(self, adapter: Adapter | None) -> AsyncIterator[None]:
        """Around an answer: what it needs stays for so long."""
        yield

    async def again(self, adapter: Adapter | None, status: int) -> bool:
        """Whether to ask once more after a refusal: what was known of the server was outdated."""
        return False

    async def run(self) -> None:
        """Hold the connections until cancelled."""
        client = await self._app.adapters.in_thread(self._made)  # reads the certificates
        async with client:
            self._client = client
            self._opened.set()
            try:
                await trio.sleep_forever()
            finally:
                self._client, self._opened = None, trio.Event()

    def _made(self) -> httpx.AsyncClient:
        parts = urlsplit(self.url)
        most = self._config.connections_max
        return httpx.AsyncClient(
            headers={"accept-encoding": "identity"},
            verify=parts.scheme == "https",
            trust_env=False,  # a proxy is for what is far away, and would read the prompts
            follow_redirects=False,
            # A connection for each request: llama.cpp's server closes one after a stream without
            # saying so, and the next request over it is lost. On loopback it costs 0.1 ms.
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=0),
            timeout=httpx.Timeout(
                self._config.upstream_within_s, connect=CONNECT_S, pool=CONNECT_S
            ),
        )

    # Answers

    @asynccontextmanager
    async def answer(self, ask: Ask) -> AsyncIterator[AsyncIterator[Piece]]:
        path = "/v1/chat/completions" if ask.prompt is None else "/v1/completions"
        async with self.using(ask.adapter):
            pieces = _Pieces(await self._begun(ask, path))
            try:
                yield pieces
            finally:
                await pieces.close()

    async def _begun(self, ask: Ask, path: str) -> httpx.Response:
        """The answer's head. Raises AdapterError or BackendError."""
        body = {**_body(ask), **await self.fields(ask.adapter)}
        response = await self._sent(path, body)
        if response.status_code < 400:
            return response
        if await self.again(ask.adapter, response.status_code):
            await _closed(response)
            body |= await self.fields(ask.adapter)
            response = await self._sent(path, body)
            if response.status_code < 400:
                return response
        try:
            raise refusal(response.status_code, await read(response))
        finally:
            await _closed(response)

    async def _sent(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        client = await self._ready()
        request = client.build_request(
            "POST",
            self.url + path,
            content=msgspec.json.encode(body),
            headers={"content-type": "application/json", **self._key()},
        )
        try:
            return await client.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as problem:
            raise unreachable(problem) from None

    async def _ready(self) -> httpx.AsyncClient:
        if not self.url:
            raise BackendError("no_backend_url", "[api] backend_url names no server.", 503)
        with trio.move_on_after(CONNECT_S):  # in the first moment of the node
            await self._opened.wait()
        if self._client is None:
            raise BackendError("not_running", "The back end is not running.", 503)
        return self._client

    def _key(self) -> dict[str, str]:
        key = os.environ.get(self._config.backend_key_env, "")
        return {"authorization": f"Bearer {key}"} if key else {}

    async def called(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, within_s: float = 0
    ) -> tuple[int, Any]:
        """Ask something short: the status, and what was said if it is JSON."""
        client = await self._ready()
        try:
            with trio.fail_after(within_s or self._config.upstream_within_s):
                async with client.stream(
                    method,
                    self.url + path,
                    content=None if body is None else msgspec.json.encode(body),
                    headers={"content-type": "application/json", **self._key()},
                ) as response:
                    return response.status_code, await read(response)
        except (httpx.HTTPError, httpx.InvalidURL, trio.TooSlowError) as problem:
            raise unreachable(problem) from None


def _body(ask: Ask) -> dict[str, Any]:
    """A request in OpenAI's form; what a client may not decide is not taken from it."""
    body = {name: value for name, value in ask.extra.items() if name not in _OURS}
    if ask.prompt is None:
        body["messages"] = list(ask.messages)
    else:
        body["prompt"] = ask.prompt
    chosen = {"temperature": ask.temperature, "top_p": ask.top_p, "seed": ask.seed}
    body |= {name: value for name, value in chosen.items() if value is not None}
    if ask.stop:
        body["stop"] = list(ask.stop)
    body |= {"max_tokens": ask.tokens_max, "stream": True}
    return body | {"stream_options": {"include_usage": True}}


async def read(response: httpx.Response) -> Any:
    """What a short answer says; None if it is no JSON, or too long to be read."""
    data = bytearray()
    try:
        if "content-encoding" in response.headers:  # unpacked, it has no bound
            return None
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > ANSWER_BYTES_MAX:
                return None
        return msgspec.json.decode(data)
    except (httpx.HTTPError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class _Pieces:
    """The pieces of a stream, each as soon as it is whole; the last one has finish and usage."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks = response.aiter_raw()
        self._lines = EventLines()
        self._ready: deque[Piece] = deque()
        self._finish: str | None = None
        self._usage: Usage | None = None
        self._last: dict[str, Any] = {}
        self._done = False

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> Piece:
        while not self._ready:
            if self._done:
                raise StopAsyncIteration
            await self._read()
        return self._ready.popleft()

    async def _read(self) -> None:
        """Take what comes next; after the last of it, the piece that ends the answer."""
        if "content-encoding" in self._response.headers:  # unpacked, it has no bound
            raise BackendError("malformed_answer", _MALFORMED)
        try:
            for data in self._lines.push(await anext(self._chunks)):
                if data != b"[DONE]":
                    self._take(_said(data))
        except StopAsyncIteration:
            self._end()
        except (httpx.HTTPError, httpx.StreamError) as problem:
            if self._finish is None:
                self._done = True
                raise unreachable(problem, begun=True) from None
            self._end()  # all that was to be said had been said
        except TooLongError:
            raise BackendError("malformed_answer", _MALFORMED) from None

    def _take(self, said: dict[str, Any]) -> None:
        self._usage = _usage(said) or self._usage
        piece, ended = _piece(said)
        if ended is not None:  # told with the usage, which comes in the chunk after
            self._finish, self._last = ended, _met(said)
        if piece is not None:
            self._ready.append(piece)

    def _end(self) -> None:
        self._done = True
        if self._finish is None:
            raise BackendError("cut_short", "The model's server ended its answer too soon.")
        self._ready.append(Piece("", self._finish, self._usage, self._last))

    async def close(self) -> None:
        """Hang up, which ends the server's work.

        What is left is read in a scope that is cancelled already: so each of the generators within
        the client comes to its end, and none is left for the collector to find.
        """
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                async for _ in self._chunks:
                    pass
            except (httpx.HTTPError, httpx.StreamError) as problem:
                log.debug("stream ended problem=%s", type(problem).__name__)
        await _closed(self._response)


async def _closed(response: httpx.Response) -> None:
    """Close; a server that does not listen is not waited for."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
        await response.aclose()


_MALFORMED = "The model's server answered in a form that is not OpenAI's."


def _said(data: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BackendError("malformed_answer", _MALFORMED) from None
    if not isinstance(said, dict):
        raise BackendError("malformed_answer", _MALFORMED)
    if said.get("error") or ("choices" not in said and "message" in said):
        raise refusal(_code(said), said)
    return said


def _piece(said: Mapping[str, Any]) -> tuple[Piece | None, str | None]:
    """The piece in a chunk, if there is something in it, and why the answer ended, if it did."""
    match said.get("choices"):
        case [{**choice}, *_] if choice.get("index", 0) == 0:
            pass
        case _:
            return None, None
    finish = choice.get("finish_reason")
    ended = finish if isinstance(finish, str) else None
    given = choice.get("delta")
    if isinstance(given, dict):
        delta = {name: value for name, value in given.items() if value is not None}
        delta.pop("role", None)
        text = delta.pop("content", "")
    else:
        delta, text = {}, choice.get("text") or ""
    if choice.get("logprobs"):
        delta["logprobs"] = choice["logprobs"]
    if not isinstance(text, str):
        raise BackendError("malformed_answer", _MALFORMED)
    return (Piece(text, delta=delta) if text or delta else None), ended


def _met(said: Mapping[str, Any]) -> dict[str, Any]:
    """The stop string that was met, of servers that tell."""
    met = said["choices"][0].get("stop_reason")
    return {"stop_sequence": met} if isinstance(met, str) and met else {}


def _usage(said: Mapping[str, Any]) -> Usage | None:
    match said.get("usage"):
        case {"prompt_tokens": int() as prompt, **rest}:
            made = rest.get("completion_tokens")
            return Usage(prompt, made if isinstance(made, int) else 0)
        case _:
            return None


def _code(said: Mapping[str, Any]) -> int:
    error = said.get("error")
    code = error.get("code") if isinstance(error, dict) else said.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 502


def message_of(said: Any) -> str:
    """A server's own words: to tell causes apart by, never to pass on."""
    match said:
        case {"error": {"message": str() as message}} | {"message": str() as message}:
            return message
        case {"error": str() as message} | {"detail": str() as message}:
            return message
        case _:
            return ""


def refusal(status: int, said: Any) -> BackendError:
    """A server's refusal, in words of ours."""
    if status in (400, 413) and _CONTEXT.search(message_of(said)):
        return BackendError("too_long", "The prompt is longer than the model's context.", 400)
    match status:
        case 401 | 403:
            text = "The model's server wants another key: see [api] backend_key_env."
            return BackendError("backend_key", text)
        case 404:
            return BackendError("backend_model", "The model's server has no such model or path.")
        case 429 | 503:
            return BackendError("backend_busy", "The model's server is busy or still loading.", 503)
        case _ if 400 <= status < 500:
            text = "The model's server refused the request: a field is not to its liking."
            return BackendError("backend_refused", text, 400)
        case _:
            return BackendError("backend_failed", f"The model's server failed with {status}.")


def unreachable(problem: Exception, begun: bool = False) -> BackendError:
    """Why there is no answer, or no more of it."""
    if isinstance(problem, httpx.TimeoutException | trio.TooSlowError):
        return BackendError("backend_late", "The model's server did not answer in time.", 504)
    if begun:
        return BackendError("cut_short", "The model's server ended its answer too soon.")
    return BackendError("backend_down", "The model's server cannot be reached.", 502)
