"""What must hold after every event, and what must hold in the end.

The checker knows the truth, for it sees what every origin signs as it signs it; it never asks a
replica to judge itself. It looks at the node that was touched, at the origins that changed there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn

from gossip.core import OriginView
from gossip.events import Broadcast, Effect, LeafRetracted, OriginChanged, Refused, Send
from gossip.ports import PeerId
from gossip.wire import Card, Ended, Head, Standing

if TYPE_CHECKING:
    from .network import Network, Node

Version = tuple[int, int]  # epoch, seq

STATEMENTS = {
    "convergence": "healed and quiet, all nodes hold the same of every origin",
    "authenticity": "what stands for an origin is a table that it signed, whole",
    "monotonic": "(epoch, seq) of an origin never falls at a node, but by a crash that lost writes",
    "no self-fork": "no node tells two heads under one (epoch, seq), crash or not",
    "no resurrection": "a leaf absent under a head is never live under that one or an older",
    "retraction": "a leaf whose retraction a node has heard is never live there again",
    "freshness": "nothing of an expired head is usable",
    "fork": "who signed one history is never frozen or dead anywhere",
    "blame": "no node is blamed for passing on what it was sent",
    "replay": "what was once said changes nothing when it is said again",
    "liveness": "what the scenario says should happen does happen",
}


class InvariantError(AssertionError):
    """Something that must never happen happened; says which, to whom, and after what."""

    def __init__(self, seed: int, invariant: str, text: str, tail: Sequence[str] = ()) -> None:
        super().__init__(f"seed {seed}: {invariant}: {text}")
        self.seed, self.invariant, self.text, self.tail = seed, invariant, text, list(tail)


@dataclass(slots=True)
class _Known:
    """What one node has shown of one origin so far."""

    version: Version = (0, 0)
    absent: dict[bytes, Version] = field(default_factory=dict)  # leaf -> last head without it
    live: tuple[bytes, ...] = ()
    retracted: dict[bytes | None, None] = field(default_factory=dict)


class Checker:
    """Watches one network."""

    def __init__(self, seed: int, *, blameless: bool) -> None:
        self.seed = seed
        self.blameless = blameless  # every frame arrives as an honest node wrote it
        self.forkers: dict[bytes, None] = {}  # origins that the scenario makes sign two histories
        self.checks: Counter[str] = Counter()
        self._signed: dict[tuple[bytes, Head], tuple[tuple[Card, ...], tuple[Ended, ...]]] = {}
        self._told: dict[tuple[bytes, Version], Head] = {}
        self._known: dict[PeerId, dict[bytes, _Known]] = {}

    # ---- what the network tells it -------------------------------------------------------------

    def started(self, node: Node) -> None:
        """A node came up: what it shows now may be older than what it showed, but not its own."""
        assert node.replica is not None
        self._note_signed(node, node.replica.view(node.origin))
        for origin, was in self._known.setdefault(node.name, {}).items():
            view = node.replica.view(origin)
            if origin != node.origin:
                was.version, was.absent, was.live = _version(view), {}, ()
            elif view.standing is Standing.SOUND and _version(view) < was.version:
                self._fail("monotonic", node, f"own head fell from {was.version} by a crash")

    def restored(self, node: Node) -> None:
        """A node's disk was replaced by a backup: it may know less of everything."""
        self._known[node.name] = {}

    def check(self, net: Network, node: Node, effects: Sequence[Effect]) -> None:
        """Check a node after an event; effects: those that were performed."""
        replica = node.replica
        assert replica is not None
        changed = list(dict.fromkeys(e.origin for e in effects if isinstance(e, OriginChanged)))
        try:
            if node.origin in changed:
                self._note_signed(node, replica.view(node.origin))
            if any(isinstance(effect, Send | Broadcast) for effect in effects):
                self._told_once(node, replica.own_head())
            for effect in effects:
                match effect:
                    case LeafRetracted(origin, leaf):
                        self._of(node, origin).retracted[leaf] = None
                    case Refused(peer, reason, True) if self.blameless:
                        self._fail("blame", node, f"blamed {peer}: {reason}")
            for origin in changed:
                self._view(net, node, replica.view(origin))
        except InvariantError as error:
            error.tail = [
                f"{at:12.6f} {what}" for at, name, what in net.tail if name in (node.name, "-")
            ][-12:]
            raise

    # ---- safety --------------------------------------------------------------------------------

    def _told_once(self, node: Node, head: Head | None) -> None:
        """Whatever leaves the machine may carry its head: from then on the number is spent."""
        if head is not None:
            self.checks["no self-fork"] += 1
            told = self._told.setdefault((node.origin, (head.epoch, head.seq)), head)
            if told != head and node.origin not in self.forkers:
                self._fail("no self-fork", node, f"two heads under {(head.epoch, head.seq)}")

    def _note_signed(self, node: Node, view: OriginView) -> None:
        """What a node signs is the truth about it."""
        if view.head is not None:
            self._signed.setdefault((node.origin, view.head), (view.cards, view.ended))

    def _view(self, net: Network, node: Node, view: OriginView) -> None:
        known = self._of(node, view.origin)
        version = _version(view)
        self.checks["fork"] += 1
        if view.standing is not Standing.SOUND and view.origin not in self.forkers:
            self._fail("fork", node, f"{view.origin.hex()[:8]} is {view.standing.name}")
        if view.head is not None:
            self._authentic(node, view, view.head)
            self.checks["monotonic"] += 1
            if version < known.version:
                self._fail("monotonic", node, f"{known.version} fell to {version}")
            known.version = version
        self.checks["freshness"] += 1
        if view.usable and view.head and view.head.exp_h < net.now_s // 3600:
            self._fail("freshness", node, "leaves of an expired head are usable")
        self._leaves(node, known, view, version)

    def _authentic(self, node: Node, view: OriginView, head: Head) -> None:
        self.checks["authenticity"] += 1
        signed = self._signed.get((view.origin, head))
        if signed is None:
            self._fail("authenticity", node, f"head {head.seq} was never signed")
        cards, ended = signed
        gone = view.retracted
        expected = () if None in gone else tuple(c for c in cards if c.leaf not in gone)
        if view.cards != expected or view.ended != ended:
            self._fail("authenticity", node, f"table of head {head.seq} is not the one signed")

    def _leaves(self, node: Node, known: _Known, view: OriginView, version: Version) -> None:
        live = tuple(card.leaf for card in view.cards)
        self.checks["no resurrection"] += 1
        self.checks["retraction"] += 1
        for leaf in live:
            if version <= known.absent.get(leaf, (0, -1)):
                self._fail("no resurrection", node, f"{leaf.hex()[:8]} lives under {version}")
            if leaf in known.retracted or None in known.retracted:
                self._fail("retraction", node, f"{leaf.hex()[:8]} is live again")
        if view.head is not None:
            known.absent |= {leaf: version for leaf in known.live if leaf not in live}
        known.live = live

    # ---- in the end ----------------------------------------------------------------------------

    def converged(self, net: Network) -> bool:
        """True if all nodes that are up hold the same."""
        self.checks["convergence"] += 1
        return len({shown(node) for node in net.up()}) <= 1

    def require(self, holds: bool, invariant: str, text: str) -> None:
        """Fail unless it holds; for what only the scenario knows."""
        self.checks[invariant] += 1
        if not holds:
            raise InvariantError(self.seed, invariant, text)

    def _of(self, node: Node, origin: bytes) -> _Known:
        return self._known.setdefault(node.name, {}).setdefault(origin, _Known())

    def _fail(self, invariant: str, node: Node, text: str) -> NoReturn:
        raise InvariantError(self.seed, invariant, f"{node.name}: {text}")


def shown(node: Node) -> tuple[OriginView, ...]:
    """All that a node shows. Staleness is left out: it depends on when the node last looked."""
    assert node.replica is not None
    views = (node.replica.view(origin) for origin in node.replica.origins())
    return tuple(replace(view, stale=False) for view in views)


def _version(view: OriginView) -> Version:
    return (view.head.epoch, view.head.seq) if view.head else (0, 0)
