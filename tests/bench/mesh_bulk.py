"""Goals of the bulk plane: G2 spread, G3 bodies, G4 a night, G5 a healed partition, G6 loss, G8.

Each function plays one seed, and returns its figures. A round is one sync interval, in which each
node compares itself with one random peer. "Equal" is what the figures are about: every node shows
the newest head of every origin that published, its table whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from mesh_kit import (
    ROUND_S,
    Sample,
    chosen,
    head_of,
    holds_head,
    lossy,
    network,
    out_of_step,
    preloaded,
    publish,
    rounds,
    table,
)

from gossip.config import GossipConfig
from gossip.wire import HOUR_S
from simnet.network import Network, Node
from simnet.scenarios.common import halves

LEAVES = 20
CHANGED = 5  # of them in a night
ROUNDS_MAX = 60
PUBLISHERS = 10
PARTITION_H = 6
PUBLISHERS_EACH = 8  # of each half, in each hour
PARTITION_SYNC_S = 60.0
NIGHT_S = 4 * HOUR_S
LINE_BYTES_S = 10e6 / 8
BACKGROUND = 100  # other origins that all hold already, so that there is something to compare


def one_record(nodes: int, seed: int, *, loss: float) -> Sample:
    """Rounds from the signing of one record until all nodes are equal, by comparing alone.

    No push (fanout 0): in each round each node asks one of its peers, and is asked by some.
    """
    net = network(nodes, seed, config=GossipConfig(fanout=0))
    author = chosen(net, 1, "author")[0]
    preloaded(net, chosen(net, min(BACKGROUND, nodes), "background"), 1)
    out_of_step(net)
    signed = publish(net, author, table(author, LEAVES))
    lossy(net, loss)
    return {"rounds": _equal(net, [author]) if signed else None}


def under_loss(nodes: int, seed: int, *, loss: float) -> Sample:
    """Rounds until one record is everywhere, by push and comparing both, under heavy loss."""
    net = network(nodes, seed)
    author = chosen(net, 1, "author")[0]
    out_of_step(net)
    signed = publish(net, author, table(author, LEAVES))
    lossy(net, loss)
    return {"rounds": _equal(net, [author]) if signed else None}


def bodies(nodes: int, seed: int) -> Sample:
    """Duplicates per delivery of tables and cards, as ten origins publish at one time."""
    net = network(nodes, seed)
    authors = chosen(net, min(PUBLISHERS, nodes), "authors")
    preloaded(net, authors, LEAVES)
    lossy(net)
    before = net.sent.copy()
    for author in authors:
        net.publish(author.name, *table(author, LEAVES, changed=CHANGED))
    net.run(10 * ROUND_S)
    first = net.sent["body_first"] - before["body_first"]
    again = net.sent["body_duplicate"] - before["body_duplicate"]
    return {"duplicates": again / first if first else None}


def partition(nodes: int, seed: int, *, loss: float) -> Sample:
    """Rounds until all are equal after six hours in two halves that both published each hour.

    Nodes sync every 60 s, as they do in their night. lost: records that were published, and are
    not (or not in a newer version) at some node in the end.
    """
    config = GossipConfig(sync_interval_s=PARTITION_SYNC_S)
    net = network(nodes, seed, config=config)
    chance = Random(f"{seed}/partition")
    sides = halves(net)
    groups = [[node for node in net.up() if sides[node.name] == side] for side in (0, 1)]
    authors = [node for group in groups for node in chance.sample(group, PUBLISHERS_EACH)]
    preloaded(net, authors, 1)
    out_of_step(net, PARTITION_SYNC_S)
    lossy(net, loss)
    net.partition(sides)
    for hour in range(PARTITION_H):
        for author in authors:
            net.publish(author.name, *table(author, 2 + hour))
        net.run(HOUR_S)
    net.partition({})
    took = _equal(net, authors, PARTITION_SYNC_S)
    wanted = {author.name: head_of(author, author) for author in authors}
    lost = sum(
        any(head_of(node, author) != wanted[author.name] for node in net.up()) for author in authors
    )
    return {"rounds": took, "lost": lost, "published": PARTITION_H * len(authors)}


def night(nodes: int, seed: int) -> Sample:
    """MB that a node receives in a night of four hours in which every node publishes once.

    All hold all tables of 20 leaves from before; each node changes five leaves at a random moment.
    What one receives another has sent, so the mean of what is sent is the same.
    """
    net = network(nodes, seed)
    preloaded(net, net.up(), LEAVES)
    lossy(net)
    chance = Random(f"{seed}/night")
    before = {node.name: node.bytes_in for node in net.up()}
    for node in net.up():
        cards = table(node, LEAVES, changed=CHANGED)
        at_s = chance.uniform(0, NIGHT_S - 20 * ROUND_S)
        net.at(at_s, f"publish {node.name}", lambda n=node.name, c=cards: net.publish(n, *c))
    net.run(NIGHT_S)
    received = [node.bytes_in - before[node.name] for node in net.up()]
    behind = sum(not _all_hold(net, [node]) for node in chosen(net, min(20, nodes), "checked"))
    return {
        "mb": sum(received) / len(received) / 1e6,
        "mb_most": max(received) / 1e6,
        "kb_per_origin": sum(received) / len(received) / nodes / 1e3,
        "behind": behind,
    }


def late_joiner(nodes: int, seed: int) -> Sample:
    """What it takes a node that holds nothing to hold the tables of all others.

    Its line carries 10 Mbit/s. mb: bytes in and out. round_trips: the longest chain of questions,
    each asked because of the answer to the one before.
    """
    net = network(nodes, seed)
    late = chosen(net, 1, "late")[0]
    net.crash(late.name)
    net.run(ROUND_S)
    others = net.up()
    tables = {node.name: table(node, LEAVES) for node in others}
    net.preload(tables, to=list(tables))
    lossy(net)
    late.rate_bytes_s = LINE_BYTES_S
    late.bytes_in = late.bytes_out = 0
    net.mark()
    net.start(late.name)

    def caught_up(node: Node) -> bool:
        assert node.replica is not None
        views = (node.replica.view(other.origin) for other in others)
        return all(len(view.usable) == LEAVES for view in views)

    took_s = net.run_until(caught_up, 20 * ROUND_S, step_s=0.25, nodes=[late])
    return {
        "mb": (late.bytes_in + late.bytes_out) / 1e6,
        "round_trips": net.round_trips(late.name),
        "took_s": took_s,
    }


def _equal(net: Network, authors: Sequence[Node], interval_s: float = ROUND_S) -> float | None:
    """Rounds until all nodes show what these authors signed last."""
    holds = [holds_head(author) for author in authors]
    within_s = ROUNDS_MAX * interval_s
    took_s = net.run_until(lambda node: all(one(node) for one in holds), within_s, step_s=1.0)
    return rounds(took_s, interval_s)


def _all_hold(net: Network, authors: Sequence[Node]) -> bool:
    holds = [holds_head(author) for author in authors]
    return all(one(node) for node in net.up() for one in holds)
