"""Whom to tell what, and when: what holds back words that were said already, or are on their way.

A new head is told as its summary, 65 bytes, and who lacks it asks. Told whole, it would cost six
times as much at each peer that has it already, which is most of them. It is told twice: at once to
a few peers, which brings it to most nodes within seconds, and a little later to all the others that
have not told of it themselves. So it passes every link, and a node hears of it as long as one of
its peers is honest, whatever the others keep back. News that come close together are told together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from random import Random

from . import frames, origin
from .admission import Buckets
from .config import GossipConfig
from .events import Broadcast, Effect, Send
from .frames import Gift
from .holdings import Holdings
from .ports import PeerId
from .records import Held
from .wire import HOUR_S, Compare, Summary

NEWS_H = 2  # what is older is not told: who lacks it was away, and will compare
NEWS_MAX = 64  # more at once were missed here and are known elsewhere: they are told to a few alone
KNOWN_MAX = 64  # heads of which it is remembered who told of them
ASK_AGAIN_S = 5  # then another may be asked for what one was asked for
ASK_SAME_S = 15  # then the same may: a peer that never answers must not keep others from it
ASKED_MAX = 32_768  # remembered; what is beyond may come twice
TELLERS_MAX = 4  # peers remembered that told of what another was asked for
LATER_MAX = 1024  # origins of which that is remembered


class News:
    """What is to be told. `peers` and `held` are the replica's own, read here only."""

    def __init__(
        self, config: GossipConfig, peers: Mapping[PeerId, None], held: Holdings, rng: Random
    ) -> None:
        self._config = config
        self._peers = peers
        self._held = held
        self._rng = rng
        self._first: dict[bytes, None] = {}  # origins whose new heads nobody was told of
        self._rest: dict[bytes, int] = {}  # of which a few were told, and when
        self._knows: dict[bytes, tuple[PeerId, ...]] = {}  # by half a head's hash: who told, or was
        self._told_s: int | None = None
        self._proofs = Buckets(config.proofs_s_max, config.proofs_s_max)

    @property
    def waits(self) -> bool:
        """True if there is something to tell."""
        return bool(self._first or self._rest)

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
        # What this node found out of others, as many as they like to sign, holds up no word of its
        # own on the line that both take.
        if urgent and (via is None or self._proofs.take("", now_s)):
            yield from map(Broadcast, frames.haves([Gift(news, new.claims)]))
        if news.head is not None and not new.light and news.head.value.ts_h >= oldest_h:
            self._rest.pop(new.claims.origin, None)
            self._first[new.claims.origin] = None
            if via is not None:
                self._note(news.head.id[:16], [via])
        rest = replace(news, head=None)
        if not broadcast and origin.newest_h(rest) >= oldest_h:
            told = list(frames.haves([Gift(rest, new.claims)]))
            others = [peer for peer in self._peers if peer != via]
            for peer in self._sample(others):
                yield from (Send(peer, frame) for frame in told)

    def heard(self, peer: PeerId, theirs: Compare) -> None:
        """A peer has told of heads, and need not be told of them."""
        if theirs.answer and len(theirs.summaries) <= NEWS_MAX:
            for summary in theirs.summaries:
                if summary.seq:
                    self._note(summary.head, [peer])

    def heads(self, now_s: int) -> Iterable[Effect]:
        """Tell of new heads now, if nothing was told for a while; else they wait."""
        told_s = self._told_s
        if not self._first or (
            told_s is not None and 0 <= now_s - told_s < self._config.tell_after_s
        ):
            return ()
        return self._to_a_few(now_s)

    def heads_due(self, now_s: int) -> Iterator[Effect]:
        """Tell of new heads now: the latest to a few, and to the others those told of before."""
        soon_s = self._config.tell_after_s / 2
        late = [name for name, at_s in self._rest.items() if not 0 <= now_s - at_s < soon_s]
        for name in late:
            del self._rest[name]
        if late:
            yield from self._to(list(self._peers), late)
        if self._first:
            yield from self._to_a_few(now_s)

    def _to_a_few(self, now_s: int) -> Iterator[Effect]:
        names, self._first, self._told_s = list(self._first), {}, now_s
        known = [self._knows.get(self._head(name), ()) for name in names]
        lacking = [peer for peer in self._peers if not all(peer in peers for peers in known)]
        yield from self._to(self._sample(lacking), names)
        if self._config.fanout and len(names) <= NEWS_MAX:
            self._rest |= dict.fromkeys(names, now_s)

    def _to(self, peers: list[PeerId], names: list[bytes]) -> Iterator[Effect]:
        """Tell peers of these origins' heads, but for those they know; then they know them."""
        heads = [(name, self._head(name)) for name in names if name in self._held]
        known = [self._knows.get(head, ()) for _, head in heads]
        frames_of: dict[tuple[bytes, ...], list[bytes]] = {}  # most lack the same
        for peer in peers:
            new = tuple(name for (name, _), by in zip(heads, known, strict=True) if peer not in by)
            if new not in frames_of:
                frames_of[new] = list(self._held.told(new))
            yield from (Send(peer, frame) for frame in frames_of[new])
        for _, head in heads:
            self._note(head, peers)

    def _head(self, name: bytes) -> bytes:
        return self._held[name].brief.head

    def _note(self, head: bytes, peers: list[PeerId]) -> None:
        before = self._knows.get(head, ())
        if new := [peer for peer in peers if peer not in before]:
            self._knows[head] = (*before, *new)
            if len(self._knows) > KNOWN_MAX:
                del self._knows[next(iter(self._knows))]

    def _sample(self, peers: list[PeerId]) -> list[PeerId]:
        return self._rng.sample(peers, min(self._config.fanout, len(peers)))


class Asked:
    """Whom what is lacking was asked of, so that of many who tell of it only one sends it.

    The others are remembered: if that one keeps silent, the next is asked.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, tuple[PeerId, int]] = {}  # by the item that is to be had
        self._later: dict[bytes, tuple[Summary, tuple[PeerId, ...]]] = {}  # likewise: who told too

    @property
    def waits(self) -> bool:
        """True if somebody may have to be asked later."""
        return bool(self._later)

    def may_ask(self, theirs: Summary, peer: PeerId, now_s: int) -> bool:
        """True if this peer is to be asked now; then it counts as asked."""
        item = origin.item_of(theirs)
        asked, at_s = self._last.get(item, (peer, now_s - ASK_SAME_S))
        if 0 <= now_s - at_s < (ASK_SAME_S if asked == peer else ASK_AGAIN_S):
            if asked != peer:
                self._tells_too(item, theirs, peer)
            return False
        if len(self._last) < ASKED_MAX:
            self._last[item] = peer, now_s
        return True

    def _tells_too(self, item: bytes, theirs: Summary, peer: PeerId) -> None:
        tellers = self._later.get(item, (theirs, ()))[1]
        if peer not in tellers and len(tellers) < TELLERS_MAX and len(self._later) < LATER_MAX:
            self._later[item] = theirs, (*tellers, peer)

    def due(self, now_s: int, lacks: Callable[[Summary], bool]) -> Iterator[tuple[PeerId, Summary]]:
        """Take out who else told of what is still lacking, where the one asked had its time."""
        for item, (theirs, tellers) in list(self._later.items()):
            if not lacks(theirs):
                del self._later[item]
            elif item not in self._last or not 0 <= now_s - self._last[item][1] < ASK_AGAIN_S:
                del self._later[item]
                if tellers[1:]:
                    self._later[item] = theirs, tellers[1:]
                yield tellers[0], theirs

    def expire(self, now_s: int) -> None:
        """Forget what was asked for long ago."""
        if self._last:
            last = self._last.items()
            self._last = {i: (p, at) for i, (p, at) in last if 0 <= now_s - at < ASK_SAME_S}

    def lose(self, peer: PeerId) -> None:
        """A peer is gone, and will not answer."""
        if self._last:
            self._last = {item: last for item, last in self._last.items() if last[0] != peer}
