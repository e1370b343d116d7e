"""What comes in to a running node: changes of the replica, taken in as leaves that may serve here.

The replica is the truth: what was missed is looked up there at each start, and what it no longer
shows is dropped here, routes first.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from gossip.core import Replica
from gossip.driver import Changes, GossipDriver
from gossip.events import LeafRetracted, OriginChanged, PublishBlocked
from gossip.view import OriginView
from gossip.wire import Standing
from leaves.model import LeafId, Vector

from . import mesh
from .app import App
from .fetch import Fetcher
from .foreign import Known, State
from .publisher import Publisher
from .shelf import Shelf
from .told import Say

RETRACTED = "retracted by its owner"


class Interest:
    """Which origins are of use here, as far as the replica has to know."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._centres: list[Vector] = []  # of what this node has, as of the last look
        self._looked: tuple[int, int] | None = None  # at which revisions

    def wants(self, view: OriginView) -> bool:
        """True if one of the origin's leaves may be of use one day."""
        return mesh.interest(view, self._centres, self._app.enc8)

    async def look(self, driver: GossipDriver) -> None:
        """Tell the replica which origins are in use, and keep what it is to look for."""
        revisions = self._app.forests.revision(), self._app.foreign.revision()
        if revisions != self._looked:
            self._centres = mesh.centres(self._app.forests.forest())
            await driver.protect(self._app.foreign.used_origins())
            self._looked = revisions


class Follower:
    """Keeps `App.foreign` and the routes at what the replica shows."""

    def __init__(
        self,
        app: App,
        replica: Replica,
        changes: Changes,
        fetcher: Fetcher,
        publisher: Publisher,
        say: Say,
    ) -> None:
        self._app = app
        self._replica = replica
        self._changes = changes
        self._fetcher = fetcher
        self._publisher = publisher
        self._say = say
        self._shelf = Shelf.of(app)

    async def run(self) -> None:
        """Take in what changes; first, whatever was missed, for this may be a second start."""
        await self._take_in_everything()
        async for change in self._changes:
            match change:
                case OriginChanged(origin):
                    await self._take_in(origin)
                case PublishBlocked(reason):
                    self._say("blocked", f"nothing can be published: {reason}", reason=reason)
                case LeafRetracted(origin, leaf):
                    if self._shelf.unpin(origin.hex(), LeafId(leaf.hex()) if leaf else None):
                        await self._fetcher.tidy()
                    gone = self._app.foreign.retract(origin.hex(), leaf.hex() if leaf else None)
                    await self._drop(gone, RETRACTED)

    async def _take_in_everything(self) -> None:
        """What the replica knows is the truth, whatever was missed."""
        for origin in self._replica.origins():
            await self._take_in(origin, quiet=True)
            await trio.lowlevel.checkpoint()
        await self._app.adapters.in_thread(self._app.deploy_if_routed)
        await self._fetcher.tidy()

    async def _take_in(self, origin: bytes, *, quiet: bool = False) -> None:
        if origin == self._app.origin:
            return
        view = self._replica.view(origin)
        leaves = mesh.foreign(origin, view.usable, self._app.enc8)
        accepted = self._app.foreign.roots_of(origin.hex(), State.ACCEPTED)
        gone = self._app.foreign.replace_origin(origin.hex(), leaves)
        silent = view.stale or view.standing is not Standing.SOUND or None in view.retracted
        self._app.foreign.replace_usage(origin.hex(), () if silent else view.usage)
        if accepted - self._app.foreign.roots_of(origin.hex(), State.ACCEPTED):
            await self._app.adapters.in_thread(
                self._app.deploy
            )  # what changed is not what was judged
        withdrawn = {leaf.hex() if leaf else "" for leaf in view.retracted}
        mature = sum(leaf.root is not None for leaf in leaves)
        for each in withdrawn:
            self._shelf.unpin(origin.hex(), LeafId(each) if each else None)
        if leaves and not quiet:
            self._say(
                "head",
                f"heard of origin {origin.hex()[:8]}: {len(leaves)} leaves, {mature} mature",
                origin=origin.hex(),
                leaves=len(leaves),
                mature=mature,
            )
        for known in gone:
            retracted = bool(withdrawn & {known.leaf.leaf, ""})
            reason = RETRACTED if retracted else "no longer in its origin's table"
            await self._drop([known], reason)
        self._fetcher.wake()

    async def _drop(self, gone: Sequence[Known], reason: str) -> None:
        """Stop routing to leaves at once, and unlink their bundles."""
        if not gone:
            return
        had = [known for known in gone if known.state is not State.HEARD]
        if had:
            await self._app.adapters.in_thread(self._app.deploy)
            await self._publisher.serve_bundles()
        await self._fetcher.let_go(gone)  # also one of which only a part is here
        for known in had:
            self._say(
                "dropped",
                f"{known.name} of {known.leaf.origin[:8]} dropped: {reason}",
                leaf=known.leaf.leaf,
                origin=known.leaf.origin,
                reason=reason,
            )
