"""What must hold after every event, and what must hold in the end.

The checker knows the truth, for it sees what every origin signs as it signs it; it never asks a
replica to judge itself. It looks at the node that was touched, at the origins that changed there,
and at the frames that leave it; at all nodes when nothing is going on.

Each statement begins with the number that it has in the protocol's list. Those of consent (I9), of
the budget (I16) and of encoders (I17) are about whole nodes, and are checked where those are
simulated; that a seed has one trace (I18) is seen by playing it twice.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Final, NoReturn

from gossip.config import GossipConfig
from gossip.core import OriginView
from gossip.envelope import read
from gossip.events import (
    Broadcast,
    Effect,
    LeafRetracted,
    OriginChanged,
    Refused,
    Send,
)
from gossip.ports import PeerId
from gossip.wire import (
    HOUR_S,
    SYNC_FRAME_BYTES_MAX,
    Card,
    Cards,
    Delta,
    Ended,
    Head,
    Manifest,
    Op,
    Standing,
    Usage,
    decode_sync,
    encode,
)

from .agreement import partition

if TYPE_CHECKING:
    from .network import Network, Node

Version = tuple[int, int]  # epoch, seq

STATEMENTS: Final = {
    "convergence": "I1: healed and quiet, all honest nodes hold the same of every origin",
    "authenticity": "I2: what stands for an origin is a table that it signed, whole",
    "monotonic": "I3: (epoch, seq) of an origin never falls, but by a crash that lost writes",
    "no self-fork": "I4: no honest node tells two heads under one (epoch, seq), crash or not",
    "no resurrection": "I5: a leaf absent under a head is never live under that or an older one",
    "atomic": "I6: no view has a child of a split or merge without what became of its parents",
    "lineage": "I7: descent has no cycle, and each parent is live, ended or withdrawn",
    "retraction": "I8: a leaf whose retraction a node has heard is never live there again, "
    "nor does its card leave the node",
    "freshness": "I10: nothing of a head that has expired by the node's clock is usable, and none "
    "lives for more than a week",
    "fork": "I11: who signed one history is never frozen or dead; no head of a frozen epoch stands",
    "bundle": "I12: a bundle that a node takes for whole is byte for byte what its root says",
    "families": "I13: the same leaves, in any order, are the same families",
    "bounded": "I14: no frame is too large, no event answered without measure, no more origins "
    "held than may be",
    "durability": "I15: own heads that were told, and retractions that were heard, survive a crash",
    "blame": "no honest node is blamed for passing on what it was sent",
    "replay": "what was once said changes nothing when it is said again",
    "liveness": "what the scenario says should happen does happen",
}

EVENT_BYTES_MAX: Final = 4 << 20  # that leave a node after one event
WEEK_H: Final = 168
ORIGINS_MAX: Final = GossipConfig().origins_max
LOOK_AT_MAX: Final = 100  # nodes of which all is looked at; of more, what has changed
FAMILIES_OF_MAX: Final = 64  # leaves of which families are made twice
TABLES: Final = (b"delta/1", b"manifest/1", b"cards/1")  # the messages that carry cards


class InvariantError(AssertionError):
    """Something that must never happen happened; says which, to whom, and after what."""

    def __init__(self, seed: int, invariant: str, text: str, tail: Sequence[str] = ()) -> None:
        super().__init__(f"seed {seed}: {invariant}: {text}")
        self.seed, self.invariant, self.text, self.tail = seed, invariant, text, list(tail)


@dataclass(slots=True)
class _Known:
    """What one node has shown of one origin so far."""

    version: Version = (0, 0)
    stands: bool = False  # some head does, now
    absent: dict[bytes, Version] = field(default_factory=dict)  # leaf -> last head without it
    live: tuple[bytes, ...] = ()
    frozen: int = 0  # the highest epoch that it has seen frozen
    retracted: dict[bytes | None, None] = field(default_factory=dict)


Table = tuple[tuple[Card, ...], tuple[Ended, ...], tuple[Usage, ...]]


@dataclass(slots=True)
class _Truth:
    """What one origin has signed so far."""

    tables: dict[Head, Table] = field(default_factory=dict)
    gone: dict[bytes, None] = field(default_factory=dict)  # ended under some head, or withdrawn
    parents: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    born: dict[bytes, dict[bytes, int]] = field(default_factory=dict)  # child -> parents' versions


class Checker:
    """Watches one network."""

    def __init__(self, seed: int, *, blameless: bool) -> None:
        self.seed = seed
        self.blameless = blameless  # every frame arrives as its sender wrote it
        self.forkers: dict[bytes, None] = {}  # origins that the scenario makes sign two histories
        self.checks: Counter[str] = Counter()
        self.refused: Counter[tuple[str, bool]] = Counter()  # by reason, and whether it was blamed
        self._names: dict[bytes, PeerId] = {}  # of the nodes, by origin
        self._looks = False  # a network that checks nothing does not tell what was signed either
        self._truth: dict[bytes, _Truth] = {}
        self._told: dict[tuple[bytes, Version], Head] = {}
        self._known: dict[PeerId, dict[bytes, _Known]] = {}
        # What each node has heard to be withdrawn; a leaf of None is all of the origin's.
        self._withdrawn: dict[PeerId, dict[tuple[bytes, bytes | None], None]] = {}

    # ---- what the network tells it -------------------------------------------------------------

    def started(self, node: Node) -> None:
        """A node came up: what it shows now may be older than what it showed, but not its own."""
        assert node.replica is not None
        self._names[node.origin] = node.name
        if not node.disk.keeps:
            self.restored(node)
        self._note(node.origin, node.replica.view(node.origin), honest=True)
        for origin, was in self._known.setdefault(node.name, {}).items():
            view = node.replica.view(origin)
            self.checks["durability"] += 1
            lost = [leaf for leaf in was.retracted if leaf not in view.retracted]
            if lost and view.standing is not Standing.DEAD:
                what = _leaf_of(self.name(origin), lost[0])
                text = f"a crash lost {len(lost)} retractions, as of {what}"
                self._fail("durability", node, text)
            if origin != node.origin:
                was.version, was.absent, was.live, was.frozen = _version(view), {}, (), 0
            elif was.stands and view.standing is Standing.SOUND and _version(view) < was.version:
                self._fail("durability", node, f"own head fell from {was.version} by a crash")

    def restored(self, node: Node) -> None:
        """A node's disk was replaced by a backup: it may know less of everything."""
        self._known[node.name] = {}
        self._withdrawn.pop(node.name, None)

    def signed(
        self,
        origin: bytes,
        head: Head,
        cards: tuple[Card, ...],
        ended: tuple[Ended, ...] = (),
        usage: tuple[Usage, ...] = (),
    ) -> None:
        """A head was signed with an origin's key by no replica of this network."""
        truth = self._truth.setdefault(origin, _Truth())
        truth.tables.setdefault(head, (cards, ended, usage))

    def owned(self, node: Node) -> None:
        """A hostile node's replica may have signed a head, with a key that is its own."""
        assert node.replica is not None
        self._note(node.origin, node.replica.view(node.origin), honest=False)

    def check(self, net: Network, node: Node, effects: Sequence[Effect]) -> None:
        """Check a node after an event; effects: those that were performed."""
        self._looks = True
        if not effects:
            return
        try:
            self._check(net, node, effects)
        except InvariantError as error:
            error.tail = [
                f"{at:12.6f} {what}" for at, name, what in net.tail if name in (node.name, "-")
            ][-12:]
            raise

    def _check(self, net: Network, node: Node, effects: Sequence[Effect]) -> None:
        replica = node.replica
        assert replica is not None
        changed: dict[bytes, None] = {}
        out_bytes, tells = 0, False
        for effect in effects:
            match effect:
                case Send(_, frame) | Broadcast(frame):
                    tells = True
                    out_bytes += len(frame)
                    self._leaves_node(node, frame)
                case OriginChanged(origin):
                    changed[origin] = None
                case LeafRetracted(origin, leaf):
                    self._of(node, origin).retracted[leaf] = None
                    self._withdrawn.setdefault(node.name, {})[origin, leaf] = None
                    if origin == node.origin and leaf is not None:
                        self._truth.setdefault(origin, _Truth()).gone[leaf] = None
                case Refused(peer, reason, blame):
                    self.refused[reason, blame] += 1
                    if blame and self.blameless:
                        self._blamed(net, node, peer, reason)
        if out_bytes > EVENT_BYTES_MAX:
            self._fail("bounded", node, f"one event was answered by {out_bytes} bytes")
        if node.origin in changed:
            self._note(node.origin, replica.view(node.origin), honest=True)
        if tells:
            self._told_once(node, replica.own_head())
        for origin in changed:
            self._view(net, node, replica.view(origin))

    def _blamed(self, net: Network, node: Node, peer: PeerId, reason: str) -> None:
        self.checks["blame"] += 1
        sender = net.nodes.get(peer)
        if sender is None or sender.hostile is None:
            self._fail("blame", node, f"blamed {peer}: {reason}")

    # ---- the truth -----------------------------------------------------------------------------

    def _note(self, origin: bytes, view: OriginView, *, honest: bool) -> None:
        """What a node signs is the truth about it."""
        truth = self._truth.setdefault(origin, _Truth())
        if view.head is None or view.head in truth.tables:
            return
        truth.tables[view.head] = view.cards, view.ended, view.usage
        truth.gone |= {end.leaf: None for end in view.ended}
        if honest:
            self._descends(origin, truth, view)

    def _descends(self, origin: bytes, truth: _Truth, view: OriginView) -> None:
        """What an honest owner signs has parents that are there, and no cycle."""
        states = {end.leaf: end.version for end in view.ended}
        states |= {card.leaf: card.version for card in view.cards}
        for card in view.cards:
            if not card.parents or card.op is Op.ADOPT:
                continue
            self.checks["lineage"] += 1
            truth.parents.setdefault(card.leaf, card.parents)
            truth.born.setdefault(card.leaf, {p: states[p] for p in card.parents if p in states})
            known = (*states, *truth.gone, *(leaf for leaf in view.retracted if leaf))
            if any(parent not in known for parent in card.parents):
                self._say("lineage", f"{self.name(origin)} signed a leaf without its parent")
            if card.leaf in _ancestors(truth, card.leaf):
                self._say("lineage", f"{self.name(origin)} signed a leaf that is its own ancestor")

    # ---- safety --------------------------------------------------------------------------------

    def _told_once(self, node: Node, head: Head | None) -> None:
        """Whatever leaves the machine may carry its head: from then on the number is spent."""
        if head is not None:
            self.checks["no self-fork"] += 1
            told = self._told.setdefault((node.origin, (head.epoch, head.seq)), head)
            if told != head and node.origin not in self.forkers:
                self._fail("no self-fork", node, f"two heads, {_named(told)} and {_named(head)}")

    def _leaves_node(self, node: Node, frame: bytes) -> None:
        """No frame is too large, or has a card that the node knows to be withdrawn."""
        self.checks["bounded"] += 1
        if len(frame) > SYNC_FRAME_BYTES_MAX:
            self._fail("bounded", node, f"sends a frame of {len(frame)} bytes")
        withdrawn = self._withdrawn.get(node.name)
        if withdrawn is None or not any(kind in frame[:16] for kind in TABLES):
            return
        if not any((leaf or origin) in frame for origin, leaf in withdrawn):
            return  # a search for bytes costs a tenth of decoding
        self.checks["retraction"] += 1
        origin, cards = _carried(frame)
        for card in cards:
            if (origin, card.leaf) in withdrawn or (origin, None) in withdrawn:
                what = _leaf_of(self.name(origin), card.leaf)
                self._fail("retraction", node, f"serves {what}, which it knows to be withdrawn")

    def _view(self, net: Network, node: Node, view: OriginView) -> None:
        known = self._of(node, view.origin)
        version = _version(view)
        owner = self.name(view.origin)
        self.checks["fork"] += 1
        if view.standing is not Standing.SOUND:
            known.frozen = max(known.frozen, known.version[0])
            if view.origin not in self.forkers:
                self._fail("fork", node, f"{self.name(view.origin)} is {view.standing.name}")
        known.stands = view.head is not None
        if view.head is not None:
            self._authentic(node, view, view.head)
            self.checks["monotonic"] += 1
            if version < known.version:
                fell = f"{self.name(view.origin)}'s {known.version} fell to {_named(view.head)}"
                self._fail("monotonic", node, fell)
            if version[0] <= known.frozen:
                self._fail("fork", node, f"{_named(view.head)} of {owner} stands, its epoch frozen")
            known.version = version
        self.checks["freshness"] += 1
        if view.usable and view.head and view.head.exp_h < net.clock_s(node) // HOUR_S:
            self._fail("freshness", node, f"leaves of an expired head of {owner} are usable")
        if view.head and view.head.exp_h - view.head.ts_h > WEEK_H:
            self._fail("freshness", node, f"a head of {owner} lives for more than a week")
        self._lives(node, known, view, version)
        self._whole(node, view)

    def _authentic(self, node: Node, view: OriginView, head: Head) -> None:
        self.checks["authenticity"] += 1
        truth = self._truth.get(view.origin)
        signed = truth and truth.tables.get(head)
        what = f"{_named(head)} of {self.name(view.origin)}"
        if not signed:
            self._fail("authenticity", node, f"{what} was never signed")
        cards, ended, usage = signed
        gone = view.retracted
        if gone:
            cards = () if None in gone else tuple(c for c in cards if c.leaf not in gone)
        if view.cards != cards or view.ended != ended or view.usage != usage:
            self._fail("authenticity", node, f"the table of {what} is not the one signed")

    def _lives(self, node: Node, known: _Known, view: OriginView, version: Version) -> None:
        live = tuple(card.leaf for card in view.cards)
        self.checks["no resurrection"] += 1
        self.checks["retraction"] += 1
        for leaf in live:
            if version <= known.absent.get(leaf, (0, -1)):
                again = f"{self._leaf(view, leaf)} lives under {version}"
                self._fail("no resurrection", node, again)
            if leaf in known.retracted or None in known.retracted:
                self._fail("retraction", node, f"{self._leaf(view, leaf)} is live again")
        if view.head is not None:
            known.absent |= {leaf: version for leaf in known.live if leaf not in live}
        known.live = live

    def _whole(self, node: Node, view: OriginView) -> None:
        """A child of a split or merge is seen with what the same head made of its parents."""
        children = [card for card in view.cards if card.parents and card.op is not Op.ADOPT]
        if not children or view.origin not in self._truth:
            return
        truth = self._truth[view.origin]
        versions = {end.leaf: end.version for end in view.ended}
        versions |= {card.leaf: card.version for card in view.cards}
        for child in children:
            self.checks["atomic"] += 1
            for parent, version in truth.born.get(child.leaf, {}).items():
                seen = versions.get(parent)
                if seen is None and (parent in truth.gone or parent in view.retracted):
                    continue  # its row was dropped since, or the leaf was withdrawn
                if seen is None or seen < version:
                    child_of = self._leaf(view, child.leaf)
                    self._fail("atomic", node, f"{child_of} without its parent's state")

    # ---- in the end ----------------------------------------------------------------------------

    def converged(self, net: Network, of: Sequence[bytes] | None = None) -> bool:
        """True if all honest nodes that are up hold the same, of these origins or of all."""
        self.checks["convergence"] += 1
        return self.difference(net, of) is None

    def difference(self, net: Network, of: Sequence[bytes] | None = None) -> str | None:
        """Name two nodes that do not hold the same, and of which origin; None if all do."""
        nodes = net.honest()
        for node in nodes[1:]:
            if (origin := _differing(nodes[0], node, of)) is not None:
                return f"{nodes[0].name} and {node.name} of {self.name(origin)}"
        return None

    def quiet(self, net: Network) -> None:
        """Look at all that all honest nodes hold, whether or not they said that it changed."""
        nodes = net.honest()
        for node in nodes:
            assert node.replica is not None
            names = node.replica.origins()
            self.require(len(names) <= ORIGINS_MAX, "bounded", f"{node.name} holds {len(names)}")
            if self._looks and len(nodes) <= LOOK_AT_MAX:
                self.check(net, node, [OriginChanged(name) for name in names])
        self._same_families(net, nodes)

    def _same_families(self, net: Network, nodes: Sequence[Node]) -> None:
        """Two nodes that hold the same see the same families, in whatever order they look."""
        views = [[view for view in shown(node) if view.cards] for node in nodes[:2]]
        if len(views) < 2 or views[0] != views[1]:
            return
        self.checks["families"] += 1
        cards = [(view.origin, card) for view in views[0] for card in view.usable][:FAMILIES_OF_MAX]
        shuffled = Random(f"{self.seed}/families").sample(cards, len(cards))
        if partition(cards) != partition(shuffled):
            self._fail("families", nodes[0], "families depend on the order of the leaves")

    def require(self, holds: bool, invariant: str, text: str) -> None:
        """Fail unless it holds; for what only the scenario knows."""
        self.checks[invariant] += 1
        if not holds:
            self._say(invariant, text)

    def name(self, origin: bytes) -> str:
        """An origin as a report calls it: by its node, if it has one."""
        return self._names.get(origin) or origin.hex()[:8]

    def _leaf(self, view: OriginView, leaf: bytes) -> str:
        return _leaf_of(self.name(view.origin), leaf)

    def _of(self, node: Node, origin: bytes) -> _Known:
        return self._known.setdefault(node.name, {}).setdefault(origin, _Known())

    def _fail(self, invariant: str, node: Node, text: str) -> NoReturn:
        self._say(invariant, f"{node.name}: {text}")

    def _say(self, invariant: str, text: str) -> NoReturn:
        raise InvariantError(self.seed, invariant, text)


def shown(node: Node) -> tuple[OriginView, ...]:
    """All that a node shows. Staleness is left out: it depends on when the node last looked."""
    assert node.replica is not None
    views = (node.replica.view(origin) for origin in node.replica.origins())
    return tuple(replace(view, stale=False) for view in views)


def _differing(a: Node, b: Node, of: Sequence[bytes] | None) -> bytes | None:
    """The first origin of which two nodes do not show the same."""
    assert a.replica is not None
    assert b.replica is not None
    names = a.replica.origins() if of is None else of
    if of is None and names != (others := b.replica.origins()):
        return min(set(names).symmetric_difference(others))
    views = ((name, a.replica.view(name), b.replica.view(name)) for name in names)
    return next((name for name, left, right in views if not _same(left, right)), None)


def _same(a: OriginView, b: OriginView) -> bool:
    return (
        a.head == b.head
        and a.standing is b.standing
        and a.retracted == b.retracted
        and (a.cards, a.ended, a.usage) == (b.cards, b.ended, b.usage)
    )


def _leaf_of(owner: str, leaf: bytes | None) -> str:
    return f"{owner}'s leaf {leaf.hex()[:8]}" if leaf is not None else f"all of {owner}"


def _named(head: Head) -> str:
    """A head as a report calls it: its number, and what tells it from another of that number."""
    short = hashlib.sha256(encode(head)).hexdigest()[:8]
    return f"head ({head.epoch}, {head.seq}, {short})"


def _version(view: OriginView) -> Version:
    return (view.head.epoch, view.head.seq) if view.head else (0, 0)


def _ancestors(truth: _Truth, leaf: bytes) -> dict[bytes, None]:
    found: dict[bytes, None] = {}
    due = list(truth.parents.get(leaf, ()))
    while due:
        if (parent := due.pop()) not in found:
            found[parent] = None
            due += truth.parents.get(parent, ())
    return found


def _carried(frame: bytes) -> tuple[bytes, tuple[Card, ...]]:
    """The cards in a frame that leaves a node, and whose they are."""
    match decode_sync(frame):
        case Cards(origin, _, cards):
            return origin, cards
        case Manifest(env, _, cards):
            return read(env, Head).value.origin, cards
        case Delta(env, _, _, puts):
            return read(env, Head).value.origin, puts
        case _:
            return b"", ()
