"""Whom to tell what, and when: what holds back words that were said already, or are on their way.

A new head is told to a few peers as its summary, 65 bytes, and who lacks it asks. Told whole, it
would cost six times as much at each peer that has it already, which is most of them. News that come
close together are told together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from random import Random

from . import frames, origin
from .config import GossipConfig
from .events import Broadcast, Effect, Send
from .frames import Gift
from .holdings import Holdings
from .ports import PeerId
from .records import Held
from .wire import HOUR_S

NEWS_H = 2  # what is older is not told: who lacks it was away, and will compare
ASK_AGAIN_S = 5  # then another may be asked for what one was asked for
ASK_SAME_S = 15  # then the same may: a peer that never answers must not keep others from it
ASKED_MAX = 32_768  # remembered; what is beyond may come twice


class News:
    """What is to be told. `peers` and `held` are the replica's own, read here only."""

    def __init__(
        self, config: GossipConfig, peers: Mapping[PeerId, None], held: Holdings, rng: Random
    ) -> None:
        self._config = config
        self._peers = peers
        self._held = held
        self._rng = rng
        self._via: dict[bytes, PeerId | None] = {}  # new heads, each with who needs no telling
        self._told_s: int | None = None

    @property
    def waits(self) -> bool:
        """True if there is something to tell."""
        return bool(self._via)

    def tell(
        self,
        old: Held,
        new: Held,
        via: PeerId | None,
        now_s: int,
        *,
        urgent: bool,
        broadcast: bool,
    ) -> Iterator[Effect]:
        """Tell what is new of an origin: heads soon, all else at once.

        urgent: by broadcast too; only what this node says or found out itself. broadcast: it came
        by one, which brings it to the others as well.
        """
        news = origin.lacking(new.claims, old.brief)
        oldest_h = now_s // HOUR_S - NEWS_H
        if urgent:
            yield from map(Broadcast, frames.haves([Gift(news, new.claims)]))
        if news.head is not None and not new.light and news.head.value.ts_h >= oldest_h:
            self._via[new.claims.origin] = via
        rest = replace(news, head=None)
        if not broadcast and origin.newest_h(rest) >= oldest_h:
            told = list(frames.haves([Gift(rest, new.claims)]))
            for peer in self._sample(without=via):
                yield from (Send(peer, frame) for frame in told)

    def heads(self, now_s: int) -> Iterator[Effect]:
        """Tell of new heads now, if nothing was told for a while; else they wait."""
        told_s = self._told_s
        if told_s is None or not 0 <= now_s - told_s < self._config.tell_after_s:
            yield from self.heads_due(now_s)

    def heads_due(self, now_s: int) -> Iterator[Effect]:
        """Tell of new heads now."""
        if not self._via:
            return
        self._told_s = now_s
        via, self._via = self._via, {}
        for peer in self._sample(without=None):
            told = self._held.told(name for name, source in via.items() if source != peer)
            yield from (Send(peer, frame) for frame in told)

    def _sample(self, without: PeerId | None) -> list[PeerId]:
        others = [peer for peer in self._peers if peer != without]
        return self._rng.sample(others, min(self._config.fanout, len(others)))


class Asked:
    """Whom what is lacking was asked of, so that of many who tell of it only one sends it."""

    def __init__(self) -> None:
        self._last: dict[bytes, tuple[PeerId, int]] = {}  # by the item that is to be had

    def may_ask(self, item: bytes, peer: PeerId, now_s: int) -> bool:
        """True if this peer is to be asked now; then it counts as asked."""
        asked, at_s = self._last.get(item, (peer, now_s - ASK_SAME_S))
        if 0 <= now_s - at_s < (ASK_SAME_S if asked == peer else ASK_AGAIN_S):
            return False
        if len(self._last) < ASKED_MAX:
            self._last[item] = peer, now_s
        return True

    def expire(self, now_s: int) -> None:
        """Forget what was asked for long ago."""
        if self._last:
            last = self._last.items()
            self._last = {i: (p, at) for i, (p, at) in last if 0 <= now_s - at < ASK_SAME_S}

    def lose(self, peer: PeerId) -> None:
        """A peer is gone, and will not answer."""
        if self._last:
            self._last = {item: last for item, last in self._last.items() if last[0] != peer}
