"""Nodes that do not keep to the protocol, each by one lie.

A hostile node has a replica beside it, whose answers it bends: so it takes part well enough to be
listened to. What it signs with a key that it owns is told to the checker, for that is genuine, if
perhaps two histories; whatever else an honest node comes to believe of it was a forgery.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

import msgspec
from msgspec.structs import replace

from gossip import table
from gossip.envelope import Signed, read, seal
from gossip.events import Effect, Event, Received, Send, SyncDue
from gossip.keys import Keys, origin_of
from gossip.origin import LIFETIME_H_MAX, next_seq
from gossip.ports import PeerId
from gossip.wire import (
    EPOCH_MAX,
    HOUR_S,
    SYNC_FRAME_BYTES_MAX,
    ZERO32,
    Card,
    Cards,
    CardsGet,
    Delta,
    Digest,
    Echo,
    EchoGet,
    Env,
    Gone,
    Have,
    Head,
    Manifest,
    Op,
    Range,
    Retract,
    Scope,
    Stage,
    SyncMessage,
    TableGet,
    WireError,
    decode_sync,
    encode,
)

from .faults import flipped, tampered
from .machine import Node
from .network import Network, simulated_keys

SYBILS_AT_ONCE: Final = 200  # keys in one frame
SYBIL_FRAMES: Final = 4  # to each peer in a round
FLOOD: Final = 100  # frames to each peer in a round, where an honest node sends one or two
STALL: Final = 2000  # of the tables that it signed, those it still serves


class Liar:
    """One that bends what its replica would do; the others say how.

    It speaks up unasked in `rounds_left` rounds: a simulated month of flooding shows no more.
    """

    rounds_left = 30

    def __init__(self, net: Network, node: Node) -> None:
        self.net = net
        self.node = node
        self.rng = Random(f"{net.seed}/hostile/{node.name}")
        self.signed = 0
        self._last: Signed[Head] | None = None
        self._stall: dict[bytes, tuple[Signed[Head], table.Table]] = {}

    def handle(self, node: Node, event: Event) -> list[Effect]:
        """Answer as the replica does, bent; and where it wakes, say things of one's own."""
        assert node.replica is not None
        honest = self.honestly(event)
        effects = list(self.bent(honest))
        self._count(_lies(honest, effects))
        told: list[Effect] = []
        if isinstance(event, Received) and self._is_honest(event.peer):
            asked = understood(event.frame)
            said = [] if asked is None else list(self.answers(event.peer, asked))
            told += [Send(event.peer, encode(message)) for message in said]
        if isinstance(event, SyncDue) and self.rounds_left > 0:
            self.rounds_left -= 1
            told += [Send(peer, frame) for peer in node.connected for frame in self.says(peer)]
        self._count(len(told))
        return [*effects, *told]

    def _count(self, lies: int) -> None:
        if lies:
            self.net.faults[f"F22 {type(self).__name__.lower()}"] += lies

    def _is_honest(self, peer: PeerId) -> bool:
        return self.net.nodes[peer].hostile is None  # two liars would answer each other for ever

    def honestly(self, event: Event) -> list[Effect]:
        """What the replica orders, and what it signs is genuine."""
        assert self.node.replica is not None
        effects = self.node.replica.handle(event)
        self.net.checker.owned(self.node)
        return effects

    def bent(self, effects: list[Effect]) -> Iterator[Effect]:
        """The replica's orders, as they are carried out."""
        yield from effects

    def answers(self, peer: PeerId, asked: SyncMessage) -> Iterator[SyncMessage]:
        """What is said to a message beside what the replica says: tables signed here."""
        if isinstance(asked, TableGet | CardsGet) and asked.head in self._stall:
            head, whole = self._stall[asked.head]
            yield Manifest(head.env, whole.index, tuple(whole.live()), whole.usage)

    def says(self, peer: PeerId) -> Iterator[bytes]:
        """What is said to a peer in each round, unasked."""
        yield from ()

    def sign(self, cards: Sequence[Card], keys: Keys | None = None, **fields: object) -> Have:
        """Sign a head over some leaves, to be served to who asks, and return its announcement.

        It follows the one signed before, unless `fields` say something else.
        """
        keys, now_h, last = keys or self.node.keys, self.net.now_s // HOUR_S, self._last
        whole = table.build(cards, (), ())
        head = Head(
            origin=keys.origin,
            epoch=keys.doc.epoch,
            seq=next_seq(last.value.seq if last else 0, self.net.now_s),
            prev_seq=last.value.seq if last else 0,
            prev=last.id if last else ZERO32,
            table_root=table.root(whole.index),
            n_live=len(whole.index.rows),
            ts_h=now_h,
            exp_h=now_h + LIFETIME_H_MAX,
            flags=0,
            enc=bytes(8),
            usage=ZERO32,
        )
        sealed = seal(replace(head, **fields), keys.op)
        self.signed += 1
        self._last = sealed if not fields else last
        self._stall[sealed.id] = (sealed, whole)
        while len(self._stall) > STALL:
            del self._stall[next(iter(self._stall))]
        self.net.checker.signed(keys.origin, sealed.value, tuple(whole.live()), ())
        return Have((keys.doc,), (sealed.env,), (), ())


class Silent:
    """Hears all, and says nothing."""

    def handle(self, node: Node, event: Event) -> list[Effect]:
        return []


class Forger(Liar):
    """Raises heads and praises cards that others signed."""

    def bent(self, effects: list[Effect]) -> Iterator[Effect]:
        for effect in effects:
            if isinstance(effect, Send) and self.rng.random() < 0.5:
                yield Send(effect.peer, tampered(effect.frame, self.rng) or effect.frame)
            else:
                yield effect


class Impostor(Liar):
    """Speaks with its own key in the name of those it hears of: another key, the end of all."""

    def answers(self, peer: PeerId, asked: SyncMessage) -> Iterator[SyncMessage]:
        yield from super().answers(peer, asked)
        mine = self.node.keys
        for doc in asked.keys[:2] if isinstance(asked, Have) else ():
            if (origin := origin_of(doc)) != mine.origin:
                newer = replace(doc, epoch=min(EPOCH_MAX, doc.epoch + 1), op=mine.doc.op)
                now_h = self.net.now_s // HOUR_S
                end = seal(Retract(origin, doc.epoch, None, now_h, Scope.PUBLISH), mine.op)
                yield Have((newer,), (), (), ())
                yield Have((doc,), (), (end.env,), ())


class Equivocator(Liar):
    """Signs two histories, and shows one to half of its peers and the other to the rest."""

    def __init__(self, net: Network, node: Node) -> None:
        super().__init__(net, node)
        self._sides: tuple[Have, Have] | None = None

    def says(self, peer: PeerId) -> Iterator[bytes]:
        if self._sides is None:
            seq = next_seq(0, self.net.now_s)
            a, b = (self.sign(some_cards(self.rng), seq=seq) for _ in range(2))
            self._sides = (a, b)
        yield encode(self._sides[_side(peer)])


class Burner(Liar):
    """Signs two keys for one epoch of an origin of its own, and shows each to half of its peers."""

    def __init__(self, net: Network, node: Node) -> None:
        super().__init__(net, node)
        self._docs = [simulated_keys(f"{net.seed}/burner/{node.name}", op=op).doc for op in "ab"]
        net.checker.forkers[origin_of(self._docs[0])] = None

    def says(self, peer: PeerId) -> Iterator[bytes]:
        yield encode(Have((self._docs[_side(peer)],), (), (), ()))


class Replayer(Liar):
    """Says again whatever it has heard, to anyone, at any time."""

    def __init__(self, net: Network, node: Node) -> None:
        super().__init__(net, node)
        self._heard: list[bytes] = []

    def handle(self, node: Node, event: Event) -> list[Effect]:
        if isinstance(event, Received):
            self._heard.append(event.frame)
            if len(self._heard) > 512:
                del self._heard[self.rng.randrange(512)]
        return super().handle(node, event)

    def says(self, peer: PeerId) -> Iterator[bytes]:
        yield from self.rng.sample(self._heard, min(4, len(self._heard)))


class Withholder(Liar):
    """Announces, and never gives a table or a card."""

    def bent(self, effects: list[Effect]) -> Iterator[Effect]:
        for effect in effects:
            kept = understood(effect.frame) if isinstance(effect, Send) else None
            if not isinstance(kept, Manifest | Delta | Cards):
                yield effect


class Claimant(Liar):
    """Announces at once what it does not hold, and gives another's table for it."""

    def answers(self, peer: PeerId, asked: SyncMessage) -> Iterator[SyncMessage]:
        if isinstance(asked, Have) and asked.heads:
            for other in [peer for peer in self.node.connected if self._is_honest(peer)][:4]:
                self.net.inject(self.node.name, other, encode(asked), delay_s=0.05)
        if isinstance(asked, TableGet):
            yield Gone(asked.origin, asked.head)
        if isinstance(asked, CardsGet):
            yield Cards(asked.origin, asked.head, tuple(some_cards(self.rng)), ())


class MixAndMatcher(Liar):
    """Serves an older table, whole in itself, or an older change, under a newer head."""

    def __init__(self, net: Network, node: Node) -> None:
        super().__init__(net, node)
        self._tables: dict[bytes, Manifest] = {}  # the first that was heard of each origin
        self._deltas: dict[bytes, Delta] = {}

    def handle(self, node: Node, event: Event) -> list[Effect]:
        if isinstance(event, Received):
            self._mixed(event.frame)
        return super().handle(node, event)

    def bent(self, effects: list[Effect]) -> Iterator[Effect]:
        for effect in effects:
            if not isinstance(effect, Send):
                yield effect
                continue
            frame = self._mixed(effect.frame)
            yield effect if frame is effect.frame else Send(effect.peer, frame)
            said = understood(effect.frame)
            for env in said.heads if isinstance(said, Have) else ():
                old = self._tables.get(_origin_of(env))
                if old is not None and old.head != env:  # given before anyone asks
                    yield Send(effect.peer, encode(replace(old, head=env)))

    def _mixed(self, frame: bytes) -> bytes:
        """A frame with what was first heard in place of what belongs to its head."""
        match understood(frame):
            case Manifest(env) as new:
                first = self._tables.setdefault(_origin_of(env), new)
                return frame if first.head == env else encode(replace(first, head=env))
            case Delta(env) as change:
                other = self._deltas.setdefault(_origin_of(env), change)
                if other.head == env:
                    return frame
                return encode(replace(change, puts=other.puts, ends=other.ends))
            case Cards(origin) as part if origin in self._tables:
                cards = self._tables[origin].cards
                return frame if cards == part.cards else encode(replace(part, cards=cards))
            case _:
                return frame


def _origin_of(env: Env) -> bytes:
    """The origin of a head; nothing of an envelope that another liar mislabelled."""
    try:
        return read(env, Head).value.origin
    except WireError:
        return b""


class Oversizer(Liar):
    """Sends what is too large, too deep or claims to be."""

    def says(self, peer: PeerId) -> Iterator[bytes]:
        yield bytes([0x91]) + bytes([0xC6]) + SYNC_FRAME_BYTES_MAX.to_bytes(4, "big")
        yield bytes(SYNC_FRAME_BYTES_MAX + 1)
        yield bytes([0x91]) * 2000 + b"\x00"
        yield bytes([0xDD]) + b"\x7f\xff\xff\xff"


class Babbler(Liar):
    """Sends noise, torn frames, and frames with a bit turned."""

    def bent(self, effects: list[Effect]) -> Iterator[Effect]:
        for effect in effects:
            if isinstance(effect, Send) and self.rng.random() < 0.5:
                whole, cut = effect.frame, self.rng.randrange(len(effect.frame))
                frame = flipped(whole, self.rng) if self.rng.random() < 0.5 else whole[:cut]
                yield Send(effect.peer, frame)
            else:
                yield effect

    def says(self, peer: PeerId) -> Iterator[bytes]:
        yield self.rng.randbytes(self.rng.randrange(1, 400))


class Flooder(Liar):
    """Sends a hundred times what anyone needs: heads, questions, strangers' keys."""

    rounds_left = 4

    def says(self, peer: PeerId) -> Iterator[bytes]:
        assert self.node.replica is not None
        known = self.node.replica.origins() or [self.node.origin]
        for _ in range(FLOOD):
            match self.rng.randrange(4):
                case 0:
                    yield encode(self.sign(some_cards(self.rng)))
                case 1:
                    low = self.rng.randbytes(16)
                    yield encode(Digest((Range(low, b"\xff" * 16, 9, bytes(16), b""),)))
                case 2:
                    yield encode(TableGet(self.rng.choice(known), bytes(32), ZERO32))
                case _:
                    yield encode(Have((simulated_keys(f"{self.rng.random()}").doc,), (), (), ()))


class Mislabeller(Liar):
    """Seals one thing as another, and shows leaves of encoders that nobody has."""

    def says(self, peer: PeerId) -> Iterator[bytes]:
        cards = [
            replace(card, enc=b"unheard!", chassis=b"of-base!") for card in some_cards(self.rng)
        ]
        good = self.sign(cards, enc=b"unheard!")
        yield encode(good)
        for type_ in ("retract/1", "head/2", "groove", "head/1\0"):
            env = replace(good.heads[0], type=type_)
            yield encode(replace(good, heads=(env,)))
            yield encode(replace(good, heads=(), retracts=(env,)))


class Freezer(Liar):
    """Learns nothing, and so tells all who ask that nothing is new."""

    def honestly(self, event: Event) -> list[Effect]:
        said = understood(event.frame) if isinstance(event, Received) else None
        if isinstance(said, Have | Manifest | Delta | Cards):
            self._count(1)
            return []
        return super().honestly(event)


class FastForwarder(Liar):
    """Signs heads of another time, one kind a round: for ever, far ahead, before themselves."""

    def says(self, peer: PeerId) -> Iterator[bytes]:
        now_h = self.net.now_s // HOUR_S
        lies: tuple[dict[str, int], ...] = (
            {"exp_h": now_h + 1000},
            {"seq": 1 << 62},
            {"seq": (now_h + 26) << 16},
            {"ts_h": now_h + 9, "exp_h": now_h + 20},
            {"prev_seq": 1 << 62},
        )
        lie = lies[(FastForwarder.rounds_left - 1 - self.rounds_left) % len(lies)]
        yield encode(self.sign(some_cards(self.rng), None, **lie))


class EchoLiar(Liar):
    """Tells a peer that it has never been heard of, or was seen as another."""

    def bent(self, effects: list[Effect]) -> Iterator[Effect]:
        for effect in effects:
            said = understood(effect.frame) if isinstance(effect, Send) else None
            if not isinstance(said, Echo):
                yield effect

    def answers(self, peer: PeerId, asked: SyncMessage) -> Iterator[SyncMessage]:
        if isinstance(asked, EchoGet):
            other = self.sign(some_cards(self.rng))
            yield Echo(
                asked.origin, *self.rng.choice([(None, None), (other.keys[0], other.heads[0])])
            )


class Sybils(Liar):
    """Speaks for a crowd of invented origins: each has a key, and each tenth has leaves."""

    def __init__(self, net: Network, node: Node, count: int) -> None:
        super().__init__(net, node)
        crowd = [simulated_keys(f"{net.seed}/sybil/{node.name}/{n}") for n in range(count)]
        self._have = []
        for at in range(0, count, SYBILS_AT_ONCE):
            some = crowd[at : at + SYBILS_AT_ONCE]
            with_leaves = [self.sign(some_cards(self.rng), keys) for keys in some[::10]]
            heads = tuple(head for have in with_leaves for head in have.heads)
            self._have.append(Have(tuple(keys.doc for keys in some), heads, (), ()))
        net.faults["F23 sybil"] += count

    def says(self, peer: PeerId) -> Iterator[bytes]:
        at = self.rounds_left % max(1, len(self._have))
        yield from map(encode, (self._have[at:] + self._have[:at])[:SYBIL_FRAMES])


class Newer(Liar):
    """A node of a later version: it keeps to the protocol, and says what only its like know."""

    rounds_left = 1 << 30

    def says(self, peer: PeerId) -> Iterator[bytes]:
        assert self.node.replica is not None
        yield msgspec.msgpack.encode(["xyz/2", self.rng.randbytes(32), 7])
        head = self.node.replica.own_head()
        payload = encode(head) if head else self.rng.randbytes(60)
        newer = Env("head/2", payload, self.rng.randbytes(64))
        yield encode(Have((self.node.keys.doc,), (newer,), (), ()))


class Thief(Liar):
    """Signs on with a key that it stole, ahead of the owner, for as long as it is listened to."""

    def __init__(self, net: Network, node: Node, stolen: Keys, cards: Sequence[Card]) -> None:
        super().__init__(net, node)
        self._stolen, self._cards = stolen, cards

    def says(self, peer: PeerId) -> Iterator[bytes]:
        seq = (self.net.now_s // HOUR_S + 20 << 16) + self.signed
        yield encode(self.sign(self._cards, self._stolen, seq=seq))


LIARS: Final[tuple[type[Liar], ...]] = (
    Forger,
    Impostor,
    Equivocator,
    Burner,
    Replayer,
    Withholder,
    Claimant,
    MixAndMatcher,
    Oversizer,
    Babbler,
    Flooder,
    Mislabeller,
    Freezer,
    FastForwarder,
    EchoLiar,
)


def turn(net: Network, nodes: Sequence[Node], liars: Sequence[type[Liar]] = LIARS) -> None:
    """Make nodes hostile, each in a way drawn from the seed; all ways, with nodes enough."""
    ways = Random(f"{net.seed}/turn").sample(liars, len(liars))
    for at, node in enumerate(nodes):
        node.hostile = ways[at % len(ways)](net, node)
        net.checker.forkers[node.origin] = None


def chosen(net: Network, count: int, sparing: Sequence[Node] = ()) -> list[Node]:
    """Draw nodes that can turn hostile while the others stay linked with each other."""
    drawn: list[Node] = []
    for node in Random(f"{net.seed}/chosen").sample(net.honest(), len(net.honest())):
        if len(drawn) < count and node not in sparing and _linked(net, [*drawn, node]):
            drawn.append(node)
    return drawn


def silence(net: Network) -> None:
    """Let all hostile nodes fall silent: whether the others agree shows only then."""
    for node in net.nodes.values():
        if node.hostile is not None:
            node.hostile = Silent()


def lies_told(net: Network) -> int:
    """What hostile nodes have said that was not so, or have not said or heard that was."""
    return sum(count for fault, count in net.faults.items() if fault.startswith("F22 "))


def understood(frame: bytes) -> SyncMessage | None:
    """A frame's message, or None."""
    try:
        return decode_sync(frame)
    except WireError:
        return None


def some_cards(rng: Random) -> list[Card]:
    """Three leaves that nobody has seen."""
    tag = bytes(8)
    return [
        Card(
            *(rng.randbytes(16), 1, Stage.MATURE, Op.BIRTH, rng.randbytes(384), 9),
            *(tag, tag, (), 120_000, ()),
        )
        for _ in range(3)
    ]


def _linked(net: Network, without: Sequence[Node]) -> bool:
    """True if the nodes but these reach each other."""
    left = {node.name: node for node in net.honest()}
    for node in without:
        if node.name in left:
            del left[node.name]
    count = len(left)
    due = [left.popitem()[1]] if left else []
    reached = len(due)
    while due:
        for name in due.pop().links:
            if name in left:
                reached += 1
                due.append(left.pop(name))
    return reached == count


def _side(peer: PeerId) -> int:
    return sum(peer.encode()) % 2


def _lies(honest: Sequence[Effect], bent: Sequence[Effect]) -> int:
    """How many orders were put in, or left out."""
    kept = {id(effect): None for effect in honest}
    same = sum(id(effect) in kept for effect in bent)
    return max(len(honest), len(bent)) - same
