"""Goals of the urgent plane: G1 speed, G3 duplicates, G6 loss, G7 churn, G9 forks, G10 retraction.

Each function plays one seed, and returns its figures. What is timed is virtual time; times are
read every 10 ms. "99.9 %" is of the nodes that are up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from mesh_kit import (
    ROUND_S,
    URGENT_STEP_S,
    Sample,
    card,
    chosen,
    heard_retraction,
    lossy,
    network,
    out_of_step,
    preloaded,
    publish,
    rounds,
    table,
    usable,
)

from gossip.config import GossipConfig
from gossip.envelope import seal
from gossip.keys import Keys
from gossip.table import build, root
from gossip.wire import HOUR_S, ZERO8, ZERO32, Have, Head, Standing, encode
from simnet.network import Network, Node, simulated_keys

SHARE = 0.999
LEAVES = 5  # of the author; the urgent plane carries none of them
URGENT_S = 10.0
PATIENCE_S = 40 * ROUND_S
NO_SYNC_S = 86_400.0  # the longest sync interval: in what follows none falls due
RETURNING = 20  # nodes that come back after a retraction


def retraction(nodes: int, seed: int, *, loss: float = 0.01, dead: float = 0.0) -> Sample:
    """Seconds until 99.9 % have heard a retraction; duplicate broadcasts per delivery meanwhile.

    dead: this share of the nodes ends silently at the very moment of the retraction.
    """
    net = network(nodes, seed)
    author = chosen(net, 1, "author")[0]
    preloaded(net, [author], LEAVES)
    lossy(net, loss)
    _kill(net, dead, keep=author)
    before = net.sent.copy()
    leaf = table(author, LEAVES)[0].leaf
    net.retract(author.name, leaf)
    took_s = _until(net, heard_retraction(author, leaf), share=SHARE)
    net.run(10)  # the last duplicates
    first = net.sent["urgent_first"] - before["urgent_first"]
    again = net.sent["urgent_duplicate"] - before["urgent_duplicate"]
    return {"took_s": took_s, "duplicates": again / first if first else None}


def mature_leaf(nodes: int, seed: int, *, loss: float = 0.01) -> Sample:
    """Seconds from the signing of a head with a mature leaf until 99.9 % may use that leaf.

    The head is urgent; its table (five leaves more than before) is pulled on the bulk plane.
    """
    net = network(nodes, seed)
    author = chosen(net, 1, "author")[0]
    preloaded(net, [author], LEAVES)
    out_of_step(net)
    lossy(net, loss)
    cards = table(author, 2 * LEAVES)
    if not publish(net, author, cards, urgent=True):
        return {"usable_s": None}
    new = cards[-2]
    return {"usable_s": _until(net, lambda node: usable(node, author, new.leaf), share=SHARE)}


def push_alone(nodes: int, seed: int, *, loss: float) -> Sample:
    """Share of the nodes that a retraction reaches within 10 s, no sync falling due."""
    net = network(nodes, seed, config=_without_sync())
    author = chosen(net, 1, "author")[0]
    preloaded(net, [author], LEAVES)
    lossy(net, loss)
    leaf = table(author, LEAVES)[0].leaf
    net.retract(author.name, leaf)
    heard = heard_retraction(author, leaf)
    net.run_until(heard, 10, step_s=0.1)
    up = net.up()
    return {"reached": sum(map(heard, up)) / len(up)}


def crash(nodes: int, seed: int, *, dead: float) -> Sample:
    """Time until all that live have heard a retraction, told as this share ends silently."""
    net = network(nodes, seed)
    author = chosen(net, 1, "author")[0]
    preloaded(net, [author], LEAVES)
    out_of_step(net)
    lossy(net)
    _kill(net, dead, keep=author)
    leaf = table(author, LEAVES)[0].leaf
    net.retract(author.name, leaf)
    took_s = _until(net, heard_retraction(author, leaf))
    return {"took_s": took_s, "rounds": rounds(took_s)}


def churn(nodes: int, seed: int, *, share_per_h: float = 0.3) -> Sample:
    """Seconds until all that live have heard a retraction, while nodes crash and come back.

    Nodes end at random moments, at such a rate that an hour takes 30 % of them, and come back
    after 1 to 10 minutes. Ten minutes of it pass first. Counted are the nodes that are up from
    the retraction on.
    """
    net = network(nodes, seed, disks=True)
    author = chosen(net, 1, "author")[0]
    preloaded(net, [author], LEAVES)
    lossy(net)
    chance = Random(f"{seed}/churn")
    others = [name for name in net.nodes if name != author.name]
    before_s, after_s = 600.0, 30.0
    ends = round(nodes * share_per_h * (before_s + after_s) / HOUR_S)
    for name in chance.sample(others, ends):
        at_s = chance.uniform(0, before_s + after_s)
        net.at(at_s, f"end {name}", partial(net.crash, name))
        back_s = at_s + chance.uniform(60, 600)
        net.at(back_s, f"start {name}", partial(net.start, name))
    net.run(before_s)
    lives = {node.name: node.life for node in net.up()}
    leaf = table(author, LEAVES)[0].leaf
    net.retract(author.name, leaf)
    heard = heard_retraction(author, leaf)
    there = [net.nodes[name] for name in lives]

    def heard_or_gone(node: Node) -> bool:
        return node.life != lives[node.name] or heard(node)

    took_s = net.run_until(heard_or_gone, after_s, step_s=URGENT_STEP_S, nodes=there)
    return {"took_s": took_s}


def fork(nodes: int, seed: int) -> Sample:
    """Seconds from both branches at one honest node until 99.9 % hold the key for frozen."""
    net = network(nodes, seed)
    keys = simulated_keys(f"{seed}/forker")
    net.checker.forkers[keys.origin] = None
    lossy(net)
    witness = chosen(net, 1, "witness")[0]
    teller = next(iter(witness.links))
    for branch in ("a", "b"):
        net.inject(teller, witness.name, _branch(net, keys, branch))

    def frozen(node: Node) -> bool:
        assert node.replica is not None
        return node.replica.view(keys.origin).standing is Standing.FROZEN

    return {"took_s": _until(net, frozen, share=SHARE)}


def withdrawal(nodes: int, seed: int) -> Sample:
    """A leaf that all use is retracted, and some nodes are away meanwhile, their disks whole.

    gone_s: until 99.9 % of those on line cannot route to it. returning: of 20 that come back, how
    many may route to it still 15 s after their start, when the first sync falls due at the
    earliest. returning_s: until the last of them may not.
    """
    net = network(nodes, seed, disks=True)
    author, *away = chosen(net, 1 + min(RETURNING, nodes // 4), "away")
    preloaded(net, [author], LEAVES)
    for node in away:
        net.crash(node.name)
    net.run(ROUND_S)
    lossy(net)
    leaf = table(author, LEAVES)[0].leaf
    net.retract(author.name, leaf)
    gone_s = _until(net, lambda node: not usable(node, author, leaf), share=SHARE)
    net.run(HOUR_S / 4)
    for node in away:
        net.start(node.name)
    knew = sum(usable(node, author, leaf) for node in away)

    def gone(node: Node) -> bool:
        return not usable(node, author, leaf)

    first_s = net.run_until(gone, ROUND_S / 2, step_s=URGENT_STEP_S, nodes=away)
    still = sum(usable(node, author, leaf) for node in away)
    later_s = 0.0 if first_s is not None else net.run_until(gone, PATIENCE_S, nodes=away)
    returning_s = None if later_s is None else later_s + (first_s or ROUND_S / 2)
    return {"gone_s": gone_s, "knew": knew, "returning_s": returning_s, "returning": still}


def eclipse(nodes: int, seed: int) -> Sample:
    """Hours until a node that hears nobody any more stops routing to a retracted leaf."""
    net = network(nodes, seed, disks=True)
    author, victim = chosen(net, 2, "eclipse")
    preloaded(net, [author], LEAVES)
    net.partition({victim.name: 1})
    leaf = table(author, LEAVES)[0].leaf
    net.retract(author.name, leaf)
    took_s = net.run_until(
        lambda node: not usable(node, author, leaf), 8 * 24 * HOUR_S, step_s=60, nodes=[victim]
    )
    return {"hours": rounds(took_s, HOUR_S)}


def _without_sync() -> GossipConfig:
    return GossipConfig(sync_interval_s=NO_SYNC_S)


def _kill(net: Network, share: float, *, keep: Node) -> None:
    """End this share of the nodes; their peers notice later."""
    others = [name for name in net.nodes if name != keep.name]
    for name in Random(f"{net.seed}/kill").sample(others, round(share * len(net.nodes))):
        net.crash(name)


def _until(net: Network, holds: Callable[[Node], bool], *, share: float = 1.0) -> float | None:
    """Fine steps while the urgent plane is at it, then coarse ones."""
    fine = net.run_until(holds, URGENT_S, step_s=URGENT_STEP_S, share=share)
    if fine is not None:
        return fine
    late = net.run_until(holds, PATIENCE_S, step_s=1.0, share=share)
    return None if late is None else URGENT_S + late


def _branch(net: Network, keys: Keys, name: str) -> bytes:
    """A frame with the first head of an origin; another for another name."""
    index = build([card(f"{keys.origin.hex()}/{name}", mature=True)], (), ()).index
    hour = net.now_s // HOUR_S
    head = Head(
        keys.origin, 1, hour << 16, 0, ZERO32, root(index), 1, hour, hour + 168, 0, ZERO8, ZERO32
    )
    return encode(Have((keys.doc,), (seal(head, keys.op).env,), (), ()))
