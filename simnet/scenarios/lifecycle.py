"""What becomes of leaves, as others see it: promoted, split, merged, ended, revived, withdrawn.

An owner changes its tree and signs one head over all of it. Between two heads there is nothing:
each scenario asks the checker, which looks at every view, for "atomic" and "lineage", and itself
only for what should come of it in the end.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from gossip.wire import Card, Reason, Stage

from ..network import Network
from .common import (
    DAY_S,
    Figures,
    Tree,
    cards,
    crash_midway,
    has_head,
    holding,
    link_up,
    lives,
    restart,
    rotate,
    settle,
    sleep_all,
    some,
    until,
    view,
)


def promotion(net: Network) -> Figures:
    """A seed sprouts and matures: each node shows the stage that was signed last."""
    tree, figures = _grown(net, Stage.SEED)
    leaf = next(iter(tree.live))
    for _ in range(2):
        tree.promote(leaf)
        figures = _told(net, tree, "promoted_s")
    shown = [card.stage for card in _shown(net, tree, leaf)]
    mature = set(shown) == {Stage.MATURE}
    net.checker.require(mature, "liveness", f"promoted, and shown as {shown}")
    return {**figures, **settle(net)}


def split(net: Network) -> Figures:
    """A leaf splits while frames are lost and a node crashes: both children come, or neither."""
    tree, _ = _grown(net)
    parent = next(iter(tree.live))
    _disturb(net, tree)
    children = [card.leaf for card in tree.split(parent)]
    figures = _told(net, tree, "split_s")
    _require_lives(net, tree, [parent, *children])
    tree.promote(children[0])
    tree.end(parent, Reason.SUPERSEDED, tuple(children))
    figures |= _told(net, tree, "superseded_s")
    _require_lives(net, tree, children, gone=[parent])
    return {**figures, **settle(net)}


def merge(net: Network) -> Figures:
    """Two leaves merge while frames are lost: the child comes as both old leaves end."""
    tree, _ = _grown(net)
    a, b, *_ = tree.live
    _disturb(net, tree)
    child = tree.merge(a, b).leaf
    figures = _told(net, tree, "merged_s")
    _require_lives(net, tree, [child], gone=[a, b])
    return {**figures, **settle(net)}


def pruning(net: Network) -> Figures:
    """A leaf is archived, its row is dropped after 90 days, and it never comes back."""
    tree, _ = _grown(net)
    leaf = next(iter(tree.live))
    away = next(node for node in some(net, len(net.nodes)) if node is not tree.node)
    net.crash(away.name)
    tree.end(leaf, Reason.DORMANT)
    figures = _told(net, tree, "pruned_s")
    reasons = [end.reason for node in net.honest() for end in view(node, tree.node).ended]
    dormant = set(reasons) == {Reason.DORMANT}
    net.checker.require(dormant, "liveness", f"archived, and says {reasons}")
    net.start(away.name)
    until(net, lambda node: has_head(node, tree.node), what=holding(tree.node))
    sleep_all(net, 90 * DAY_S)
    rotate(net, tree.node)  # a key is good for a quarter
    tree.forget(leaf)
    figures |= _told(net, tree, "forgotten_s")
    _require_lives(net, tree, list(tree.live), gone=[leaf])
    return {**figures, **settle(net)}


def revive(net: Network) -> Figures:
    """An archived leaf lives again as a new version, and no older version of it does."""
    tree, _ = _grown(net)
    leaf = next(iter(tree.live))
    tree.end(leaf, Reason.DORMANT)
    _told(net, tree, "pruned_s")
    revived = tree.revive(leaf)
    figures = _told(net, tree, "revived_s")
    shown = [card.version for card in _shown(net, tree, leaf)]
    net.checker.require(set(shown) == {revived.version}, "liveness", f"revived as {shown}")
    return {**figures, **settle(net)}


def retraction(net: Network) -> Figures:
    """A leaf is withdrawn: all who can hear stop using it, and who was away when it returns."""
    link_up(net)
    author, away, heard = some(net, 3)
    leaves = cards(net, author, range(3))
    leaf = leaves[0].leaf
    net.publish(author.name, *leaves)
    until(net, lambda node: lives(node, author, leaf), what=holding(author))
    net.crash(away.name)
    net.retract(author.name, leaf)
    dropped = until(net, lambda node: not lives(node, author, leaf), what="hear of the retraction")
    for node in (heard, author):
        restart(net, node)
        remembers = leaf in view(node, author).retracted
        net.checker.require(remembers, "durability", f"{node.name} forgot a retraction in a crash")
    net.start(away.name)
    healed = settle(net)
    net.checker.require(
        not any(lives(node, author, leaf) for node in net.honest()),
        "liveness",
        "a retracted leaf is live at a node that came back",
    )
    return {"dropped_s": dropped, **healed}


def _grown(net: Network, stage: Stage = Stage.MATURE) -> tuple[Tree, Figures]:
    """An owner whose tree of four leaves all nodes hold."""
    link_up(net)
    tree = Tree(net, some(net, 1)[0])
    tree.grow(4, stage)
    return tree, _told(net, tree, "grown_s")


def _told(net: Network, tree: Tree, name: str) -> Figures:
    """Publish a tree, and wait until all hold it."""
    tree.publish(urgent=True)
    return {name: until(net, lambda node: has_head(node, tree.node), what=holding(tree.node))}


def _shown(net: Network, tree: Tree, leaf: bytes) -> list[Card]:
    """The card of a leaf, as each node shows it."""
    views = [view(node, tree.node) for node in net.honest()]
    return [card for one in views for card in one.cards if card.leaf == leaf]


def _disturb(net: Network, tree: Tree) -> None:
    """Lose, double and delay frames, and stop some nodes in the middle of what they do."""
    chance = Random(f"{net.seed}/disturb")
    net.links = replace(net.links, loss=max(net.links.loss, 0.2), duplicate=0.2, delay=0.2)
    others = [node for node in net.honest() if node is not tree.node]
    for node in chance.sample(others, max(1, len(others) // 8)):
        crash_midway(net, node, chance)


def _require_lives(
    net: Network, tree: Tree, live: list[bytes], gone: list[bytes] | None = None
) -> None:
    """Fail unless all of some leaves live at all nodes, and none of others does."""
    for node in net.honest():
        shown = {card.leaf for card in view(node, tree.node).cards}
        whole = shown >= set(live) and not shown & set(gone or [])
        net.checker.require(whole, "atomic", f"{node.name} shows half of what became of a leaf")
