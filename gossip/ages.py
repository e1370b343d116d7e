"""What hour it is as far as heads can tell, and which heads have expired by it.

Order never depends on the time of day; only expiry does. A clock that is set back must not make
expired heads fresh again, so the hour is the latest of the wall clock, of what the heads of most
origins say, and of the highest hour that was ever vouched for, which is saved and never falls.

A clock that once ran ten years ahead must not spoil the node for ten years either. So the wall
clock alone vouches for nothing: the saved hour follows it only as far as fresh heads may live.
"""

from __future__ import annotations

from collections import Counter

from .config import GossipConfig
from .origin import CLOCK_AHEAD_H, LIFETIME_H_MAX
from .wire import HOUR_S, Head

WITNESSES_MIN = 5  # fresh heads whose middle hour is believed


class Ages:
    """The hour of one replica, and its heads by the hour in which they expire."""

    def __init__(self, config: GossipConfig, high_h: int = 0) -> None:
        self._config = config
        self.now_h = 0
        self.high_h = high_h  # vouched for: never falls, not over a restart either
        self._wall_h = 0
        self._fresh: dict[int, dict[bytes, Head]] = {}  # by exp_h, then by origin
        self._signed: Counter[int] = Counter()  # fresh heads by ts_h
        self._stale: dict[bytes, Head] = {}
        self._turned_h = 0  # when it was last looked for what has expired
        self._bare_h = 0  # and for what is of no use any more

    def tick(self, wall_s: int) -> None:
        """Note the wall clock; cheap while its hour is the same."""
        if wall_s // HOUR_S != self._wall_h:
            self._wall_h = wall_s // HOUR_S
            self.update()

    def update(self) -> None:
        """Work out the hour anew."""
        told_h = self._told_h()
        if told_h is not None:
            self.high_h = max(self.high_h, told_h, min(self._wall_h, told_h + LIFETIME_H_MAX))
        self.now_h = max(self._wall_h, self.high_h)

    def _told_h(self) -> int | None:
        """The middle hour of the fresh heads, less what a head may be ahead of us."""
        count = self._signed.total()
        if count < max(WITNESSES_MIN, len(self._stale) // 2):
            return None
        below = 0
        for hour in sorted(self._signed):
            below += self._signed[hour]
            if 2 * below >= count:
                return hour - CLOCK_AHEAD_H
        return None

    def replace(self, origin: bytes, old: Head | None, new: Head | None) -> None:
        """Note which head is held of an origin from now on."""
        if old is not None and self._stale.pop(origin, None) is None:
            self._drop(origin, old)
        if new is not None:
            self._fresh.setdefault(new.exp_h, {})[origin] = new
            self._signed[new.ts_h] += 1

    def turned(self) -> list[bytes]:
        """Return the origins whose heads have expired since this was last asked.

        Also those that have not after all, for the wall clock was ahead and was set right.
        """
        found: list[bytes] = []
        if self.now_h < self._turned_h:
            found = [o for o, head in self._stale.items() if head.exp_h >= self.now_h]
            for origin in found:
                self.replace(origin, None, self._stale.pop(origin))
        self._turned_h = self.now_h
        for hour in sorted(hour for hour in self._fresh if hour < self.now_h):
            for origin, head in list(self._fresh[hour].items()):
                self._drop(origin, head)
                self._stale[origin] = head
                found.append(origin)
        return found

    def is_bare(self, head: Head) -> bool:
        """True if a head expired so long ago that its table is of no use to anyone."""
        return head.exp_h + self._config.floor_after_h < self.high_h

    def bare(self) -> list[bytes]:
        """Return the origins whose heads are that old; asked anew once an hour."""
        if self._bare_h == self.high_h:
            return []
        self._bare_h = self.high_h
        return [origin for origin, head in self._stale.items() if self.is_bare(head)]

    def _drop(self, origin: bytes, head: Head) -> None:
        among = self._fresh[head.exp_h]
        del among[origin]
        if not among:
            del self._fresh[head.exp_h]
        self._signed[head.ts_h] -= 1
        if not self._signed[head.ts_h]:
            del self._signed[head.ts_h]
