"""What the tests of gossip share: keys from names, cards, heads, replicas, and a tidy wire."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from random import Random

from msgspec.structs import replace

from gossip import table
from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.envelope import seal
from gossip.events import (
    Effect,
    Event,
    PeerUp,
    Publish,
    Received,
    Save,
    Send,
    TellDue,
    WakeAfter,
)
from gossip.keys import Keys, issue, private_key, public_bytes
from gossip.ports import PeerId, Record
from gossip.wire import (
    ZERO32,
    Card,
    Ended,
    Env,
    Have,
    Head,
    Manifest,
    Op,
    Retract,
    Scope,
    Stage,
    SyncMessage,
    Usage,
    decode_sync,
    encode,
)

NOW_S = 1_760_000_000 // 3600 * 3600
NOW_H = NOW_S // 3600
ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")

DAY_S = 86_400


def seed(*parts: object) -> bytes:
    return hashlib.sha256("/".join(map(str, parts)).encode()).digest()


def keys(who: object, epoch: int = 1, op: object = "op", revoked: tuple[int, ...] = ()) -> Keys:
    """The keys of a node; another `op` gives a second key for the same epoch."""
    signing = private_key(seed(who, op, epoch))
    doc = issue(
        private_key(seed(who, "root")),
        public_bytes(signing),
        epoch=epoch,
        not_before_h=NOW_H - 24,
        not_after_h=NOW_H + 24 * 365,
        revoked=revoked,
    )
    return Keys(signing, doc)


def leaf(n: int) -> bytes:
    return seed("leaf", n)[:16]


def card(n: int, version: int = 1, stage: Stage = Stage.SPROUT) -> Card:
    centroid = Random(n).randbytes(384)
    tag = bytes(8)
    return Card(leaf(n), version, stage, Op.BIRTH, centroid, 8, tag, tag, (), 120_000, ())


def replica(
    who: object, config: GossipConfig | None = None, records: Iterable[Record] = (), **key: int
) -> Replica:
    return Replica(keys(who, **key), config or GossipConfig(), Random(f"rng/{who}"), records)


def publish(
    *cards: Card,
    ended: Iterable[Ended] = (),
    usage: Iterable[Usage] = (),
    now_s: int = NOW_S,
    urgent: bool = False,
) -> Publish:
    return Publish(cards, tuple(ended), tuple(usage), now_s, urgent)


def sent(effects: Iterable[Effect]) -> list[SyncMessage]:
    return [decode_sync(effect.frame) for effect in effects if isinstance(effect, Send)]


def received(peer: PeerId, message: SyncMessage, now_s: int = NOW_S) -> Received:
    return Received(peer, encode(message), now_s)


A = keys("alice")


def only(effects: list[Effect], kind: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def signed(
    *cards: Card,
    seq: int = NOW_H << 16,
    by: Keys = A,
    usage: tuple[Usage, ...] = (),
    ended: tuple[Ended, ...] = (),
    **changed: object,
) -> tuple[Env, table.Table]:
    """A head as a peer may sign it, and its table."""
    whole = table.build(cards, ended, usage)
    head = Head(
        *(by.origin, by.doc.epoch, seq, 0, ZERO32, table.root(whole.index), len(cards)),
        *(NOW_H, NOW_H + 168, 0, bytes(8), table.usage_hash(usage)),
    )
    return seal(replace(head, **changed), by.op).env, whole


def have(*heads: Env, by: Keys = A) -> Have:
    return Have((by.doc,), heads, (), ())


def manifest(head: Env, whole: table.Table) -> Manifest:
    return Manifest(head, whole.index, tuple(whole.live()), whole.usage)


def bob(**config: int) -> Replica:
    """A replica that is connected to alice and carol."""
    node = replica("bob", GossipConfig(**config))
    node.handle(PeerUp(ALICE, NOW_S))
    node.handle(PeerUp(CAROL, NOW_S))
    return node


def informed(*cards: Card, **head: object) -> tuple[Replica, Env]:
    """A replica that holds alice's table."""
    node = bob()
    env, whole = signed(*cards, **head)  # type: ignore[arg-type]
    node.handle(received(ALICE, have(env)))
    node.handle(received(ALICE, manifest(env, whole)))
    assert node.view(A.origin).head is not None
    return node, env


def retraction(n: int | None, by: Keys = A) -> Have:
    gone = None if n is None else leaf(n)
    said = seal(Retract(by.origin, by.doc.epoch, gone, NOW_H, Scope.PUBLISH), by.op).env
    return Have((by.doc,), (), (said,), ())


class Line:
    """Replicas that hear all that is sent to them, at once and in order."""

    def __init__(self, **nodes: Replica) -> None:
        self.nodes = {PeerId(name): node for name, node in nodes.items()}
        self.disks: dict[PeerId, dict[tuple[str, bytes], bytes]] = {name: {} for name in self.nodes}
        self.log: list[tuple[PeerId, Effect]] = []
        self.now_s = NOW_S
        self.ticks: dict[PeerId, None] = {}  # nodes that have asked for a TellDue

    def connect(self, *pairs: tuple[str, str]) -> None:
        names = list(self.nodes)
        for a, b in pairs or [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]:
            self.give(PeerId(a), PeerUp(PeerId(b), self.now_s))
            self.give(PeerId(b), PeerUp(PeerId(a), self.now_s))

    def give(self, node: PeerId, event: Event) -> list[Effect]:
        """Hand in an event, and all that comes of it; return what the node ordered first."""
        first = self.nodes[node].handle(event)
        due = deque((node, effect) for effect in first)
        ticked: dict[PeerId, None] = {}
        while due or self.ticks.keys() - ticked.keys():
            if not due:  # all frames have arrived: what waits for time is due, once for each node
                name = next(name for name in self.ticks if name not in ticked)
                del self.ticks[name]
                ticked[name] = None
                more = self.nodes[name].handle(TellDue(self.now_s))
                due.extend((name, effect) for effect in more)
                continue
            name, effect = due.popleft()
            self.log.append((name, effect))
            match effect:
                case Save(puts, deletes):
                    for key in deletes:
                        del self.disks[name][key]
                    self.disks[name].update({(r.table, r.key): r.value for r in puts})
                case Send(peer, frame) if peer in self.nodes:
                    more = self.nodes[peer].handle(Received(name, frame, self.now_s))
                    due.extend((peer, effect) for effect in more)
                case WakeAfter(_, tell=True):
                    self.ticks[name] = None
        return first

    def records(self, name: str) -> list[Record]:
        rows = self.disks[PeerId(name)]
        return [Record(*key, rows[key]) for key in sorted(rows)]
