"""What changed, told as it happens: one line a change to each open page, which fetches itself anew.

Only names of topics are sent, no facts: a page shows what it would show if it were loaded again.
While nobody listens nobody looks.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Hashable

import msgspec
import trio

from .desk import Desk, Stamp
from .worker import Worker, WorkerBusyError

LISTENERS_MAX = 32  # open pages; more are read without being told of changes
LOOK_S = 1.5  # between two looks at the home: some dozen system calls
BEAT_S = 15.0  # a line that says nothing, by which a client that is gone is noticed
LASTS_S = 3600.0  # then the browser asks again


class Live:
    """The open pages of one node."""

    def __init__(self, worker: Worker, desk: Desk) -> None:
        self._worker = worker
        self._desk = desk
        self._listeners = 0
        self._seen: dict[str, Stamp] = {}
        self._seen_s = -LOOK_S

    def open(self) -> AsyncGenerator[bytes, None] | None:
        """A stream of events, or None if there are too many already."""
        if self._listeners >= LISTENERS_MAX:
            return None
        return self._events()

    async def _events(self) -> AsyncGenerator[bytes, None]:
        self._listeners += 1
        try:
            known = await self._look()
            yield b"retry: 3000\nevent: open\ndata: []\n\n"
            began = beat = trio.current_time()
            while trio.current_time() - began < LASTS_S:
                await trio.sleep(LOOK_S)
                now = await self._look()
                if changed := sorted(topic for topic in now if now[topic] != known.get(topic)):
                    known = now
                    beat = trio.current_time()
                    yield b"event: changed\ndata: " + msgspec.json.encode(changed) + b"\n\n"
                elif trio.current_time() - beat > BEAT_S:
                    beat = trio.current_time()
                    yield b": still here\n\n"
        finally:
            self._listeners -= 1

    async def _look(self) -> dict[str, Stamp]:
        """The stamps, looked at once for all who listen."""
        if trio.current_time() - self._seen_s >= LOOK_S / 2:
            try:
                self._seen = await self._worker.do(self._desk.stamps) | self._counted()
                self._seen_s = trio.current_time()
            except WorkerBusyError:
                pass  # a page is being made; the next look will tell
        return self._seen

    def _counted(self) -> dict[str, Stamp]:
        counts = self._desk.hub.counts
        told: Hashable = (
            sum(counts.requests.values()),
            sum(counts.fallbacks.values()),
            sum(counts.failures.values()),
        )
        return {"api": (told,)}
