"""The endpoint's parts, put together: the one place that knows them all.

Apart from `serving`, which every node loads, because this loads what serves HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from starlette.applications import Starlette

from . import (
    anthropic,
    entry,
    feedback_route,
    litellm_log,
    metrics,
    openai,
    otlp,
    pages,
)
from .backends import open_backend
from .choosing import Chooser
from .completing import Completing
from .config import ApiConfig
from .connection import Asgi
from .counts import Counts
from .guard import Guard, caller
from .pages.hub import Hub
from .ports import Backend
from .recording import Recorder
from .relay import Relay
from .token import Token

if TYPE_CHECKING:
    from node.app import App


@dataclass(frozen=True, slots=True)
class Parts:
    """What is served, and what must run beside it."""

    asgi: Asgi
    backend: Backend
    tasks: tuple[Callable[[], Awaitable[None]], ...]


def assemble(app: App, config: ApiConfig, counts: Counts, *, url: Callable[[], str]) -> Parts:
    """Reads files, so it is for a thread. url: where it listens, once it does."""
    token = Token(app.home, app.adapters.in_thread, trio.current_time)
    sessions = entry.Sessions(trio.current_time)
    chooser, backend = Chooser(app, config, counts), open_backend(app, config)
    recorder = Recorder(app, config, counts)
    relay = Relay(config, counts, recorder)
    completing = Completing(chooser, backend, recorder, counts, config, clock=app.clock)
    hub = Hub(
        config,
        counts,
        url=url,
        look=backend.look,
        secret=lambda: token.value,
        form_token=lambda request: caller(request).form_token,
    )
    inner = Starlette(
        routes=[
            *openai.routes(completing, relay),
            *anthropic.routes(completing, relay),
            *metrics.routes(app, counts),
            *entry.routes(sessions, lambda: token.generation),
            *pages.routes(app, hub),
            *feedback_route.routes(recorder),
            *otlp.routes(recorder, app),
            *litellm_log.routes(recorder, app),
            *relay.routes(),  # what else there is under /v1: last
        ]
    )
    guard = Guard(inner, token=token, config=config, counts=counts, sessions=sessions)
    return Parts(guard, backend, (chooser.run, backend.run, recorder.run, relay.run))
