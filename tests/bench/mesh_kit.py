"""What the measurements of the mesh share: a network at rest, leaves of realistic size, waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from gossip.config import GossipConfig
from gossip.wire import Bundle, Card, EvalSet, Format, Op, PairedScore, Score, Stage
from simnet.faults import Links
from simnet.network import Network, Node

Sample = dict[str, float | None]  # figure -> what one seed gave; None: it never happened

LOSS = 0.01  # of frames, unless a figure says otherwise
CONFIG = GossipConfig()
ROUND_S = CONFIG.sync_interval_s  # mean time between a node's syncs
URGENT_STEP_S = 0.01  # how finely urgent times are read
LINKED_S = 5.0  # by then all nodes have found each other, and have said hello
TAG = bytes(8)


def network(
    nodes: int, seed: int, *, config: GossipConfig = CONFIG, disks: bool = False
) -> Network:
    """Nodes at rest, out of step with each other; nothing is lost yet."""
    net = Network(size=nodes, seed=seed, config=config, disks=disks, checked="quiet")
    net.run(LINKED_S)
    return net


def lossy(net: Network, loss: float = LOSS) -> None:
    net.links = Links(loss=loss)


def out_of_step(net: Network, interval_s: float = ROUND_S) -> None:
    """Let the syncs, which begin together, spread over the interval."""
    net.run(interval_s * Random(f"{net.seed}/step").uniform(1.5, 2.5))


def chosen(net: Network, count: int, purpose: str) -> list[Node]:
    """Nodes that are up, drawn from the seed."""
    return Random(f"{net.seed}/{purpose}").sample(net.up(), count)


def card(name: str, version: int = 1, *, mature: bool) -> Card:
    """A leaf of the size that real ones have: about 540 bytes with a bundle, 430 without."""
    leaf = Random(name).randbytes(16)
    chance = Random(f"{name}/{version}")
    scores = (Score(EvalSet.HELD_OUT_LOSS, 15_000), Score(EvalSet.GAIN_OVER_PARENT, 2_500))
    bundle = None
    if mature:
        paired = (PairedScore(EvalSet.HELD_OUT_LOSS, 15_000, 17_500),)
        root, label = chance.randbytes(32), chance.randbytes(32)
        bundle = Bundle(root, 18_000_000, TAG, 16, paired, Format.LORA_SAFETENSORS, label)
    stage = Stage.MATURE if mature else Stage.SPROUT
    centroid = chance.randbytes(384)
    return Card(leaf, version, stage, Op.BIRTH, centroid, 9, TAG, TAG, (), 120_000, scores, bundle)


def table(node: Node, leaves: int, *, changed: int = 0) -> list[Card]:
    """A table of which a quarter is mature; of `changed` leaves it is the next version."""
    return [
        card(f"{node.name}/{i}", 2 if i < changed else 1, mature=i % 4 == 0) for i in range(leaves)
    ]


def preloaded(net: Network, origins: Sequence[Node], leaves: int) -> None:
    """All nodes hold the tables of these origins, as if replicated long ago."""
    net.preload({node.name: table(node, leaves) for node in origins})


def publish(net: Network, author: Node, cards: Sequence[Card], *, urgent: bool = False) -> bool:
    """Publish, and wait until the author has signed: before that it asks its peers for its echo."""
    before = head_of(author, author)
    net.publish(author.name, *cards, urgent=urgent)
    signed = net.run_until(
        lambda node: head_of(node, author) != before, 600, step_s=URGENT_STEP_S, nodes=[author]
    )
    return signed is not None


def rounds(seconds: float | None, interval_s: float = ROUND_S) -> float | None:
    """Sync intervals in this many seconds."""
    return None if seconds is None else seconds / interval_s


def head_of(node: Node, author: Node) -> tuple[int, int] | None:
    """(epoch, seq) of what stands for an author at a node."""
    assert node.replica is not None
    head = node.replica.view(author.origin).head
    return None if head is None else (head.epoch, head.seq)


def holds_head(author: Node) -> Callable[[Node], bool]:
    """True of nodes at which the author's newest head stands, its table whole."""
    newest = head_of(author, author)
    return lambda node: head_of(node, author) == newest


def heard_retraction(author: Node, leaf: bytes) -> Callable[[Node], bool]:
    def heard(node: Node) -> bool:
        assert node.replica is not None
        return leaf in node.replica.view(author.origin).retracted

    return heard


def usable(node: Node, author: Node, leaf: bytes) -> bool:
    """True if this node may route to the leaf now."""
    assert node.replica is not None
    return any(card.leaf == leaf for card in node.replica.view(author.origin).usable)
