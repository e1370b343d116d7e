"""How much of one peer and of one origin is taken in: token buckets, and who must make room.

An origin costs nothing to make, so what counts is who brings it. Nobody is blamed for being over a
quota: an honest peer may pass on in one hour what others said in a week. What is put off is not
lost, for the next round of reconciliation offers it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from .config import GossipConfig
from .ports import PeerId
from .wire import HOUR_S

DAY_S: Final = 24 * HOUR_S
BUCKETS_MAX: Final = 32_768  # remembered; above the number of origins that may be held
STRANGERS: Final = PeerId("")  # all who are not connected share one name: they cost nothing either


class PutOff(Exception):  # noqa: N818  # no error: it comes later
    """More than may be taken in now; the reason is a fixed phrase."""


class Buckets:
    """A token bucket for each key. One that was not touched for long is full, and is forgotten."""

    def __init__(self, rate_s: float, capacity: float) -> None:
        self._rate_s = rate_s
        self._capacity = capacity
        self._left: dict[bytes | str, tuple[float, int]] = {}  # tokens, and at what second

    def has(self, key: bytes | str, now_s: int, tokens: float = 1) -> bool:
        return self._tokens(key, now_s) >= tokens

    def take(self, key: bytes | str, now_s: int, tokens: float = 1) -> bool:
        """Take tokens if they are there; False if not."""
        left = self._tokens(key, now_s)
        if left < tokens:
            return False
        self._left.pop(key, None)
        self._left[key] = left - tokens, now_s
        if len(self._left) > BUCKETS_MAX:
            del self._left[next(iter(self._left))]
        return True

    def _tokens(self, key: bytes | str, now_s: int) -> float:
        left, at_s = self._left.get(key, (self._capacity, now_s))
        if now_s < at_s:  # a clock that was set back takes nothing away, and refills from now on
            self._left[key] = left, now_s
            return left
        return min(self._capacity, left + (now_s - at_s) * self._rate_s)


class Admission:
    """The quotas of one replica."""

    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._signatures = Buckets(config.signatures_s_max, config.signatures_burst)
        self._day = Buckets(config.heads_day_max / DAY_S, config.heads_day_max)
        self._burst = Buckets(1 / config.heads_burst_s, config.heads_burst)
        self._counted: dict[bytes, bytes] = {}  # origin -> the head counted last, in brief
        self._new = Buckets(config.introductions_h_max / HOUR_S, config.introductions_h_max)
        rate_s = config.new_tables_bytes_h / HOUR_S
        self._tables = Buckets(rate_s, config.new_tables_bytes_max)
        self._tables_of_one = Buckets(0.75 * rate_s, 0.75 * config.new_tables_bytes_max)
        self._tabled: dict[bytes, None] = {}
        # By who brought them, in order. What a restart has made anonymous counts as strangers'.
        self._brought: dict[PeerId, dict[bytes, None]] = {}
        self._bringer: dict[bytes, PeerId] = {}
        self.protected: frozenset[bytes] = frozenset()

    def verify(self, peer: PeerId, now_s: int) -> None:
        """Count one verification for a peer. Raises PutOff."""
        if not self._signatures.take(peer, now_s):
            raise PutOff("too many signatures at once")

    def has_room_for_head(self, origin: bytes, head: bytes, now_s: int) -> bool:
        """True if a head may be taken in, or was counted already."""
        if self._counted.get(origin) == head[:16]:
            return True
        return self._burst.has(origin, now_s) and self._day.has(origin, now_s)

    def take_head(self, origin: bytes, head: bytes, now_s: int) -> None:
        """Count a head, by its hash, once: its table may have to be asked for many times."""
        if self._counted.pop(origin, None) != head[:16]:
            self._burst.take(origin, now_s)
            self._day.take(origin, now_s)
        self._counted[origin] = head[:16]
        if len(self._counted) > BUCKETS_MAX:
            del self._counted[next(iter(self._counted))]

    def take_table(self, origin: bytes, by: PeerId, size: int, now_s: int) -> bool:
        """Count the first table of an origin, once; False if there is no room for it now.

        A card costs three times its size in memory, so a flood of origins is a flood of tables; and
        of what there is room for, no single peer gets all.
        """
        if origin in self._tabled:
            return True
        if not (self._tables.has("", now_s, size) and self._tables_of_one.has(by, now_s, size)):
            return False
        self._tables.take("", now_s, size)
        self._tables_of_one.take(by, now_s, size)
        self._tabled[origin] = None
        if len(self._tabled) > BUCKETS_MAX:
            del self._tabled[next(iter(self._tabled))]
        return True

    def may_introduce(self, by: PeerId, held: int, now_s: int) -> bool:
        return 2 * held < self._config.origins_max or self._new.has(by, now_s)

    def introduce(self, origin: bytes, by: PeerId, held: int, now_s: int) -> None:
        """Count an unknown origin for who brings it. Raises PutOff."""
        if 2 * held >= self._config.origins_max and not self._new.take(by, now_s):
            raise PutOff("too many unknown origins")
        self.loaded([origin], by)

    def loaded(self, origins: Iterable[bytes], by: PeerId = STRANGERS) -> None:
        for origin in origins:
            self._brought.setdefault(by, {})[origin] = None
            self._bringer[origin] = by

    def forget(self, origin: bytes) -> None:
        self._tabled.pop(origin, None)
        by = self._bringer.pop(origin)
        del self._brought[by][origin]
        if not self._brought[by]:
            del self._brought[by]

    def to_evict(self, by: PeerId, may_go: Callable[[bytes], bool]) -> bytes | None:
        """Return the origin that makes room for one that `by` brings; None if none does.

        It is the last of those whom the peer with the most has brought, so that who brings many
        crowds out his own. may_go: what has been proven or retracted is never given up.
        """
        if not self._brought:
            return None
        most = max(self._brought, key=lambda peer: (len(self._brought[peer]), peer))
        if most != by and len(self._brought.get(by, ())) >= len(self._brought[most]):
            return None
        newest = reversed(self._brought[most])
        return next((o for o in newest if o not in self.protected and may_go(o)), None)
