"""Many replicas over a simulated network: one heap of events, one seed, no clock and no waiting.

What happens is a function of the seed and the scenario alone. All chance comes from generators
named after the seed, and no set is ever iterated, so that the hash of the trace is the same in
every process; two runs whose hashes differ are a bug in the simulator or in a core.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import assert_never

from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.events import (
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
)
from gossip.keys import Keys, issue, private_key, public_bytes
from gossip.ports import PeerId
from gossip.wire import Card, Ended

from .disk import SimDisk
from .faults import RELIABLE, Links
from .invariants import Checker

START_S = 1_760_000_000  # the date on which every simulation begins
DEGREE = 8  # links of a node, as gossipsub's mesh
TAIL = 4000  # events remembered, to show what led to a failure


@dataclass(frozen=True, slots=True)
class Arrival:
    src: PeerId
    dst: PeerId
    frame: bytes
    urgent: bool


@dataclass(frozen=True, slots=True)
class Timer:
    node: PeerId
    life: int


@dataclass(frozen=True, slots=True)
class Link:
    """`node` notices that a peer, in one of its lives, can be reached or no longer."""

    node: PeerId
    peer: PeerId
    life: int
    up: bool


@dataclass(frozen=True, slots=True)
class Act:
    """A step of the scenario."""

    name: str
    do: Callable[[], None] = field(compare=False)


Happening = Arrival | Timer | Link | Act


@dataclass(slots=True)
class Node:
    """One machine: a disk, and while it is up a replica."""

    name: PeerId
    keys: Keys
    disk: SimDisk
    rng: Random
    replica: Replica | None = None
    life: int = 0  # counts starts; timers of an earlier life are dead
    links: dict[PeerId, None] = field(default_factory=dict)
    connected: dict[PeerId, int] = field(default_factory=dict)  # peer -> in which of its lives
    seen: dict[bytes, None] = field(default_factory=dict)  # broadcasts, by hash
    crash_after: int | None = None  # effects of the next event that has any

    @property
    def origin(self) -> bytes:
        return self.keys.origin


class Network:
    """Nodes, links between them, and the time. Scenarios drive it; `checker` watches."""

    def __init__(self, *, size: int, seed: int, links: Links = RELIABLE) -> None:
        self.seed = seed
        self.now = 0.0  # seconds since the start
        self.links = links
        self.faults: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # frames and bytes, by plane
        self.frames: list[tuple[PeerId, PeerId, bytes]] = []  # kept if `record`
        self.record = False
        self.checker = Checker(seed, blameless=self.links.honest)
        self.tail: deque[tuple[float, PeerId, str]] = deque(maxlen=TAIL)
        self._config = GossipConfig()
        self._rng = Random(f"{seed}/links")
        self._heap: list[tuple[float, int, Happening]] = []
        self._posted = 0  # breaks ties at equal times, so that happenings never compare
        self._cut: dict[PeerId, int] = {}  # node -> side of the partition
        self._trace = hashlib.sha256()
        self.events = 0
        self.nodes = {name: self._make(name) for name in map(_name, range(size))}
        self._wire()
        for name in self.nodes:
            self.start(name)

    def _make(self, name: PeerId) -> Node:
        keys = simulated_keys(f"{self.seed}/{name}")
        return Node(name, keys, SimDisk(), Random(f"{self.seed}/{name}"))

    def _wire(self) -> None:
        """Join the nodes to a ring with chords: connected, and of few hops."""
        rng, names = Random(f"{self.seed}/wiring"), list(self.nodes)
        for i, name in enumerate(names):
            others = [names[(i + 1) % len(names)], *rng.choices(names, k=DEGREE // 2 - 1)]
            for other in others:
                if other != name:
                    self.nodes[name].links[other] = None
                    self.nodes[other].links[name] = None

    # ---- what scenarios do ---------------------------------------------------------------------

    @property
    def now_s(self) -> int:
        return START_S + int(self.now)

    def at(self, delay_s: float, name: str, do: Callable[[], None]) -> None:
        """Do something after a while."""
        self._post(delay_s, Act(name, do))

    def run(self, for_s: float) -> None:
        """Let time pass."""
        until = self.now + for_s
        while self._heap and self._heap[0][0] <= until:
            self.now, _, happening = heappop(self._heap)
            self._happen(happening)
        self.now = until

    def publish(
        self, name: PeerId, *cards: Card, ended: tuple[Ended, ...] = (), urgent: bool = False
    ) -> None:
        self.give(name, Publish(cards, ended, (), self.now_s, urgent))

    def retract(self, name: PeerId, leaf: bytes | None) -> None:
        self.give(name, RetractOwn(leaf, self.now_s))

    def up(self) -> list[Node]:
        """The nodes that are running."""
        return [node for node in self.nodes.values() if node.replica is not None]

    def partition(self, sides: dict[PeerId, int]) -> None:
        """Let no frame pass between nodes of different sides; the links stay, and are silent."""
        self.faults["partition"] += 1
        self._cut = sides

    def heal(self) -> None:
        """Take away every fault, and start what is down."""
        self._cut = {}
        self.links = RELIABLE
        for name, node in self.nodes.items():
            node.crash_after = None
            if node.replica is None:
                self.start(name)

    def crash(self, name: PeerId) -> None:
        """Stop a node, and lose what its disk had not synced."""
        node = self.nodes[name]
        if node.replica is None:
            return
        self.faults["crash"] += 1
        self.faults["lost write"] += node.disk.crash(node.rng)
        node.replica, node.crash_after = None, None
        for peer in node.links:
            self._post(self._latency(), Link(peer, name, node.life, up=False))

    def start(self, name: PeerId, keys: Keys | None = None) -> None:
        """Start a node from its disk, with other keys if given."""
        node = self.nodes[name]
        node.keys = keys or node.keys
        node.life += 1
        node.seen.clear()
        node.connected.clear()
        rng = Random(f"{self.seed}/{name}/{node.life}")
        node.replica = Replica(node.keys, self._config, rng, node.disk.load())
        self.checker.started(node)
        self.give(name, SyncDue(self.now_s))
        for peer in node.links:
            if self.nodes[peer].replica is not None:
                self._post(self._latency(), Link(name, peer, self.nodes[peer].life, up=True))
                self._post(self._latency(), Link(peer, name, node.life, up=True))

    def inject(self, src: PeerId, dst: PeerId, frame: bytes, delay_s: float = 0.0) -> None:
        """Let a frame arrive that nobody sent."""
        self._post(delay_s, Arrival(src, dst, frame, urgent=False))

    def trace_hash(self) -> str:
        return self._trace.hexdigest()

    # ---- what happens --------------------------------------------------------------------------

    def _latency(self) -> float:
        return self._rng.uniform(*self.links.latency_s)

    def _post(self, delay_s: float, happening: Happening) -> None:
        self._posted += 1
        heappush(self._heap, (self.now + delay_s, self._posted, happening))

    def _happen(self, happening: Happening) -> None:
        match happening:
            case Arrival(src, dst, frame, urgent):
                if self._cut.get(src, 0) != self._cut.get(dst, 0):
                    self.faults["cut off"] += 1
                elif not urgent or self._flood(src, dst, frame):
                    self.give(dst, Received(src, frame, self.now_s, urgent))
            case Timer(name, life):
                if self.nodes[name].life == life:
                    self.give(name, SyncDue(self.now_s))
            case Link(name, peer, life, up):
                self._connect(self.nodes[name], self.nodes[peer], life, up=up)
            case Act(name, do):
                self._note(PeerId("-"), name, b"")
                do()
            case _:
                assert_never(happening)

    def _connect(self, node: Node, peer: Node, life: int, *, up: bool) -> None:
        """Tell a node of a link, as a transport would: one end before the next beginning."""
        known = node.connected.get(peer.name)
        if known is not None and (up or known == life):
            del node.connected[peer.name]
            self.give(node.name, PeerDown(peer.name, self.now_s))
        if up and peer.replica is not None and peer.life == life:
            node.connected[peer.name] = life
            self.give(node.name, PeerUp(peer.name, self.now_s))

    def give(self, name: PeerId, event: Event) -> None:
        """Hand an event to a node that is up, perform its effects, and check what holds."""
        node = self.nodes[name]
        if node.replica is None:
            return
        self.events += 1
        frame = event.frame if isinstance(event, Received) else b""
        self._note(name, _say(event), frame)
        effects = node.replica.handle(event)
        kept = effects
        if node.crash_after is not None and effects:
            kept = effects[: node.crash_after]
        for effect in kept:
            self._perform(node, effect)
        self.checker.check(self, node, kept)
        if kept is not effects or (node.crash_after is not None and effects):
            self.crash(name)

    def _perform(self, node: Node, effect: Effect) -> None:
        match effect:
            case Save(puts, deletes, durable):
                node.disk.write(puts, deletes, durable=durable)
            case Send(peer, frame):
                self._carry(node.name, peer, frame, urgent=False)
            case Broadcast(frame):
                self._flood(node.name, node.name, frame)
            case WakeAfter(delay_s):
                self._post(delay_s, Timer(node.name, node.life))
            case OriginChanged() | LeafRetracted() | Refused() | PublishBlocked():
                pass  # the checker looks at these
            case _:
                assert_never(effect)

    def _flood(self, src: PeerId, at: PeerId, frame: bytes) -> bool:
        """Pass a broadcast on to all links but the one it came by; False if it was here before.

        As gossipsub does before its mesh is pruned, and without its repair: a hint, no more.
        """
        node, seen = self.nodes[at], hashlib.sha256(frame).digest()
        if seen in node.seen or node.replica is None:
            return False
        node.seen[seen] = None
        for peer in node.links:
            if peer != src:
                self._carry(at, peer, frame, urgent=True)
        return True

    def _carry(self, src: PeerId, dst: PeerId, frame: bytes, *, urgent: bool) -> None:
        plane = "urgent" if urgent else "bulk"
        self.sent[f"{plane}_frames"] += 1
        self.sent[f"{plane}_bytes"] += len(frame)
        if self.record:
            self.frames.append((src, dst, frame))
        for after, arriving in self.links.deliveries(frame, self._rng, self.faults, urgent=urgent):
            self._post(after, Arrival(src, dst, arriving, urgent))

    def _note(self, name: PeerId, what: str, frame: bytes) -> None:
        short = hashlib.sha256(frame).hexdigest()[:12] if frame else ""
        line = f"{self.now:.6f} {name} {what} {short}"
        self._trace.update(line.encode())
        self.tail.append((self.now, name, f"{what} {short}"))


def simulated_keys(name: str, epoch: int = 1) -> Keys:
    """Return the keys of a simulated origin: the same for the same name."""
    root = private_key(hashlib.sha256(f"{name}/root".encode()).digest())
    signing = private_key(hashlib.sha256(f"{name}/{epoch}".encode()).digest())
    hour = START_S // 3600
    doc = issue(
        root, public_bytes(signing), epoch=epoch, not_before_h=hour - 1, not_after_h=hour + 24 * 90
    )
    return Keys(signing, doc)


def _name(number: int) -> PeerId:
    return PeerId(f"n{number:04d}")


def _say(event: Event) -> str:
    match event:
        case PeerUp(peer) | PeerDown(peer) | Received(peer):
            return f"{type(event).__name__} {peer}"
        case _:
            return type(event).__name__
