"""The urgent plane: a model of gossipsub as `libp2p_fence` runs it.

    a broadcast ──► validated ──► pushed to the mesh ──► for three heartbeats told by hash (IHAVE)
                                                         to six others ──► asked for (IWANT)

The mesh is a part of the links, of the degree that the transport has: a node that is in it with too
few asks others at a heartbeat, and who has room for it pushes to it from then on, and it to them.

Each of these frames is lost as often as any other. What nobody has asked for within three seconds
is the bulk plane's to mend. A heartbeat is an event only where there is something to tell.
"""

from __future__ import annotations

import hashlib
from random import Random
from typing import TYPE_CHECKING, Final

from gossip.events import Received
from gossip.ports import PeerId
from gossip.transport_config import MESH_DEGREE, MESH_HIGH, MESH_LOW

from .lines import Heard
from .machine import Fresh, Node

if TYPE_CHECKING:
    from .network import Network

LAZY: Final = 6  # peers outside the mesh that are told at a heartbeat
WINDOWS: Final = 3  # heartbeats at which a broadcast is told of
HEARTBEAT_S: Final = 1.0
VALIDATION_S: Final = 0.02  # from a broadcast's arrival to its being passed on
SEEN_S: Final = 120.0  # how long a broadcast is known again
ASK_AGAIN_S: Final = 0.5  # one that was asked for and did not come
ID_BYTES: Final = 20
CONTROL_BYTES: Final = 16  # of a frame of ids, beside the ids


class UrgentPlane:
    """Carries the broadcasts of one network."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self._rng = Random(f"{net.seed}/mesh")

    def broadcast(self, node: Node, frame: bytes, depth: int) -> None:
        """Put a node's own broadcast on the plane; one that it has seen goes no further."""
        if self._note(node, broadcast := _id(frame)):
            self._pass_on(node, broadcast, frame, depth, but={})

    def arrive(self, node: Node, src: PeerId, frame: bytes, depth: int) -> None:
        """A copy of a broadcast arrived at a node that is awake."""
        net, broadcast = self._net, _id(frame)
        if not self._note(node, broadcast):
            net.sent["urgent_duplicate"] += 1
            if (senders := node.validating.get(broadcast)) is not None:
                senders[src] = None
            elif broadcast in node.strange and src in node.connected:
                # Over libp2p who tells is always connected: the core learns of whom to ask more.
                del node.strange[broadcast]
                net.arrived(node, Received(src, frame, net.clock_s(node), True), depth)
            return
        net.sent["urgent_first"] += 1
        node.asked.pop(broadcast, None)
        node.validating[broadcast] = {src: None}
        net.post(VALIDATION_S, self._validated, node, node.life, src, broadcast, frame, depth)

    def _validated(
        self, node: Node, life: int, src: PeerId, broadcast: bytes, frame: bytes, depth: int
    ) -> None:
        senders = node.validating.pop(broadcast, {}) if node.life == life else {}
        if node.life != life or not node.awake:
            return
        if node.hostile is None:
            self._pass_on(node, broadcast, frame, depth + 1, but=senders)
        via = next((sender for sender in senders if sender in node.connected), None)
        if via is None:
            node.strange[broadcast] = None
        event = Received(via or src, frame, self._net.clock_s(node), True)
        self._net.arrived(node, event, depth)

    def _pass_on(
        self, node: Node, broadcast: bytes, frame: bytes, depth: int, *, but: dict[PeerId, None]
    ) -> None:
        for peer in node.mesh:
            if peer not in but:
                self._net.lines.carry(node, peer, frame, depth, urgent=True)
        node.fresh[broadcast] = Fresh(frame, WINDOWS, depth)
        if not node.beating:
            node.beating = True
            phase = node.rng.random() * HEARTBEAT_S  # hearts do not beat in step
            self._net.post(phase, self._beat, node, node.life)

    def _note(self, node: Node, broadcast: bytes) -> bool:
        """Remember a broadcast; False if it is remembered already."""
        now, seen = self._net.now, node.seen
        while seen:
            oldest = next(iter(seen))
            if now - seen[oldest] < SEEN_S:
                break
            del seen[oldest]
            node.strange.pop(oldest, None)
        if broadcast in seen:
            return False
        seen[broadcast] = now
        return True

    # ---- the mesh ------------------------------------------------------------------------------

    def linked(self, node: Node, peer: Node) -> None:
        """A node has noticed a link; once both have, either may ask the other into its mesh."""
        if node.name in peer.connected:
            self._look(node)
            self._look(peer)

    def unlinked(self, node: Node, peer: Node) -> None:
        """A node has noticed the end of a link."""
        node.mesh.pop(peer.name, None)
        peer.mesh.pop(node.name, None)
        self._look(node)

    def _look(self, node: Node) -> None:
        if len(node.mesh) < MESH_LOW and not node.grafting:
            node.grafting = True
            self._net.post(self._rng.random() * HEARTBEAT_S, self._graft, node, node.life)

    def _graft(self, node: Node, life: int) -> None:
        """GRAFT, at a heartbeat: fill the mesh from among the links, if it is too small."""
        if node.life != life or node.replica is None:
            return
        node.grafting = False
        if len(node.mesh) >= MESH_LOW:
            return
        willing = [name for name in node.connected if self._takes(self._net.nodes[name], node)]
        for name in self._rng.sample(willing, min(MESH_DEGREE - len(node.mesh), len(willing))):
            node.mesh[name] = self._net.nodes[name].mesh[node.name] = None

    def _takes(self, peer: Node, node: Node) -> bool:
        """True if a peer lets a node into its mesh, where it is not yet."""
        linked = peer.awake and node.name in peer.connected and node.name not in peer.mesh
        return linked and len(peer.mesh) < MESH_HIGH

    # ---- lazy repair ---------------------------------------------------------------------------

    def _beat(self, node: Node, life: int) -> None:
        if node.life != life or node.replica is None:
            return
        told = tuple(b for b, fresh in node.fresh.items() if fresh.windows > 0)
        if told and not node.asleep:
            outside = [name for name in node.view if name not in node.connected]
            outside += [name for name in node.connected if name not in node.mesh]
            for name in node.rng.sample(outside, min(LAZY, len(outside))):
                self._control(node, name, self._told, told)
        for broadcast in list(node.fresh):
            node.fresh[broadcast].windows -= 1
            if node.fresh[broadcast].windows < -1:  # an answer to the last word may be on its way
                del node.fresh[broadcast]
        node.beating = bool(node.fresh)
        if node.beating:
            self._net.post(HEARTBEAT_S, self._beat, node, life)

    def _told(self, node: Node, src: PeerId, told: tuple[bytes, ...]) -> None:
        """IHAVE: ask for what was not seen, unless another was asked a moment ago."""
        now = self._net.now
        lacking = tuple(
            broadcast
            for broadcast in told
            if broadcast not in node.seen and now >= node.asked.get(broadcast, 0.0)
        )
        if lacking:
            node.asked |= dict.fromkeys(lacking, now + ASK_AGAIN_S)
            self._control(node, src, self._wanted, lacking)

    def _wanted(self, node: Node, src: PeerId, wanted: tuple[bytes, ...]) -> None:
        """IWANT: send what is still at hand."""
        for broadcast in wanted:
            if (fresh := node.fresh.get(broadcast)) is not None:
                self._net.lines.carry(node, src, fresh.frame, fresh.depth + 2, urgent=True)

    def _control(self, node: Node, to: PeerId, heard: Heard, ids: tuple[bytes, ...]) -> None:
        """Send a frame of ids; it may be lost as any other."""
        self._net.lines.control(node, to, heard, ids, CONTROL_BYTES + ID_BYTES * len(ids))


def _id(frame: bytes) -> bytes:
    return hashlib.sha256(frame).digest()[:ID_BYTES]
