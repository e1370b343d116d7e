"""The real server and guard in front of a few routes, on a loopback port in another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from node.api import entry
from node.api.config import ApiConfig
from node.api.connection import Limits
from node.api.counts import Counts
from node.api.guard import Guard, caller, fields
from node.api.server import serve
from node.api.token import Token

PAGE = """<!doctype html><title>own</title><p id=secret>secret of the owner</p>
<form method=post action=/do/thing><input type=hidden name=form_token value="{form}">
<button id=send>Do</button></form>
<script>document.title = "injected"</script>"""


class _Closing(StreamingResponse):
    """Ends its generator itself: one cancelled in the middle of a send is left to nobody."""

    async def stream_response(self, send: Any) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().stream_response(send)


@dataclass
class Endpoint:
    """What a test looks at."""

    home: Path
    config: ApiConfig
    counts: Counts
    token: Token
    sessions: entry.Sessions
    url: str = ""
    changed: list[str] = field(default_factory=list)  # what was done by requests
    ended: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token.value}"}

    def guarded(self, *routes: BaseRoute) -> Guard:
        own = [*entry.routes(self.sessions, lambda: self.token.generation), *_routes(self)]
        return Guard(
            Starlette(routes=[*routes, *own]),
            token=self.token,
            config=self.config,
            counts=self.counts,
            sessions=self.sessions,
        )


def endpoint(home: Path, now: Callable[[], float], **config: Any) -> Endpoint:
    """Not served yet."""
    home.chmod(0o700)
    settings = msgspec.structs.replace(ApiConfig(listen="127.0.0.1:0"), **config)
    return Endpoint(home, settings, Counts(), Token(home, _here, now), entry.Sessions(now))


async def _here(work: Callable[[], str]) -> str:
    return work()


def _routes(of: Endpoint) -> list[Route]:
    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE.format(form=caller(request).form_token))

    async def thing(request: Request) -> Response:
        of.changed.append(fields(request).get("what", "thing"))
        return Response(status_code=303, headers={"location": "/"})

    async def echo(request: Request) -> Response:
        body = await request.body()
        of.changed.append("echo")
        return JSONResponse({"caller": caller(request).kind, "bytes": len(body)})

    async def models(request: Request) -> Response:
        return JSONResponse({"data": "secret of the owner"})

    async def stream(request: Request) -> Response:
        async def pieces() -> Any:
            try:
                for number in range(10_000):
                    yield f"data: {number}\n\n"
                    await trio.sleep(0.02)
            finally:
                of.ended.append("stream")

        return _Closing(pieces(), media_type="text/event-stream")

    async def flood(request: Request) -> Response:
        async def pieces() -> Any:
            try:
                while True:
                    yield b"x" * 65536
            finally:
                of.ended.append("flood")

        return _Closing(pieces(), media_type="text/plain")

    async def broken(request: Request) -> Response:
        raise ValueError("a text of the client's")

    async def nothing(request: Request) -> Response:
        return Response(status_code=204)

    async def cross(request: Request) -> Response:
        return Response(headers={"access-control-allow-origin": "*", "set-cookie": "a=b"})

    return [
        Route("/", page, name="page"),
        Route("/do/thing", thing, methods=["POST"], name="thing"),
        Route("/live", stream, name="live"),
        Route("/v1/echo", echo, methods=["POST"], name="echo"),
        Route("/v1/messages", echo, methods=["POST"], name="messages"),
        Route("/v1/files", echo, methods=["POST", "DELETE"], name="files"),
        Route("/v1/models", models, name="models"),
        Route("/v1/stream", stream, name="stream"),
        Route("/v1/flood", flood, name="flood"),
        Route("/v1/broken", broken, name="broken"),
        Route("/v1/nothing", nothing, name="nothing"),
        Route("/v1/cross", cross, name="cross"),
        Route("/metrics", models, name="metrics"),
    ]


@contextmanager
def running(
    of: Endpoint, *routes: BaseRoute, asgi: Any = None, limits: Limits | None = None
) -> Iterator[Endpoint]:
    """Served until the context is left."""
    ready = threading.Event()
    scopes: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []
    failed: list[BaseException] = []

    async def main() -> None:
        def listens(url: str) -> None:
            of.url = url
            ready.set()

        with trio.CancelScope() as scope:
            scopes.append((trio.lowlevel.current_trio_token(), scope))
            await serve(
                asgi or of.guarded(*routes),
                of.config,
                of.home,
                on_ready=listens,
                counts=of.counts,
                limits=limits,
            )

    def work() -> None:
        try:
            trio.run(main)
        except BaseException as problem:
            failed.append(problem)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="endpoint")
    thread.start()
    try:
        assert ready.wait(20)
        if failed:
            raise failed[0]
        yield of
    finally:
        if not failed and scopes:
            loop, scope = scopes[0]
            loop.run_sync_soon(scope.cancel)
        thread.join(20)
        assert not thread.is_alive()
