"""Servers on loopback ports in a thread of their own, and a back end that says what it is told."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import httpx
import msgspec
import trio
from starlette.applications import Starlette

from leaves.model import LeafId
from node.api import anthropic, openai, sse
from node.api.choosing import Choice, Chooser, UnknownModelError
from node.api.completing import Completing
from node.api.config import ApiConfig
from node.api.connection import Asgi
from node.api.counts import Counts
from node.api.ports import Adapter, Ask, Capabilities, Piece, Usage
from node.api.recording import Exchange, Recorder
from node.api.relay import Relay
from node.api.server import serve

ALL = Capabilities(
    adapters=True,
    adapters_at_run_time=True,
    raw_prompts=True,
    tools=True,
    seed=True,
    at_once=8,
)
Run = Callable[[], Awaitable[None]]


@dataclass
class Served:
    """A server that listens. Its loop is in another thread."""

    url: str
    _token: trio.lowlevel.TrioToken

    def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do something in the server's loop, and wait for it."""
        done: Future[Any] = Future()

        def do() -> None:
            try:
                done.set_result(work(*args))
            except Exception as problem:
                done.set_exception(problem)

        self._token.run_sync_soon(do)
        return done.result(20)


@contextmanager
def served(asgi: Asgi, *runs: Run) -> Iterator[Served]:
    """Serve `asgi` on a loopback port, with `runs` beside it, until the context is left.

        with served(app, backend.run, chooser.run) as server:
            httpx.get(f"{server.url}/v1/models")

    What fails there is raised here.
    """
    ready = threading.Event()
    found: list[Served] = []
    stops: list[trio.Event] = []
    failures: list[BaseException] = []

    async def main() -> None:
        stop = trio.Event()
        config = ApiConfig(listen="127.0.0.1:0")

        def listens(url: str) -> None:
            stops.append(stop)
            found.append(Served(url, trio.lowlevel.current_trio_token()))
            ready.set()

        async with trio.open_nursery() as nursery:
            for run in runs:
                nursery.start_soon(run)
            home = Path("/nowhere")  # only for a Unix socket's place
            nursery.start_soon(partial(serve, asgi, config, home, on_ready=listens))
            await stop.wait()
            nursery.cancel_scope.cancel()

    def run_all() -> None:
        try:
            trio.run(main)
        except BaseException as problem:
            failures.append(problem)
        finally:
            ready.set()

    thread = threading.Thread(target=run_all, name="served", daemon=True)
    thread.start()
    ready.wait(20)
    try:
        if found:
            yield found[0]
    finally:
        if found and thread.is_alive():
            found[0].call(stops[0].set)
        thread.join(20)
    if failures:
        raise failures[0]
    assert found, "the server did not come up"


@dataclass
class ScriptedBackend:
    """Says `pieces` to every ask, and keeps what it was asked.

    raises: what entering raises, by the name of the adapter ("" for the bare chassis).
    breaks: raised after the last piece, instead of an end. gate: waited for before each piece.
    """

    pieces: Sequence[Piece] = (
        Piece("Hello"),
        Piece(" there"),
        Piece("", finish="stop", usage=Usage(7, 2)),
    )
    raises: Mapping[str, Exception] = field(default_factory=dict)
    breaks: Exception | None = None
    gate: Callable[[int], Awaitable[None]] | None = None
    capabilities: Capabilities = ALL
    name: str = "builtin"
    asks: list[Ask] = field(default_factory=list)
    open: int = 0
    ended: int = 0

    async def run(self) -> None:
        await trio.sleep_forever()

    @asynccontextmanager
    async def answer(self, ask: Ask) -> AsyncIterator[AsyncIterator[Piece]]:
        self.asks.append(ask)
        problem = self.raises.get(ask.adapter.name if ask.adapter else "")
        if problem is not None:
            raise problem
        self.open += 1
        try:
            yield self._say()
        finally:
            self.open -= 1
            self.ended += 1

    async def _say(self) -> AsyncIterator[Piece]:
        for n, piece in enumerate(self.pieces):
            if self.gate is not None:
                await self.gate(n)
            yield piece
        if self.breaks is not None:
            raise self.breaks

    async def warm(self, adapter: Adapter) -> None:
        problem = self.raises.get(adapter.name)
        if problem is not None:
            raise problem

    async def look(self) -> Mapping[str, Any]:
        return {"ready": True, "why": ""}


LEAVES = {
    "async-python": Adapter(leaf=cast(LeafId, "leaf-1"), name="async-python", bundle="ab" * 32),
    "Größe 'ß'\r\nx: y": Adapter(leaf=cast(LeafId, "leaf-2"), name="odd", bundle="cd" * 32),
}


def choice_of(name: str, /, **changes: Any) -> Choice:
    """A choice of one of LEAVES, or of the chassis."""
    adapter = LEAVES.get(name)
    whole: dict[str, Any] = {
        "adapter": adapter,
        "system": "",
        "leaf": str(adapter.leaf) if adapter else None,
        "name": name,
        "served_by": name,
        "confidence": 0.75 if adapter else 0.0,
        "gate": 0.25 if adapter else 0.0,
        "level": 3 if adapter else 0,
        "fallback": "",
        "routing": None,
    }
    return Choice(**(whole | changes))


@dataclass
class ScriptedChooser:
    """Chooses `routed` for groove/auto, and keeps what it was asked."""

    routed: Choice = field(default_factory=lambda: choice_of("async-python"))
    counts: Counts = field(default_factory=Counts)
    heard: list[tuple[str, str | None]] = field(default_factory=list)

    async def run(self) -> None:
        await trio.sleep_forever()

    async def auto(self, ask_text: str, conversation: str | None) -> Choice:
        self.heard.append((ask_text, conversation))
        return self.routed

    def named(self, name: str) -> Choice:
        if name != "chassis" and name not in LEAVES:
            raise UnknownModelError(f"there is no leaf {name!r}: see `groove-node tree`")
        return choice_of(name)

    def models(self) -> list[dict[str, Any]]:
        return [{"id": f"groove/{name}"} for name in ("auto", "chassis", "async-python")]

    def without(self, choice: Choice, cause: str) -> Choice:
        self.counts.fallbacks[cause] += 1
        return replace(choice, adapter=None, served_by="chassis", fallback=cause)


@dataclass
class KeptRecorder:
    """Keeps what it is told. With `fails` it breaks its promise never to raise."""

    fails: bool = False
    begun: list[Exchange] = field(default_factory=list)
    ends: list[tuple[str, str, Usage | None]] = field(default_factory=list)

    def begin(self, exchange: Exchange) -> None:
        if self.fails:
            raise OSError("the recorder is broken")
        self.begun.append(exchange)

    def finished(self, exchange: Exchange, text: str, outcome: str, usage: Usage | None) -> None:
        self.ends.append((text, outcome, usage))


@dataclass
class Bench:
    """The endpoint over a scripted back end, chooser and recorder."""

    backend: ScriptedBackend = field(default_factory=ScriptedBackend)
    chooser: ScriptedChooser = field(default_factory=ScriptedChooser)
    recorder: KeptRecorder = field(default_factory=KeptRecorder)
    config: ApiConfig = field(default_factory=ApiConfig)

    def __post_init__(self) -> None:
        self.counts = self.chooser.counts
        recorder = cast(Recorder, self.recorder)
        self.relay = Relay(self.config, self.counts, recorder)
        self.completing = Completing(
            cast(Chooser, self.chooser), self.backend, recorder, self.counts, self.config
        )
        self.app = Starlette(
            routes=[
                *openai.routes(self.completing, self.relay),
                *anthropic.routes(self.completing, self.relay),
                *self.relay.routes(),
            ]
        )

    @contextmanager
    def served(self) -> Iterator[Served]:
        with served(self.app, self.relay.run) as server:
            yield server

    async def post(
        self, path: str, body: object, headers: Mapping[str, str] = MappingProxyType({})
    ) -> httpx.Response:
        """In this loop, without a socket: the whole answer at once."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://groove") as client:
            return await client.post(path, content=content, headers=dict(headers))


def stream_of(response: httpx.Response) -> list[Any]:
    """The events of a streamed answer, decoded."""
    return [msgspec.json.decode(each) for each in sse.events(response.content)]
