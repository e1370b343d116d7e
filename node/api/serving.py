"""The endpoint and the dashboard of a running node: what they are made of, and how they start.

They are for the owner's comfort, and the mesh never depends on them: what fails here is logged and
tried again, and a port that is taken is told once.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from node.fencing import Fence
from node.told import Say

from .config import ApiConfig
from .counts import Counts

if TYPE_CHECKING:
    from node.app import App

    from .ports import Backend

LISTEN_VARIABLE = "GROOVE_API_LISTEN"  # goes before groove.toml: several nodes on one machine
LOOK_S = 15.0  # between two looks at the back end, for `status`


def configured(app: App) -> ApiConfig:
    """[api] of this home, with what the environment says of where to listen."""
    given = os.environ.get(LISTEN_VARIABLE)
    config = app.config.api
    return config if given is None else msgspec.structs.replace(config, listen=given.strip())


class Api:
    """One for a running node."""

    def __init__(self, app: App, say: Say) -> None:
        self._app = app
        self._say = say
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

    async def run(self) -> None:
        """Serve until cancelled. Returns at once if no endpoint is wanted."""
        if not (self._config.listen and self._app.adapters.answers):
            return
