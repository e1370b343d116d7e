"""What goes out of a running node: the signed forest, and the bundles that it answers for.

The node polls, so that whoever changed the forest or a consent, it is told; and what may be told is
decided by the consent of the moment of telling.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from gossip.core import Replica
from gossip.driver import GossipDriver
from leaves.model import Forest, Instant, LeafId

from . import mesh, usage
from .app import App, BusyError
from .consent import Scope
from .errors import OwnerError
from .told import Say

log = logging.getLogger(__name__)

ROLLED_BACK = "peers hold later words of this node than it has: it was restored from a backup"


class Rollbacks:
    """Takes back all consent once peers show that this node was restored from a backup.

    What they hold of it and it does not may include a withdrawal.
    """

    def __init__(self, app: App, replica: Replica, say: Say) -> None:
        self._app = app
        self._replica = replica
        self._say = say
        self._seen = 0  # of the replica, as far as they were acted on

    def suspend(self) -> None:
        """Raises OwnerError if the consent cannot be written."""
        seen = self._replica.rollbacks
        if seen == self._seen:
            return
        if self._app.consent.suspend(ROLLED_BACK):
            self._say("suspended", f"everything is off until you say yes again: {ROLLED_BACK}")
        self._seen = seen

    def look(self) -> None:
        """As `suspend`; what fails is tried again at the next look."""
        try:
            self.suspend()
        except OwnerError as problem:
            log.warning("consent not suspended reason=%s", type(problem).__name__)


class Publisher:
    """Tells the forest when it changed and publishing is allowed, and serves its bundles."""

    def __init__(
        self, app: App, replica: Replica, driver: GossipDriver, rollbacks: Rollbacks, say: Say
    ) -> None:
        self._app = app
        self._replica = replica
        self._driver = driver
        self._rollbacks = rollbacks
        self._say = say
        self._allowed: frozenset[Scope] = frozenset()
        self._withheld = False
        self._shown_revision = -1
        self._shown_usage = 0
        self._kept_back: dict[LeafId, str] = {}  # leaves kept back, wholly or their bundle, and why
        self._served: set[str] = set()

    @property
    def served(self) -> frozenset[str]:
        """The bundles that are answered for."""
        return frozenset(self._served)

    async def withhold(self) -> None:
        """Sign nothing until publishing is allowed."""
        await self._driver.withhold()
        self._withheld, self._shown_revision = True, -1

    def show_again(self) -> None:
        """Something was retracted: the table is to be signed anew."""
        self._shown_revision = -1

    async def publish(self) -> None:
        """Sign and tell the forest, if it changed and publishing is allowed."""
        self._rollbacks.suspend()
        allowed = self._app.consent.scopes(self._app.user_id)
        if allowed != self._allowed:
            await self.serve_bundles()
            self._allowed = allowed
        if Scope.PUBLISH not in allowed:
            if not self._withheld:
                await self.withhold()
            return
        revision = self._app.forests.revision()
        kept_back = self._app.withheld().reasons
        used = usage.stamp(self._app.home)
        shown = (self._shown_revision, self._shown_usage, self._kept_back)
        current = (revision, used, kept_back) == shown
        if current or not revision:
            return
        if self._app.forests.open_round() is not None:
            return  # a round is told whole
        try:
            with self._app.lock("publish"):  # whoever withdraws consent waits for it
                if self._app.allows("publish"):
                    await self._publish_forest(revision, used)
        except BusyError:
            return  # the next poll sees what became of it

    async def serve_bundles(self) -> None:
        """Answer for the bundles that may be had by the consent of this moment, and no others."""
        wanted = set(self._app.roots_to_serve())
        for root in sorted(self._served - wanted):
            await self._driver.stop_serving(bytes.fromhex(root))
        for root in sorted(wanted - self._served):
            await self._driver.serve_bundle(bytes.fromhex(root))
        self._served = wanted

    async def _publish_forest(self, revision: int, used: int) -> None:
        forests = self._app.forests
        forest, revived = forests.forest(), forests.changed_since(Instant(0), "revived")
        if forests.open_round() is not None or forests.revision() != revision:
            return  # a round has begun since it was looked for: what was read may be half of it
        view = self._replica.view(self._app.origin)
        retracted = frozenset(leaf.hex() for leaf in view.retracted if leaf is not None)
        shown = self._app.shown()
        withheld = self._app.withheld()
        offered = self._offered(forest, withheld.reasons)
        past = mesh.Past(revived, self._app.config.rules.regressions, self._app.now())
        enc8 = self._app.enc8
        table = mesh.cards(forest, shown, enc8, offered, retracted, withheld.hidden, past)
        await self.serve_bundles()
        before = {card.leaf: card.bundle for card in view.cards}
        urgent = any(card.bundle and before.get(card.leaf) != card.bundle for card in table.cards)
        self._app.remember_shown(table.shown)  # first: what may have been shown can be retracted
        await self._driver.publish(table.cards, table.ended, usage.published(self._app), urgent)
        self._shown_revision, self._shown_usage, self._withheld = revision, used, False
        for leaf_id, reason in sorted(withheld.reasons.items()):
            if self._kept_back.get(leaf_id) != reason:
                hidden = leaf_id in withheld.hidden
                what = "is not shown" if hidden else "its adapter is not offered"
                name = forest.leaves[leaf_id].name
                self._say("kept back", f"{name}: {what}: {reason}", leaf=leaf_id)
        self._kept_back = withheld.reasons
        if table.left_out:
            text = f"{table.left_out:,} leaves are not shown: one head has room for no more"
            self._say("table full", f"{text}; merge or retract some", leaves=table.left_out)
        self._say("published", f"published a table of {len(table.cards)}", leaves=len(table.cards))

    def _offered(self, forest: Forest, withheld: Mapping[LeafId, str]) -> Callable[[str], int]:
        """The size of a bundle that peers may have; 0 of one that is not here, or kept back."""
        kept = {adapter.bundle for id_ in withheld if (adapter := forest.leaves[id_].adapter)}
        return lambda root: 0 if root in kept else self._app.bundles.size_bytes(root)
