"""Fetches that someone waits for, and the way of their chunks to disk.

Each bundle has one writer, and a chunk waits for it at most behind one other: what a killed process
had and loses is one chunk. Into the page cache it writes from the event loop, for a thread would
cost several times as much; once that has taken long the disk is busy, and threads wait for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, assert_never

import trio

from .bundle_files import BundleFiles
from .exchange_events import (
    Abandon,
    BlobArrived,
    CheckPart,
    ExchangeEvent,
    Failed,
    Fetch,
    FetchBlob,
    Finished,
    PartChecked,
    StoreChunk,
)
from .ports import PeerId
from .wire import CHUNK_BYTES

log = logging.getLogger(__name__)

_UNWRITTEN_MAX: Final = 1  # chunks that wait for the writer of one bundle
_QUICK_S: Final = 0.02  # a write that took longer was none into memory
_FLUSH_BYTES: Final = 16 * 1024 * 1024  # written, then brought to disk while the rest comes

Progress = Callable[[int, int], None]  # bytes here, size


class FetchError(Exception):
    """A bundle could not be had. What has come of it stays, and the next fetch goes on from it.

    reason: the exchange's, if it was the exchange that gave up.
    """

    def __init__(self, what: str, reason: str = "") -> None:
        super().__init__(what)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class FetchResult:
    path: Path
    size_bytes: int
    sources: dict[PeerId, int]  # bytes of the bundle from each peer, in this fetch
    resumed_bytes: int  # that were on disk before


@dataclass(slots=True)
class _Waited:
    """One fetch and those who wait for it."""

    waiting: int = 0
    done: trio.Event = field(default_factory=trio.Event)
    outcome: FetchResult | bytes | str | None = None  # a str says why there is none
    progress: list[Progress] = field(default_factory=list)
    to_disk: trio.MemorySendChannel[StoreChunk | Finished] | None = None


class Downloads:
    """in_thread runs blocking work; `tell` gives the exchange an event, in turn."""

    def __init__(
        self,
        files: BundleFiles,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
        tell: Callable[[ExchangeEvent], Awaitable[None]],
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._files = files
        self._in_thread = in_thread
        self._tell = tell
        self._spawn = spawn
        self._waited: dict[bytes, _Waited] = {}

    async def bundle(self, event: Fetch, progress: Progress | None) -> FetchResult:
        outcome = await self._wait(event, progress)
        assert isinstance(outcome, FetchResult)
        return outcome

    async def blob(self, event: FetchBlob) -> bytes:
        outcome = await self._wait(event, None)
        assert isinstance(outcome, bytes)
        return outcome

    async def _wait(
        self, event: Fetch | FetchBlob, progress: Progress | None
    ) -> FetchResult | bytes:
        """Start the fetch, or join the one that runs; the last to leave it stops it."""
        waited = self._waited.get(event.root)
        first = waited is None
        if waited is None:
            waited = self._waited[event.root] = _Waited()
        if progress is not None:
            waited.progress.append(progress)
        waited.waiting += 1
        try:
            if first:
                await self._tell(event)
            await waited.done.wait()
        finally:
            waited.waiting -= 1
            if not waited.waiting and not waited.done.is_set():
                with trio.CancelScope(shield=True):
                    await self._tell(Abandon(event.root, "cancelled", trio.current_time()))
                self._settle(event.root, "cancelled")  # if the exchange never knew of it
        if isinstance(waited.outcome, str):
            why = waited.outcome
            raise FetchError(f"{event.root.hex()[:12]}… was not fetched: {why}", why)
        assert waited.outcome is not None
        return waited.outcome

    async def perform(
        self, effect: CheckPart | StoreChunk | Finished | BlobArrived | Failed
    ) -> None:
        """Perform an effect of the exchange; called in turn."""
        waited = self._waited.get(effect.root)
        if waited is None:
            return  # cancelled meanwhile
        match effect:
            case CheckPart():
                waited.to_disk, from_exchange = trio.open_memory_channel[StoreChunk | Finished](
                    _UNWRITTEN_MAX
                )
                self._spawn(partial(self._keep, waited, effect, from_exchange))
            case StoreChunk() | Finished():
                assert waited.to_disk is not None
                # Broken: the disk has failed. Closed: the last who waited has gone.
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await waited.to_disk.send(effect)
            case BlobArrived(root, data):
                self._settle(root, data)
            case Failed(root, reason):
                self._settle(root, reason)
            case _:
                assert_never(effect)

    def _settle(self, root: bytes, outcome: FetchResult | bytes | str) -> None:
        waited = self._waited.pop(root, None)
        if waited is None:
            return
        waited.outcome = outcome
        waited.done.set()
        if waited.to_disk is not None:
            waited.to_disk.close()

    async def _keep(
        self,
        waited: _Waited,
        order: CheckPart,
        from_exchange: trio.MemoryReceiveChannel[StoreChunk | Finished],
    ) -> None:
        """Bring one bundle to disk: what is there already, then chunk by chunk, then its end."""
        try:
            async with from_exchange:
                await self._write(waited, order, from_exchange)
        except OSError as error:
            log.error("bundle not stored root=%s error=%s", order.root.hex(), error)
            self._settle(order.root, str(error))
            await self._tell(Abandon(order.root, "disk failed", trio.current_time()))

    async def _write(
        self,
        waited: _Waited,
        order: CheckPart,
        from_exchange: trio.MemoryReceiveChannel[StoreChunk | Finished],
    ) -> None:
        good = await self._in_thread(
            partial(self._files.check_part, order.root, order.size_bytes, order.hashes)
        )
        here = sum(min(CHUNK_BYTES, order.size_bytes - index * CHUNK_BYTES) for index in good)
        checked = PartChecked(order.root, good, trio.current_time())
        self._spawn(partial(self._tell, checked))  # its turn may wait for this very writer
        quick, flush_at = True, here + _FLUSH_BYTES
        async for effect in from_exchange:
            if isinstance(effect, Finished):
                path = await self._in_thread(partial(self._files.finish, order.root))
                sources, resumed = effect.sources, effect.resumed_bytes
                self._settle(order.root, FetchResult(path, order.size_bytes, sources, resumed))
                return
            quick = await self._write_chunk(effect, quick=quick)
            here += len(effect.data)
            if here >= flush_at:
                flush_at = here + _FLUSH_BYTES
                self._spawn(partial(self._flush, order.root))
            for progress in waited.progress:
                progress(here, order.size_bytes)

    async def _write_chunk(self, order: StoreChunk, *, quick: bool) -> bool:
        """Write a chunk; returns whether the next may be written without a thread."""
        write = partial(self._files.write_chunk, order.root, order.index, order.data)
        if not quick:
            await self._in_thread(write)
            return False
        began = time.monotonic()
        write()
        return time.monotonic() - began < _QUICK_S

    async def _flush(self, root: bytes) -> None:
        # It may have ended or gone meanwhile; and what fails here fails again when it ends.
        with suppress(OSError):
            await self._in_thread(partial(self._files.flush, root))
