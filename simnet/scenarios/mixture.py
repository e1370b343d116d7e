"""Everything at once: faults of every kind, drawn from the seed, over some hours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from gossip.ports import PeerId

from ..byzantine import LIARS, Flooder, Newer, chosen, turn
from ..disk import Disk, DiskFaults
from ..faults import Links
from ..network import Network, Node
from .common import (
    HOUR_S,
    Figures,
    Tree,
    crash_midway,
    has_head,
    link_up,
    rotate,
    settle,
)
from .identity import restore
from .long import change

STEPS = 45
PAUSES_S = (1, 10, 60, 300, 600)  # between steps
YEARS_S = 10 * 365 * 86_400


@dataclass(slots=True)
class Storm:
    """What the faults share: the mesh, chance, the owners' trees, and backups made before."""

    net: Network
    chance: Random
    trees: dict[PeerId, Tree]
    backups: dict[PeerId, Disk]
    done: Counter[str]

    def node(self) -> Node:
        return self.chance.choice(self.net.honest())

    def later(self, what: str, do: Callable[[], None]) -> None:
        """Do something within half an hour, which most often ends a fault."""
        self.net.at(self.chance.uniform(10, HOUR_S / 2), what, do)


def swarm(net: Network) -> Figures:
    """A mixture of all faults drawn from the seed, while trees live, over some hours."""
    chance = Random(f"{net.seed}/swarm")
    link_up(net)
    trees = {name: Tree(net, node) for name, node in net.nodes.items()}
    for tree in trees.values():
        tree.grow(2)
    storm = Storm(net, chance, trees, {}, Counter())
    net.links = Links(
        loss=chance.choice([0, 0.05, 0.3, 0.6]),
        duplicate=chance.choice([0, 0.2, 0.5]),
        delay=chance.choice([0, 0.1, 0.3]),
        flip=chance.choice([0, 0, 0.01]),
    )
    net.checker.blameless = net.links.honest
    if chance.random() < 0.3:
        net.disk_faults = DiskFaults(
            lost=chance.random(), torn=chance.random(), full=0.002, power=0.001, failed_sync=0.002
        )
    if chance.random() < 0.3:
        liars = [liar for liar in (*LIARS, Newer) if liar is not Flooder]
        turn(net, chosen(net, chance.randint(1, max(1, len(net.nodes) // 4))), liars)
    for _ in range(STEPS):
        if chance.random() < 0.5:
            _live(storm)
        else:
            chance.choice(FAULTS)(storm)
        net.run(chance.choice(PAUSES_S))
    owners = [node.origin for node in net.nodes.values() if node.hostile is None]
    figures = {f"leaves_{name}": float(n) for name, n in sorted(storm.done.items())}
    return {**figures, **settle(net, of=owners)}


def _live(storm: Storm) -> None:
    """Something becomes of some owners' leaves, and they say so."""
    for _ in range(storm.chance.randint(1, 4)):
        tree = storm.trees[storm.node().name]
        change(tree, storm.chance, storm.done)
        tree.publish(urgent=storm.chance.random() < 0.3)


# ---- the faults: each begins something, and most have it end ------------------------------------


def _parted(storm: Storm) -> None:
    """F6: sides that cannot hear each other, until the next partition or its end."""
    storm.net.partition({name: storm.chance.randrange(3) for name in storm.net.nodes})
    storm.later("whole", partial(storm.net.partition, {}))


def _flapping(storm: Storm) -> None:
    """F6: a partition that comes and goes every few seconds."""
    sides = {name: storm.chance.randrange(2) for name in storm.net.nodes}
    for at in range(10):
        cut = sides if at % 2 == 0 else {}
        storm.net.at(7.0 * at, "flap", partial(storm.net.partition, cut))


def _one_way(storm: Storm) -> None:
    """F6: one node is heard and hears nothing, or hears and is not heard."""
    node, heard = storm.node(), storm.chance.random() < 0.5
    pairs = [(node.name, peer) if heard else (peer, node.name) for peer in node.links]
    _clog(storm.net, pairs)
    storm.later("hears", partial(_unclog, storm.net, pairs))


def _swizzled(storm: Storm) -> None:
    """F8: links are clogged in one order, and unclogged in another."""
    net, chance = storm.net, storm.chance
    net.faults["F8 swizzle"] += 1
    nodes = chance.sample(net.honest(), max(1, len(net.honest()) // 3))
    pairs = {node.name: [(node.name, p) for p in node.links] for node in nodes}
    pairs = {name: both + [(b, a) for a, b in both] for name, both in pairs.items()}
    for at, name in enumerate(chance.sample(list(pairs), len(pairs))):
        net.at(3.0 * at, f"clog {name}", partial(_clog, net, pairs[name]))
    for at, name in enumerate(chance.sample(list(pairs), len(pairs))):
        net.at(60 + 3.0 * at, f"unclog {name}", partial(_unclog, net, pairs[name]))


def _slow(storm: Storm) -> None:
    """F7: a line of a few bytes a second."""
    node = storm.node()
    storm.net.faults["F7 slow peer"] += 1
    node.rate_bytes_s = storm.chance.choice([200.0, 2_000.0, 20_000.0])
    storm.later("fast", partial(setattr, node, "rate_bytes_s", None))


def _crashed(storm: Storm) -> None:
    """F9, F10: power is lost between two effects, and comes back."""
    if len(storm.net.honest()) > 2:
        crash_midway(storm.net, storm.node(), storm.chance)


def _wrong_clock(storm: Storm) -> None:
    """F17: a clock that is an hour or ten years off, or set back."""
    node = storm.node()
    storm.net.faults["F17 clock"] += 1
    node.clock_ahead_s = storm.chance.choice([-3600, 3600, -300, -YEARS_S, YEARS_S])
    storm.later("clock", partial(setattr, node, "clock_ahead_s", 0))


def _asleep(storm: Storm) -> None:
    """F18: a lid is closed for a while."""
    if len(storm.net.honest()) > 2:
        node = storm.node()
        storm.net.suspend(node.name)
        storm.later(f"wake {node.name}", partial(storm.net.resume, node.name))


def _backed_up(storm: Storm) -> None:
    """F19: a disk is set back, once all hold what its owner has said since."""
    node = storm.node()
    backup = storm.backups.pop(node.name, None)
    if backup is None:
        storm.backups[node.name] = node.disk.snapshot()
    elif all(has_head(peer, node) for peer in storm.net.nodes.values() if peer.replica):
        restore(storm.net, node, backup)


def _rotated(storm: Storm) -> None:
    """An owner takes a key of the next epoch."""
    node = storm.node()
    rotate(storm.net, node)
    storm.trees[node.name].publish(urgent=True)


FAULTS: tuple[Callable[[Storm], None], ...] = (
    _parted,
    _flapping,
    _one_way,
    _swizzled,
    _slow,
    _crashed,
    _crashed,
    _wrong_clock,
    _asleep,
    _backed_up,
    _backed_up,
    _rotated,
)


def _clog(net: Network, pairs: list[tuple[PeerId, PeerId]]) -> None:
    net.blocked |= dict.fromkeys(pairs)


def _unclog(net: Network, pairs: list[tuple[PeerId, PeerId]]) -> None:
    for pair in pairs:
        net.blocked.pop(pair, None)
