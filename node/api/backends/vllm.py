"""vLLM's server as a back end: adapters are loaded into it and let go while it runs.

An adapter goes by a name that carries its bundle's digest, so that one name is one adapter for
ever: a leaf's next version has another. vLLM must be started with `--enable-lora` and with
VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, on this machine and by the same user, for it reads folders.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio

from node.api.config import ApiConfig
from node.api.ports import Adapter, AdapterError, BackendError, Capabilities
from node.app import App
from node.errors import OwnerError
from node.leaf_export import DIGEST_CHARS

from .laid_out import LaidOut
from .openai_server import LOOK_S, OpenAiServer, message_of

log = logging.getLogger(__name__)

AT_ONCE = 256  # vLLM's own limit; it makes the others wait
TIDY_S = 60.0  # between two looks at whether the bundles are still here
PREFIX = "groove/"
_NAME = re.compile(rf"groove/([0-9a-f]{{32}})@([0-9a-f]{{{DIGEST_CHARS}}})")
_NO_RUNTIME = (
    "vLLM takes no adapters while it runs: start it with --enable-lora and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
)
_RANK = "vLLM takes adapters of a lower rank only: start it with --max-lora-rank 32."
_NOT_TAKEN = "vLLM did not take the leaf's adapter."


def model_name(adapter: Adapter) -> str:
    """What an adapter is called in vLLM; its resolver plugin understands it too."""
    return f"{PREFIX}{adapter.leaf}@{adapter.bundle[:DIGEST_CHARS]}"


class Vllm(OpenAiServer):
    """`node.api.ports.Backend` over vLLM's server."""

    name = "vllm"

    def __init__(self, app: App, config: ApiConfig) -> None:
        super().__init__(app, config)
        self._laid_out = LaidOut(app)
        self._base: str | None = None
        self._loaded: OrderedDict[str, str] = OrderedDict()  # name → bundle, or its digest
        self._used: Counter[str] = Counter()  # answers under way, by name
        self._turn = trio.Lock()
        self._runtime: bool | None = None  # whether adapters can be loaded; None: not tried yet

    @property
    def capabilities(self) -> Capabilities:
        able = self._runtime is not False
        return Capabilities(
            adapters=able,
            adapters_at_run_time=able,
            raw_prompts=True,
            tools=True,
            seed=True,
            at_once=AT_ONCE,
        )

    async def fields(self, adapter: Adapter | None) -> dict[str, Any]:
        if adapter is None:
            return {"model": await self._base_name()}
        name = model_name(adapter)
        if name in self._loaded:  # most often: no waiting for somebody else's loading
            self._loaded.move_to_end(name)
            return {"model": name}
        async with self._turn:
            await self._base_name()
            if name not in self._loaded:
                await self._load(name, adapter)
                await self._make_room(name)
        return {"model": name}

    @asynccontextmanager
    async def using(self, adapter: Adapter | None) -> AsyncIterator[None]:
        """An adapter that an answer is being made with is not let go."""
        name = model_name(adapter) if adapter else ""
        self._used[name] += 1
        try:
            yield
        finally:
            self._used[name] -= 1
            if not self._used[name]:
                del self._used[name]

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tidy)
            await super().run()

    async def _tidy(self) -> None:
        """Let go of adapters whose bundles went: their leaves were retracted, or made room."""
        while True:
            here = await self._app.adapters.in_thread(self._laid_out.sweep)
            async with self._turn:
                with suppress(BackendError):  # a server that is not there has nothing of ours
                    await self._list(LOOK_S)
                for name in list(self._loaded):
                    if self._loaded[name][:DIGEST_CHARS] not in here and not self._used[name]:
                        await self._unload(name)
            await trio.sleep(TIDY_S)

    async def again(self, adapter: Adapter | None, status: int) -> bool:
        """After a restart vLLM knows our names no more, and may serve another model."""
        if status != 404:
            return False
        self._base = None
        self._loaded.clear()
        return True

    async def _base_name(self) -> str:
        if self._base is None:
            await self._list(self._config.upstream_within_s)
        if self._base is None:
            raise BackendError("backend_model", "vLLM names no model that it serves.")
        return self._base

    async def _list(self, within_s: float) -> None:
        """Learn what the server serves, adapters of an earlier run of ours among it."""
        status, said = await self.called("GET", "/v1/models", within_s=within_s)
        match said:
            case {"data": list() as rows} if status == 200:
                pass
            case _:
                raise BackendError("backend_model", "vLLM does not list its models.")
        rows = [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
        self._base = next((row["id"] for row in rows if not row.get("parent")), None)
        names = {row["id"] for row in rows}
        for name in [name for name in self._loaded if name not in names]:
            del self._loaded[name]
        for name in sorted(names - self._loaded.keys()):
            if found := _NAME.fullmatch(name):
                self._loaded[name] = found.group(2)
                self._loaded.move_to_end(name, last=False)  # used longest ago, for all we know

    async def _load(self, name: str, adapter: Adapter) -> None:
        try:
            folder = await self._app.adapters.in_thread(
                lambda: self._laid_out.folder(adapter.bundle)
            )
        except (OwnerError, OSError) as problem:
            log.warning("adapter not laid out leaf=%s reason=%s", adapter.leaf, problem)
            raise AdapterError(
                "adapter_damaged", "The leaf's adapter is damaged or gone.", 422
            ) from None
        body = {"lora_name": name, "lora_path": str(folder)}
        status, said = await self.called("POST", "/v1/load_lora_adapter", body)
        message = message_of(said)
        if status < 400 or "already been loaded" in message:
            self._runtime = True
            self._loaded[name] = adapter.bundle
            log.info("adapter loaded backend=vllm leaf=%s", adapter.leaf)
            return
        log.warning("adapter refused backend=vllm leaf=%s status=%d", adapter.leaf, status)
        if _no_such_path(status, message):
            self._runtime = False
            raise AdapterError("no_runtime_lora", _NO_RUNTIME, 501)
        if "max_lora_rank" in message:
            raise AdapterError("adapter_rank", _RANK, 501)
        if "LoRA is not enabled" in message or "lora_config" in message:
            self._runtime = False
            raise AdapterError("no_runtime_lora", _NO_RUNTIME, 501)
        raise AdapterError("adapter_refused", _NOT_TAKEN)

    async def _make_room(self, keep: str) -> None:
        """Let adapters go that were used longest ago, and their folders."""
        for name in list(self._loaded):
            if len(self._loaded) <= self._config.adapters_resident:
                return
            if name == keep or self._used[name]:
                continue
            bundle = self._loaded[name]
            await self._unload(name)
            await self._app.adapters.in_thread(partial(self._laid_out.let_go, bundle))

    async def _unload(self, name: str) -> None:
        self._loaded.pop(name, None)
        try:
            await self.called("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except BackendError as problem:
            log.info("adapter not let go kind=%s", problem.kind)

    async def look(self) -> Mapping[str, Any]:
        try:
            status, _ = await self.called("GET", "/health", within_s=LOOK_S)
            if status != 200:
                return {"ready": False, "why": f"vLLM says of its health: {status}"}
            await self._list(LOOK_S)
            if self._runtime is not True:
                self._runtime = await self._takes_adapters()
        except BackendError as problem:
            return {"ready": False, "why": str(problem)}
        return {
            "ready": True,
            "why": "" if self._runtime else _NO_RUNTIME,
            "adapters": len(self._loaded),
            "adapters_at_run_time": bool(self._runtime),
        }

    async def _takes_adapters(self) -> bool:
        """The path is there only if the server was told to take adapters: an order that says
        nothing is refused by one that is there, and unknown to one that is not."""
        status, said = await self.called(
            "POST", "/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""}, LOOK_S
        )
        return not _no_such_path(status, message_of(said))


def _no_such_path(status: int, message: str) -> bool:
    """Whether it is the path that is unknown, and not the adapter."""
    return status in (404, 405) and message in ("Not Found", "Method Not Allowed")
