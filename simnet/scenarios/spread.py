"""How news reaches all: one leaf, one late node, a partition, nodes that come and go."""

from __future__ import annotations

from random import Random

from ..network import Network, Node
from .common import (
    HOUR_S,
    ROUND_S,
    Figures,
    cards,
    crash_midway,
    halves,
    has_head,
    holding,
    holds_all,
    link_up,
    settle,
    some,
    until,
)


def propagation(net: Network) -> Figures:
    """One origin publishes a matured leaf: how long until every node stands by it?"""
    link_up(net)
    author = some(net, 1)[0]
    before = net.sent.copy()
    net.publish(author.name, *cards(net, author, range(5)), urgent=True)
    reached = until(net, lambda node: has_head(node, author), what=holding(author))
    return {
        "t100_s": reached,
        "urgent_frames": net.sent["urgent_frames"] - before["urgent_frames"],
        "bulk_bytes_per_node": (net.sent["bulk_bytes"] - before["bulk_bytes"]) / len(net.nodes),
        **settle(net),
    }


def late_joiner(net: Network) -> Figures:
    """A node that was away while all others published catches up from nothing."""
    late = some(net, 1)[0]
    net.crash(late.name)
    link_up(net)
    for node in net.up():
        net.publish(node.name, *cards(net, node, range(3)))
    net.run(10 * ROUND_S)
    before = net.sent["bulk_bytes"]
    net.start(late.name)
    origins = [node.origin for node in net.nodes.values() if node is not late]
    caught_up = until(net, lambda node: holds_all(node, origins), nodes=[late], what="catch up")
    return {"caught_up_s": caught_up, "bytes": net.sent["bulk_bytes"] - before, **settle(net)}


def partition_heal(net: Network) -> Figures:
    """Two halves that cannot hear each other for six hours publish, and then agree."""
    link_up(net)
    net.partition(halves(net))
    for hour in range(6):
        for node in some(net, max(2, len(net.nodes) // 4)):
            net.publish(node.name, *cards(net, node, range(hour, hour + 3)), urgent=hour % 2 == 0)
        net.run(HOUR_S)
    return settle(net)


def churn(net: Network) -> Figures:
    """Nodes publish while others crash at any point of what they do, and come back."""
    link_up(net)
    chance = Random(f"{net.seed}/churn")
    for step in range(30):
        for node in _share(net, chance, 8):
            net.publish(node.name, *cards(net, node, range(step % 5, step % 5 + 3)))
        for node in _share(net, chance, 10):
            crash_midway(net, node, chance)
        net.run(chance.uniform(5, 240))
    return settle(net)


def _share(net: Network, chance: Random, part: int) -> list[Node]:
    """One in so many of the nodes that are up; one at least, if any is."""
    up = net.up()
    return chance.sample(up, min(len(up), max(1, len(up) // part)))
