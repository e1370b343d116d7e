"""Whose tables are kept where there are more origins than one node has a use for.

Heads are kept of everyone. Of an origin whose table the owner has no interest in, no more than that
is kept; it is looked at again after some weeks. What is of interest is decided here and told to
nobody: a filter that asked peers would show them one's own leaves. A twentieth of all origins is
kept whatever the owner thinks, each node its own, so that nobody lives in a bubble.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from .config import GossipConfig
from .ports import PeerId
from .view import OriginView

SAMPLE = 13  # of 256
SHARE = 2  # one peer's heads are given no more than one part in so many of the looks left
Wanted = Callable[[OriginView], bool]  # pure: the same table, the same answer


class Interest:
    """Decides for one replica. Without a predicate everything is of interest."""

    def __init__(self, wanted: Wanted | None, own: bytes, config: GossipConfig) -> None:
        self._wanted = wanted
        self._own = own
        self._config = config
        self._looked_h: dict[bytes, int] = {}  # origins without interest, and since when
        self._day = 0
        self._looked: dict[bytes, None] = {}  # at these, on that day
        self._looks_of: dict[PeerId, int] = {}  # by who told of them

    def is_choosy(self, origins: int) -> bool:
        """True if there are so many origins that their tables are chosen."""
        return self._wanted is not None and origins > self._config.origins_full_max

    def looks(self, origin: bytes, by: PeerId, now_h: int) -> bool:
        """True if the table of an origin of which none is held is to be fetched; counts it.

        Once a day for each origin, or one whose table never comes would take all looks.
        """
        looked_h = self._looked_h.get(origin)
        if looked_h is not None and now_h - looked_h < self._config.look_again_h:
            return False
        if now_h // 24 != self._day:
            self._day = now_h // 24
            self._looked.clear()
            self._looks_of.clear()
        if origin in self._looked:
            return True
        had, left = self._looks_of.get(by, 0), self._config.looks_day_max - len(self._looked)
        if left <= 0 or had * SHARE >= had + left:
            return False
        self._looked[origin] = None
        self._looks_of[by] = had + 1
        return True

    def keeps(self, view: OriginView, now_h: int) -> bool:
        """True if a table that is here is to be kept; remembers if it is not."""
        if self._wanted is None or self._is_sampled(view.origin) or self._wanted(view):
            self._looked_h.pop(view.origin, None)
            return True
        self._looked_h[view.origin] = now_h
        return False

    def forget(self, origin: bytes) -> None:
        self._looked_h.pop(origin, None)

    def _is_sampled(self, origin: bytes) -> bool:
        return origin == self._own or hashlib.sha256(self._own + origin).digest()[0] < SAMPLE
