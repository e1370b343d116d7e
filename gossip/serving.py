"""The serving half of the bundle exchange: which roots are answered for, and whose turn it is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .budget import Budget
from .exchange_events import ExchangeConfig, ExchangeEffect, PeerRefused, ReadChunk, SendFrame
from .ports import PeerId
from .wire import CHUNK_BYTES, ChunkData, ChunkGet, ListData, ListGet, NotHere, encode


@dataclass(frozen=True, slots=True)
class _Served:
    data: bytes
    chunks: int


class Serving:
    """Answers for the roots it was given, and says of all others that they are not here.

    Peers that ask for chunks take turns, so that one that asks for much does not hold up the rest.
    What the budget does not allow yet waits; once nothing is left for the night, or a peer has had
    its share of it, bundles are not here for the rest of it, and peers ask others.
    """

    def __init__(self, config: ExchangeConfig) -> None:
        self._config = config
        self._served: dict[bytes, _Served] = {}
        self._queues: dict[PeerId, deque[tuple[bytes, int]]] = {}  # in the order of their turns
        self._reading = 0
        self._budget = Budget(config)
        self._now = 0.0  # of the last event that had a time
        self._held = False

    @property
    def waits(self) -> bool:
        """True if someone waits for the budget alone."""
        return bool(self._queues) and self._reading < self._config.upload_slots

    def tick(self, now: float) -> list[ExchangeEffect]:
        """Go on with what waited for the budget."""
        self._now = now
        return self._next_reads()

    def hold(self, now: float, *, on: bool) -> list[ExchangeEffect]:
        """Answer everyone that nothing is here, from now on or no longer."""
        self._now, self._held = now, on
        return self._next_reads()

    def serve(self, root: bytes, data: bytes, chunks: int) -> None:
        self._served[root] = _Served(data, chunks)

    def stop(self, root: bytes) -> None:
        self._served.pop(root, None)
        for queue in self._queues.values():
            kept = [wanted for wanted in queue if wanted[0] != root]
            queue.clear()
            queue.extend(kept)

    def forget(self, peer: PeerId) -> None:
        self._queues.pop(peer, None)

    def list_wanted(self, peer: PeerId, message: ListGet, now: float) -> list[ExchangeEffect]:
        self._now = now
        served = self._served.get(message.root)
        if served is None or self._is_spent(peer):
            return [SendFrame(peer, encode(NotHere(message.root)))]
        self._budget.spend(len(served.data), now, peer)
        return [SendFrame(peer, encode(ListData(message.root, served.data)))]

    def chunks_wanted(self, peer: PeerId, message: ChunkGet, now: float) -> list[ExchangeEffect]:
        self._now = now
        served = self._served.get(message.root)
        if served is None or self._is_spent(peer):
            return [SendFrame(peer, encode(NotHere(message.root)))]
        if max(message.indices) >= served.chunks:
            return [PeerRefused(peer, "no such chunk")]
        queue = self._queues.setdefault(peer, deque())
        wanted = [(message.root, i) for i in message.indices if (message.root, i) not in queue]
        if len(queue) + len(wanted) > self._config.upload_queue_max:
            return [PeerRefused(peer, "too many chunks asked")]
        queue.extend(wanted)
        return self._next_reads()

    def chunk_read(
        self, peer: PeerId, root: bytes, index: int, data: bytes | None
    ) -> list[ExchangeEffect]:
        """Send what was read, unless the peer or the permission has gone meanwhile."""
        self._reading -= 1
        answer: list[ExchangeEffect] = []
        if data is None or root not in self._served:
            answer.append(SendFrame(peer, encode(NotHere(root))))
        else:
            self._budget.spend(len(data), self._now, peer)
            answer.append(SendFrame(peer, encode(ChunkData(root, index, data))))
        return answer + self._next_reads()

    def _next_reads(self) -> list[ExchangeEffect]:
        reads: list[ExchangeEffect] = []
        for peer in [peer for peer in self._queues if self._is_spent(peer)]:
            reads += self._refuse(peer)
        while self._reading < self._config.upload_slots and self._queues:
            if not self._budget.allows(self._reading * CHUNK_BYTES, self._now):
                break
            peer = next(iter(self._queues))
            queue = self._queues.pop(peer)
            if not queue:
                continue
            root, index = queue.popleft()
            if queue:
                self._queues[peer] = queue  # at the end of the line
            self._reading += 1
            reads.append(ReadChunk(peer, root, index))
        return reads

    def _is_spent(self, peer: PeerId) -> bool:
        now = self._now
        return self._held or self._budget.is_spent(now) or self._budget.has_had_its_share(peer, now)

    def _refuse(self, peer: PeerId) -> list[ExchangeEffect]:
        roots = dict.fromkeys(root for root, _ in self._queues.pop(peer))
        return [SendFrame(peer, encode(NotHere(root))) for root in roots]
