"""The running node: mesh, fetching, retractions, the owner's orders. Never loads a model.

What computes runs elsewhere: rounds in the process that was asked for one, evaluations in children.
Commands and the node meet on disk: the node polls two counters twice a second, so that a round's
new leaves are published and an order is carried out whoever wrote it, and after any crash.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import trio

from gossip.addresses import Source
from gossip.core import Replica
from gossip.dialer import Dialer, DialLoop
from gossip.driver import GossipDriver
from gossip.events import Effect, Event, LeafRetracted, OriginChanged, PublishBlocked
from gossip.exchange import Exchange
from gossip.ports import Connected, Disconnected
from gossip.transport_config import ListenError, PortInUseError
from gossip.view import OriginView
from gossip.wire import Standing
from leaves.model import Forest, Instant, LeafId, Vector

from . import mesh, usage
from .app import App, BusyError
from .consent import Scope
from .errors import OwnerError
from .fetch import Fetcher
from .foreign import Known, State
from .home import write_atomic
from .mailbox import Dial, Fetch, Letter, Retract
from .overview import RUN_FILE
from .schedule import Scheduler
from .threads import bring_out
from .told import Tell, Told
from .watching import Watcher

log = logging.getLogger(__name__)

RETRACTED = "retracted by its owner"
ROLLED_BACK = "peers hold later words of this node than it has: it was restored from a backup"
WATCHER_STOPS_S = 2.0
HALT_S = 0.5


class _Watched:
    """A replica with a look at it after each event, before anything that came of it is stored.

    What was stored is no news to the next process, so a kill must not come between.
    """

    def __init__(self, replica: Replica, look: Callable[[], None]) -> None:
        self._replica = replica
        self._look = look

    def handle(self, event: Event) -> list[Effect]:
        effects = self._replica.handle(event)
        self._look()
        return effects


class PortError(OwnerError):
    """The listening address cannot be had."""


def serve(app: App, listen: str | None, tell: Tell) -> None:
    """Run until SIGTERM or Ctrl-C. Raises OwnerError if it cannot start."""
    with app.lock("run", "a node is running here already"):
        daemon = Daemon(app, listen, app.telling(tell))
        try:
            trio.run(daemon.run_until_told)
        except* ListenError as group:
            taken, others = group.split(PortInUseError)
            problem: BaseException = taken or others or group
            while isinstance(problem, BaseExceptionGroup):  # one for each nursery on the way
                problem = problem.exceptions[0]
            first = "End what listens there, or choose another:" if taken else "Give one such as"
            raise PortError(
                str(problem),
                unchanged="The node was not started; nothing in the home was changed.",
                next_step=f"{first} `groove-node run --listen /ip4/0.0.0.0/tcp/4131`, "
                "or `listen` under [mesh.transport] in groove.toml.",
            ) from None
        finally:
            (app.home / RUN_FILE).unlink(missing_ok=True)


class Daemon:
    """One running node."""

    def __init__(self, app: App, listen: str | None, tell: Tell) -> None:
        config = app.config.mesh
        if listen is not None:
            transport = msgspec.structs.replace(config.transport, listen=listen)
        else:
            transport = config.transport
        rng = app.adapters.random()
        self._app = app
        self._tell = tell
        self._transport = app.adapters.transport(app.identity.transport, transport)
        self._centres: list[Vector] = []  # of what this node has, as of the last look
        self._looked: tuple[int, int] | None = None  # at which revisions
        self._replica = app.mesh_replica(rng, self._interest)
        for origin, problem in self._replica.unread.items():
            log.warning("record left out origin=%s problem=%s", origin.hex(), problem)
        self._core = _Watched(self._replica, self._look_for_rollback)
        self._driver = GossipDriver(
            self._core,
            Exchange(config.exchange, rng),
            self._transport,
            app.mesh_store,
            app.bundles.files,
            clock=app.clock.now_s,
            in_thread=app.adapters.in_thread,
            on_link=self._linked,
        )
        self._book = app.address_book()
        self._dialing = DialLoop(
            Dialer(self._transport.peer_id(), self._book, rng),
            self._transport.dial,
            clock=app.clock.now_s,
        )
        self._fetcher = Fetcher(app, self._driver, self._serve_bundles, tell, rng)
        self._scheduler = Scheduler(app, tell, app.adapters.start)
        self._changes = self._driver.changes()
        self._at_work: set[int] = set()
        self._allowed: frozenset[Scope] = frozenset()
        self._withheld = False
        self._shown_revision = -1
        self._shown_usage = 0
        self._rollbacks = 0  # of the replica, as far as they were acted on
        self._kept_back: dict[LeafId, str] = {}  # leaves kept back, wholly or their bundle, and why
        self._served: set[str] = set()
        self._run_file = b""
        self._saved_book = b""

    @property
    def replica(self) -> Replica:
        """What this node holds of all origins, to be looked at."""
        return self._replica

    @property
    def served(self) -> frozenset[str]:
        """The bundles that it answers for."""
        return frozenset(self._served)

    async def run_until_told(self) -> None:
        """Run until SIGTERM or Ctrl-C."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_on_signal, nursery.cancel_scope)
            await self.run()

    async def run(self) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            self._fetches = nursery
            await nursery.start(self._transport.run)
            if not self._app.allows("publish"):
                await self._driver.withhold()  # first: a head that is old is renewed at the start
                self._withheld = True
            await nursery.start(self._driver.run)
            await self._name_what_counts()
            self._write_run_file()
            addresses = self._transport.addresses()
            self._say("listening", f"listening on {addresses[0]}", addresses=addresses)
            await self._serve_bundles()
            pace = self._app.adapters.pace
            tasks = (
                self._dialing.run,
                self._follow_changes,
                self._fetcher.run,
                self._watch_sources,
                partial(self._every, pace.poll_s, self._publish),
                partial(self._every, pace.poll_s, self._carry_out_orders),
                partial(self._every, pace.refresh_s, self._refresh),
                partial(self._every, pace.refresh_s, self._name_what_counts),
                partial(self._every, pace.retry_s, self._retry),
                partial(self._every, pace.rounds_s, self._scheduler.look),
            )
            for task in tasks:
                nursery.start_soon(self._fenced, task)

    async def _stop_on_signal(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                log.info("stopping")
                scope.cancel()
                self._app.evaluator.stop()  # a thread cannot be cancelled; its child can
                return

    async def _fenced(self, task: Any) -> None:
        """A task that fails is logged and started again; the others go on."""
        while True:
            try:
                await task()
                return
            except Exception:  # the top of a task: see the rules on errors
                log.exception("task failed task=%s", getattr(task, "__qualname__", task))
                await trio.sleep(5)

    async def _every(self, seconds: float, work: Any) -> None:
        while True:
            await work()
            await trio.sleep(seconds)

    async def _watch_sources(self) -> None:
        """Take in what other tools write: a thread's work, for it reads, scrubs and waits.

        At the end it gives up the text that it is at: see `node.threads`. One that does not stop
        in time ends as a kill would end it: see `node.capture.sources.following`.
        """
        if not self._app.adapters.watches:
            return
        watcher, ended = Watcher(self._app, self._tell), trio.Event()
        token = trio.lowlevel.current_trio_token()

        def work() -> None:
            watcher.run()
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(ended.set)

        thread = threading.Thread(target=work, name="watcher", daemon=True)
        thread.start()
        try:
            await ended.wait()
        finally:
            watcher.stop()
            self._app.halt.set()  # the text at hand is read again at the next start
            with trio.move_on_after(WATCHER_STOPS_S) as patience:
                patience.shield = True
                await ended.wait()
            bring_out(thread, HALT_S)

    # ---- what goes out ---------------------------------------------------------------------------

    async def _publish(self) -> None:
        """Sign and tell the forest, if it changed and publishing is allowed."""
        self._suspend_if_rolled_back()
        allowed = self._app.consent.scopes(self._app.user_id)
        if allowed != self._allowed:
            await self._serve_bundles()
            self._allowed = allowed
        if Scope.PUBLISH not in allowed:
            if not self._withheld:
                await self._driver.withhold()
                self._withheld, self._shown_revision = True, -1
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

    def _suspend_if_rolled_back(self) -> None:
        """What peers hold of this node and it does not may include a withdrawal of consent."""
        seen = self._replica.rollbacks
        if seen == self._rollbacks:
            return
        if self._app.consent.suspend(ROLLED_BACK):
            self._say("suspended", f"everything is off until you say yes again: {ROLLED_BACK}")
        self._rollbacks = seen

    def _look_for_rollback(self) -> None:
        try:
            self._suspend_if_rolled_back()
        except OwnerError as problem:  # the next poll tries again
            log.warning("consent not suspended reason=%s", type(problem).__name__)

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
        await self._serve_bundles()
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

    async def _serve_bundles(self) -> None:
        """Answer for the bundles that may be had by the consent of this moment, and no others."""
        wanted = set(self._app.roots_to_serve())
        for root in sorted(self._served - wanted):
            await self._driver.stop_serving(bytes.fromhex(root))
        for root in sorted(wanted - self._served):
            await self._driver.serve_bundle(bytes.fromhex(root))
        self._served = wanted

    # ---- what comes in ---------------------------------------------------------------------------

    async def _follow_changes(self) -> None:
        """Take in what changes; first, whatever was missed, for this may be a second start."""
        changes = self._changes
        await self._take_in_everything()
        async for change in changes:
            match change:
                case OriginChanged(origin):
                    await self._take_in(origin)
                case PublishBlocked(reason):
                    self._say("blocked", f"nothing can be published: {reason}", reason=reason)
                case LeafRetracted(origin, leaf):
                    gone = self._app.foreign.retract(origin.hex(), leaf.hex() if leaf else None)
                    await self._drop(gone, RETRACTED)

    async def _take_in_everything(self) -> None:
        """What the replica knows is the truth, whatever was missed."""
        for origin in self._replica.origins():
            await self._take_in(origin, quiet=True)
            await trio.lowlevel.checkpoint()
        await self._app.adapters.in_thread(self._app.deploy_if_routed)
        await self._fetcher.tidy()

    async def _name_what_counts(self) -> None:
        """Tell the replica which origins are in use here, and keep what it is to look for."""
        revisions = self._app.forests.revision(), self._app.foreign.revision()
        if revisions != self._looked:
            self._centres = mesh.centres(self._app.forests.forest())
            await self._driver.protect(self._app.foreign.used_origins())
            self._looked = revisions

    def _interest(self, view: OriginView) -> bool:
        return mesh.interest(view, self._centres, self._app.enc8)

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

    async def _drop(self, gone: list[Known], reason: str) -> None:
        """Stop routing to leaves at once, and unlink their bundles."""
        if not gone:
            return
        had = [known for known in gone if known.state is not State.HEARD]
        if had:
            await self._app.adapters.in_thread(self._app.deploy)
            await self._serve_bundles()
        await self._fetcher.let_go(gone)  # also one of which only a part is here
        for known in had:
            self._say(
                "dropped",
                f"{known.name} of {known.leaf.origin[:8]} dropped: {reason}",
                leaf=known.leaf.leaf,
                origin=known.leaf.origin,
                reason=reason,
            )

    # ---- the owner's orders ----------------------------------------------------------------------

    async def _carry_out_orders(self) -> None:
        """Carry out what waits. A fetch takes minutes, and nothing may wait for it."""
        for letter in self._app.mailbox.waiting():
            if isinstance(letter.order, Fetch):
                if letter.id not in self._at_work:
                    self._at_work.add(letter.id)
                    self._fetches.start_soon(self._answer, letter)
            else:
                await self._answer(letter)

    async def _answer(self, letter: Letter) -> None:
        """Carry an order out; one that fails is answered too, or it would block all others."""
        try:
            answer = await self._carry_out(letter)
        except (OwnerError, ValueError, OSError) as problem:
            log.warning("order failed letter=%d reason=%s", letter.id, type(problem).__name__)
            answer = {"error": f"it failed: {problem}"}
        self._app.mailbox.answer(letter.id, answer, self._app.clock.now_s())
        self._at_work.discard(letter.id)

    async def _carry_out(self, letter: Letter) -> dict[str, Any]:
        match letter.order:
            case Dial(address):
                self._book.add(address, Source.OWNER)
                self._app.save_address_book(self._book)
                self._dialing.stir()
                return {"dialing": address}
            case Retract(leaf):
                await self._driver.retract(bytes.fromhex(leaf) if leaf else None)
                self._shown_revision = -1
                return {"retracted": leaf or "all"}
            case Fetch(origin, leaf):
                if not self._app.allows("fetch"):
                    return {"error": "the scope `fetch` is not granted"}
                known = self._app.foreign.get(origin, leaf)
                if known is None:
                    return {"error": "the leaf is gone"}
                if known.leaf.root is None:
                    return {"error": "it is not mature yet, so no bundle is offered"}
                settled = await self._fetcher.bring(known, by_hand=True)
                return {"state": settled.state.value, **settled.detail}
            case None:
                return {"error": "the order cannot be read"}

    # ---- who is there ----------------------------------------------------------------------------

    def _linked(self, event: Connected | Disconnected) -> None:
        self._dialing.on_link(event)
        match event:
            case Connected(peer, address):
                self._say("connected", f"connected to {peer[-8:]} at {address}", peer=peer)
                self._fetcher.wake()
            case Disconnected(peer):
                self._say("disconnected", f"lost {peer[-8:]}", peer=peer)

    async def _retry(self) -> None:
        """What was not had may be had now."""
        self._fetcher.wake()

    async def _refresh(self) -> None:
        """What changes slowly: who is connected, what is allowed, the address book."""
        self._write_run_file()
        await self._serve_bundles()
        blob = self._book.to_json()
        if blob != self._saved_book:
            self._app.save_address_book(self._book)
            self._saved_book = blob

    def _write_run_file(self) -> None:
        peers = [
            {
                "peer": stats.peer,
                "address": stats.address,
                "bytes_in": sum(stats.bytes_in.values()),
                "bytes_out": sum(stats.bytes_out.values()),
                "refused": dict(stats.refused),
            }
            for stats in self._driver.peers()
        ]
        state = {
            "pid": os.getpid(),
            "addresses": self._transport.addresses(),
            "peers": peers,
        }
        blob = msgspec.json.encode(state)
        if blob != self._run_file:
            write_atomic(self._app.home / RUN_FILE, blob)
            self._run_file = blob

    def _say(self, event: str, text: str, **data: Any) -> None:
        self._tell(Told(event, text, data))
