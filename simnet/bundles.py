"""What is played with bundles: one fetch under fire, and one bundle's way through a mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from gossip.events import Effect, Event, OriginChanged
from gossip.exchange_events import ExchangeConfig
from gossip.ports import PeerId
from gossip.wire import Bundle, Card, Format, Op, Stage

from .sharing import HONEST, Clockwork, Conduct, Content, Death, Machine, Sharing
from .watch import Change, Watcher

if TYPE_CHECKING:
    from .network import Network, Node

Figures = dict[str, float]

SPREAD_BYTES = 5_000_000
SPREAD_WITHIN_S = 3600.0
LINES_BYTES_S = (600_000.0, 1_250_000.0, 6_000_000.0)  # of homes, up


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one fetch came to."""

    seed: int
    size_bytes: int
    exact: bool  # every byte, in the end
    took_s: float
    fetched_bytes: int  # of chunks that arrived, false ones and doubles among them
    lies: int  # chunks that were not what their hashes say
    false_bytes: int  # of those
    kills: int
    failures: int  # fetches that ended without it
    lost_bytes: int  # that had arrived, and went with a death
    trace_hash: str

    @property
    def ratio(self) -> float:
        """What arrived and was no lie, by the size of the bundle."""
        return (self.fetched_bytes - self.false_bytes) / self.size_bytes


FOUR: Mapping[str, Conduct] = {
    "honest": HONEST,
    "steady": HONEST,
    "liar": Conduct(lies=0.3),
    "staller": Conduct(stalls_after=6),
}


def fetch_under_fire(
    seed: int,
    *,
    size_bytes: int = 50_000_000,
    holders: Mapping[str, Conduct] = FOUR,
    kills: int = 5,
    death: Death = "killed",
    within_s: float = 7200.0,
    config: ExchangeConfig | None = None,
) -> Fetched:
    """Fetch a bundle from several holders while the fetcher is killed again and again.

    Each kill falls between two effects that are drawn from the seed, so any two may be parted.
    """
    time = Clockwork()
    content = Content(size_bytes, f"{seed}/bundle")
    chance = Random(f"{seed}/kills")
    me = Machine(PeerId("fetcher"), HONEST, Random(f"{seed}/fetcher"))
    others = [Machine(PeerId(n), c, Random(f"{seed}/{n}")) for n, c in holders.items()]
    names = [machine.name for machine in others]
    neighbours = {me.name: names, **{name: [me.name] for name in names}}
    sharing = Sharing(time, content, [me, *others], neighbours, str(seed), config, death)
    for machine in others:
        sharing.start(machine.name)
        sharing.hold(machine.name)
    me.wants = True
    # About two effects for each chunk: one that stores it and one that asks for the next.
    deaths = sorted(chance.randrange(1, 2 * len(content.chunks)) for _ in range(kills))
    me.dies_at = deaths.pop(0) if deaths else None
    sharing.start(me.name)

    def done() -> bool:
        if me.dies_at is None and deaths:
            me.dies_at = max(deaths.pop(0), me.effects + 1)
        return me.finished_at is not None

    time.run_until(done, within_s)
    return Fetched(
        seed=seed,
        size_bytes=size_bytes,
        exact=sharing.exact(me),
        took_s=time.now,
        fetched_bytes=me.chunk_bytes_in,
        lies=me.false_chunks_in,
        false_bytes=me.false_bytes_in,
        kills=me.kills,
        failures=me.failures,
        lost_bytes=me.lost_bytes,
        trace_hash=time.trace_hash(),
    )


# ---- a mesh --------------------------------------------------------------------------------------


def bundle_spread(net: Network) -> Figures:
    """A head announces a bundle; all fetch it from each other, past liars, stalls and crashes."""
    net.run(5)
    chance = Random(f"{net.seed}/bundle-spread")
    author, *crashing = chance.sample(net.up(), max(2, len(net.nodes) // 6))
    content = Content(SPREAD_BYTES, f"{net.seed}/bundle")
    machines = [Machine(name, _drawn(chance), Random(f"{net.seed}/{name}")) for name in net.nodes]
    sharing = Sharing(net, content, machines, _neighbours(net), f"{net.seed}/bundle")
    first = sharing.machines[author.name]
    first.conduct = HONEST  # or nobody might ever have it whole
    net.watch(_Wanting(net, sharing, author.origin, content.root))
    for node in net.up():
        sharing.start(node.name)
    sharing.hold(author.name)
    start = net.now
    net.publish(author.name, _card(net.seed, content), urgent=True)
    for node in crashing:
        _crash_for_a_while(net, node, chance)
    others = [machine for machine in machines if machine is not first]
    while not all(machine.whole for machine in others):
        waited = net.now - start
        missing = [str(machine.name) for machine in others if not machine.whole]
        text = f"the bundle is not at {missing} after {waited:.0f} s"
        net.checker.require(waited <= SPREAD_WITHIN_S, "liveness", text)
        net.run(1.0)
    return _came_to(net, content, sharing, first, start)


def _came_to(
    net: Network, content: Content, sharing: Sharing, first: Machine, start: float
) -> Figures:
    others = [machine for machine in sharing.machines.values() if machine is not first]
    for machine in others:
        text = f"{machine.name} took for whole what is not what its root says"
        net.checker.require(sharing.exact(machine), "bundle", text)
    lies = sum(machine.false_chunks_in for machine in others)
    net.faults["F22 false chunk"] += lies
    took = sorted((machine.finished_at or net.now) - start for machine in others)
    useful = [
        (m.chunk_bytes_in - m.false_bytes_in - m.lost_bytes) / content.size_bytes for m in others
    ]
    return {
        "bundle_t50_s": round(took[len(took) // 2], 3),
        "bundle_t100_s": round(took[-1], 3),
        "fetched_bundle_sizes": round(sum(useful) / len(useful), 4),
        "fetched_bundle_sizes_worst": round(max(useful), 4),
        "from_author_bundle_sizes": round(first.chunk_bytes_out / content.size_bytes, 3),
        "false_chunks": float(lies),
    }


class _Wanting(Watcher):
    """Has a machine fetch the bundle once its replica shows the card, and die as its node does."""

    def __init__(self, net: Network, sharing: Sharing, origin: bytes, root: bytes) -> None:
        super().__init__(net)
        self._sharing = sharing
        self._origin = origin
        self._root = root

    def handed(self, node: Node, event: Event, effects: Sequence[Effect]) -> None:
        machine = self._sharing.machines[node.name]
        if machine.wants or machine.whole or node.replica is None:
            return
        if any(isinstance(e, OriginChanged) and e.origin == self._origin for e in effects):
            cards = node.replica.view(self._origin).cards
            if any(card.bundle and card.bundle.root == self._root for card in cards):
                self._sharing.want(node.name)

    def changed(self, kind: Change, name: PeerId | None) -> None:
        if name is not None and kind == "crash":
            self._sharing.stop(name, "power lost")
        elif name is not None and kind == "start":
            self._sharing.start(name)


def _drawn(chance: Random) -> Conduct:
    line = chance.choice(LINES_BYTES_S)
    match chance.randrange(12):
        case 0:
            return Conduct(lies=0.5, line_bytes_s=line)
        case 1:
            return Conduct(false_lists=1.0, line_bytes_s=line)
        case 2:
            return Conduct(stalls_after=3, line_bytes_s=line)
        case 3:
            return Conduct(crawls_bytes_s=1.0, line_bytes_s=line)
        case _:
            return Conduct(line_bytes_s=line)


def _neighbours(net: Network) -> dict[PeerId, list[PeerId]]:
    """Whoever dialled whom, both may ask."""
    linked: dict[PeerId, dict[PeerId, None]] = {name: {} for name in net.nodes}
    for name, node in net.nodes.items():
        for peer in (*node.links, *node.connected):
            linked[name][peer] = None
            linked[peer][name] = None
    return {name: list(peers) for name, peers in linked.items()}


def _card(seed: int, content: Content) -> Card:
    chance, tag = Random(f"{seed}/bundle-card"), bytes(8)
    bundle = Bundle(
        content.root, content.size_bytes, tag, 8, (), Format.LORA_SAFETENSORS, bytes(32)
    )
    leaf, centroid = chance.randbytes(16), chance.randbytes(384)
    return Card(leaf, 1, Stage.MATURE, Op.BIRTH, centroid, 9, tag, tag, (), 120_000, (), bundle)


def _crash_for_a_while(net: Network, node: Node, chance: Random) -> None:
    net.at(chance.uniform(0, 60), f"crash {node.name}", lambda: net.crash(node.name))
    net.at(chance.uniform(70, 200), f"start {node.name}", lambda: net.start(node.name))
