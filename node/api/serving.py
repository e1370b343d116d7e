"""The endpoint and the dashboard of a running node: what they are made of, and how they start.

They are for the owner's comfort, and the mesh never depends on them: what fails here is logged and
tried again, and a port that is taken is told once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from node.errors import OwnerError
from node.fencing import Fence, Task
from node.told import Say

from .config import ApiConfig
from .counts import Counts

if TYPE_CHECKING:
    from node.app import App

    from .assembling import Parts
    from .ports import Backend

log = logging.getLogger(__name__)

LISTEN_VARIABLE = "GROOVE_API_LISTEN"  # goes before groove.toml: several nodes on one machine
LOOK_S = 15.0  # between two looks at the back end, for `status`


def configured(app: App) -> ApiConfig:
    """[api] of this home, with what the environment says of where to listen."""
    given = os.environ.get(LISTEN_VARIABLE)
    config = app.config.api
    return config if given is None else msgspec.structs.replace(config, listen=given.strip())


class Api:
    """One for a running node."""

    def __init__(self, app: App, say: Say, changed: Callable[[], None] = lambda: None) -> None:
        """changed: called when other commands should read the run file anew."""
        self._app = app
        self._say = say
        self._changed = changed
        self._config = configured(app)
        self._counts = Counts()
        self._url = ""
        self._trouble = ""
        self._backend_stands: dict[str, Any] = {}

    def facts(self) -> dict[str, Any]:
        """For the run file: what `status` shows of a running node."""
        return {
            "url": self._url,
            "trouble": self._trouble,
            "backend": {"kind": self._config.backend, **self._backend_stands},
            "counts": self._counts.facts(),
        }

    def asked(self) -> tuple[int, int]:
        """How many answers were asked for so far, and how many are being given now."""
        return self._counts.asked()

    async def run(self) -> None:
        """Serve until cancelled. Returns if no endpoint is wanted, or none can listen."""
        if not (self._config.listen and self._app.adapters.answers):
            return
        from .assembling import assemble

        try:
            parts = await self._app.adapters.in_thread(
                partial(assemble, self._app, self._config, self._counts, url=lambda: self._url)
            )
            await self._serve(parts)
        except OwnerError as problem:  # a port that is taken, a token that others can read
            self._trouble = problem.what
            self._changed()
            told = f"no endpoint and no dashboard: {problem.what}"
            self._say("endpoint", told, url="", next_step=problem.next_step)
            log.warning("endpoint not opened problem=%s", problem.what)

    async def _serve(self, parts: Parts) -> None:
        from .server import serve

        ready = self._listens
        refused: OwnerError | None = None
        beside: list[Task] = [*parts.tasks, partial(self._look, parts.backend)]
        async with trio.open_nursery() as nursery:
            for task in beside:
                nursery.start_soon(Fence(task).keep)
            try:
                await serve(
                    parts.asgi, self._config, self._app.home, on_ready=ready, counts=self._counts
                )
            except OwnerError as problem:  # told outside: a nursery would wrap it
                refused = problem
            finally:
                self._url = ""
                nursery.cancel_scope.cancel()
        if refused is not None:
            raise refused

    def _listens(self, url: str) -> None:
        self._url, self._trouble = url, ""
        self._changed()
        self._say("endpoint", f"endpoint and dashboard at {url}", url=url)

    async def _look(self, backend: Backend) -> None:
        """Ask the back end now and then how it does."""
        while True:
            self._backend_stands = dict(await backend.look())
            await trio.sleep(LOOK_S)
