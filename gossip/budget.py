"""How many bytes of bundles may pass in one direction: a token bucket, and a sum for the night.

The bucket holds what one leaf and its control need, so that a fetch now and then has the whole
line, and only what goes on is slowed down. It goes by the time that events carry, and is kept in
memory: a node that starts again begins with full measures.
"""

from __future__ import annotations

from .exchange_events import ExchangeConfig
from .ports import PeerId
from .wire import CHUNK_BYTES

NIGHT_S = 86_400.0  # from the first byte on
PEERS_MAX = 10_000  # whose share is remembered


class Budget:
    """One direction's."""

    def __init__(self, config: ExchangeConfig) -> None:
        self._config = config
        self._tokens = float(config.burst_bytes)
        self._at: float | None = None  # when the tokens were last counted
        self._night_from: float | None = None
        self._spent = 0  # since then
        self._had: dict[PeerId, int] = {}  # of it, by peer

    def allows(self, under_way_bytes: int, now: float) -> bool:
        """True if there is room for one more chunk besides what is under way already."""
        self._advance(now)
        room = min(self._tokens, self._config.bytes_night_max - self._spent)
        return room >= under_way_bytes + CHUNK_BYTES

    def is_spent(self, now: float) -> bool:
        """True if there is nothing more for tonight, however long one waits."""
        self._advance(now)
        return self._config.bytes_night_max - self._spent < CHUNK_BYTES

    def has_had_its_share(self, peer: PeerId, now: float) -> bool:
        """True if a peer was sent so much tonight that what is left is for others."""
        self._advance(now)
        had = self._had.get(peer, 0)
        left = self._config.bytes_night_max - self._spent
        return had > 0 and (had + CHUNK_BYTES) * self._config.night_share > had + left

    def spend(self, size_bytes: int, now: float, peer: PeerId | None = None) -> None:
        """Count what passed. Lists do not wait for room, so tokens may fall below none."""
        self._advance(now)
        if self._night_from is None:
            self._night_from = now
        self._tokens -= size_bytes
        self._spent += size_bytes
        if peer is not None:
            self._had[peer] = self._had.pop(peer, 0) + size_bytes
            if len(self._had) > PEERS_MAX:
                del self._had[next(iter(self._had))]

    def _advance(self, now: float) -> None:
        passed = max(0.0, now - self._at) if self._at is not None else 0.0
        self._at = now
        earned = self._tokens + passed * self._config.bytes_s_max
        self._tokens = min(earned, float(self._config.burst_bytes))
        if self._night_from is not None and now - self._night_from >= NIGHT_S:
            self._night_from, self._spent = None, 0
            self._had.clear()
