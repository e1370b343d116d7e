"""A `gossip.ports.Transport` in memory: peers share a `Wire`, frames arrive in order and whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from gossip.ports import Arrived, Channel, Connected, Disconnected, PeerId, TransportEvent


class Wire:
    """The medium. `lost(sender, to, channel, frame)` decides which frames vanish."""

    def __init__(self) -> None:
        self.ends: dict[PeerId, MemoryTransport] = {}
        self.lost: Callable[[PeerId, PeerId, Channel | None, bytes], bool] = (
            lambda sender, to, channel, frame: False
        )

    def end(self, name: str) -> MemoryTransport:
        peer = PeerId(name)
        self.ends[peer] = MemoryTransport(self, peer)
        return self.ends[peer]

    def connect(self, a: MemoryTransport, b: MemoryTransport) -> None:
        for near, far in ((a, b), (b, a)):
            near.links[far.name] = None
            near.put(Connected(far.name, f"/memory/{far.name}"))

    def disconnect(self, a: PeerId, b: PeerId) -> None:
        for near, far in ((a, b), (b, a)):
            end = self.ends.get(near)
            if end is not None and far in end.links:
                del end.links[far]
                end.put(Disconnected(far))

    def kill(self, end: MemoryTransport) -> None:
        for far in list(end.links):
            self.disconnect(end.name, far)
        del self.ends[end.name]


class MemoryTransport:
    def __init__(self, wire: Wire, name: PeerId) -> None:
        self.wire = wire
        self.name = name
        self.links: dict[PeerId, None] = {}
        self.sent: list[tuple[PeerId | None, Channel | None, bytes]] = []
        self._events: deque[TransportEvent] = deque()
        self._filled = trio.Event()

    def put(self, event: TransportEvent) -> None:
        self._events.append(event)
        self._filled.set()

    def peer_id(self) -> PeerId:
        return self.name

    def addresses(self) -> list[str]:
        return [f"/memory/{self.name}"]

    async def send(self, peer: PeerId, channel: Channel, frame: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        self.sent.append((peer, channel, frame))
        if peer not in self.links:
            return False
        if not self.wire.lost(self.name, peer, channel, frame):
            self.wire.ends[peer].put(Arrived(self.name, channel, frame))
        return True

    async def broadcast(self, frame: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append((None, None, frame))
        for peer in self.links:
            if not self.wire.lost(self.name, peer, None, frame):
                self.wire.ends[peer].put(Arrived(self.name, None, frame))

    async def next_event(self) -> TransportEvent:
        await trio.lowlevel.checkpoint()
        while not self._events:
            self._filled = trio.Event()
            await self._filled.wait()
        return self._events.popleft()

    async def disconnect(self, peer: PeerId, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        self.wire.disconnect(self.name, peer)
