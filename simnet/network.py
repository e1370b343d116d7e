"""Many replicas over a simulated network: one heap of events, one seed, no clock and no waiting.

What happens is a function of the seed and the scenario alone. All chance comes from generators
named after the seed, and no set is ever iterated, so that the hash of the trace is the same in
every process; two runs whose hashes differ are a bug in the simulator or in a core.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from random import Random
from typing import Any, Literal, assert_never

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
    TellDue,
    WakeAfter,
)
from gossip.keys import Keys, issue, private_key, public_bytes
from gossip.ports import PeerId
from gossip.reading import Memory
from gossip.wire import Card, Ended, Usage

from . import bodies, preload
from .dialing import Dialing
from .disk import Disk, DiskFaults, FaultyDisk, LogDamagedError, NoDisk, SimDisk
from .faults import RELIABLE, Links
from .invariants import Checker
from .lines import Lines
from .machine import Hostile as Hostile
from .machine import Node as Node
from .pool import Pool
from .trace import Trace
from .urgent import UrgentPlane
from .watch import Change, Watcher

START_S = 1_760_000_000  # the date on which every simulation begins
MEMORY_BYTES = 64 * 1024 * 1024  # frames read lately, by all nodes together
RESTART_S = (5.0, 60.0)  # until a node whose disk failed is started again
KEPT_ALIVE_S = (20.0, 40.0)  # after which a link to a sleeping peer counts as lost
_MARK = 1 << 32  # more than any chain of frames is long


class Network:
    """Nodes, links between them, and the time. Scenarios drive it; `checker` watches.

    checked: "each" has the invariants of a node checked after each of its events, "quiet" only at
    the end of `run_until` and by `check`, "never" not at all. disks=False keeps no store, so that
    a crash loses all: for many nodes. degree: links of a node, on average. without: shares of
    `Links` that are nought, or "partition", whatever the scenario asks for.
    """

    def __init__(
        self,
        *,
        size: int,
        seed: int,
        links: Links = RELIABLE,
        config: GossipConfig | None = None,
        degree: int = 8,
        disks: bool = True,
        checked: Literal["each", "quiet", "never"] = "each",
        redial: bool = True,
        without: Sequence[str] = (),
    ) -> None:
        self.seed = seed
        self.now = 0.0  # seconds since the start
        self.faults: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # frames and bytes, by plane
        self.frames: list[tuple[PeerId, PeerId, bytes]] = []  # kept if `record`
        self.record = False
        self._without = tuple(without)
        links = links.but(self._without)
        self.checker = Checker(seed, blameless=links.honest)
        self.events = 0  # that a core has handled
        self._links = links
        self.lines = Lines(self, links, self._deliver)
        self.config = config or GossipConfig()  # of the nodes that are started from now on
        self._memory = Memory(MEMORY_BYTES)  # what one node has read, all have
        self._disks = disks
        self._disk_faults: DiskFaults | None = None
        self._checked = checked
        # Where every event is checked nothing may stand between a replica and the checker.
        self._pool = Pool() if checked != "each" else None
        self._chance = Random(f"{seed}/machines")
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._posted = 0  # breaks ties at equal times, so that functions are never compared
        self.sides: dict[PeerId, int] = {}  # node -> side of the partition
        self.blocked: dict[tuple[PeerId, PeerId], None] = {}  # (from, to): nothing passes
        self._trace = Trace()
        self._watchers: list[Watcher] = []
        self._depth = 1  # of the chain that a frame sent now belongs to
        self._marked = 0  # the depth from which chains count
        self._urgent = UrgentPlane(self)
        self._dialing = Dialing(self, degree, redial=redial)
        self.nodes = {name: self._make(name) for name in map(_name, range(size))}
        self._dialing.wire()
        for name in self.nodes:
            self.start(name)

    def _make(self, name: PeerId) -> Node:
        keys = simulated_keys(f"{self.seed}/{name}")
        disk: Disk = SimDisk() if self._disks else NoDisk()
        return Node(name, keys, disk, Random(f"{self.seed}/{name}"))

    # ---- what scenarios do ---------------------------------------------------------------------

    @property
    def now_s(self) -> int:
        return START_S + int(self.now)

    def clock_s(self, node: Node) -> int:
        """What a node takes for the time."""
        return START_S + int(self.now) + node.clock_ahead_s

    @property
    def links(self) -> Links:
        """How frames travel from now on."""
        return self._links

    @links.setter
    def links(self, links: Links) -> None:
        self._links = links.but(self._without)
        self.lines.use(self._links)

    @property
    def disk_faults(self) -> DiskFaults | None:
        """What the disks do wrong from now on, beneath a log; None: no more than SQLite allows."""
        return self._disk_faults

    @disk_faults.setter
    def disk_faults(self, faults: DiskFaults | None) -> None:
        self._disk_faults = faults
        for node in self.nodes.values():
            if isinstance(node.disk, FaultyDisk):
                node.disk.faults = faults or DiskFaults()
            elif faults is not None:
                rng = Random(f"{self.seed}/{node.name}/disk")
                node.disk = FaultyDisk(faults, rng, self.faults, node.disk.load())

    @property
    def tail(self) -> list[tuple[float, PeerId, str]]:
        """The last events, to show what led to a failure."""
        return self._trace.tail()

    def trace_hash(self) -> str:
        return self._trace.hexdigest()

    def at(self, delay_s: float, name: str, do: Callable[[], None]) -> None:
        """Do something after a while."""
        self.post(delay_s, self._act, name, do)

    def run(self, for_s: float) -> None:
        """Let time pass."""
        until, heap = self.now + for_s, self._heap
        while heap and heap[0][0] <= until:
            self.now, _, do, arguments = heappop(heap)
            do(*arguments)
        self.now = until

    def run_until(
        self,
        holds: Callable[[Node], bool],
        within_s: float,
        *,
        step_s: float = 0.05,
        share: float = 1.0,
        nodes: Sequence[Node] | None = None,
    ) -> float | None:
        """Run until it holds at that share of the nodes that are up; None if it never does.

        nodes: those of which it is asked; all that are honest if not given. Returns the seconds
        that this took, to the step.
        """
        start = self.now
        while True:
            asked = [n for n in (nodes or self.nodes.values()) if n.awake and n.hostile is None]
            failing_max = int((1 - share) * len(asked) + 1e-9)
            if _fail_at_most(failing_max, holds, asked):
                self.check()
                return round(self.now - start, 3)
            if self.now - start >= within_s - 1e-9:
                self.check()
                return None
            self.run(min(step_s, within_s - (self.now - start)))

    def publish(
        self,
        name: PeerId,
        *cards: Card,
        ended: tuple[Ended, ...] = (),
        usage: tuple[Usage, ...] = (),
        urgent: bool = False,
    ) -> None:
        self.give(name, Publish(cards, ended, usage, self.clock_s(self.nodes[name]), urgent))

    def retract(self, name: PeerId, leaf: bytes | None) -> None:
        self.give(name, RetractOwn(leaf, self.clock_s(self.nodes[name])))

    def preload(
        self, tables: Mapping[PeerId, Sequence[Card]], to: Sequence[PeerId] | None = None
    ) -> None:
        """Have all nodes, or some, hold tables of these nodes, as if replicated long ago."""
        held = {}
        for name, cards in tables.items():
            keys = self.nodes[name].keys
            held[keys.origin] = preload.signed(keys, cards, self.config, self.now_s)
        nodes = [self.nodes[name] for name in (self.nodes if to is None else to)]
        preload.put(nodes, held)
        for node in nodes:
            if node.replica is not None:
                self.checker.started(node)

    def watch(self, watcher: Watcher) -> None:
        """Let someone look on from now on."""
        self._watchers.append(watcher)

    def up(self) -> list[Node]:
        """The nodes that are running, and awake."""
        return [node for node in self.nodes.values() if node.awake]

    def honest(self) -> list[Node]:
        """The nodes that are up and keep to the protocol."""
        return [node for node in self.nodes.values() if node.awake and node.hostile is None]

    def partition(self, sides: dict[PeerId, int]) -> None:
        """Let no frame pass between nodes of different sides; the links stay, and are silent."""
        if "partition" in self._without:
            return
        self.faults["F6 partition"] += 1
        self.sides = sides
        self._changed("partition" if sides else "heal", None)

    def is_silent(self, src: PeerId, dst: PeerId) -> bool:
        """True if nothing passes from one node to another."""
        if self.sides and self.sides.get(src, 0) != self.sides.get(dst, 0):
            return True
        return bool(self.blocked) and (src, dst) in self.blocked

    def heal(self) -> None:
        """Take away every fault, wake who sleeps, and start what is down."""
        self.sides = {}
        self.blocked.clear()
        self.links = RELIABLE
        if self._disk_faults is not None:
            self.disk_faults = None
        self._changed("heal", None)
        for name, node in self.nodes.items():
            node.crash_after, node.clock_ahead_s, node.rate_bytes_s = None, 0, None
            self.resume(name)
            if node.replica is None:
                self.start(name)

    def crash(self, name: PeerId) -> None:
        """Stop a node, and lose what its disk had not synced."""
        node = self.nodes[name]
        if node.replica is None:
            return
        self.faults["F9 crash"] += 1
        if lost_writes := node.disk.crash(node.rng):
            self.faults["F12 lost write"] += lost_writes
        node.replica, node.crash_after = None, None
        self._changed("crash", name)
        lost = dict.fromkeys((*node.connected, *node.links))  # a link may be half made
        node.forget()
        for peer in lost:
            self.post(
                self.lines.latency_s(), self._notice, self.nodes[peer], node, node.life, False
            )

    def start(self, name: PeerId, keys: Keys | None = None) -> None:
        """Start a node from its disk, with other keys if given; one that fails is tried again."""
        node = self.nodes[name]
        node.keys = keys or node.keys
        node.life += 1
        node.forget()
        rng = Random(f"{self.seed}/{name}/{node.life}")
        try:
            records = node.disk.load()
        except OSError:
            self._die(node)
            return
        except LogDamagedError:
            assert isinstance(node.disk, FaultyDisk)
            node.disk.wipe()
            self.checker.restored(node)
            self._die(node)
            return
        node.replica = Replica(node.keys, self.config, rng, records, memory=self._memory)
        if node.hostile is None:
            self.checker.started(node)
        self._changed("start", name)
        self.give(name, SyncDue(self.clock_s(node)))
        self._dialing.start(node)

    def suspend(self, name: PeerId) -> None:
        """Put a machine to sleep: it handles nothing, and its peers lose it after a while."""
        node = self.nodes[name]
        if node.awake:
            self.faults["F18 suspend"] += 1
            node.asleep = True
            for peer in node.connected:
                wait_s = self._chance.uniform(*KEPT_ALIVE_S)
                self.post(wait_s, self._silent, self.nodes[peer], node, node.life)

    def resume(self, name: PeerId) -> None:
        """Wake a machine: it learns what it has slept through, and what was due is late."""
        node = self.nodes[name]
        if not node.asleep:
            return
        node.asleep = False
        for peer_name, life in list(node.connected.items()):
            peer = self.nodes[peer_name]
            if not peer.awake or peer.life != life or name not in peer.connected:
                self.post(self.lines.latency_s(), self._notice, node, peer, life, False)
        self.post(1.0, self._wake, node, node.life)

    def inject(self, src: PeerId, dst: PeerId, frame: bytes, delay_s: float = 0.0) -> None:
        """Let a frame arrive that nobody sent."""
        self.post(delay_s, self.lines.arrive, src, self.nodes[dst], None, frame, 0, False)

    def mark(self) -> None:
        """Begin to count round trips."""
        self._marked += _MARK
        self._depth = self._marked + 1
        for node in self.nodes.values():
            node.depth = 0

    def round_trips(self, name: PeerId) -> int:
        """The longest chain of question and answer that has ended at a node since the mark."""
        return self.nodes[name].depth // 2

    def check(self) -> None:
        """Check every honest node: what has changed since it was checked, and all that it holds."""
        if self._checked == "never":
            return
        for node in self.honest():
            if node.unchecked or node.pending:
                effects: list[Effect] = [*map(OriginChanged, node.unchecked), *node.pending]
                node.unchecked.clear()
                node.pending.clear()
                self.checker.check(self, node, effects)
        self.checker.quiet(self)

    # ---- what the planes do --------------------------------------------------------------------

    def post(self, delay_s: float, do: Callable[..., None], *arguments: object) -> None:
        """Have something happen after a while."""
        self._posted += 1
        heappush(self._heap, (self.now + delay_s, self._posted, do, arguments))

    def link(self, node: Node, peer: Node) -> None:
        """Connect two nodes that are awake; each notices after a while."""
        if peer.name in node.connected and node.name in peer.connected:
            return
        self.post(self.lines.latency_s(), self._notice, node, peer, peer.life, True)
        self.post(self.lines.latency_s(), self._notice, peer, node, node.life, True)

    @property
    def is_watched(self) -> bool:
        """True if someone wants to know of each frame."""
        return self.record or bool(self._watchers)

    def carried(self, src: Node, dst: PeerId, frame: bytes, *, urgent: bool) -> None:
        """Tell those who look on that a frame was sent."""
        if self.record:
            self.frames.append((src.name, dst, frame))
        for watcher in self._watchers:
            watcher.carried(src.name, dst, len(frame), urgent)

    def arrived(self, node: Node, event: Received, depth: int) -> None:
        """Hand a frame to a node, as the last of a chain."""
        length = depth - self._marked if depth > self._marked else 0
        if length > node.depth:
            node.depth = length
        self._depth = self._marked + length + 1
        self._handle(node, event, event.peer, event.frame)

    # ---- what happens --------------------------------------------------------------------------

    def _act(self, name: str, do: Callable[[], None]) -> None:
        """A step of the scenario."""
        self._trace.note(self.now, PeerId("-"), name, PeerId(""), b"")
        do()

    def _changed(self, kind: Change, name: PeerId | None) -> None:
        for watcher in self._watchers:
            watcher.changed(kind, name)

    def _deliver(self, src: PeerId, node: Node, frame: bytes, depth: int, urgent: bool) -> None:
        if urgent:
            self._urgent.arrive(node, src, frame, depth)
            return
        assert node.replica is not None
        bodies.count(node.replica, frame, self.sent)
        self.arrived(node, Received(src, frame, self.clock_s(node)), depth)

    def _due(self, node: Node, life: int, tell: bool) -> None:
        """A timer of a node's replica; that of a sleeper is late."""
        if node.life == life and node.asleep:
            node.overslept[tell] = None
        elif node.life == life:
            now_s = self.clock_s(node)
            self.give(node.name, TellDue(now_s) if tell else SyncDue(now_s))

    def _wake(self, node: Node, life: int) -> None:
        if node.life == life and node.awake:
            late = list(node.overslept)
            node.overslept.clear()
            for tell in late:
                self._due(node, life, tell)
            self._dialing.start(node)

    def _silent(self, node: Node, peer: Node, life: int) -> None:
        """A peer has not answered for long: if it still sleeps, the link is given up."""
        if peer.asleep:
            self._notice(node, peer, life, False)

    def _notice(self, node: Node, peer: Node, life: int, up: bool) -> None:
        """Tell a node of a link, as a transport would: one end before the next beginning."""
        if not node.awake:
            return
        known = node.connected.get(peer.name)
        if known is not None and (up or known == life):
            del node.connected[peer.name]
            self._urgent.unlinked(node, peer)
            self.give(node.name, PeerDown(peer.name, self.clock_s(node)))
        if up and peer.awake and peer.life == life and node.awake:
            node.connected[peer.name] = life
            self._dialing.linked(node, peer)
            self._urgent.linked(node, peer)
            self.give(node.name, PeerUp(peer.name, self.clock_s(node)))
        elif known is not None:
            self._dialing.look(node)

    def give(self, name: PeerId, event: Event) -> None:
        """Hand an event to a node that is awake, perform its effects, and check what holds."""
        self._depth = self._marked + 1
        peer = event.peer if isinstance(event, (PeerUp, PeerDown, Received)) else PeerId("")
        frame = event.frame if isinstance(event, Received) else b""
        self._handle(self.nodes[name], event, peer, frame)

    def _handle(self, node: Node, event: Event, peer: PeerId, frame: bytes) -> None:
        replica = node.replica
        if replica is None or node.asleep:
            return
        self.events += 1
        self._trace.note(self.now, node.name, type(event).__name__, peer, frame)
        for watcher in self._watchers:
            watcher.handing(node, event)
        hostile = node.hostile
        effects = replica.handle(event) if hostile is None else hostile.handle(node, event)
        dies = node.crash_after is not None and bool(effects)
        ordered = effects[: node.crash_after] if dies else effects
        done = self._perform(node, ordered)
        kept = effects if done == len(effects) else effects[:done]
        for watcher in self._watchers:
            watcher.handed(node, event, kept)
        if node.hostile is None:
            self._watch(node, kept)
        if done < len(ordered):
            self._die(node)
        elif dies:
            self.crash(node.name)

    def _perform(self, node: Node, effects: Sequence[Effect]) -> int:
        """Perform effects in order, up to one at which the disk fails; return how many."""
        done = 0
        try:
            for effect in effects:
                match effect:
                    case Send(peer, frame):
                        self.lines.carry(node, peer, frame, self._depth, urgent=False)
                    case OriginChanged(origin):
                        if self._pool is not None and node.replica is not None:
                            self._pool.share(node.replica, origin)
                    case Save(puts, deletes, durable):
                        node.disk.write(puts, deletes, durable=durable)
                    case WakeAfter(delay_s, tell):
                        self.post(delay_s, self._due, node, node.life, tell)
                    case Broadcast(frame):
                        self._urgent.broadcast(node, frame, self._depth)
                    case LeafRetracted() | Refused() | PublishBlocked():
                        pass  # the checker looks at these
                    case _:
                        assert_never(effect)
                done += 1
        except OSError:  # of the disk: it is not asked again before the next start
            return done
        return done

    def _die(self, node: Node) -> None:
        """A node's disk has failed: the node stops, and is started again after a while."""
        self.crash(node.name)
        self.post(node.rng.uniform(*RESTART_S), self._start_again, node, node.life)

    def _start_again(self, node: Node, life: int) -> None:
        if node.life == life and node.replica is None:
            self.start(node.name)

    def _watch(self, node: Node, effects: Sequence[Effect]) -> None:
        """Have the checker look, now or at the next quiet point."""
        if self._checked == "each":
            self.checker.check(self, node, effects)
        elif self._checked == "quiet":
            for effect in effects:
                match effect:
                    case OriginChanged(origin) if origin == node.origin:
                        # The checker learns the truth of an origin as it is signed.
                        self.checker.check(self, node, effects)
                        return
                    case OriginChanged(origin):
                        node.unchecked[origin] = None
                    case LeafRetracted() | Refused():
                        node.pending.append(effect)


def simulated_keys(
    name: str,
    epoch: int = 1,
    *,
    op: str = "",
    hour: int = START_S // 3600,
    revoked: tuple[int, ...] = (),
) -> Keys:
    """Return the keys of a simulated origin: the same for the same name.

    op: to have another key for the same epoch. hour: when they are issued, for a quarter.
    """
    root = private_key(hashlib.sha256(f"{name}/root".encode()).digest())
    signing = private_key(hashlib.sha256(f"{name}/{epoch}{op}".encode()).digest())
    doc = issue(
        root,
        public_bytes(signing),
        epoch=epoch,
        not_before_h=hour - 24,
        not_after_h=hour + 24 * 90,
        revoked=revoked,
    )
    return Keys(signing, doc)


def _fail_at_most(count: int, holds: Callable[[Node], bool], nodes: Sequence[Node]) -> bool:
    for node in nodes:
        if not holds(node):
            count -= 1
            if count < 0:
                return False
    return True


def _name(number: int) -> PeerId:
    return PeerId(f"n{number:04d}")
