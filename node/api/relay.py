"""Passes what is not ours to the owner's upstream: bytes in, bytes out, as they come.

What is kept from it: our token, the browser's cookie, and where the request came from; the upstream
gets the key that the environment names. What is kept from the client: cookies and leave for other
origins, which would hold for this node's own pages.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec
import trio
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from . import sse
from .asgi import body_of, respond, until_gone
from .config import ApiConfig
from .counts import Counts
from .errors import ApiError, anthropic_error, encoded, openai_error
from .heard import Heard, Hearing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .recording import Recorder

log = logging.getLogger(__name__)

CONNECT_S = 10.0
START_WITHIN_S = 1.0
MODELS_WITHIN_S = 2.0  # an upstream that is slow to list its models must not hide ours
MODELS_BYTES_MAX = 4 << 20

_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
        *(b"proxy-connection", b"trailer", b"trailers", b"transfer-encoding", b"upgrade"),
    )
)
_NOT_UP = _HOP | frozenset(
    (
        *(b"host", b"content-length", b"authorization", b"x-api-key", b"api-key", b"cookie"),
        *(b"origin", b"referer", b"accept-encoding", b"expect", b"forwarded"),
    )
)
_NOT_UP_PREFIXES = (b"sec-", b"x-groove-", b"x-forwarded-")
_NOT_DOWN = _HOP | frozenset(
    (
        *(b"set-cookie", b"set-cookie2", b"date", b"server", b"strict-transport-security"),
        *(b"alt-svc", b"clear-site-data", b"content-security-policy", b"refresh", b"link"),
        *(b"service-worker-allowed", b"report-to", b"nel"),
    )
)
_NOT_DOWN_PREFIXES = (b"access-control-", b"cross-origin-", b"x-groove-")


@dataclass(frozen=True, slots=True)
class Upstream:
    """Whom something is passed to. `url` is empty if there is nobody."""

    kind: str  # openai or anthropic: how its errors look, and how it is told the key
    url: str  # up to and with its /v1
    key_env: str
    setting: str  # where the owner names it

    def key_header(self) -> list[tuple[bytes, bytes]]:
        key = os.environ.get(self.key_env, "") if self.key_env else ""
        if not key:
            return []
        if self.kind == "anthropic":
            return [(b"x-api-key", key.encode())]
        return [(b"authorization", b"Bearer " + key.encode())]


def _based(url: str) -> str:
    """The base URL up to its /v1, whether the owner wrote that or not."""
    bare = url.strip().rstrip("/")
    return bare if not bare or bare.endswith("/v1") else f"{bare}/v1"


class Relay:
    """One for the process. Without an upstream it does nothing."""

    def __init__(self, config: ApiConfig, counts: Counts, recorder: Recorder) -> None:
        self._config = config
        self._counts = counts
        self._hearing = Hearing(recorder, counts)
        self._client: httpx.AsyncClient | None = None
        self._ready = trio.Event()
        self._openai = Upstream(
            "openai", _based(config.upstream), config.upstream_key_env, "[api] upstream"
        )
        self._anthropic = Upstream(
            "anthropic", _based(config.anthropic), config.anthropic_key_env, "[api] anthropic"
        )

    def openai(self) -> Upstream:
        return self._openai

    def anthropic(self) -> Upstream:
        return self._anthropic

    def routes(self) -> list[Route]:
        """All other paths of /v1: the last of all routes."""
        return [Route("/v1/{rest:path}", _Rest(self), name="relay")]

    async def run(self) -> None:
        """Hold the connections until cancelled."""
        if not (self._openai.url or self._anthropic.url):
            await trio.sleep_forever()
        client = await trio.to_thread.run_sync(self._made)  # reads the certificates of the machine
        async with client, trio.open_nursery() as nursery:
            self._client = client
            self._ready.set()
            nursery.start_soon(self._hearing.run)
            try:
                await trio.sleep_forever()
            finally:
                self._client = None

    def _made(self) -> httpx.AsyncClient:
        most = self._config.connections_max
        urls = [each.url for each in (self._openai, self._anthropic) if each.url]
        return httpx.AsyncClient(
            verify=any(url.startswith("https:") for url in urls),
            # A proxy of the environment is for what is far away.
            trust_env=not all(_near(url) for url in urls),
            follow_redirects=False,
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
            timeout=httpx.Timeout(
                self._config.upstream_within_s, connect=CONNECT_S, pool=CONNECT_S
            ),
        )

    async def pass_on(
        self, scope: Scope, receive: Receive, send: Send, body: bytes, upstream: Upstream
    ) -> None:
        """Pass one request on and its answer back. Whoever hangs up ends the upstream's work."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_gone, receive, nursery.cancel_scope)
            await self._pass(scope, send, body, upstream)
            nursery.cancel_scope.cancel()

    async def _pass(self, scope: Scope, send: Send, body: bytes, upstream: Upstream) -> None:
        passing = _Passing(self._hearing.begin(scope, body, upstream.kind))
        self._counts.streams += 1
        try:
            async with self._asked(scope, body, upstream) as response:
                self._counts.answered["upstream"] += 1
                await self._send_on(response, send, passing, upstream)
        except ApiError as error:
            passing.outcome = "error"
            self._counts.failures[error.kind] += 1
            await _refuse(send, error, upstream)
        finally:
            self._counts.streams -= 1
            if passing.outcome == "aborted":
                self._counts.aborted += 1
            if passing.heard is not None:
                self._hearing.end(passing.heard, passing.outcome)

    async def others(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a path that this node does not know, to whom it belongs."""
        path: str = scope["path"]
        of_anthropic = path.startswith(("/v1/messages", "/v1/complete"))
        upstream = self._anthropic if of_anthropic else self._openai
        if upstream.url and not {".", ".."} & set(path.split("/")):
            await self.pass_on(scope, receive, send, await body_of(receive), upstream)
            return
        message = f"this node has no {path[:200]}, and {upstream.setting} names nobody who might"
        self._counts.failures["path"] += 1
        await _refuse(send, ApiError(404, message, kind="path"), upstream)

    async def _started(self) -> httpx.AsyncClient:
        """The client, which is made while the port listens already."""
        with trio.move_on_after(START_WITHIN_S):
            await self._ready.wait()
        if self._client is None:
            raise ApiError(503, "the node is starting or stopping", kind="not_ready")
        return self._client

    @asynccontextmanager
    async def _asked(
        self, scope: Scope, body: bytes, upstream: Upstream
    ) -> AsyncIterator[httpx.Response]:
        """The upstream's answer, once its head is there. Raises ApiError if there is none."""
        client = await self._started()
        try:
            request = client.build_request(
                scope["method"],
                _target(upstream, scope),
                headers=[*_headers_up(scope["headers"]), *upstream.key_header()],
                content=body or None,
            )
            response = await client.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL) as problem:
            raise _unreachable(problem, upstream) from None
        try:
            yield response
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await response.aclose()

    async def _send_on(
        self, response: httpx.Response, send: Send, passing: _Passing, upstream: Upstream
    ) -> None:
        status, heard = response.status_code, passing.heard
        if not 200 <= status <= 599:
            raise _not_understood(upstream)
        if status >= 500:
            self._counts.failures["upstream_status"] += 1
        headers = _located(_headers_down(response.headers.raw), response.url, upstream)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if heard is not None:
            heard.status = status
        try:
            async for chunk in response.aiter_raw():
                if heard is not None:
                    heard.add(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx.HTTPError as problem:
            passing.outcome = "error"
            error = _broken(problem, upstream)
            self._counts.failures[error.kind] += 1
            if _is_stream(response.headers):
                last = _event(error, upstream)
                await send({"type": "http.response.body", "body": last, "more_body": False})
            return  # else the answer stays without its end, which any client notices
        passing.outcome = "ok" if status < 400 else "error"
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def models(self) -> list[dict[str, Any]]:
        """The rows of the upstream's /v1/models; none if it does not say them soon."""
        upstream, client = self._openai, self._client
        if not upstream.url or client is None:
            return []
        try:
            with trio.fail_after(MODELS_WITHIN_S):
                async with client.stream(
                    "GET",
                    f"{upstream.url}/models",
                    headers=[*upstream.key_header(), (b"accept-encoding", b"identity")],
                ) as response:
                    if "content-encoding" in response.headers:  # unpacked, it has no bound
                        raise ValueError("the list is packed")
                    read = bytearray()
                    async for chunk in response.aiter_raw():
                        read += chunk
                        if len(read) > MODELS_BYTES_MAX:
                            raise ValueError("the list is too long")
                    listed = msgspec.json.decode(read, type=_Listed)
        except (httpx.HTTPError, trio.TooSlowError, msgspec.MsgspecError, ValueError):
            self._counts.failures["upstream_models"] += 1
            return []
        return [row for row in listed.data if isinstance(row.get("id"), str)]


@dataclass(slots=True)
class _Passing:
    """How far one exchange has come."""

    heard: Heard | None
    outcome: str = "aborted"  # until its last byte is there


class _Listed(msgspec.Struct):
    data: list[dict[str, Any]] = []


class _Rest:
    """What of /v1 this node does not know."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._relay.others(scope, receive, send)


def _near(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _target(upstream: Upstream, scope: Scope) -> str:
    raw: str = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("ascii")
    query: str = scope["query_string"].decode("ascii", "ignore")
    return upstream.url + raw.removeprefix("/v1") + (f"?{query}" if query else "")


def _headers_up(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    given = list(headers)
    named = _named(given)
    kept = [
        (name, value)
        for name, value in given
        if name not in _NOT_UP and name not in named and not name.startswith(_NOT_UP_PREFIXES)
    ]
    # What httpx would add of its own: compressed, the answer could not be passed on as it comes.
    return [*kept, (b"accept-encoding", b"identity")]


def _headers_down(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    given = [(name.lower(), value) for name, value in headers]
    named = _named(given)
    return [
        (name, value)
        for name, value in given
        if name not in _NOT_DOWN and name not in named and not name.startswith(_NOT_DOWN_PREFIXES)
    ]


def _named(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The headers that `Connection` says are for this hop alone."""
    return frozenset(
        part.strip().lower()
        for name, value in headers
        if name == b"connection"
        for part in value.split(b",")
    )


def _is_stream(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").startswith("text/event-stream")


def _unreachable(problem: Exception, upstream: Upstream) -> ApiError:
    match problem:
        case httpx.PoolTimeout():
            message = "too many requests are waiting for the upstream"
            return ApiError(503, message, kind="upstream_busy", code="upstream_busy")
        case httpx.ConnectTimeout() | httpx.ReadTimeout() | httpx.WriteTimeout():
            message = f"the upstream ({upstream.setting}) did not answer in time"
            return ApiError(504, message, kind="upstream_late", code="upstream_late")
        case httpx.RemoteProtocolError():
            return _not_understood(upstream)
        case _:
            message = f"the upstream ({upstream.setting}) cannot be reached: is it running?"
            return ApiError(502, message, kind="upstream_down", code="upstream_down")


def _not_understood(upstream: Upstream) -> ApiError:
    message = f"the answer of the upstream ({upstream.setting}) cannot be understood"
    return ApiError(502, message, kind="upstream_malformed", code="upstream_malformed")


def _located(
    headers: list[tuple[bytes, bytes]], asked: httpx.URL, upstream: Upstream
) -> list[tuple[bytes, bytes]]:
    """With a redirect led to our own path: a client would take our token to another origin."""
    return [
        (name, _own_path(value, asked, upstream) if name == b"location" else value)
        for name, value in headers
    ]


def _own_path(location: bytes, asked: httpx.URL, upstream: Upstream) -> bytes:
    base = httpx.URL(upstream.url)
    try:
        target = asked.join(location.decode("ascii"))
    except (httpx.InvalidURL, ValueError):
        target = None
    origin = (base.scheme, base.host, base.port)
    root = base.raw_path.rstrip(b"/") + b"/"
    if (
        target is None
        or (target.scheme, target.host, target.port) != origin
        or not target.raw_path.startswith(root)
    ):
        message = f"the upstream ({upstream.setting}) sends elsewhere, where our token must not go"
        raise ApiError(502, message, kind="upstream_redirect", code="upstream_redirect")
    return b"/v1/" + target.raw_path[len(root) :]


def _broken(problem: Exception, upstream: Upstream) -> ApiError:
    if isinstance(problem, httpx.ReadTimeout):
        message = f"the upstream ({upstream.setting}) fell silent in the middle of its answer"
        return ApiError(504, message, kind="upstream_late", code="upstream_late")
    message = f"the upstream ({upstream.setting}) broke off in the middle of its answer"
    return ApiError(502, message, kind="upstream_broke", code="upstream_broke")


def _event(error: ApiError, upstream: Upstream) -> bytes:
    # The line that was under way when it broke is ended first.
    if upstream.kind == "anthropic":
        return b"\n\n" + sse.event(b"error", encoded(anthropic_error(error)))
    return b"\n\n" + sse.data(encoded(openai_error(error)))


async def _refuse(send: Send, error: ApiError, upstream: Upstream) -> None:
    shaped = anthropic_error if upstream.kind == "anthropic" else openai_error
    await respond(send, error.status, encoded(shaped(error)))
