"""What happens to frames between two nodes: latency, loss, partitions, lines of a limited rate.

A frame waits until those before it have left its sender, travels, and waits until those before it
have arrived at its receiver; where a line has no limit neither takes any time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from gossip.ports import PeerId

from .faults import RELIABLE, Links
from .machine import Node

if TYPE_CHECKING:
    from .network import Network

Heard = Callable[[Node, PeerId, tuple[bytes, ...]], None]  # what becomes of a frame of ids
Lives = tuple[int, int]  # which of the sender's, and which of the receiver's
Deliver = Callable[[PeerId, Node, bytes, int, bool], None]


class Lines:
    """Carries the frames of one network; `deliver` takes those that arrive."""

    def __init__(self, net: Network, links: Links, deliver: Deliver) -> None:
        self.use(links)
        self._net = net
        self._deliver = deliver
        self._rng = Random(f"{net.seed}/links")

    def use(self, links: Links) -> None:
        """Let frames travel like this from now on."""
        self._links = links
        # Most links only lose frames, or delay them a little: these are carried at less cost.
        self._plain = links == replace(RELIABLE, latency_s=links.latency_s, loss=links.loss)

    def latency_s(self) -> float:
        """How long a frame travels that is not delayed."""
        low, high = self._links.latency_s
        return low + (high - low) * self._rng.random()

    def carry(self, src: Node, dst: PeerId, frame: bytes, depth: int, *, urgent: bool) -> None:
        """Send a frame on its way, with all that can happen to it there."""
        net, size = self._net, len(frame)
        sent, node = net.sent, net.nodes[dst]
        sent["urgent_frames" if urgent else "bulk_frames"] += 1
        sent["urgent_bytes" if urgent else "bulk_bytes"] += size
        src.bytes_out += size
        if net.is_watched:
            net.carried(src, dst, frame, urgent=urgent)
        wait_s = 0.0 if src.rate_bytes_s is None else self._leaves(src, size, src.rate_bytes_s)
        lives = _lives(src, node)
        if not self._plain:
            copies = self._links.deliveries(frame, self._rng, net.faults, urgent=urgent)
            for after, arriving in copies:
                net.post(
                    wait_s + after, self.arrive, src.name, node, lives, arriving, depth, urgent
                )
        elif not self._loses():
            after = wait_s + self.latency_s()
            net.post(after, self.arrive, src.name, node, lives, frame, depth, urgent)

    def control(
        self, src: Node, dst: PeerId, heard: Heard, ids: tuple[bytes, ...], size: int
    ) -> None:
        """Send a frame of the urgent plane's own; it is lost as often as any other."""
        net = self._net
        net.sent["lazy_frames"] += 1
        net.sent["lazy_bytes"] += size
        src.bytes_out += size
        if not self._loses():
            node = net.nodes[dst]
            lives = _lives(src, node)
            net.post(self.latency_s(), self._hear, src, node, lives, heard, ids, size)

    def arrive(
        self,
        src: PeerId,
        node: Node,
        lives: Lives | None,
        frame: bytes,
        depth: int,
        urgent: bool,
    ) -> None:
        """A frame has come to the end of the line.

        lives: the sender's and the receiver's between which it was sent; None: any.
        """
        if not self._passes(src, node) or (lives is not None and self._is_cut(src, node, lives)):
            return
        node.bytes_in += len(frame)
        if node.rate_bytes_s is None:
            self._deliver(src, node, frame, depth, urgent)
            return
        now = self._net.now
        node.busy_in = max(now, node.busy_in) + len(frame) / node.rate_bytes_s
        wait_s, lives = node.busy_in - now, lives or _lives(self._net.nodes[src], node)
        self._net.post(wait_s, self._arrived, src, node, lives, frame, depth, urgent)

    def _arrived(
        self, src: PeerId, node: Node, lives: Lives, frame: bytes, depth: int, urgent: bool
    ) -> None:
        if node.awake and not self._is_cut(src, node, lives):
            self._deliver(src, node, frame, depth, urgent)

    def _hear(
        self, src: Node, node: Node, lives: Lives, heard: Heard, ids: tuple[bytes, ...], size: int
    ) -> None:
        if self._passes(src.name, node) and not self._is_cut(src.name, node, lives):
            node.bytes_in += size
            heard(node, src.name, ids)

    def _loses(self) -> bool:
        loses = self._links.loss > 0 and self._rng.random() < self._links.loss
        if loses:
            self._net.faults["F1 loss"] += 1
        return loses

    def _leaves(self, node: Node, size: int, rate: float) -> float:
        """Return after how long a frame has left a node, behind those before it."""
        now = self._net.now
        node.busy_out = max(now, node.busy_out) + size / rate
        return node.busy_out - now

    def _is_cut(self, src: PeerId, node: Node, lives: Lives) -> bool:
        """A connection ends with the life of either end; what it still carried is not heard."""
        cut = lives != (node.connected.get(src, lives[0]), node.life)
        if cut:
            self._net.faults["F9 cut by crash"] += 1
        return cut

    def _passes(self, src: PeerId, node: Node) -> bool:
        """True unless a frame is lost at the node, or before it."""
        net = self._net
        if (net.sides or net.blocked) and net.is_silent(src, node.name):
            net.faults["F6 cut off"] += 1
            return False
        if node.asleep:
            net.faults["F18 not heard"] += 1
            return False
        return node.replica is not None


def _lives(src: Node, node: Node) -> Lives:
    """Between which lives of two nodes a frame is sent now."""
    return src.life, src.connected.get(node.name, node.life)
