"""What scenarios share: owners with trees of leaves, waiting for something to hold, and the end.

A scenario draws all its chance from the network's seed, so that it is the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

from msgspec.structs import replace

from gossip.core import OriginView
from gossip.events import Publish
from gossip.keys import Keys
from gossip.ports import PeerId
from gossip.wire import Card, Ended, Op, Reason, Stage, Standing, Usage

from ..byzantine import silence
from ..disk import DiskFaults
from ..network import Network, Node, simulated_keys

Figures = dict[str, float]
Scenario = Callable[[Network], Figures]

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
ROUND_S = 30.0  # mean time between a node's syncs
ROUNDS_MAX = 40  # for all to agree once all faults are gone
TOPICS = 5  # what leaves are about: near enough within a topic to be one family
NAMED_MAX = 5  # nodes, where something holds at too few
NOISE = 6  # of a centroid's component, of 127


# ---- owners and their leaves --------------------------------------------------------------------


@dataclass(slots=True)
class Tree:
    """One owner's leaves: what it would publish, and the changes that a lifecycle makes to it."""

    net: Network
    node: Node
    live: dict[bytes, Card] = field(default_factory=dict)
    ended: dict[bytes, Ended] = field(default_factory=dict)
    usage: tuple[Usage, ...] = ()
    born: int = 0

    def grow(self, count: int, stage: Stage = Stage.MATURE) -> list[Card]:
        """New leaves that come from nothing."""
        return [self._bear(Op.BIRTH, (), stage) for _ in range(count)]

    def change(self, leaf: bytes, **fields: object) -> Card:
        """A new version of a leaf."""
        old = self.live[leaf]
        self.live[leaf] = replace(old, version=old.version + 1, **fields)
        return self.live[leaf]

    def promote(self, leaf: bytes) -> Card:
        """A leaf rises by one stage."""
        return self.change(leaf, stage=Stage(min(self.live[leaf].stage + 1, Stage.MATURE)))

    def split(self, leaf: bytes) -> list[Card]:
        """Two children come of a leaf, which stays as what falls back on."""
        self.change(leaf, stage=Stage.SPROUT)
        return [self._bear(Op.SPLIT, (leaf,), Stage.SEED) for _ in range(2)]

    def merge(self, a: bytes, b: bytes) -> Card:
        """One child comes of two leaves, which end in it."""
        child = self._bear(Op.MERGE, tuple(sorted((a, b))), Stage.SPROUT)
        for leaf in (a, b):
            self.end(leaf, Reason.MERGED, (child.leaf,))
        return child

    def end(self, leaf: bytes, reason: Reason, into: tuple[bytes, ...] = ()) -> None:
        """A leaf lives no longer, and says why."""
        gone = self.live.pop(leaf)
        self.ended[leaf] = Ended(leaf, gone.version + 1, reason, into)

    def forget(self, leaf: bytes) -> None:
        """Drop the row of a leaf that ended long ago."""
        del self.ended[leaf]

    def revive(self, leaf: bytes) -> Card:
        """A leaf that ended lives again, as a new version of itself."""
        version = self.ended.pop(leaf).version + 1
        revived = replace(self._card(leaf, Op.REVIVE, (), Stage.SPROUT), version=version)
        self.live[leaf] = revived
        return revived

    def retract(self, leaf: bytes) -> None:
        """Withdraw a leaf for ever."""
        self.live.pop(leaf, None)
        self.ended.pop(leaf, None)
        self.net.retract(self.node.name, leaf)

    def publish(self, *, urgent: bool = False) -> None:
        """Have the owner's node sign all of it."""
        leaves, ended = tuple(self.live.values()), tuple(self.ended.values())
        now_s = self.net.clock_s(self.node)
        self.net.give(self.node.name, Publish(leaves, ended, self.usage, now_s, urgent))

    def _bear(self, op: Op, parents: tuple[bytes, ...], stage: Stage) -> Card:
        self.born += 1
        leaf = Random(f"{self.net.seed}/{self.node.origin.hex()}/tree/{self.born}").randbytes(16)
        self.live[leaf] = self._card(leaf, op, parents, stage)
        return self.live[leaf]

    def _card(self, leaf: bytes, op: Op, parents: tuple[bytes, ...], stage: Stage) -> Card:
        return replace(card_of(leaf, leaf[0] % TOPICS), op=op, parents=parents, stage=stage)


def card_of(leaf: bytes, topic: int) -> Card:
    """A mature leaf near the middle of a topic."""
    chance, tag = Random(leaf), bytes(8)
    middle = Random(f"topic/{topic}").randbytes(384)
    centroid = bytes((byte + chance.randint(-NOISE, NOISE)) % 256 for byte in middle)
    return Card(leaf, 1, Stage.MATURE, Op.BIRTH, centroid, 9, tag, tag, (), 120_000, ())


def cards(net: Network, node: Node, numbers: Iterable[int]) -> list[Card]:
    """Leaves of an origin by number: the same number is the same leaf, wherever it is asked for."""
    leaves = (Random(f"{net.seed}/{node.origin.hex()}/{n}").randbytes(16) for n in numbers)
    return [card_of(leaf, leaf[0] % TOPICS) for leaf in leaves]


# ---- what is seen -------------------------------------------------------------------------------


def view(node: Node, author: Node) -> OriginView:
    """What a node holds of another's origin."""
    assert node.replica is not None
    return node.replica.view(author.origin)


def has_head(node: Node, author: Node) -> bool:
    """True if the author's newest head stands at a node."""
    return bool(node.replica and author.replica) and (
        view(node, author).head == view(author, author).head is not None
    )


def holding(author: Node) -> str:
    """What nodes do of which `has_head` is true."""
    return f"hold {author.name}'s head"


def holds_all(node: Node, origins: Iterable[bytes]) -> bool:
    """True if a node has some head of each origin."""
    assert node.replica is not None
    return all(node.replica.view(origin).head is not None for origin in origins)


def lives(node: Node, author: Node, leaf: bytes) -> bool:
    """True if a node shows a leaf as live."""
    return any(leaf == card.leaf for card in view(node, author).cards)


def standing(node: Node, author: Node) -> Standing:
    return view(node, author).standing


# ---- what is done -------------------------------------------------------------------------------


def link_up(net: Network) -> None:
    """Let the nodes find each other before the faults begin."""
    net.run(5)


def some(net: Network, count: int) -> list[Node]:
    """Honest nodes that are up, drawn from the seed."""
    return Random(f"{net.seed}/{net.now}/{count}").sample(net.honest(), count)


def halves(net: Network) -> dict[PeerId, int]:
    """Two sides, each connected in itself: the wiring holds a ring."""
    return {name: int(2 * i >= len(net.nodes)) for i, name in enumerate(net.nodes)}


def crash_midway(net: Network, node: Node, chance: Random) -> None:
    """Crash a node after a few of the effects of its next event, and start it later."""
    node.crash_after = chance.randrange(6)
    net.at(chance.uniform(10, 600), f"start {node.name}", lambda: restart(net, node))


def restart(net: Network, node: Node) -> None:
    net.crash(node.name)  # if nothing happened to it meanwhile
    net.start(node.name)


def sleep_all(net: Network, for_s: float) -> None:
    """All machines sleep, and wake."""
    for name in net.nodes:
        net.suspend(name)
    net.run(for_s)
    for name in net.nodes:
        net.resume(name)
    net.run(ROUND_S)


def rotate(net: Network, node: Node, revoked: tuple[int, ...] = ()) -> Keys:
    """Give a node a key of the next epoch, valid from now on; return the old one."""
    old = node.keys
    name, epoch, hour = f"{net.seed}/{node.name}", old.doc.epoch + 1, net.now_s // 3600
    new = simulated_keys(name, epoch, hour=hour, revoked=revoked)
    net.crash(node.name)
    net.start(node.name, new)
    net.run(ROUND_S)
    return old


def until(
    net: Network,
    holds: Callable[[Node], bool],
    within_s: float = 20 * ROUND_S,
    nodes: Sequence[Node] | None = None,
    *,
    what: str,
) -> float:
    """Run until it holds at all of some nodes that are up; return after how many seconds.

    nodes: the honest ones, if not given. what: they do, as in "all nodes do hold the head". Fails
    if it never holds.
    """
    start = net.now
    while failing := [n.name for n in (nodes or net.honest()) if n.awake and not holds(n)]:
        if net.now - start > within_s:
            asked = len([n for n in (nodes or net.honest()) if n.awake])
            names = ", ".join(failing[:NAMED_MAX]) + (", ..." if len(failing) > NAMED_MAX else "")
            text = f"{len(failing)} of {asked} nodes do not {what} after {within_s:.0f} s: {names}"
            net.checker.require(False, "liveness", text)
        net.run(0.05 if net.now - start < 5 else 1.0)
    net.checker.checks["liveness"] += 1
    return round(net.now - start, 3)


def calm(net: Network) -> None:
    """Take away every fault, hostile nodes among them."""
    silence(net)
    for node in net.nodes.values():
        node.rate_bytes_s = None
    if net.disk_faults is not None:
        net.disk_faults = DiskFaults()  # that of power lost at any time, and no other
    net.heal()


def settle(net: Network, of: Sequence[bytes] | None = None) -> Figures:
    """Take away every fault, and wait until all agree; fail if they never do.

    of: the origins that they must agree on; all of which any has heard, if not given.
    """
    calm(net)
    rounds = 0
    while not net.checker.converged(net, of):
        rounds += 1
        if rounds > ROUNDS_MAX:
            text = f"not all agree after {ROUNDS_MAX} rounds: {net.checker.difference(net, of)}"
            net.checker.require(False, "convergence", text)
        net.run(ROUND_S)
    net.checker.quiet(net)
    return {"heal_rounds": rounds}
