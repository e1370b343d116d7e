"""What this node says itself, and when it may: first hear what others hold of us, then sign.

A node that was restored from a backup does not know what it has signed since. If it signed on, two
histories would be out under one key, and its epoch frozen everywhere. So before the first head
after a start it asks up to three peers for its own newest head (the *echo*) and goes on from there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .config import GossipConfig
from .envelope import Signed, seal
from .events import Effect, Publish, Send
from .keys import Keys
from .origin import Claims, next_seq, too_early
from .ports import PeerId
from .records import Held
from .table import Table, build, root, usage_hash
from .wire import HOUR_S, ZERO8, ZERO32, EchoGet, Flag, Head, Retract, Scope, Standing, encode

SEQ_MAX = 2**63 - 1
KEY_IN_FUTURE = "a head was signed with this key that is more than a day ahead of our clock"
SILENCES_MAX = 3  # questions that a peer leaves unanswered before it is not counted on


class Author:
    """Signs for one origin. `last` is its newest head that anyone is known to hold."""

    def __init__(self, keys: Keys, config: GossipConfig) -> None:
        self.keys = keys
        self.origin = keys.origin  # whatever the epoch
        self.waiting: Publish | None = None  # to be signed as soon as that is safe
        self.withholds = False  # the owner does not want heads to be signed
        self.last: Signed[Head] | None = None
        self._ahead: Signed[Head] | None = None  # shown to us, too far ahead to go on from
        self._config = config
        self._asked: dict[PeerId, int] = {}  # awaited echoes, and since when
        self._answered: dict[PeerId, None] = {}
        self._silent: dict[PeerId, int] = {}  # how often a peer that is connected did not answer
        self._sure = False

    def rekey(self, keys: Keys) -> None:
        """Sign with these keys from now on. Raises ValueError if they are another origin's."""
        if keys.origin != self.origin:
            raise ValueError(f"keys of origin {keys.origin.hex()}, not {self.origin.hex()}")
        if keys.doc.epoch != self.keys.doc.epoch:
            self.last = self._ahead = None
        self.keys = keys

    def ask(self, peers: Iterable[PeerId], now_s: int) -> list[Effect]:
        """Ask peers, up to three in all, while something waits."""
        if self.waiting is None or self._sure:
            return []
        room = self._config.echo_peers - len(self._asked) - len(self._answered)
        others = [p for p in peers if p not in self._asked and p not in self._answered]
        # Those that were silent come last, or three deaf peers would be asked for ever.
        chosen = sorted(others, key=lambda peer: self._silent.get(peer, 0))[: max(0, room)]
        self._asked |= dict.fromkeys(chosen, now_s)
        return [Send(peer, encode(EchoGet(self.origin))) for peer in chosen]

    def answered(self, peer: PeerId) -> None:
        """A peer's echo came, and what it said was taken in."""
        if self._asked.pop(peer, None) is not None:
            self._answered[peer] = None

    def lose(self, peer: PeerId) -> None:
        """A peer is gone."""
        self._asked.pop(peer, None)
        self._silent.pop(peer, None)

    def expire(self, now_s: int) -> None:
        """Wait no longer for peers that are silent: that is neither a yes nor a no."""
        timeout_s = self._config.echo_timeout_s  # a clock set back must not make it longer
        late = [p for p, at in self._asked.items() if not 0 <= now_s - at < timeout_s]
        for peer in late:
            del self._asked[peer]
            self._silent[peer] = self._silent.get(peer, 0) + 1

    def ready(self, peers: Collection[PeerId]) -> Publish | None:
        """Hand over what waits, once it is certain that no newer head of ours is out.

        Certain is: three peers have answered, or all that are connected have, at least one, but for
        those that were silent again and again.
        """
        deaf = sum(self._silent.get(peer, 0) >= SILENCES_MAX for peer in peers)
        wanted = min(self._config.echo_peers, max(1, len(peers) - deaf))
        if not self._sure and (self._asked or len(self._answered) < wanted):
            return None
        self._sure = True
        publish, self.waiting = self.waiting, None
        return publish

    def heard(self, head: Signed[Head]) -> bool:
        """Note a head of one's own that came from outside; True if it is news."""
        if head.value.epoch != self.keys.doc.epoch:
            return False
        if self.last is not None and head.value.seq <= self.last.value.seq:
            return False
        self.last = head
        return True

    def foreign(self, head: Signed[Head], now_s: int) -> str | None:
        """Note a head of one's own that this node cannot have signed by its clock; say why.

        A thief of the key would sign the highest number there is, after which none is left, and
        peers would blame the owner for what follows on it.
        """
        if head.value.epoch != self.keys.doc.epoch or too_early(head.value, now_s) is None:
            return None
        self._ahead = head
        return KEY_IN_FUTURE

    def blocked(self, claims: Claims, now_s: int) -> str | None:
        """Return why nothing can be signed, or None."""
        doc, now_h = self.keys.doc, now_s // HOUR_S
        if claims.standing is Standing.DEAD:
            return "this origin is dead"
        if claims.epoch != doc.epoch:
            return "a newer key of this origin is in use"
        if claims.is_revoked:
            return "this key is revoked"
        if claims.standing is Standing.FROZEN:
            return "this key is frozen: two histories were signed with it"
        if self._ahead is not None:
            if too_early(self._ahead.value, now_s):
                return KEY_IN_FUTURE
            self.heard(self._ahead)  # it was our clock
            self._ahead = None
        if self.last is not None and self.last.value.seq >= SEQ_MAX:
            return "this key has no sequence number left"
        if None in claims.retracts:
            return "everything of this origin is retracted"
        if not doc.not_before_h <= now_h <= doc.not_after_h:
            return "this key is not valid now"
        return None

    def _is_due(self, claims: Claims, table: Table, now_s: int) -> bool:
        """True if a table differs from what the head says, or the head should be renewed."""
        if claims.head is None:
            return True
        head = claims.head.value
        if now_s // HOUR_S - head.ts_h >= self._config.refresh_after_h:
            return True
        return (head.table_root, head.usage) != (root(table.index), usage_hash(table.usage))

    def renew(self, own: Held, now_s: int) -> None:
        """Have one's head signed anew before others take it for expired."""
        head = own.claims.head
        if head is None or None in own.claims.retracts:
            return
        if now_s // HOUR_S - head.value.ts_h >= self._config.refresh_after_h:
            self.republish(own, now_s)

    def republish(self, own: Held, now_s: int) -> None:
        """Have what is published signed anew, unless something else waits, or nothing may."""
        if own.claims.head is not None and self.waiting is None and not self.withholds:
            table = own.table
            self.waiting = Publish(table.live(), table.index.ended, table.usage, now_s)

    def published(self, own: Held, wanted: Publish, now_s: int) -> Held | None:
        """Sign a table; return what is then held of this origin, or None if nothing is due."""
        cards = [card for card in wanted.cards if not own.claims.is_retracted(card.leaf)]
        table = build(cards, wanted.ended, wanted.usage)
        if not self._is_due(own.claims, table, now_s):
            return None
        head = self.head(table, now_s, urgent=wanted.urgent)
        before = (own.claims.head, own.table.index) if own.claims.head else None
        return Held(own.claims.with_head(head), table, before)

    def head(self, table: Table, now_s: int, *, urgent: bool) -> Signed[Head]:
        """Sign a head over a table, next after the last one. It must be saved before it is told."""
        now_h, last = now_s // HOUR_S, self.last
        first = next(iter(table.cards.values()), None)
        head = Head(
            origin=self.origin,
            epoch=self.keys.doc.epoch,
            seq=next_seq(last.value.seq if last else 0, now_s),
            prev_seq=last.value.seq if last else 0,
            prev=last.id if last else ZERO32,
            table_root=root(table.index),
            n_live=len(table.index.rows),
            ts_h=now_h,
            exp_h=now_h + self._config.head_lifetime_h,
            flags=Flag.MATURE_CHANGED if urgent else 0,
            enc=first.enc if first else ZERO8,
            usage=usage_hash(table.usage),
        )
        self.last = seal(head, self.keys.op)
        return self.last

    def retract(self, leaf: bytes | None, scope: Scope, now_s: int) -> Signed[Retract]:
        doc = self.keys.doc
        retract = Retract(self.origin, doc.epoch, leaf, now_s // HOUR_S, scope)
        return seal(retract, self.keys.op)
