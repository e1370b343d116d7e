"""The dashboard of a home on a loopback port, behind the real guard, with a browser let in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import trio
from starlette.applications import Starlette

from node.api.config import ApiConfig
from node.api.counts import Counts
from node.api.entry import Sessions, cookie_name
from node.api.guard import Guard, caller
from node.api.pages import routes
from node.api.pages.hub import Hub
from node.api.server import serve
from node.api.token import Token
from node.app import App

CHROMIUM = "/usr/bin/chromium"


@dataclass
class Dashboard:
    """url: of its first page. cookie: of the browser that was let in."""

    counts: Counts = field(default_factory=Counts)
    url: str = ""
    cookie: dict[str, str] = field(default_factory=dict)


async def _ready() -> Mapping[str, Any]:
    return {"ready": True, "why": ""}


async def _in_thread(work: Any) -> Any:
    return await trio.to_thread.run_sync(work)


@contextmanager
def dashboard(app: App) -> Iterator[Dashboard]:
    """Serve until the context is left."""
    found, listens, stops = Dashboard(), threading.Event(), list[Any]()
    sessions = Sessions(time.monotonic)
    token = Token(app.home, _in_thread, time.monotonic)
    config = ApiConfig(listen="127.0.0.1:0")
    hub = Hub(
        counts=found.counts,
        url=lambda: found.url,
        look=_ready,
        secret=lambda: token.value,
        form_token=lambda request: caller(request).form_token,
    )
    guard = Guard(
        Starlette(routes=routes(app, hub)),
        token=token,
        config=config,
        counts=found.counts,
        sessions=sessions,
    )

    async def main() -> None:
        stop = trio.Event()
        stops.extend((trio.lowlevel.current_trio_token(), stop))

        def ready(url: str) -> None:
            found.url = url
            listens.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(serve, guard, config, app.home, on_ready=ready, counts=found.counts)
            )
            await stop.wait()
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    assert listens.wait(20), "the dashboard did not come up"
    cookie, _ = sessions.open()
    name = cookie_name(urlsplit(found.url).port or 0)
    found.cookie = {"name": name, "value": cookie, "url": found.url}
    try:
        yield found
    finally:
        loop, stop = stops
        loop.run_sync_soon(stop.set)
        thread.join(20)
