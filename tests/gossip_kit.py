"""What the tests of gossip share: keys from small numbers, cards, replicas, and a tidy wire."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from random import Random

from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.events import Effect, Event, PeerUp, Publish, Received, Save, Send
from gossip.keys import Keys, issue, private_key, public_bytes
from gossip.ports import PeerId, Record
from gossip.wire import Card, Ended, Op, Stage, SyncMessage, Usage, decode_sync, encode

NOW_S = 1_760_000_000 // 3600 * 3600
NOW_H = NOW_S // 3600
ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")


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


class Line:
    """Replicas that hear all that is sent to them, at once and in order."""

    def __init__(self, **nodes: Replica) -> None:
        self.nodes = {PeerId(name): node for name, node in nodes.items()}
        self.disks: dict[PeerId, dict[tuple[str, bytes], bytes]] = {name: {} for name in self.nodes}
        self.log: list[tuple[PeerId, Effect]] = []
        self.now_s = NOW_S

    def connect(self, *pairs: tuple[str, str]) -> None:
        names = list(self.nodes)
        for a, b in pairs or [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]:
            self.give(PeerId(a), PeerUp(PeerId(b), self.now_s))
            self.give(PeerId(b), PeerUp(PeerId(a), self.now_s))

    def give(self, node: PeerId, event: Event) -> list[Effect]:
        """Hand in an event, and all that comes of it; return what the node ordered first."""
        first = self.nodes[node].handle(event)
        due = deque((node, effect) for effect in first)
        while due:
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
        return first

    def records(self, name: str) -> list[Record]:
        rows = self.disks[PeerId(name)]
        return [Record(*key, rows[key]) for key in sorted(rows)]
