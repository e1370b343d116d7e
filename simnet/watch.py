"""The door through which a picture or an explanation looks at a network while it runs.

A network tells those who watch what happens, and none of them can change it: a run has the same
trace hash whoever looks on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from gossip.events import Effect, Event
from gossip.ports import PeerId

if TYPE_CHECKING:
    from .network import Network, Node

Change = Literal["partition", "heal", "crash", "start"]


class Watcher:
    """What `Network.watch` takes. It looks away; those that look at something say so."""

    def __init__(self, net: Network) -> None:
        self.net = net

    def handing(self, node: Node, event: Event) -> None:
        """A node is about to be given an event, which may be its last: this is told before."""

    def handed(self, node: Node, event: Event, effects: Sequence[Effect]) -> None:
        """A node was given an event, and these of its effects were performed."""

    def carried(self, src: PeerId, dst: PeerId, size_bytes: int, urgent: bool) -> None:
        """A frame left for a neighbour; whether it arrives is for the links to say."""

    def changed(self, kind: Change, name: PeerId | None) -> None:
        """Something was done to the network by the scenario: to one node, or to all (None)."""
