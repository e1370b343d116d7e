"""A home with consent, a recorder at work over it, and the routes that report to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import httpx
import trio
from starlette.applications import Starlette
from starlette.routing import Route

from node import gate
from node.api.config import ApiConfig
from node.api.counts import Counts
from node.api.recording import Recorder
from node.app import App
from node.capture.sessions import turns_of
from node.consent import Scope

Routes = Callable[[Recorder, App], list[Route]]


def allow(app: App, *sources: str, folders: tuple[str, ...] = ()) -> None:
    app.consent.grant(app.user_id, [Scope.CAPTURE], sources=sources, folders=folders)


def posted(
    app: App,
    routes: Routes,
    path: str,
    *bodies: bytes,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> list[httpx.Response]:
    """Post each body, then end the node: what was taken is written."""

    async def main() -> list[httpx.Response]:
        recorder = Recorder(app, ApiConfig(), Counts())
        served = Starlette(routes=routes(recorder, app))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            with trio.fail_after(30):
                while app.allows("capture") and gate.queue is None:
                    await trio.sleep(0.005)
            transport = httpx.ASGITransport(served)
            async with httpx.AsyncClient(transport=transport, base_url="http://groove") as client:
                answers = [
                    await client.post(path, content=body, headers=dict(headers)) for body in bodies
                ]
            nursery.cancel_scope.cancel()
        return answers

    return trio.run(main)


def talks(app: App) -> list[list[str]]:
    """What was said in each session."""
    by_session: dict[str, list[Any]] = {}
    for each in app.corpus.records():
        by_session.setdefault(each.session_id, []).append(each)
    return [[turn["content"] for turn in turns_of(records)] for records in by_session.values()]
