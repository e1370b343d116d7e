"""G12, the memory of one node under a flood: a core alone, fed by hand.

In a simulated network a thousand nodes and the flood itself share one process, whose memory says
little about any of them. Here one process holds one core; what is sent to it is made frame by
frame and forgotten, so that what grows is what the core keeps.
"""

from __future__ import annotations

import resource
from multiprocessing import get_context
from multiprocessing.connection import Connection
from random import Random

from mesh_kit import Sample, card
from msgspec.structs import replace

from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.envelope import seal
from gossip.events import PeerUp, Received, Send, SyncDue
from gossip.keys import Keys
from gossip.origin import next_seq
from gossip.ports import PeerId
from gossip.table import Table, build, root
from gossip.wire import (
    HOUR_S,
    ZERO8,
    ZERO32,
    CardsGet,
    Have,
    Head,
    Manifest,
    TableGet,
    decode_sync,
    encode,
)
from simnet.network import START_S, simulated_keys

LEAVES = 20
PEERS = [PeerId(f"flooder{number}") for number in range(8)]
FLOOD_S = 3600
TIMES = 100  # of each quota
LOADED_S = 600  # in which the honest origins are told
KEPT = 64  # of what is told, to be served; so that the flood itself takes no memory
FALSE_BATCH = 100  # signatures in one frame


def flood_memory(nodes: int, seed: int) -> Sample:
    """MB by which a flood raises the peak memory of one node's core, against the same without.

    The core holds `nodes` honest origins of 20 leaves. Then, in one simulated hour, each of its
    eight peers introduces a hundred times the strangers that its quota allows, each with a table
    of 20 leaves, which it serves; signs heads of an origin of its own at a hundred times the quota
    of one; and in one second sends a hundred times the signatures that are checked in one, all
    false. kept: share of the honest origins whose leaves are usable afterwards.
    """
    calm_mb, _ = _in_child(nodes, seed, flood=False)
    flooded_mb, kept = _in_child(nodes, seed, flood=True)
    return {"mb": flooded_mb - calm_mb, "kept": kept}


class Crowd:
    """Origins that are made up as they are told, and served as long as they are asked for."""

    def __init__(self, name: str, victim: Replica) -> None:
        self._name = name
        self._victim = victim
        self._serving: dict[bytes, Manifest] = {}
        self._last: dict[str, tuple[int, bytes]] = {}

    def tell(self, peer: PeerId, who: str, now_s: int) -> Keys:
        """Have a peer tell the next head of an origin, and answer what that makes the core ask."""
        keys = simulated_keys(f"{self._name}/{who}")
        seq, prev = self._last.get(who, (0, ZERO32))
        whole = _table(f"{self._name}/{who}", seq)
        signed = seal(_head(keys, whole, seq, prev, now_s), keys.op)
        if who == peer:  # strangers are told once
            self._last[who] = signed.value.seq, signed.id
        self._serving[signed.id] = Manifest(signed.env, whole.index, tuple(whole.live()), ())
        if len(self._serving) > KEPT:
            del self._serving[next(iter(self._serving))]
        self._feed(peer, encode(Have((keys.doc,), (signed.env,), (), ())), now_s)
        return keys

    def _feed(self, peer: PeerId, frame: bytes, now_s: int) -> None:
        due = [frame]
        while due:
            for effect in self._victim.handle(Received(peer, due.pop(), now_s)):
                if isinstance(effect, Send) and effect.peer == peer:
                    asked = decode_sync(effect.frame)
                    wanted = isinstance(asked, TableGet | CardsGet) and asked.head in self._serving
                    due += [encode(self._serving[asked.head])] if wanted else []


def _table(name: str, seq: int) -> Table:
    cards = [card(f"{name}/{i}", 1 + seq % 1000, mature=i % 4 == 0) for i in range(LEAVES)]
    return build(cards, (), ())


def _head(keys: Keys, whole: Table, seq: int, prev: bytes, now_s: int) -> Head:
    hour = now_s // HOUR_S
    return Head(
        origin=keys.origin,
        epoch=1,
        seq=next_seq(seq, now_s),
        prev_seq=seq,
        prev=prev,
        table_root=root(whole.index),
        n_live=LEAVES,
        ts_h=hour,
        exp_h=hour + 168,
        flags=0,
        enc=ZERO8,
        usage=ZERO32,
    )


def _in_child(nodes: int, seed: int, *, flood: bool) -> tuple[float, float]:
    """Play in a new process; return its peak resident memory in MB, and the share that is kept."""
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(nodes, seed, flood, there))
    child.start()
    there.close()
    found: tuple[float, float] = here.recv()  # raises EOFError if the child failed
    child.join()
    return found


def _child(nodes: int, seed: int, flood: bool, pipe: Connection) -> None:
    config = GossipConfig()
    victim = Replica(simulated_keys(f"{seed}/victim"), config, Random(f"{seed}/victim"))
    friend = PeerId("friend")
    victim.handle(PeerUp(friend, START_S))
    honest = Crowd(f"{seed}/honest", victim)
    origins = [
        honest.tell(friend, str(at), START_S + at * LOADED_S // nodes).origin for at in range(nodes)
    ]
    for peer in PEERS:
        victim.handle(PeerUp(peer, START_S + LOADED_S))
    if flood:
        _flood(victim, Crowd(f"{seed}/crowd", victim), config, START_S + LOADED_S)
    kept = sum(len(victim.view(origin).usable) == LEAVES for origin in origins) / nodes
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, kept))


def _flood(victim: Replica, crowd: Crowd, config: GossipConfig, start_s: int) -> None:
    strangers_s = TIMES * config.introductions_h_max / HOUR_S  # of one peer
    head_every_s = 24 * HOUR_S // (TIMES * config.heads_day_max)
    told = 0
    for second in range(FLOOD_S):
        now_s = start_s + second
        while told < (second + 1) * strangers_s:
            told += 1
            for peer in PEERS:
                crowd.tell(peer, f"{peer}/{told}", now_s)
        if second % head_every_s == 0:
            for peer in PEERS:
                crowd.tell(peer, peer, now_s)
        if second % 30 == 0:
            victim.handle(SyncDue(now_s, again=False))
        if second == FLOOD_S // 2:
            _false_signatures(victim, config, now_s)


def _false_signatures(victim: Replica, config: GossipConfig, now_s: int) -> None:
    """For a second, a hundred times the signatures that are checked in one."""
    doc, chance = simulated_keys("false").doc, Random("false")
    for peer in PEERS:
        for _ in range(int(TIMES * config.signatures_s_max) // FALSE_BATCH):
            false = tuple(replace(doc, sig=chance.randbytes(64)) for _ in range(FALSE_BATCH))
            victim.handle(Received(peer, encode(Have(false, (), (), ())), now_s))
