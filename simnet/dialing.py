"""Who links with whom, and what a node does that has lost its links.

Nodes begin as a ring with chords: connected, and of few hops. Each knows the names of some others
(its passive view), learned at the start and from those it is linked with, and dials them when it
has too few links left, with growing pauses for who does not answer, as `gossip.dialer` does.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

from .machine import Node

if TYPE_CHECKING:
    from .network import Network

VIEW_MAX: Final = 30  # names of a passive view, as HyParView's
SHUFFLE: Final = 3  # names that two nodes tell each other when they link
LINKS_MAX: Final = 32  # peers that a node connects to at its start, or lets connect
PAUSE_S: Final = (1.0, 60.0)  # before a name that did not answer is dialled again


class Dialing:
    """The links of one network, and the dialling of its nodes."""

    def __init__(self, net: Network, degree: int, *, redial: bool) -> None:
        self._net = net
        self._redial = redial
        self._degree = degree
        # Every node has this many links in the beginning: its two on the ring, and its chords.
        self._low = max(2, degree // 2 + 1)

    def wire(self) -> None:
        """Link the nodes, and name to each some others."""
        net, names = self._net, list(self._net.nodes)
        rng, chance = Random(f"{net.seed}/wiring"), Random(f"{net.seed}/views")
        for i, name in enumerate(names):
            others = [names[(i + 1) % len(names)], *rng.choices(names, k=self._degree // 2 - 1)]
            for other in others:
                if other != name:
                    net.nodes[name].links[other] = None
                    net.nodes[other].links[name] = None
        for name, node in net.nodes.items():
            heard = chance.sample(names, min(VIEW_MAX + 1, len(names)))
            node.view = [other for other in heard if other != name][:VIEW_MAX]

    def start(self, node: Node) -> None:
        """A node came up: it connects to those it was linked with."""
        for name in list(node.links)[:LINKS_MAX]:
            peer = self._net.nodes[name]
            if peer.awake and len(peer.connected) < LINKS_MAX:
                self._net.link(node, peer)
        self.look(node)

    def linked(self, node: Node, peer: Node) -> None:
        """A node was linked with a peer, which tells it some names."""
        node.retry.pop(peer.name, None)
        known = [*peer.view, *peer.links]
        for name in node.rng.sample(known, min(SHUFFLE, len(known))):
            if name != node.name and name not in node.view:
                node.view.append(name)
        while len(node.view) > VIEW_MAX:
            node.view.pop(node.rng.randrange(len(node.view)))

    def look(self, node: Node) -> None:
        """Dial soon if a node has too few links."""
        if self._redial and not node.dialling and self._lacking(node) > 0:
            node.dialling = True
            self._net.post(node.rng.uniform(0.5, 2.0), self._round, node, node.life)

    def _lacking(self, node: Node) -> int:
        return min(self._low, len(self._net.nodes) - 1) - len(node.connected)

    def _round(self, node: Node, life: int) -> None:
        """Dial as many as are lacking, and one more, for of those who vanished many may be dead."""
        if node.life != life or not node.awake:
            return
        node.dialling = False
        if (lacking := self._lacking(node)) <= 0:
            return
        now, names = self._net.now, dict.fromkeys((*node.links, *node.view))
        strange = [name for name in names if name not in node.connected]
        ready = [name for name in strange if node.retry.get(name, (0.0, 0.0))[1] <= now]
        for name in node.rng.sample(ready, min(lacking + 1, len(ready))):
            self._dial(node, self._net.nodes[name])
        due = [node.retry[name][1] for name in strange if name in node.retry]
        wait_s = min(due) - now if due and len(ready) <= lacking + 1 else PAUSE_S[0]
        node.dialling = True
        self._net.post(max(PAUSE_S[0], wait_s), self._round, node, life)

    def _dial(self, node: Node, peer: Node) -> None:
        net = self._net
        silent = net.is_silent(node.name, peer.name) or net.is_silent(peer.name, node.name)
        if peer.awake and len(peer.connected) < LINKS_MAX and not silent:
            node.links[peer.name] = peer.links[node.name] = None
            self._net.link(node, peer)
            self._trim(node)
            self._trim(peer)
        else:
            pause_s = min(PAUSE_S[1], 2 * node.retry.get(peer.name, (PAUSE_S[0] / 2, 0.0))[0])
            until = self._net.now + pause_s * node.rng.uniform(0.5, 1.0)
            node.retry[peer.name] = (pause_s, until)

    def _trim(self, node: Node) -> None:
        """Forget the oldest links that lead nowhere, beyond what a start would connect to."""
        gone = [name for name in node.links if name not in node.connected]
        for name in gone[: max(0, len(node.links) - LINKS_MAX)]:
            del node.links[name]
