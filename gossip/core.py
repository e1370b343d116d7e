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

The parts: `reading` parses, `hearing` verifies, `origin` judges, `pull` fetches tables, `holdings`
answers, `comparing` and `reconcile` find out who lacks what, `frames` says it in 64 KiB, `records`
turns it into rows, `author` signs; `admission` says how much is taken in, `news` what is told to
whom, `ages` what hour it is, `interest` whose tables are kept, `recent` which heads stood before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from random import Random
from typing import assert_never

from . import origin
from .admission import STRANGERS, Admission, PutOff
from .ages import Ages
from .author import Author
from .comparing import Comparing
from .config import GossipConfig
from .envelope import Sealed, Signed
from .events import (
    Effect,
    Event,
    LeafRetracted,
    OriginChanged,
    PeerDown,
    PeerUp,
    Protect,
    Publish,
    PublishBlocked,
    Received,
    Refused,
    Rekey,
    RetractOwn,
    Save,
    SyncDue,
    TellDue,
    WakeAfter,
    Withhold,
)
from .hearing import Said, heard, open_head
from .holdings import Holdings
from .interest import Interest, Wanted
from .keys import Keys
from .news import News
from .origin import Claims
from .ports import PeerId, Record
from .pull import Piece, Pulls, table_bytes
from .reading import Frame, Memory, has_newer, is_newer
from .recent import Recent
from .records import (
    LAST,
    Held,
    allowed,
    beyond,
    changes,
    load,
    load_high,
    load_last,
    save_high,
)
from .table import Table, build
from .view import OriginView as OriginView
from .view import view_of
from .wire import (
    HOUR_S,
    Cards,
    CardsGet,
    Compare,
    Delta,
    Digest,
    Echo,
    EchoGet,
    Gone,
    Have,
    Head,
    Manifest,
    Standing,
    TableGet,
    WireError,
    encode,
)


class Replica:
    """One node's copy of what all origins say, its own among them."""

    def __init__(
        self,
        keys: Keys,
        config: GossipConfig,
        rng: Random,
        records: Iterable[Record] = (),
        interest: Wanted | None = None,
        memory: Memory | None = None,
    ) -> None:
        """Start from what a store gave back. Raises records.RecordError if this node's own part of
        that makes no sense.

        interest: whether a table is worth its room where there are many origins (see `interest`).
        memory: of frames, to be shared by the replicas of one process.
        """
        records = list(records)
        self._config = config
        self._rng = rng
        self._now_s = 0
        self._peers: dict[PeerId, None] = {}  # a dict, for its order: a set of str differs by run
        self._saved_h = load_high(records)
        self._ages = Ages(config, self._saved_h)
        loaded = load(records, keys.origin)
        self.unread = loaded.unread  # origins of which something made no sense, and what of it
        self._mend: tuple[Effect, ...] = (loaded.mend,) if loaded.mend else ()
        self._held = Holdings(loaded.held.values(), self._ages)
        self._pulls = Pulls(config, self._held)
        self._author = Author(keys, config)
        self._admission = Admission(config)
        self._admission.loaded(name for name in self._held.names() if name != keys.origin)
        for one in loaded.held.values():
            if (name := one.claims.origin) != keys.origin:
                self._admission.recorded(name, beyond(one))
                has_table, may_go = bool(one.leaves), self._may_go(name)
                self._admission.note(name, has_table=has_table, may_go=may_go)
        self._interest = Interest(interest, keys.origin, config)
        self._memory = memory or Memory(config.memory_bytes_max)
        self._recent = Recent()
        self._news = News(config, self._peers, self._held, rng)
        self._comparing = Comparing(config, self._peers, self._held, self._pulls, self._admission)
        self._late: dict[bytes, None] = {}  # origins whose tables wait for room
        self._by_broadcast = False  # what is being heard
        self._ticks = False  # a TellDue is to come
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
        return view_of(self._held[name], self._ages.now_h)

    @property
    def protected(self) -> frozenset[bytes]:
        """The origins that are never given up for want of room."""
        return self._admission.protected

    def own_head(self) -> Head | None:
        """The head that stands for this node, if it has published."""
        head = self._held[self._author.origin].claims.head
        return head.value if head else None

    # ---- the door ------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event; never raises on anything a peer can send.

        Raises table.TableTooLargeError, or ValueError for a leaf given twice, on `Publish`; and
        ValueError for keys of another origin on `Rekey`.
        """
        self._now_s = event.now_s
        self._ages.tick(event.now_s)
        effects = [*self._mend, *self._handled(event), *self._news.heads(event.now_s)]
        self._mend = ()
        waits = self._news.waits or self._comparing.waits or self._pulls.waits
        if waits and not self._ticks:
            self._ticks = True
            effects.append(WakeAfter(self._config.tell_after_s, tell=True))
        return effects

    def _handled(self, event: Event) -> list[Effect]:
        match event:
            case Received(peer, frame, _, urgent):
                self._by_broadcast = urgent
                return self._received(peer, frame)
            case PeerUp(peer):
                self._peers[peer] = None
                return [
                    *self._comparing.greet(peer, self._now_s),
                    *self._author.ask([peer], self._now_s),
                ]
            case PeerDown(peer):
                self._peers.pop(peer, None)
                self._author.lose(peer)
                self._comparing.lose(peer)
                return [
                    *self._pulls.lose(peer, self._now_s),
                    *self._author.ask(self._peers, self._now_s),
                    *self._publish(),
                ]
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
            case TellDue():
                return [*self._tick()]
            case Rekey(keys):
                return [*self._rekey(keys)]
            case Protect(origins):
                self._admission.protected = origins
                return []
        assert_never(event)

    # What follows is generators: of a frame that is wrong at its third origin the first two count.

    def _received(self, peer: PeerId, data: bytes) -> list[Effect]:
        effects: list[Effect] = []
        self._pulls.heard(peer, self._now_s)
        try:
            effects.extend(self._perform(peer, self._memory.read(data)))
        except WireError as error:
            # A broadcast was passed on before anyone had judged it, a later release may say more.
            newer = is_newer(data) or (error.reason == "wrong type" and has_newer(data))
            # The key may have been put off, or given up since we showed that we hold it.
            keyless = error.reason == "record without its key"
            blame = not (self._by_broadcast or newer or keyless)
            effects += [Refused(peer, error.reason, blame), *self._pulls.ask(self._now_s)]
        except PutOff as quota:
            effects.append(Refused(peer, str(quota), blame=False))
        return effects

    def _perform(self, peer: PeerId, frame: Frame) -> Iterator[Effect]:
        match frame.message:
            case Have():
                self._comparing.answered(peer)
                for name, said in frame.said.items():
                    yield from self._hear(name, said, peer)
            case Digest() as theirs:
                self._comparing.answered(peer)
                yield from self._comparing.digested(peer, theirs, self._now_s)
            case Compare() as theirs:
                self._news.heard(peer, theirs)
                yield from self._comparing.compared(peer, theirs, self._now_s)
            case TableGet() | CardsGet() as asked:
                yield from self._comparing.answer(peer, self._held.served(asked), self._now_s)
            case Delta() | Manifest() as piece:
                yield from self._brought(peer, frame.head)
                yield from self._piece(peer, frame.head.value.origin, frame.head.id, piece)
            case Cards(name, head) | Gone(name, head) as piece:
                yield from self._piece(peer, name, head, piece)
            case EchoGet(name):
                yield from self._comparing.answer(peer, [self._held.echo(name)], self._now_s)
            case Echo(name):
                yield from self._echoed(peer, name, frame)
            case other:
                assert_never(other)

    # ---- hearing -------------------------------------------------------------------------------

    def _hear(self, name: bytes, said: Said, via: PeerId) -> Iterator[Effect]:
        """Take in what a peer says of one origin."""
        held = self._held[name]
        by = self._bringer(via)
        others = name != self._author.origin
        if others and (said.keys or said.retracts):
            asked = held.leaves | self._pulls.leaves(name)
            part = self._admission.part(held.claims, said, asked, by, self._now_s)
            if part is not None:
                yield Refused(via, "too many records of no table", blame=False)
                said = part
        claims = heard(held.claims, said, self._verifying(via))
        if claims is not held.claims:
            if name not in self._held:
                try:
                    yield from self._make_room(name, via)
                except PutOff as quota:
                    yield Refused(via, str(quota), blame=False)
                    return
            if name == self._author.origin:
                newer = held.claims.epoch <= self._author.keys.doc.epoch < claims.epoch
                self.rollbacks += newer or claims.retracts.keys() != held.claims.retracts.keys()
            if others:
                self._admission.take_records(held, claims, by, self._now_s)
            yield from self._settle(held.with_claims(claims), via=via)
        for head in said.heads:
            yield from self._hear_head(head, via)

    def _bringer(self, via: PeerId) -> PeerId:
        """On whose account a peer's words go."""
        return via if via in self._peers else STRANGERS

    def _verifying(self, peer: PeerId) -> Callable[[], None]:
        return lambda: self._admission.verify(self._bringer(peer), self._now_s)

    def _make_room(self, name: bytes, via: PeerId) -> Iterator[Effect]:
        """Let an origin in that was unknown, or raise PutOff."""
        by = self._bringer(via)
        others = name != self._author.origin
        if others:
            self._admission.introduce(by, len(self._held), self._now_s)
        full = len(self._held) >= self._config.origins_max
        loser = self._admission.to_evict(by, self._may_go) if full else None
        if full and loser is None:
            raise PutOff("too many origins")
        if others:
            self._admission.loaded([name], by)
        if loser is not None:
            self._admission.forget(loser)
            self._interest.forget(loser)
            self._recent.forget(loser)
            self._pulls.forget(loser)
            self._late.pop(loser, None)
            held = self._held.drop(loser)
            if save := changes(held, Held(Claims(loser)), durable=False):
                yield save
            yield OriginChanged(loser)

    def _may_go(self, name: bytes) -> bool:
        claims = self._held[name].claims
        return claims.standing is Standing.SOUND and not claims.retracts

    def _hear_head(
        self, sealed: Sealed[Head], via: PeerId, *, brought: bool = False
    ) -> Iterator[Effect]:
        head = sealed.value
        claims, wanted = self._held[head.origin].claims, self._pulls.head(head.origin)
        if head.epoch < claims.epoch or claims.standing is not Standing.SOUND:
            return
        if wanted is not None and wanted.id == sealed.id:
            yield from self._want(wanted, via)
            return
        if claims.head is not None and claims.head.id == sealed.id:
            return
        known = [one for one in (claims.head, wanted) if one is not None]
        before = self._recent.of(head.origin, head.epoch)
        rival = next((one for one in (*known, *before) if origin.conflict(one, sealed)), None)
        if rival is None and any(head.seq <= one.value.seq for one in known):
            return  # heard before, or overtaken: nobody's fault, and not worth a signature check
        own, room = head.origin == self._author.origin, True
        if rival is None and not own:
            if reason := origin.too_early(head, self._ages.now_h * HOUR_S):
                yield Refused(via, reason, blame=False)
                return
            room = self._admission.has_room_for_head(head.origin, sealed.id, self._now_s)
            if room and self._admission.is_overtaken(head):
                return  # a newer one waits for this room, which old ones would use up
        self._verifying(via)()
        signed = open_head(sealed, claims)
        if reason := origin.out_of_bounds(head, claims.keys[head.epoch]):
            raise WireError(reason)
        if rival is not None:
            frozen = claims.with_fork(origin.proof(rival, signed))
            held = self._held[head.origin]
            yield from self._settle(held.with_claims(frozen), via=via, urgent=True)
            return
        if not room:
            self._admission.put_off(head)
            yield Refused(via, "too many heads of one origin", blame=False)
            return
        if own and (reason := self._author.foreign(signed, self._now_s)):
            yield PublishBlocked(reason)
            return
        if own and self._author.heard(signed):
            self.rollbacks += 1
            yield Save((Record(*LAST, encode(signed.env)),), durable=True)
        elif not own:
            self._admission.take_head(head.origin, sealed.id, self._now_s)
        yield from self._want(signed, via, brought=brought)

    def _brought(self, peer: PeerId, sealed: Sealed[Head]) -> Iterator[Effect]:
        """Hear a head that comes with its table, in answer to a comparison."""
        name, held = sealed.value.origin, self._held[sealed.value.origin]
        wanted, stands = self._pulls.head(name), held.claims.head
        if stands is None or held.light or stands.value.epoch != sealed.value.epoch:
            return
        if wanted is None or wanted.id != sealed.id:
            self._comparing.answered(peer)
            yield from self._hear_head(sealed, peer, brought=True)

    def _want(self, head: Signed[Head], via: PeerId, *, brought: bool = False) -> Iterator[Effect]:
        """Let a verified head stand, as soon as its table is here; or at once, if none is kept.

        brought: the table, or a part of it, comes in the same frame.
        """
        name = head.value.origin
        held = self._held[name]
        source = via if via in self._peers else None  # a broadcast may come from a stranger
        others = name != self._author.origin
        stands = None if held.light else held.claims.head
        if self._pulls.head(name) == head:
            yield from self._pulls.want(head, source, self._now_s)
        elif stands and origin.same_table(head.value, stands.value):
            yield from self._apply(head, held.table, via)
        elif others and self._ages.is_bare(head.value):
            yield from self._apply(head, None, via)
        elif others and not stands:
            yield from self._want_first(head, via)
        elif others and not self._has_room(head, held, self._bringer(via)):
            yield Refused(via, "too many bytes of tables", blame=False)
        else:
            yield from self._pulls.want(head, source, self._now_s, brought=brought)

    def _has_room(self, head: Signed[Head], held: Held, by: PeerId) -> bool:
        """Count what a table grows by, or who begins with a small one has room for nothing."""
        had = table_bytes(held.claims.head.value) if held.claims.head else 0
        size = table_bytes(head.value)
        return self._admission.take_table(head.value.origin, by, size, self._now_s, had)

    def _want_first(self, head: Signed[Head], via: PeerId) -> Iterator[Effect]:
        """Want the table of an origin of which none is here, if it is of interest and has room."""
        name, size = head.value.origin, table_bytes(head.value)
        source = via if via in self._peers else None
        if self._is_choosy():
            yield from self._apply(head, None, via)
            if not self._interest.looks(name, self._bringer(via), self._ages.now_h):
                return
        if self._admission.take_table(name, self._bringer(via), size, self._now_s):
            yield from self._pulls.want(head, source, self._now_s)
        else:
            yield from self._apply(head, None, via)
            self._late[name] = None

    def _want_late(self) -> Iterator[Effect]:
        """Want tables for which there was no room before."""
        for name in list(self._late):
            head, peers = self._held[name].claims.head, list(self._peers)
            if head is None or not self._held[name].light:
                del self._late[name]
                continue
            if not peers:
                return
            peer, size = self._rng.choice(peers), table_bytes(head.value)
            if not self._admission.take_table(name, peer, size, self._now_s):
                return
            del self._late[name]
            yield from self._pulls.want(head, peer, self._now_s)

    def _is_choosy(self) -> bool:
        return self._interest.is_choosy(len(self._held))

    def _piece(self, peer: PeerId, name: bytes, head: bytes, piece: Piece) -> Iterator[Effect]:
        yield from self._pulls.received(peer, name, head, piece, self._now_s)
        yield from self._finish(name, peer)

    def _finish(self, name: bytes, via: PeerId | None) -> Iterator[Effect]:
        """Apply the table that was on its way, if that is whole now."""
        if (found := self._pulls.whole(name)) is not None:
            yield from self._apply(*found, via)
            yield from self._pulls.ask(self._now_s)

    def _apply(
        self, head: Signed[Head], table: Table | None, via: PeerId | None
    ) -> Iterator[Effect]:
        """Let a head stand over its table, or over none that is kept."""
        old = self._held[head.value.origin]
        claims = old.claims.with_head(head)
        if claims.head is None or claims.head.id != head.id:
            return  # overtaken on the way
        if claims is old.claims and not (old.light and table):
            return
        new = Held(claims, light=True)
        if table is not None:
            before = (
                (old.claims.head, old.table.index) if old.claims.head and not old.light else None
            )
            whole = Held(claims, allowed(table, claims), before)
            hour = self._ages.now_h
            if not self._is_choosy() or self._interest.keeps(view_of(whole, hour), hour):
                new = whole
        if old.claims.head is not None and old.claims.head is not claims.head:
            self._recent.add(old.claims.head)
        yield from self._settle(new, via=via)

    # ---- what this node says -------------------------------------------------------------------

    def _own(self) -> Held:
        """What is held of this node's origin, its key added; nobody is told before it signs."""
        held = self._held[self._author.origin]
        return held.with_claims(held.claims.with_key(self._author.keys.doc))

    def _rekey(self, keys: Keys) -> Iterator[Effect]:
        """Take new keys, tell of them, and sign under them what stood under the old."""
        old = self._held[self._author.origin]
        self._author.rekey(keys)
        self._author.republish(old, self._now_s)
        yield from self._settle(self._own(), urgent=True)
        yield from self._publish()

    def _publish(self) -> Iterator[Effect]:
        """Sign what waits, once it is certain that no newer head of ours is out."""
        if (wanted := self._author.ready(self._peers)) is None:
            return
        own = self._own()
        if reason := self._author.blocked(own.claims, self._now_s):
            yield PublishBlocked(reason)
            return
        if (new := self._author.published(own, wanted, self._now_s)) is not None:
            self._pulls.forget(self._author.origin)
            yield from self._settle(new, urgent=wanted.urgent)

    def _echoed(self, peer: PeerId, name: bytes, frame: Frame) -> Iterator[Effect]:
        """Take in what a peer holds of this node."""
        if name != self._author.origin:
            return
        for each, said in frame.said.items():
            yield from self._hear(each, said, peer)
        self._author.answered(peer)
        yield from self._publish()

    # ---- what follows --------------------------------------------------------------------------

    def _settle(
        self, new: Held, *, via: PeerId | None = None, urgent: bool = False
    ) -> Iterator[Effect]:
        """Hold what is new of an origin: first save it, then say so here, then tell others."""
        name = new.claims.origin
        old = self._held[name]
        fresh = [leaf for leaf in new.claims.retracts if leaf not in old.claims.retracts]
        if new.claims.standing is Standing.DEAD:
            fresh = [None]
        durable = bool(fresh) or name == self._author.origin
        if (save := changes(old, new, durable=durable)) is None:
            return
        self._held.put(new)
        if name != self._author.origin:
            self._admission.recorded(name, beyond(new))
            self._admission.note(name, has_table=bool(new.leaves), may_go=self._may_go(name))
        yield save
        yield OriginChanged(name)
        yield from (LeafRetracted(name, leaf) for leaf in fresh)
        if old.claims is not new.claims:
            broadcast = via is not None and self._by_broadcast
            yield from self._news.tell(
                old, new, via, self._now_s, urgent=urgent, broadcast=broadcast
            )
            self._pulls.review(name)
            yield from self._finish(name, via)  # a retraction may have made the last card needless

    # ---- time ----------------------------------------------------------------------------------

    def _sync(self) -> Iterator[Effect]:
        self._author.expire(self._now_s)
        self._comparing.expire(self._now_s)
        self._author.renew(self._held[self._author.origin], self._now_s)
        yield from self._tell_revocation()
        yield from self._publish()
        yield from self._author.ask(self._peers, self._now_s)
        yield from self._age()
        yield from self._want_late()
        yield from self._tick()
        if self._peers:
            yield from self._comparing.sync(self._rng.choice(list(self._peers)), self._now_s)

    def _tick(self) -> Iterator[Effect]:
        """Tell what is new, and ask again what was not answered."""
        self._ticks = False
        yield from self._news.heads_due(self._now_s)
        yield from self._comparing.again(self._now_s)
        yield from self._pulls.expire(self._now_s)

    def _wake(self) -> WakeAfter:
        # Spread, so that nodes which started together do not stay in step.
        return WakeAfter(self._config.sync_interval_s * self._rng.uniform(0.5, 1.5))

    def _tell_revocation(self) -> Iterator[Effect]:
        """A key that revokes others is told without waiting for the first head under it."""
        doc = self._author.keys.doc
        if doc.revoked and doc.epoch not in self._held[self._author.origin].claims.keys:
            yield from self._settle(self._own(), urgent=True)

    def _age(self) -> Iterator[Effect]:
        """Say whose heads have expired since the last round; drop tables expired long ago."""
        self._ages.update()
        if self._ages.high_h > self._saved_h:
            self._saved_h = self._ages.high_h
            yield save_high(self._saved_h)
        yield from map(OriginChanged, self._ages.turned())
        for name in self._ages.bare():
            held = self._held[name]
            if not held.light and name != self._author.origin:
                yield from self._settle(replace(held, table=Table(), before=None, light=True))
