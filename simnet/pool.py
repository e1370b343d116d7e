"""What many replicas hold alike is in memory once.

A thousand nodes that take in one delta each build the same table from it. What is held of an origin
is never changed, only replaced, so the equal values of many nodes may be one value; then ten
thousand nodes are in memory what they differ in.
"""

from __future__ import annotations

from typing import Final

from gossip.core import Replica
from gossip.records import Held

KEPT_MAX: Final = 20_000  # values, of some 10 KB; a mesh of that many origins is not simulated


class Pool:
    """The values of one network, the latest of each origin's heads among them."""

    def __init__(self) -> None:
        self._held: dict[bytes, Held] = {}  # by the hash of the head

    def share(self, replica: Replica, origin: bytes) -> None:
        """Let a replica hold the value that others hold of an origin, if it is equal to its own."""
        holdings = replica._held._held
        held = holdings.get(origin)
        if held is None or held.claims.head is None:
            return
        known = self._held.get(held.claims.head.id)
        if known is None or known.item != held.item:
            # New, or a retraction was added: what comes later is what the others will hold, too.
            self._held[held.claims.head.id] = held
            if len(self._held) > KEPT_MAX:
                del self._held[next(iter(self._held))]
        elif known is not held and known == held:
            holdings[origin] = known
