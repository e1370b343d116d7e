"""The back end that needs nothing installed: the chassis and its leaves in a child of this node.

The child is started by the first request and ended when nobody has asked for `unload_after_s`, for
a loaded chassis takes memory that the owner may want. It is given no more answers at once than it
computes well; more wait in a line of bounded length.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, assert_never

import psutil
import trio

from leaves.serving.orders import Begin, Begun, Cancel, Made, Refused, Start, Wanted, Warm
from node.api.config import ApiConfig
from node.api.ports import (
    Adapter,
    AdapterError,
    Ask,
    BackendError,
    Capabilities,
    Piece,
    Usage,
)
from node.api.stopping import Stopping
from node.app import App
from node.bundles import WrongBlobError, checked
from node.errors import OwnerError

from .builtin_child import Child, Heard

log = logging.getLogger(__name__)

AT_ONCE = 8  # answers in one batch: each more costs the others a few per cent
LINE_MAX = 64  # requests that wait for a place; more are refused
MEMORY_BYTES = 512 << 20  # of keys and values of all answers: 11,000 tokens of SmolLM2
SILENT_S = 600.0  # a child that says nothing for so long while somebody waits is ended
TOKENS_MAX = 2**31  # of an answer: the context bounds it anyway
SEEDS = 2**63  # a seed beyond is taken modulo this
KNOWN_MAX = 4096  # bundles that were found to be what their address says


class BuiltIn:
    """`node.api.ports.Backend` in a child process."""

    name = "builtin"
    capabilities = Capabilities(
        adapters=True,
        adapters_at_run_time=True,
        raw_prompts=True,
        tools=False,
        seed=True,
        at_once=AT_ONCE,
    )

    def __init__(self, app: App, config: ApiConfig) -> None:
        self._app, self._config = app, config
        self._places = trio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._using = 0  # requests that need the child
        self._used_at = 0.0
        self._child: Child | None = None
        self._wanted = trio.Event()
        self._running = False
        self._deaths = 0
        self._trouble = ""
        self._known: OrderedDict[str, tuple[int, int]] = OrderedDict()

    async def run(self) -> None:
        """Keep a child for whoever asks. It ends with this task."""
        self._running = True
        try:
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                if self._child is not None:
                    await self._keep(self._child)
        finally:
            self._running = False
            if self._child is not None:
                self._child.fail("the node ends")

    async def _keep(self, child: Child) -> None:
        """One child, from its start to its end."""
        try:
            start = await self._app.adapters.in_thread(self._start)
            died = await child.live(start, self._app.adapters, self._idle)
        except (OwnerError, OSError) as problem:
            log.warning("back end cannot start problem=%s", type(problem).__name__)
            self._trouble = str(problem)
            child.fail("cannot start")
            died = False
        finally:
            if self._child is child:
                self._child = None
        if died:
            self._deaths += 1
            self._trouble = "" if child.ready else child.problem
            log.warning("back end's child died problem=%s deaths=%d", child.problem, self._deaths)

    def _start(self) -> Start:
        return Start(
            chassis=str(self._app.chassis.path),
            threads=self._app.threads(),
            adapters_resident=self._config.adapters_resident,
            memory_bytes=MEMORY_BYTES,
        )

    def _idle(self) -> float:
        """Seconds until the child is of no more use if nobody asks."""
        if self._using:
            return self._config.unload_after_s
        return self._used_at + self._config.unload_after_s - trio.current_time()

    # Answers

    @asynccontextmanager
    async def answer(self, ask: Ask) -> AsyncIterator[AsyncIterator[Piece]]:
        async with self._place(), self._at_hand() as child:
            wanted = await self._file(ask.adapter)
            with child.conversation() as (number, heard):
                pieces = _Pieces(child, heard, ask)
                try:
                    child.order(_begin(number, ask, wanted))
                except UnicodeEncodeError:
                    raise BackendError("malformed", "A text is no Unicode.", 400) from None
                try:
                    await pieces.begun()
                    yield pieces
                finally:
                    if not pieces.done:
                        child.order(Cancel(number))

    async def warm(self, adapter: Adapter) -> None:
        async with self._at_hand() as child:
            wanted = await self._file(adapter)
            assert wanted is not None
            with child.conversation() as (number, heard):
                child.order(Warm(number, wanted))
                await _Pieces(child, heard, Ask()).begun()

    async def look(self) -> Mapping[str, Any]:
        child = self._child
        ready = child.ready if child else None
        return {
            "ready": not self._trouble,
            "why": self._trouble,
            "running": ready is not None,
            "dtype": ready.dtype if ready else "",
            "context": ready.context if ready else 0,
            "adapters": child.resident if child else 0,
            "answering": AT_ONCE - self._places.value,
            "waiting": self._waiting,
            "deaths": self._deaths,
            "memory_bytes": await self._app.adapters.in_thread(lambda: _resident(child)),
        }

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Wait for a place in the batch, if the line is not too long."""
        if self._waiting >= LINE_MAX:
            raise BackendError("busy", "Too many requests wait for an answer already.", 503)
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()

    @asynccontextmanager
    async def _at_hand(self) -> AsyncIterator[Child]:
        """The child, ready; it stays at least as long as it is used."""
        if not self._running:
            raise BackendError("not_running", "The built-in back end is not running.", 503)
        self._using += 1
        try:
            if self._child is None or self._child.ended:
                self._child = Child()
                self._wanted.set()
            child = self._child
            await child.settled.wait()
            if child.ready is None:
                raise BackendError("cannot_start", _CANNOT_START, 503)
            self._trouble = ""
            yield child
        finally:
            self._using -= 1
            self._used_at = trio.current_time()

    async def _file(self, adapter: Adapter | None) -> Wanted | None:
        """The file of an adapter's bundle; raises AdapterError if it is not what it was."""
        if adapter is None:
            return None
        try:
            path = await self._app.adapters.in_thread(lambda: self._checked(adapter.bundle))
        except (WrongBlobError, OSError, ValueError):
            raise AdapterError("adapter_damaged", "The leaf's adapter is damaged.", 422) from None
        if path is None:
            raise AdapterError("adapter_gone", "The leaf's adapter is not here.", 404)
        return Wanted(adapter.bundle, str(path))

    def _checked(self, address: str) -> Path | None:
        """Where a bundle lies, found to be what its address says since it was written."""
        path = self._app.bundles.path(address)
        if path is None:
            return None
        state = path.stat()
        written = (state.st_size, state.st_mtime_ns)
        if self._known.get(address) != written:
            checked(address, path.read_bytes(), "the node")
            self._known[address] = written
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        return path


_CANNOT_START = "The chassis could not be loaded; `groove-node doctor` says why."


class _Pieces:
    """What the child says to one order, as pieces for a client."""

    def __init__(self, child: Child, heard: trio.MemoryReceiveChannel[Heard], ask: Ask) -> None:
        self._child, self._heard = child, heard
        self._stopping = Stopping(ask.stop)
        self._prompt_tokens = 0
        self.done = False  # the child is at it no more

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> Piece:
        if self.done:
            raise StopAsyncIteration
        made = await self._next()
        assert isinstance(made, Made)
        text, finish = self._stopping.push(made.text), made.finish
        self.done = finish is not None
        delta: dict[str, Any] = {}
        if self._stopping.hit is not None:
            if not self.done:
                self._child.order(Cancel(made.id))
                self.done = True
            finish, delta = "stop", {"stop_sequence": self._stopping.hit}
        elif self.done:
            text += self._stopping.rest()
        usage = Usage(self._prompt_tokens, made.tokens) if self.done else None
        return Piece(text, finish, usage, delta)

    async def begun(self) -> None:
        """Wait until the order is accepted."""
        begun = await self._next()
        assert isinstance(begun, Begun)
        self._prompt_tokens = begun.prompt_tokens

    async def _next(self) -> Begun | Made:
        """What the child says next; raises what it says in refusal."""
        said = await self._heard_next()
        match said:
            case Begun() | Made():
                return said
            case Refused():
                self.done = True
                error = AdapterError if said.adapter else BackendError
                raise error(said.kind, said.message, said.status)
            case _:
                assert_never(said)

    async def _heard_next(self) -> Heard:
        while True:
            try:
                with trio.fail_after(SILENT_S):
                    return await self._heard.receive()
            except trio.EndOfChannel:
                self.done = True
                raise BackendError("child_died", _DIED, 502) from None
            except trio.TooSlowError:
                if trio.current_time() - self._child.heard_at >= SILENT_S:
                    self._child.kill()


_DIED = "The process that answered ended in the middle of it; ask again."


def _begin(number: int, ask: Ask, wanted: Wanted | None) -> Begin:
    said = [
        {key: message[key] for key in ("role", "content") if isinstance(message.get(key), str)}
        for message in ask.messages
    ]
    return Begin(
        id=number,
        tokens_max=min(ask.tokens_max, TOKENS_MAX),
        messages=tuple(said) if ask.prompt is None else (),
        prompt=ask.prompt,
        adapter=wanted,
        temperature=ask.temperature,
        top_p=ask.top_p,
        seed=None if ask.seed is None else ask.seed % SEEDS,
    )


def _resident(child: Child | None) -> int:
    """Bytes of memory that the child takes; 0 if there is none."""
    if child is None or child.process is None:
        return 0
    try:
        return int(psutil.Process(child.process.pid).memory_info().rss)
    except psutil.Error:
        return 0
