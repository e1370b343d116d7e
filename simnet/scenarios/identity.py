"""Who speaks for an origin: two machines with one key, a backup, a thief, and the root key."""

from __future__ import annotations

from gossip.wire import Standing

from ..byzantine import Thief
from ..disk import Disk
from ..network import Network, Node, simulated_keys
from .common import (
    HOUR_S,
    ROUND_S,
    Figures,
    cards,
    halves,
    has_head,
    holding,
    link_up,
    rotate,
    settle,
    some,
    standing,
    until,
    view,
)


def fork(net: Network) -> Figures:
    """Two machines sign with one key, apart; all freeze it, and its next key makes it whole."""
    link_up(net)
    first, second = _twins(net)
    net.publish(first.name, *cards(net, first, range(2)))
    net.publish(second.name, *cards(net, first, range(2, 4)))
    until(
        net, lambda node: node.origin != first.origin or has_head(node, node), HOUR_S, what="sign"
    )
    net.heal()
    frozen = until(
        net, lambda node: standing(node, first) is Standing.FROZEN, what="freeze the fork"
    )
    net.crash(second.name)
    net.start(second.name, simulated_keys(f"{net.seed}/{second.name}"))
    rotate(net, first)
    net.publish(first.name, *cards(net, first, range(2)))
    whole = until(net, lambda node: has_head(node, first), what=holding(first))
    return {"frozen_s": frozen, "whole_s": whole, **settle(net)}


def restored_backup(net: Network) -> Figures:
    """A node's disk is set back to a backup; it goes on from what its peers hold of it."""
    link_up(net)
    author = some(net, 1)[0]
    net.publish(author.name, *cards(net, author, range(2)))
    net.run(2 * ROUND_S)
    backup = author.disk.snapshot()
    for version in range(2):
        net.publish(author.name, *cards(net, author, range(version, 4)))
        net.run(ROUND_S)
        until(net, lambda node: has_head(node, author), what=holding(author))
    restore(net, author, backup)
    net.publish(author.name, *cards(net, author, range(6)))
    net.run(2 * ROUND_S)
    figures = settle(net)
    whole = all(standing(node, author) is Standing.SOUND for node in net.honest())
    net.checker.require(whole, "liveness", "a restored node forked itself")
    return figures


def key_theft(net: Network) -> Figures:
    """A thief signs with a stolen key until the root key revokes it; then nothing of it stands."""
    link_up(net)
    owner, thief = some(net, 2)
    net.publish(owner.name, *cards(net, owner, range(3)))
    until(net, lambda node: has_head(node, owner), what=holding(owner))
    net.checker.forkers[owner.origin] = None
    stolen = owner.keys
    thief.hostile = hostile = Thief(net, thief, stolen, cards(net, owner, range(10, 12)))
    net.run(4 * ROUND_S)
    deceived = sum(standing(node, owner) is Standing.FROZEN for node in net.honest())
    rotate(net, owner, revoked=(stolen.doc.epoch,))
    net.publish(owner.name, *cards(net, owner, range(3)), urgent=True)
    revoked = until(net, lambda node: has_head(node, owner), what=holding(owner))
    net.run(10 * ROUND_S)  # the thief goes on and on
    epochs = [head.epoch for node in net.honest() if (head := view(node, owner).head)]
    net.checker.require(
        set(epochs) == {owner.keys.doc.epoch}, "liveness", "a head of the stolen key stands"
    )
    figures = settle(net)
    return {"revoked_s": revoked, "deceived": deceived, "stolen_heads": hostile.signed, **figures}


def restore(net: Network, node: Node, backup: Disk) -> None:
    """Set a node's disk back to a backup of it, and start it."""
    net.crash(node.name)
    net.faults["F19 restored backup"] += 1
    node.disk = backup
    net.checker.restored(node)
    net.start(node.name)


def _twins(net: Network) -> tuple[Node, Node]:
    """Start a second machine with the key of the first, where it cannot hear of it."""
    sides, order = halves(net), some(net, len(net.honest()))
    first = next(node for node in order if sides[node.name] == 0)
    second = next(node for node in order if sides[node.name] == 1)
    net.checker.forkers[first.origin] = None
    net.partition(sides)
    net.faults["F20 twin"] += 1
    net.crash(second.name)
    net.start(second.name, first.keys)
    net.run(2 * ROUND_S)
    return first, second
