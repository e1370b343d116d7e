"""llama.cpp's server as a back end: its adapters are given at its start, and chosen per request.

A request names all of the server's adapters, each with its scale: one that names none of them gets
what the server was started with, which is every adapter at once, and an adapter's number that does
not exist is passed over without a word. So numbers are looked up by the files' names, which carry
the bundle's digest, and what is not there is an error here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from node.api.config import ApiConfig
from node.api.ports import Adapter, AdapterError, BackendError, Capabilities
from node.app import App
from node.leaf_export import DIGEST_CHARS, digest_in

from .openai_server import LOOK_S, OpenAiServer

# What a list of adapters is good for: less than a server takes to be started with another list.
LIST_S = 1.0
SLOTS = 4  # of llama.cpp's server, unless it says otherwise
_RESTART = (
    "llama.cpp's server was started without this leaf. `groove-node leaf export --gguf --all` "
    "prints the command that starts it with all leaves."
)


class LlamaCpp(OpenAiServer):
    """`node.api.ports.Backend` over llama.cpp's server."""

    name = "llamacpp"

    def __init__(self, app: App, config: ApiConfig) -> None:
        super().__init__(app, config)
        self._numbers: dict[str, int] = {}  # of adapters of ours, by digest
        self._all: list[int] = []
        self._listed_at = -LIST_S
        self._listing = trio.Lock()
        self._slots = SLOTS

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            adapters=True,
            adapters_at_run_time=False,
            raw_prompts=True,
            tools=True,
            seed=True,
            at_once=self._slots,
        )

    async def fields(self, adapter: Adapter | None) -> dict[str, Any]:
        await self._list()
        wanted = None
        if adapter is not None:
            wanted = self._numbers.get(adapter.bundle[:DIGEST_CHARS])
            if wanted is None:
                raise AdapterError("adapter_not_preloaded", _RESTART, 404)
        scales = [{"id": n, "scale": 1.0 if n == wanted else 0.0} for n in self._all]
        return {"lora": scales} if scales else {}

    async def _list(self) -> None:
        """Learn the numbers of the server's adapters, if that was long ago."""
        async with self._listing:
            if trio.current_time() - self._listed_at < LIST_S:
                return
            status, said = await self.called("GET", "/lora-adapters", within_s=LOOK_S)
            if status >= 400 or not isinstance(said, list):
                raise BackendError("backend_model", "The server does not list its adapters.")
            self._all, self._numbers = [], {}
            for entry in said:
                match entry:
                    case {"id": int() as number, "path": str() as path}:
                        self._all.append(number)
                        if digest := digest_in(path):
                            self._numbers.setdefault(digest, number)
            self._listed_at = trio.current_time()

    async def look(self) -> Mapping[str, Any]:
        try:
            status, _ = await self.called("GET", "/health", within_s=LOOK_S)
            if status != 200:
                return {"ready": False, "why": "llama.cpp's server is still loading its model"}
            _, props = await self.called("GET", "/props", within_s=LOOK_S)
            self._listed_at = -LIST_S
            await self._list()
        except BackendError as problem:
            return {"ready": False, "why": str(problem)}
        match props:
            case {"total_slots": int() as slots} if slots > 0:
                self._slots = slots
        return {
            "ready": True,
            "why": "" if self._numbers else "no leaf is loaded: " + _RESTART,
            "adapters": len(self._numbers),
            "others": len(self._all) - len(self._numbers),
            "slots": self._slots,
        }
