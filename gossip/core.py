"""The protocol of one node: events in, orders out; no IO, no clock, no randomness of its own.

Every origin alone writes its own leaf table, and signs one head over the whole of it. A replica
holds what it has heard of every origin, and passes it on:

    a head is heard ──► verified ──► its table pulled ──► stored ──► told to `fanout` peers
    a key, a retraction, a proof of a fork ──► verified ──► stored ──► told likewise
    now and then ──► all that is held is compared with what a random peer holds, and each
                     gives what the other lacks

Telling is a hint and may be lost; comparing is the guarantee. Three rules carry the rest. What is
held only grows, so order and repetition do not matter. A head counts once its table is whole, so
who announces can serve. What must survive a crash is ordered to disk before it is told.

The parts: `author` signs, `hearing` verifies, `origin` judges, `pull` fetches tables, `holdings`
answers, `reconcile` compares, `frames` says it in 64 KiB, `records` turns it into rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import assert_never

from . import frames, origin
from .author import Author
from .config import GossipConfig
from .envelope import Sealed, Signed, read
from .events import (
    Broadcast,
    Effect,
    Event,
    LeafRetracted,
    OriginChanged,
    PeerDown,
    PeerUp,
    Publish,
    PublishBlocked,
    Received,
    Refused,
    RetractOwn,
    Save,
    Send,
    SyncDue,
    WakeAfter,
    Withhold,
)
from .hearing import Said, by_origin, heard, open_head
from .holdings import Holdings
from .keys import Keys
from .origin import Claims
from .ports import PeerId, Record
from .pull import Piece, Pulls
from .records import LAST, Held, changes, load, load_last
from .table import Table, build
from .wire import (
    HOUR_S,
    Card,
    Cards,
    CardsGet,
    Compare,
    Delta,
    Digest,
    Echo,
    EchoGet,
    Ended,
    Gone,
    Have,
    Head,
    Manifest,
    Standing,
    SyncMessage,
    TableGet,
    Usage,
    WireError,
    decode_sync,
    encode,
)

NEWS_H = 2  # what is older is not told: who lacks it was away, and will compare


@dataclass(frozen=True, slots=True)
class OriginView:
    """What one origin stands for, as of the last event."""

    origin: bytes
    standing: Standing
    stale: bool  # its head has expired
    head: Head | None
    cards: tuple[Card, ...]  # of all that is live and not retracted, by leaf
    ended: tuple[Ended, ...]
    usage: tuple[Usage, ...]
    retracted: tuple[bytes | None, ...]  # None: all of its leaves

    @property
    def usable(self) -> tuple[Card, ...]:
        """The cards that may be acted on now."""
        return self.cards if self.standing is Standing.SOUND and not self.stale else ()


class Replica:
    """One node's copy of what all origins say, its own among them."""

    def __init__(
        self, keys: Keys, config: GossipConfig, rng: Random, records: Iterable[Record] = ()
    ) -> None:
        """Start from what a store gave back. Raises records.RecordError if that makes no sense."""
        records = list(records)
        self._config = config
        self._rng = rng
        self._now_s = 0
        self._peers: dict[PeerId, None] = {}  # a dict, for its order: a set of str differs by run
        self._held = Holdings(load(records).values())
        self._pulls = Pulls(config, self._held)
        self._author = Author(keys, config)
        self._stale: dict[bytes, None] = {}  # origins whose expiry was told
        # How often peers told what this node once said and has no record of: it, or all of this
        # machine, was restored from a backup.
        self.rollbacks = 0
        own = self._own().claims
        for head in (own.head, load_last(records, own)):
            if head is not None:
                self._author.heard(head)

    # ---- what is held --------------------------------------------------------------------------

    def origins(self) -> list[bytes]:
        """All origins heard of, ascending."""
        return self._held.names()

    def view(self, name: bytes) -> OriginView:
        """Return what an origin stands for; of an unknown one, nothing."""
        held = self._held[name]
        head = held.claims.head.value if held.claims.head else None
        return OriginView(
            origin=name,
            standing=held.claims.standing,
            stale=head is not None and origin.is_stale(head, self._now_s),
            head=head,
            cards=tuple(held.table.live()),
            ended=held.table.index.ended,
            usage=held.table.usage,
            retracted=tuple(sorted(held.claims.retracts, key=lambda leaf: leaf or b"")),
        )

    def own_head(self) -> Head | None:
        """The head that stands for this node, if it has published."""
        return self.view(self._author.keys.origin).head

    # ---- the door ------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event; never raises on anything a peer can send.

        Raises table.TableTooLargeError, or ValueError for a leaf given twice, on `Publish`.
        """
        self._now_s = event.now_s
        match event:
            case PeerUp(peer):
                self._peers[peer] = None
                return [Send(peer, self._held.opening()), *self._author.ask([peer], self._now_s)]
            case PeerDown(peer):
                self._peers.pop(peer, None)
                self._author.lose(peer)
                return [*self._pulls.lose(peer, self._now_s), *self._publish()]
            case Received(peer, frame):
                return self._received(peer, frame)
            case Publish(cards, ended, usage):
                build(cards, ended, usage)  # what cannot be signed is said to the owner at once
                self._author.waiting, self._author.withholds = event, False
                return [*self._author.ask(self._peers, self._now_s), *self._publish()]
            case RetractOwn(leaf, _, scope):
                own, retract = self._own(), self._author.retract(leaf, scope, self._now_s)
                new = own.with_claims(own.claims.with_retract(retract))
                return [*self._settle(new, urgent=True)]
            case Withhold():
                self._author.waiting, self._author.withholds = None, True
                return []
            case SyncDue(_, again):
                return [*self._sync(), *([self._wake()] if again else [])]
        assert_never(event)

    # What follows is generators, so that of a frame which is wrong in its third record the first
    # two count, with all that comes of them.

    def _received(self, peer: PeerId, frame: bytes) -> list[Effect]:
        effects: list[Effect] = []
        try:
            effects.extend(self._perform(peer, decode_sync(frame)))
        except WireError as error:
            effects += [Refused(peer, error.reason), *self._pulls.ask(self._now_s)]
        return effects

    def _perform(self, peer: PeerId, message: SyncMessage) -> Iterator[Effect]:
        match message:
            case Have():
                for name, said in by_origin(message).items():
                    yield from self._hear(name, said, peer)
            case Digest():
                yield from self._answer(peer, self._held.compared(message))
            case Compare():
                yield from self._answer(peer, self._held.given(message))
            case TableGet() | CardsGet():
                yield from self._answer(peer, self._held.served(message))
            case Delta() | Manifest():
                yield from self._piece(peer, read(message.head, Head).value.origin, message)
            case Cards(name) | Gone(name):
                yield from self._piece(peer, name, message)
            case EchoGet(name):
                yield from self._answer(peer, [self._held.echo(name)])
            case Echo():
                yield from self._echoed(peer, message)
            case _:
                assert_never(message)

    # ---- hearing -------------------------------------------------------------------------------

    def _hear(self, name: bytes, said: Said, via: PeerId) -> Iterator[Effect]:
        """Take in what a peer says of one origin."""
        if name not in self._held and len(self._held) >= self._config.origins_max:
            yield Refused(via, "too many origins", blame=False)
            return
        held = self._held[name]
        claims = heard(held.claims, said)
        if name == self._author.keys.origin:
            newer = held.claims.epoch <= self._author.keys.doc.epoch < claims.epoch
            self.rollbacks += newer or claims.retracts.keys() != held.claims.retracts.keys()
        yield from self._settle(held.with_claims(claims), via=via)
        for head in said.heads:
            yield from self._hear_head(head, via)

    def _hear_head(self, sealed: Sealed[Head], via: PeerId) -> Iterator[Effect]:
        head = sealed.value
        held = self._held[head.origin]
        claims, wanted = held.claims, self._pulls.head(head.origin)
        if head.epoch < claims.epoch or claims.standing is not Standing.SOUND:
            return
        if wanted is not None and wanted.id == sealed.id:
            yield from self._want(wanted, via)
            return
        known = [one for one in (claims.head, wanted) if one is not None]
        rival = next((one for one in known if origin.conflict(one, sealed)), None)
        if rival is None and any(head.seq <= one.value.seq for one in known):
            return  # heard before, or overtaken: nobody's fault, and not worth a signature check
        signed = open_head(sealed, claims)
        if reason := origin.out_of_bounds(head, claims.keys[head.epoch]):
            raise WireError(reason)
        if rival is not None:
            frozen = claims.with_fork(origin.proof(rival, signed))
            yield from self._settle(held.with_claims(frozen), via=via, urgent=True)
        elif reason := origin.too_early(head, self._now_s):
            yield Refused(via, reason, blame=False)
        else:
            if head.origin == self._author.keys.origin and self._author.heard(signed):
                self.rollbacks += 1
                yield Save((Record(*LAST, encode(signed.env)),), durable=True)
            yield from self._want(signed, via)

    def _want(self, head: Signed[Head], via: PeerId) -> Iterator[Effect]:
        """Let a verified head stand, as soon as its table is here."""
        held = self._held[head.value.origin]
        if held.claims.head and origin.same_table(head.value, held.claims.head.value):
            yield from self._apply(head, held.table, via)
            return
        source = via if via in self._peers else None  # a broadcast may come from a stranger
        yield from self._pulls.want(head, source, self._now_s)

    def _piece(self, peer: PeerId, name: bytes, piece: Piece) -> Iterator[Effect]:
        yield from self._pulls.received(peer, name, piece, self._now_s)
        yield from self._finish(name, peer)

    def _finish(self, name: bytes, via: PeerId | None) -> Iterator[Effect]:
        """Apply the table that was on its way, if that is whole now."""
        if (found := self._pulls.whole(name)) is not None:
            yield from self._apply(*found, via)
            yield from self._pulls.ask(self._now_s)

    def _apply(self, head: Signed[Head], table: Table, via: PeerId | None) -> Iterator[Effect]:
        old = self._held[head.value.origin]
        claims = old.claims.with_head(head)
        if claims.head is head:  # else it was overtaken on the way
            before = (old.claims.head, old.table.index) if old.claims.head else None
            yield from self._settle(Held(old.claims, table, before).with_claims(claims), via=via)

    # ---- what this node says -------------------------------------------------------------------

    def _own(self) -> Held:
        """What is held of this node's origin, its key added; nobody is told before it signs."""
        held = self._held[self._author.keys.origin]
        return held.with_claims(held.claims.with_key(self._author.keys.doc))

    def _publish(self) -> Iterator[Effect]:
        """Sign what waits, once it is certain that no newer head of ours is out."""
        if (wanted := self._author.ready(self._peers)) is None:
            return
        own = self._own()
        if reason := self._author.blocked(own.claims, self._now_s):
            yield PublishBlocked(reason)
            return
        cards = [card for card in wanted.cards if not own.claims.is_retracted(card.leaf)]
        table = build(cards, wanted.ended, wanted.usage)
        if self._author.is_due(own.claims, table, self._now_s):
            head = self._author.head(table, self._now_s, urgent=wanted.urgent)
            self._pulls.forget(head.value.origin)
            before = (own.claims.head, own.table.index) if own.claims.head else None
            new = Held(own.claims.with_head(head), table, before)
            yield from self._settle(new, urgent=wanted.urgent)

    def _echoed(self, peer: PeerId, echo: Echo) -> Iterator[Effect]:
        """Take in what a peer holds of this node."""
        if echo.origin != self._author.keys.origin:
            return
        keys = (echo.key,) if echo.key else ()
        heads = (echo.head,) if echo.head else ()
        for name, said in by_origin(Have(keys, heads, (), ())).items():
            yield from self._hear(name, said, peer)
        self._author.answered(peer)
        yield from self._publish()

    def _renew(self) -> None:
        """Have one's head signed anew before others take it for expired."""
        own = self._own()
        head = own.claims.head
        silent = self._author.withholds or self._author.waiting is not None
        if head is None or silent or None in own.claims.retracts:
            return
        if self._now_s // HOUR_S - head.value.ts_h >= self._config.refresh_after_h:
            cards, ended = tuple(own.table.live()), own.table.index.ended
            self._author.waiting = Publish(cards, ended, own.table.usage, self._now_s)

    # ---- what follows --------------------------------------------------------------------------

    def _settle(
        self, new: Held, *, via: PeerId | None = None, urgent: bool = False
    ) -> Iterator[Effect]:
        """Hold what is new of an origin: first save it, then say so here, then tell others."""
        name = new.claims.origin
        old = self._held[name]
        fresh = [leaf for leaf in new.claims.retracts if leaf not in old.claims.retracts]
        durable = bool(fresh) or name == self._author.keys.origin
        if (save := changes(old, new, durable=durable)) is None:
            return
        self._held.put(new)
        yield save
        yield OriginChanged(name)
        if new.claims.standing is Standing.DEAD:
            fresh = [None]
        yield from (LeafRetracted(name, leaf) for leaf in fresh)
        yield from self._tell(origin.lacking(new.claims, origin.summary(old.claims)), via, urgent)
        self._pulls.review(name)
        yield from self._finish(name, via)  # a retraction may have made the last card needless

    def _tell(self, news: Claims, via: PeerId | None, urgent: bool) -> Iterator[Effect]:
        """Pass on what is new; on the urgent plane only what this node says or found out itself."""
        told = list(frames.haves([(news, self._held[news.origin].claims)]))
        if urgent:
            yield from map(Broadcast, told)
        if origin.newest_h(news) >= self._now_s // HOUR_S - NEWS_H:
            others = [peer for peer in self._peers if peer != via]
            for peer in self._rng.sample(others, min(self._config.fanout, len(others))):
                yield from (Send(peer, frame) for frame in told)

    def _answer(self, peer: PeerId, told: Iterable[bytes]) -> Iterator[Effect]:
        """Send the first frames of an answer; the rest is asked for in the next round."""
        if peer in self._peers:
            for frame in islice(told, self._config.answer_frames_max):
                yield Send(peer, frame)

    # ---- time ----------------------------------------------------------------------------------

    def _sync(self) -> Iterator[Effect]:
        self._author.expire(self._now_s)
        self._renew()
        yield from self._publish()
        yield from self._author.ask(self._peers, self._now_s)
        yield from self._pulls.expire(self._now_s)
        yield from self._grown_stale()
        if self._peers:
            yield Send(self._rng.choice(list(self._peers)), self._held.opening())

    def _wake(self) -> WakeAfter:
        # Spread, so that nodes which started together do not stay in step.
        return WakeAfter(self._config.sync_interval_s * self._rng.uniform(0.5, 1.5))

    def _grown_stale(self) -> Iterator[Effect]:
        """Say which origins' heads have expired since the last round, or been renewed."""
        for name in self._held.names():
            head = self._held[name].claims.head
            stale = head is not None and origin.is_stale(head.value, self._now_s)
            if stale != (name in self._stale):
                yield OriginChanged(name)
                if stale:
                    self._stale[name] = None
                else:
                    del self._stale[name]
