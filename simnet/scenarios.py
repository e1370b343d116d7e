"""What is played: each scenario drives a network, and returns the figures that it is about.

A scenario sets its faults in motion and says what must come of it. That nothing forbidden happens
meanwhile is the checker's business; that all agree in the end is `settle`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from gossip.core import OriginView
from gossip.ports import PeerId
from gossip.wire import Card, Op, Stage, Standing

from .faults import Links
from .invariants import shown
from .network import Network, Node, simulated_keys

Figures = dict[str, float]
Scenario = Callable[[Network], Figures]

HOUR_S = 3600.0
ROUND_S = 30.0  # mean time between a node's syncs
ROUNDS_MAX = 40  # for all to agree once all faults are gone


def propagation(net: Network) -> Figures:
    """One origin publishes a matured leaf: how long until every node stands by it?"""
    _link_up(net)
    author = _some(net, 1)[0]
    before = net.sent.copy()
    net.publish(author.name, *_cards(net, author, range(5)), urgent=True)
    reached = _until(net, lambda node: _has_head(node, author), within_s=20 * ROUND_S)
    return {
        "t100_s": reached,
        "urgent_frames": net.sent["urgent_frames"] - before["urgent_frames"],
        "bulk_bytes_per_node": (net.sent["bulk_bytes"] - before["bulk_bytes"]) / len(net.nodes),
        **settle(net),
    }


def late_joiner(net: Network) -> Figures:
    """A node that was away while all others published catches up from nothing."""
    late = _some(net, 1)[0]
    net.crash(late.name)
    _link_up(net)
    for node in net.up():
        net.publish(node.name, *_cards(net, node, range(3)))
    net.run(10 * ROUND_S)
    before = net.sent["bulk_bytes"]
    net.start(late.name)
    origins = [node.origin for node in net.nodes.values() if node is not late]
    waits = 20 * ROUND_S
    caught_up = _until(net, lambda node: node is not late or _holds_all(node, origins), waits)
    return {"caught_up_s": caught_up, "bytes": net.sent["bulk_bytes"] - before, **settle(net)}


def partition_heal(net: Network) -> Figures:
    """Two halves that cannot hear each other for six hours publish, and then agree."""
    _link_up(net)
    net.partition(_halves(net))
    for hour in range(6):
        for node in _some(net, max(2, len(net.nodes) // 4)):
            net.publish(node.name, *_cards(net, node, range(hour, hour + 3)), urgent=hour % 2 == 0)
        net.run(HOUR_S)
    return settle(net)


def churn(net: Network) -> Figures:
    """Nodes publish while others crash at any point of what they do, and come back."""
    _link_up(net)
    chance = Random(f"{net.seed}/churn")
    for step in range(30):
        for node in chance.sample(net.up(), max(1, len(net.up()) // 8)):
            net.publish(node.name, *_cards(net, node, range(step % 5, step % 5 + 3)))
        for node in chance.sample(net.up(), max(1, len(net.up()) // 10)):
            _crash_midway(net, node, chance)
        net.run(chance.uniform(5, 240))
    return settle(net)


def retraction(net: Network) -> Figures:
    """A leaf is withdrawn: all who can hear stop using it, and who was away when it returns."""
    _link_up(net)
    author, away = _some(net, 2)
    leaves = _cards(net, author, range(3))
    net.publish(author.name, *leaves)
    _until(net, lambda node: _lives(node, author, leaves[0]), within_s=20 * ROUND_S)
    net.crash(away.name)
    net.retract(author.name, leaves[0].leaf)
    dropped = _until(net, lambda node: not _lives(node, author, leaves[0]), within_s=20 * ROUND_S)
    net.start(away.name)
    healed = settle(net)
    net.checker.require(
        not any(_lives(node, author, leaves[0]) for node in net.up()),
        "liveness",
        "a retracted leaf is live at a node that came back",
    )
    return {"dropped_s": dropped, **healed}


def replay_everything(net: Network) -> Figures:
    """Every frame that was ever sent arrives again, from anyone, in any order: nothing changes."""
    net.record = True
    _link_up(net)
    author, other = _some(net, 2)
    for version in range(4):
        net.publish(author.name, *_cards(net, author, range(version, version + 3)), urgent=True)
        net.publish(other.name, *_cards(net, other, range(version + 1)))
        net.run(2 * ROUND_S)
    net.retract(author.name, _cards(net, author, [3])[0].leaf)
    figures = settle(net)
    net.record = False
    before = [shown(node) for node in net.up()]
    chance = Random(f"{net.seed}/replay")
    for src, dst, frame in net.frames:
        net.inject(src, dst, frame, delay_s=chance.uniform(0, HOUR_S))
        net.inject(dst, chance.choice(list(net.nodes)), frame, delay_s=chance.uniform(0, HOUR_S))
    net.run(HOUR_S + ROUND_S)
    same = [shown(node) for node in net.up()] == before
    net.checker.require(same, "replay", "an old frame changed what a node holds")
    return {"replayed": 2 * len(net.frames), **figures}


def fork(net: Network) -> Figures:
    """Two machines sign with one key, apart; all freeze it, and its next key makes it whole."""
    _link_up(net)
    sides = _halves(net)
    first = next(node for node in _some(net, len(net.nodes)) if sides[node.name] == 0)
    second = next(node for node in _some(net, len(net.nodes)) if sides[node.name] == 1)
    net.checker.forkers[first.origin] = None
    net.partition(sides)
    net.crash(second.name)
    net.start(second.name, first.keys)
    net.run(2 * ROUND_S)
    net.publish(first.name, *_cards(net, first, range(2)))
    net.publish(second.name, *_cards(net, first, range(2, 4)))
    _until(net, lambda node: node.origin != first.origin or _has_head(node, node), HOUR_S)
    net.heal()
    frozen = _until(net, lambda node: _standing(node, first) is Standing.FROZEN, 20 * ROUND_S)
    net.crash(second.name)
    net.start(second.name, simulated_keys(f"{net.seed}/{second.name}"))
    net.crash(first.name)
    net.start(first.name, simulated_keys(f"{net.seed}/{first.name}", epoch=2))
    net.run(ROUND_S)
    net.publish(first.name, *_cards(net, first, range(2)))
    whole = _until(net, lambda node: _has_head(node, first), within_s=20 * ROUND_S)
    return {"frozen_s": frozen, "whole_s": whole, **settle(net)}


def restored_backup(net: Network) -> Figures:
    """A node's disk is set back to a backup; it goes on from what its peers hold of it."""
    _link_up(net)
    author = _some(net, 1)[0]
    net.publish(author.name, *_cards(net, author, range(2)))
    net.run(2 * ROUND_S)
    backup = author.disk.snapshot()
    for version in range(2):
        net.publish(author.name, *_cards(net, author, range(version, 4)))
        net.run(ROUND_S)
        _until(net, lambda node: _has_head(node, author), within_s=20 * ROUND_S)
    net.crash(author.name)
    author.disk = backup
    net.checker.restored(author)
    net.start(author.name)
    net.publish(author.name, *_cards(net, author, range(6)))
    net.run(2 * ROUND_S)
    figures = settle(net)
    whole = all(_standing(node, author) is Standing.SOUND for node in net.up())
    net.checker.require(whole, "liveness", "a restored node forked itself")
    return figures


def tampering(net: Network) -> Figures:
    """Every link turns bits and rewrites heads and tables: nothing of it is ever believed."""
    _link_up(net)
    net.links = Links(loss=net.links.loss, flip=0.05, forge=0.2)
    net.checker.blameless = False
    for version in range(4):
        for node in _some(net, max(2, len(net.nodes) // 4)):
            net.publish(node.name, *_cards(net, node, range(version, version + 3)), urgent=True)
        net.run(10 * ROUND_S)
    return settle(net)


def swarm(net: Network) -> Figures:
    """A mixture of faults drawn from the seed, over a day of publishing and retracting."""
    chance = Random(f"{net.seed}/swarm")
    _link_up(net)
    net.links = Links(
        loss=chance.choice([0, 0.05, 0.3, 0.6]),
        duplicate=chance.choice([0, 0.2, 0.5]),
        delay=chance.choice([0, 0.1, 0.3]),
    )
    for _ in range(40):
        node = chance.choice(net.up())
        match chance.randrange(8):
            case 0:
                net.partition({name: chance.randrange(3) for name in net.nodes})
            case 1:
                net.partition({})
            case 2 if len(net.up()) > 2:
                _crash_midway(net, node, chance)
            case 3 if leaves := _cards(net, node, [chance.randrange(8)]):
                net.retract(node.name, leaves[0].leaf)
            case _:
                wanted = chance.sample(range(8), 3)
                net.publish(node.name, *_cards(net, node, wanted), urgent=chance.random() < 0.3)
        net.run(chance.choice([1, 20, 300, HOUR_S]))
    return settle(net)


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__.replace("_", "-"): scenario
    for scenario in (
        propagation,
        late_joiner,
        partition_heal,
        churn,
        retraction,
        replay_everything,
        fork,
        restored_backup,
        tampering,
        swarm,
    )
}


def settle(net: Network) -> Figures:
    """Take away every fault, and wait until all agree; fail if they never do."""
    net.heal()
    rounds = 0
    while not net.checker.converged(net):
        rounds += 1
        text = f"not all agree after {ROUNDS_MAX} rounds"
        net.checker.require(rounds <= ROUNDS_MAX, "convergence", text)
        net.run(ROUND_S)
    return {"heal_rounds": rounds}


def _link_up(net: Network) -> None:
    """Let the nodes find each other before the faults begin."""
    net.run(5)


def _some(net: Network, count: int) -> list[Node]:
    """Nodes that are up, drawn from the seed."""
    return Random(f"{net.seed}/{net.now}/{count}").sample(net.up(), count)


def _cards(net: Network, node: Node, numbers: range | list[int]) -> list[Card]:
    """Leaves of an origin by number: the same number is the same leaf, wherever it is asked for."""
    return [_card(f"{net.seed}/{node.origin.hex()}/{number}") for number in numbers]


def _card(name: str) -> Card:
    chance, tag = Random(name), bytes(8)
    leaf, centroid = chance.randbytes(16), chance.randbytes(384)
    return Card(leaf, 1, Stage.MATURE, Op.BIRTH, centroid, 9, tag, tag, (), 120_000, ())


def _crash_midway(net: Network, node: Node, chance: Random) -> None:
    """Crash a node after a few of the effects of its next event, and start it later."""
    node.crash_after = chance.randrange(6)
    net.at(chance.uniform(10, 600), f"start {node.name}", lambda: _restart(net, node))


def _restart(net: Network, node: Node) -> None:
    net.crash(node.name)  # if nothing happened to it meanwhile
    net.start(node.name)


def _until(net: Network, holds: Callable[[Node], bool], within_s: float) -> float:
    """Run until it holds at all nodes that are up; return after how many seconds."""
    start = net.now
    while not all(holds(node) for node in net.up()):
        if net.now - start > within_s:
            failing = [node.name for node in net.up() if not holds(node)]
            net.checker.require(False, "liveness", f"not at {failing} after {within_s:.0f} s")
        net.run(0.05 if net.now - start < 5 else 1.0)
    return round(net.now - start, 3)


def _halves(net: Network) -> dict[PeerId, int]:
    """Two sides, each connected in itself: the wiring holds a ring."""
    return {name: int(2 * i >= len(net.nodes)) for i, name in enumerate(net.nodes)}


def _has_head(node: Node, author: Node) -> bool:
    return bool(node.replica and author.replica) and (
        _view(node, author).head == _view(author, author).head is not None
    )


def _holds_all(node: Node, origins: list[bytes]) -> bool:
    assert node.replica is not None
    return all(node.replica.view(origin).head is not None for origin in origins)


def _lives(node: Node, author: Node, card: Card) -> bool:
    return any(card.leaf == other.leaf for other in _view(node, author).cards)


def _standing(node: Node, author: Node) -> Standing:
    return _view(node, author).standing


def _view(node: Node, author: Node) -> OriginView:
    assert node.replica is not None
    return node.replica.view(author.origin)
