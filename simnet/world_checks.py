"""What must hold of whole nodes, looked at from outside: their disks, tables and routers.

The truth is what the owners did and what each origin signed, as the world saw it; no node is asked
to judge itself. The names are those of `simnet.invariants` where it is the same statement of cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, NoReturn

from gossip.core import OriginView
from gossip.wire import Card, Head, Standing
from leaves.families import Candidate, families
from leaves.model import LeafId, Stage
from node import mesh
from node.foreign import SERVED, Known, State

from .invariants import InvariantError

if TYPE_CHECKING:
    from node.app import App
    from router.table import Entry

    from .world import Node, World

Version = tuple[int, int]  # epoch, seq

STATEMENTS = {
    "monotonic": "(epoch, seq) of an origin never falls at a node, across crashes",
    "no self-fork": "no node signs two heads with one (epoch, seq), killed or not",
    "no resurrection": "a leaf absent under a head is never live under that one or an older",
    "atomic": "no table shows a child of a split or merge without the state of its parents",
    "lineage": "parents are in the table or ended in it, and there is no cycle",
    "retraction": "what was retracted is not routed, not served, and gone from disk within 60 s",
    "consent": "without a scope nothing more is published, fetched, served or routed",
    "freshness": "nothing of an expired head is routed",
    "fork": "who signed one history is frozen or dead nowhere",
    "bundle": "what is routed or served has the hash that a signed card names",
    "families": "equal sets of leaves make equal families, in any order",
    "compatibility": "nothing of another encoder or chassis is routed",
    "router": "the table holds own live leaves and accepted live leaves of peers, and all of them",
}


@dataclass
class WorldChecks:
    """Watches one world."""

    world: World
    checks: Counter[str] = field(default_factory=Counter)
    _seen: dict[tuple[str, bytes], Version] = field(default_factory=dict)
    _signed: dict[tuple[bytes, Version], Head] = field(default_factory=dict)
    _absent: dict[tuple[str, bytes], dict[bytes, Version]] = field(default_factory=dict)
    _live: dict[tuple[str, bytes], frozenset[bytes]] = field(default_factory=dict)
    _kept_to: dict[str, Version] = field(default_factory=dict)  # heads of who may not publish

    def morning(self) -> None:
        """Look at all that is up."""
        for node in self.world.up():
            self.replica(node)
            self.router(node)
            self.served(node)
            self.consent(node)
        self.same_families()

    # ---- what a node holds of the mesh -----------------------------------------------------------

    def replica(self, node: Node) -> None:
        assert node.daemon is not None
        for origin in node.daemon.replica.origins():
            view = node.daemon.replica.view(origin)
            self._holds("fork", node, view.standing is Standing.SOUND, view.standing.name)
            if view.head is None:
                continue
            version = (view.head.epoch, view.head.seq)
            was = self._seen.get((node.name, origin), (0, 0))
            self._holds("monotonic", node, version >= was, f"{was} fell to {version}")
            self._seen[node.name, origin] = version
            first = self._signed.setdefault((origin, version), view.head)
            self._holds("no self-fork", node, first == view.head, f"two heads under {version}")
            self._table(node, view, version)

    def _table(self, node: Node, view: OriginView, version: Version) -> None:
        live = frozenset(card.leaf for card in view.cards)
        ended = {end.leaf: end for end in view.ended}
        absent = self._absent.setdefault((node.name, view.origin), {})
        for leaf in live:
            back = version <= absent.get(leaf, (0, -1))
            self._holds("no resurrection", node, not back, f"{leaf.hex()[:8]} under {version}")
        for leaf in self._live.get((node.name, view.origin), frozenset()) - live:
            absent[leaf] = version
        self._live[node.name, view.origin] = live
        for card in view.cards:
            self._parents(node, view, card, live | ended.keys() | set(view.retracted))
        for end in view.ended:
            known = set(end.into) <= live | ended.keys() | set(view.retracted)
            self._holds("atomic", node, known, f"{end.leaf.hex()[:8]} went into what is not there")

    def _parents(
        self, node: Node, view: OriginView, card: Card, there: frozenset[bytes | None]
    ) -> None:
        name = card.leaf.hex()[:8]
        whole = set(card.parents) <= there
        self._holds("atomic", node, whole, f"{name} is there without its parents")
        above = {one.leaf: one.parents for one in view.cards}
        seen: set[bytes] = set()
        waiting = list(card.parents)
        while waiting:
            parent = waiting.pop()
            self._holds("lineage", node, parent != card.leaf, f"{name} is its own ancestor")
            if parent not in seen:
                seen.add(parent)
                waiting += above.get(parent, ())

    # ---- what it routes to and serves ------------------------------------------------------------

    def router(self, node: Node) -> None:
        """The table in force and what may be routed to are the same, both ways."""
        app = node.app
        assert app is not None
        kept = app.tables.current()
        if kept is None:
            return
        entries = [entry for entry in kept.table.entries if not entry.system]
        self._own(node, app, [e for e in entries if not e.origin], held=kept.note.held)
        self._foreign(node, app, [e for e in entries if e.origin])

    def _own(self, node: Node, app: App, entries: list[Entry], *, held: bool) -> None:
        forest = app.forests.forest()
        if app.forests.open_round() is not None:
            return  # of a round that was killed: its table comes when it is taken up
        there = {entry.leaf for entry in entries if entry.servable}
        for entry in entries:
            leaf = forest.leaves.get(entry.leaf)
            fits = leaf is not None and (leaf.stage.live or leaf.stage is Stage.MERGED)
            self._holds("router", node, fits, f"{entry.name} is routed and not alive")
            if entry.servable and leaf is not None:
                able = leaf.adapter is not None and leaf.wins > 0
                self._holds("router", node, able, f"{entry.name} answers and never won")
        for leaf in forest.live():
            if leaf.level > 1 and leaf.adapter and leaf.wins and leaf.stage is not Stage.SEED:
                ready = leaf.id in there or held
                self._holds("router", node, ready, f"{leaf.name} has won and is not routed")

    def _foreign(self, node: Node, app: App, entries: list[Entry]) -> None:
        may = {(known.leaf.origin, known.leaf.leaf): known for known in self._routable(node, app)}
        for entry in entries:
            known = may.pop((entry.origin, entry.leaf), None)
            fits = known is not None and known.leaf.root == entry.bundle
            self._holds("router", node, fits, f"{entry.name} of {entry.origin[:8]} is routed")
            assert known is not None
            self._whole(node, app, known)
        missing = [known.name for known in may.values()]
        self._holds("router", node, not missing, f"accepted and not routed: {missing}")

    def _routable(self, node: Node, app: App) -> Iterator[Known]:
        """Leaves of peers that are live, unexpired, not retracted, fetched and accepted."""
        assert node.daemon is not None
        if not app.allows("fetch"):
            return
        for known in app.foreign.all():
            if known.state is not State.ACCEPTED:
                continue
            view = node.daemon.replica.view(bytes.fromhex(known.leaf.origin))
            card = {card.leaf.hex(): card for card in view.cards}.get(known.leaf.leaf)
            expired = view.head is None or view.head.exp_h * 3600 < self.world.clock.now_s()
            self._holds("freshness", node, not expired, f"{known.name} is accepted of an old head")
            self._holds("retraction", node, card is not None, f"{known.name} is on no card")
            assert card is not None and card.bundle is not None
            same = card.enc == app.enc8 and card.chassis == app.chassis.tag8
            self._holds("compatibility", node, same, f"{known.name} is of another model")
            if card.bundle.root.hex() == known.leaf.root:
                yield known

    def _whole(self, node: Node, app: App, known: Known) -> None:
        assert known.leaf.root is not None
        found = app.bundles.files.whole(bytes.fromhex(known.leaf.root)) is not None
        self._holds("bundle", node, found, f"{known.name} is routed and not whole on disk")

    def served(self, node: Node) -> None:
        """What a node answers for is what it may, and is whole."""
        app, daemon = node.app, node.daemon
        assert app is not None and daemon is not None
        held = app.foreign.roots(SERVED) | app.own_roots()
        for root in daemon.served:
            self._holds("bundle", node, root in held, f"{root[:8]} is served and of no leaf")
        if not app.allows("publish"):
            own = daemon.served & app.own_roots()
            self._holds("consent", node, not own, "own bundles are served without consent")

    # ---- what the owners said --------------------------------------------------------------------

    def consent(self, node: Node) -> None:
        """A node that may not publish signs no more."""
        assert node.daemon is not None and node.app is not None
        head = node.daemon.replica.own_head()
        version = (head.epoch, head.seq) if head else (0, 0)
        if node.app.allows("publish"):
            self._kept_to.pop(node.name, None)
            return
        was = self._kept_to.setdefault(node.name, version)
        self._holds("consent", node, version == was, f"{was} became {version} without consent")

    def retracted(self, owner: Node, leaf: LeafId, roots: set[str]) -> None:
        """A minute after a retraction no node that heard of it has anything of the leaf."""
        for node in self.world.up():
            app, daemon = node.app, node.daemon
            assert app is not None and daemon is not None
            view = daemon.replica.view(owner.origin)
            if node is owner or bytes.fromhex(leaf) not in view.retracted:
                continue
            table = app.tables.load_sound()
            routed = [e for e in (table.entries if table else ()) if e.leaf == leaf]
            self._holds("retraction", node, not routed, f"{leaf[:8]} is routed a minute later")
            others = app.foreign.roots(SERVED) | app.own_roots()
            for root in sorted(roots - others):
                served = root in daemon.served
                self._holds("retraction", node, not served, f"{root[:8]} is served after it")
                here = app.bundles.path(root) is not None
                self._holds("retraction", node, not here, f"{root[:8]} is on disk after it")

    def same_families(self) -> None:
        """Nodes that know the same leaves see the same families, in whatever order."""
        known: dict[frozenset[tuple[str, str, int]], tuple[frozenset[str], ...]] = {}
        for node in self.world.up():
            assert node.app is not None and node.daemon is not None
            candidates, names = [], set()
            for origin in node.daemon.replica.origins():
                view = node.daemon.replica.view(origin)
                for leaf in mesh.foreign(origin, view.cards, node.app.enc8):
                    candidates.append(Candidate(origin, leaf.leaf, b"", leaf.centroid))
                    names.add((leaf.origin, leaf.leaf, leaf.version))
            Random(f"{self.world.seed}/{node.name}").shuffle(candidates)
            found = tuple(frozenset(m.leaf for m in f.members) for f in families(candidates))
            same = known.setdefault(frozenset(names), found)
            self._holds("families", node, found == same, "one set made two partitions")

    # ---- verdicts --------------------------------------------------------------------------------

    def _holds(self, invariant: str, node: Node, true: bool, text: str) -> None:
        self.checks[invariant] += 1
        if not true:
            self._fail(invariant, f"{node.name}: {text}")

    def require(self, true: bool, text: str) -> None:
        """What the story says should happen."""
        if not true:
            self._fail("liveness", text)

    def _fail(self, invariant: str, text: str) -> NoReturn:
        raise InvariantError(self.world.seed, invariant, text, list(self.world.tail)[-40:])
