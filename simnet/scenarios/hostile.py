"""Nodes that lie, flood, surround and replay; frames that were touched; wires of another version.

Each scenario demands that honest nodes hear of each other all the same while it goes on, and the
checker that nothing forged is ever believed. What hostile nodes say of themselves need not be
agreed on: whom they told what is theirs to choose.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

from gossip.wire import Standing

from ..byzantine import (
    Equivocator,
    Flooder,
    Freezer,
    MixAndMatcher,
    Newer,
    Sybils,
    chosen,
    lies_told,
    turn,
)
from ..invariants import shown
from ..network import Network, Node
from .common import (
    DAY_S,
    HOUR_S,
    ROUND_S,
    Figures,
    cards,
    has_head,
    holding,
    holds_all,
    link_up,
    lives,
    settle,
    some,
    standing,
    until,
    view,
)

SYBILS_EACH = 20  # invented origins for each node
WEEK_S = 7 * DAY_S
VERSIONS = 3  # that all publish among liars
VERSIONS_MAX = 20  # if no liar was asked for anything until then


def byzantine_third(net: Network) -> Figures:
    """A third of the nodes lie, each in its way: the others believe none of it, and agree."""
    return _byzantine(net, len(net.nodes) // 3)


def byzantine_half(net: Network) -> Figures:
    """Half of the nodes lie; the others, still linked with each other, agree."""
    return _byzantine(net, len(net.nodes) // 2)


def _byzantine(net: Network, count: int) -> Figures:
    link_up(net)
    liars = chosen(net, count)
    turn(net, liars)
    net.run(2 * ROUND_S)
    heard = _heard_among_liars(net)
    for liar in liars:
        if isinstance(liar.hostile, Equivocator):
            until(net, partial(_is_frozen, liar=liar), what=f"hold {liar.name}'s key for frozen")
    origins = [node.origin for node in net.honest()]
    return {
        "heard_s": heard,
        "hostile": count,
        "refused": sum(net.checker.refused.values()),
        "blamed": sum(n for (_, blamed), n in net.checker.refused.items() if blamed),
        **settle(net, of=origins),
    }


def mix_and_match(net: Network) -> Figures:
    """A third of the nodes serve the cards of one head under another: no such table stands."""
    link_up(net)
    turn(net, chosen(net, len(net.nodes) // 3), [MixAndMatcher])
    heard = _heard_among_liars(net)
    return {"heard_s": heard, "refused": sum(net.checker.refused.values()), **settle(net)}


def freeze(net: Network) -> Figures:
    """A third of the nodes serve only what was true at the start: news goes round them."""
    link_up(net)
    turn(net, chosen(net, len(net.nodes) // 3), [Freezer])
    return {"heard_s": _heard_among_liars(net), **settle(net)}


def sybils(net: Network) -> Figures:
    """Invented origins, twenty for each real one: those keep their place, and are heard."""
    link_up(net)
    before = _all_hear_all(net, 0)
    liars = chosen(net, max(1, len(net.nodes) // 10))
    total = SYBILS_EACH * len(net.nodes)
    for liar in liars:
        liar.hostile = Sybils(net, liar, total // len(liars))
    honest = [node.origin for node in net.honest()]
    usable = {node.name: _usable(node, honest) for node in net.honest()}
    net.run(20 * ROUND_S)
    for node in net.honest():
        same = _usable(node, honest) == usable[node.name]
        net.checker.require(same, "bounded", f"{node.name} lost an honest record to sybils")
    during = _all_hear_all(net, 1)
    held = [len(node.replica.origins()) for node in net.honest() if node.replica]
    return {
        "heard_before_s": before,
        "heard_during_s": during,
        "sybils": total,
        "origins_held_max": max(held),
        **settle(net, of=honest),
    }


def eclipse(net: Network) -> Figures:
    """A node among liars hears through one honest link; without it, it uses nothing for long."""
    link_up(net)
    _all_hear_all(net, 0)
    victim, author = some(net, 2)
    liars = chosen(net, max(1, len(net.nodes) // 3), sparing=[victim, author])
    turn(net, liars, [Freezer])
    _surround(net, victim, [*liars, author])
    net.publish(author.name, *cards(net, author, range(1, 5)))
    one_link = until(net, lambda node: has_head(node, author), what=holding(author))
    leaf = cards(net, author, [1])[0].leaf
    _surround(net, victim, liars)
    net.retract(author.name, leaf)
    until(
        net,
        lambda node: node is victim or not lives(node, author, leaf),
        what="hear of the retraction",
    )
    deceived = leaf in _leaves(victim, author)
    slept = sorted(net.nodes.values(), key=lambda node: node is victim)
    for node in slept:
        net.suspend(node.name)
    net.run(WEEK_S + HOUR_S)
    for node in (victim, *liars):
        net.resume(node.name)
    net.run(10 * ROUND_S)
    stopped = leaf not in _leaves(victim, author)
    net.checker.require(stopped, "freshness", "an eclipsed node uses a leaf after a week")
    _surround(net, victim, [node for node in net.nodes.values() if node.hostile is None])
    return {"one_link_s": one_link, "deceived": deceived, **settle(net)}


def flood(net: Network) -> Figures:
    """A tenth of the nodes send a hundred times what they may; the others hear as before."""
    link_up(net)
    before = _all_hear_all(net, 0)
    honest = [node.origin for node in net.honest()]
    liars = chosen(net, max(1, len(net.nodes) // 10))
    turn(net, liars, [Flooder])
    net.run(ROUND_S)
    quiet_bytes = {node.name: node.bytes_out for node in net.honest()}
    during = max(_all_hear_all(net, version) for version in (1, 2))
    spent = [node.bytes_out - quiet_bytes[node.name] for node in net.honest()]
    held = [len(node.replica.origins()) for node in net.honest() if node.replica]
    honest = [node.origin for node in net.honest()]
    return {
        "heard_before_s": before,
        "heard_during_s": during,
        "bytes_out_max": max(spent),
        "origins_held_max": max(held),
        "refused": sum(net.checker.refused.values()),
        **settle(net, of=honest),
    }


def mixed_versions(net: Network) -> Figures:
    """A third of the nodes also say what only newer ones know: all agree on what all know."""
    link_up(net)
    newer = chosen(net, len(net.nodes) // 3)
    turn(net, newer, [Newer])
    net.run(2 * ROUND_S)
    heard = max(_all_hear_all(net, version) for version in range(2))
    for node in newer:
        net.publish(node.name, *cards(net, node, range(2)))
    everyone, origins = net.up(), [node.origin for node in net.up()]
    until(net, lambda node: holds_all(node, origins), nodes=everyone, what="hold all heads")
    refused = net.checker.refused
    return {
        "heard_s": heard,
        "not_understood": sum(refused.values()),
        "blamed": sum(n for (_, blamed), n in refused.items() if blamed),
        **settle(net),
    }


def replay_everything(net: Network) -> Figures:
    """Every frame that was ever sent arrives again, from anyone, in any order: nothing changes."""
    net.record = True
    link_up(net)
    author, other = some(net, 2)
    for version in range(4):
        net.publish(author.name, *cards(net, author, range(version, version + 3)), urgent=True)
        net.publish(other.name, *cards(net, other, range(version + 1)))
        net.run(2 * ROUND_S)
    net.retract(author.name, cards(net, author, [3])[0].leaf)
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


def tampering(net: Network) -> Figures:
    """Every link turns bits and rewrites heads and tables: nothing of it is ever believed."""
    link_up(net)
    net.links = replace(net.links, flip=0.05, forge=0.2)
    net.checker.blameless = False
    for version in range(4):
        for node in some(net, max(2, len(net.nodes) // 4)):
            net.publish(node.name, *cards(net, node, range(version, version + 3)), urgent=True)
        net.run(10 * ROUND_S)
    touched = net.faults["F5 flip"] > 0 and net.faults["F22 forge"] > 0
    net.checker.require(touched, "liveness", "no frame was touched on its way")
    return settle(net)


def _all_hear_all(net: Network, version: int) -> float:
    """All honest nodes publish; return after how long each holds what each has said."""
    authors = net.honest()
    for node in authors:
        net.publish(node.name, *cards(net, node, range(version, version + 3)))
    return until(
        net,
        lambda node: all(has_head(node, author) for author in authors),
        what="hold what each has signed last",
    )


def _heard_among_liars(net: Network) -> float:
    """The longest that news took, of three times at least, and until liars had their chance."""
    times: list[float] = []
    while len(times) < VERSIONS_MAX and (len(times) < VERSIONS or lies_told(net) == 0):
        times.append(_all_hear_all(net, len(times)))
    net.checker.require(lies_told(net) > 0, "liveness", "no hostile node has told a lie")
    return max(times)


def _is_frozen(node: Node, liar: Node) -> bool:
    return standing(node, liar) is not Standing.SOUND


def _usable(node: Node, origins: list[bytes]) -> list[object]:
    assert node.replica is not None
    return [node.replica.view(origin).usable for origin in origins]


def _leaves(node: Node, author: Node) -> list[bytes]:
    """The leaves of an author that a node may use."""
    return [card.leaf for card in view(node, author).usable]


def _surround(net: Network, victim: Node, neighbours: list[Node]) -> None:
    """Leave a node no links, and no names, but these."""
    net.faults["F23 eclipse"] += 1
    net.crash(victim.name)
    names = {node.name: None for node in neighbours if node is not victim}
    for node in net.nodes.values():
        if node is not victim:
            node.links.pop(victim.name, None)
            node.view[:] = [name for name in node.view if name != victim.name]
    for name in names:
        net.nodes[name].links[victim.name] = None
    victim.links.clear()
    victim.links.update(names)
    victim.view[:] = list(names)
    net.start(victim.name)
    net.run(2)
