"""The running node: mesh, fetching, retractions, the owner's orders. Never loads a model.

What computes runs elsewhere: rounds in the process that was asked for one, evaluations in children.
Commands and the node meet on disk: the node polls two counters twice a second, so that a round's
new leaves are published and an order is carried out whoever wrote it, and after any crash.
"""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import trio

from gossip.core import Replica
from gossip.driver import GossipDriver, StoreFailedError
from gossip.events import Effect, Event
from gossip.exchange import Exchange
from gossip.ports import Connected, Disconnected
from gossip.transport_config import ListenError, PortInUseError, TransportConfig

from . import sound, started, swarm
from .api.serving import Api
from .app import App
from .errors import OwnerError
from .fencing import Fence
from .fetch import Fetcher
from .following import Follower, Interest
from .governor import Work
from .home import write_atomic
from .letters import Letters
from .links import Links
from .mailbox import Dial, Fetch, Forget, Letter, Rekey, Retract
from .mirror import open_mirror
from .night import Nights, governor_of
from .notify import Notifier
from .overview import RUN_FILE
from .publisher import Publisher, Rollbacks
from .reach import Reach
from .schedule import Scheduler
from .show import counted
from .threads import bring_out
from .told import Tell, saying
from .watching import Watcher

log = logging.getLogger(__name__)

WATCHER_STOPS_S = 2.0
HALT_S = 0.5
LOOKED_AT_S = 0.5  # whoever looks whether a node runs here holds the lock for an instant


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
    """The listening address is taken."""


class ListenAddressError(PortError):
    """The listening address is none."""

    exit_code = 2


class DiskError(OwnerError):
    """What the node knows cannot be stored."""


def serve(app: App, listen: str | None, tell: Tell) -> None:
    """Run until SIGTERM or Ctrl-C. Raises OwnerError if it cannot start."""
    with app.lock("run", "a node is running here already", patience_s=LOOKED_AT_S):
        (app.home / RUN_FILE).unlink(missing_ok=True)  # of one that was killed
        daemon = Daemon(app, listen, app.telling(tell), Notifier.taken())
        try:
            trio.run(daemon.run_until_told)
        except* ListenError as group:
            taken, others = group.split(PortInUseError)
            first = "End what listens there, or choose another:" if taken else "Give one such as"
            raise (PortError if taken else ListenAddressError)(
                str(_first(taken or others or group)),
                unchanged="The node was not started; nothing in the home was changed.",
                next_step=f"{first} `groove-node run --listen /ip4/0.0.0.0/tcp/4131`, "
                "or `listen` under [mesh.transport] in groove.toml.",
            ) from None
        except* StoreFailedError as group:
            raise DiskError(
                f"{app.home / 'mesh.db'} cannot be written: {_first(group)}",
                unchanged="The node has ended. What it had stored is whole, and it told nobody of "
                "what it could not store.",
                next_step="Make room on the disk, or see to it, and start the node again; "
                "`groove-node doctor` looks at both.",
            ) from None
        except* (OSError, sqlite3.Error) as group:  # at the start: later a fence is around it
            if isinstance(_first(group), BrokenPipeError):  # nobody reads what it tells
                raise
            raise DiskError(
                f"{app.home} cannot be written: {_first(group)}",
                unchanged="The node has ended. What was written before stands, and is whole.",
                next_step="Make room on the disk, or see to it, and start the node again; "
                "`groove-node doctor` looks at both.",
            ) from None
        finally:
            (app.home / RUN_FILE).unlink(missing_ok=True)


def _first(group: BaseException) -> BaseException:
    """The error itself: there is a group around it for each nursery on its way."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _transport_config(app: App, listen: str | None) -> TransportConfig:
    """As groove.toml has it, but for what was given with the command or joined."""
    config = app.config.mesh.transport
    return msgspec.structs.replace(
        config,
        listen=listen or config.listen,
        swarm_key=swarm.load(app.home) or config.swarm_key,
    )


class Daemon:
    """One running node."""

    def __init__(
        self, app: App, listen: str | None, tell: Tell, notifier: Notifier | None = None
    ) -> None:
        config = app.config.mesh
        self._notifier = notifier or Notifier()
        transport = _transport_config(app, listen)
        rng = app.adapters.random()
        self._app = app
        self._tell = tell
        self._read = started.stamp(app.home, transport.swarm_key, transport.listen)
        self._transport = app.adapters.transport(app.identity.transport, transport)
        self._say = saying(tell)
        self._interest = Interest(app)
        self._replica = app.mesh_replica(rng, self._interest.wants)
        for origin, problem in self._replica.unread.items():
            log.warning("record left out origin=%s problem=%s", origin.hex(), problem)
        rollbacks = Rollbacks(app, self._replica, self._say)
        self._core = _Watched(self._replica, rollbacks.look)
        self._reach = Reach(
            self._transport.dial,
            app.clock.now_s,
            self._transport.relays,
            self._transport.relayed,
            named=lambda peer: self._links.is_owners(peer),
        )
        self._links = Links(app, self._transport, transport, rng, dial=self._reach.dial)
        self._driver = GossipDriver(
            self._core,
            Exchange(config.exchange, rng),
            self._transport,
            app.mesh_store,
            app.bundles.files,
            clock=app.clock.now_s,
            in_thread=app.adapters.in_thread,
            on_link=self._linked,
            introductions=self._links.introductions,
            on_learned=self._links.learned,
            mirror=open_mirror(app.config),
        )
        self._links.belongs_to(self._driver)
        self._publisher = Publisher(app, self._replica, self._driver, rollbacks, self._say)
        self._governor = governor_of(app)
        self._fetcher = Fetcher(
            app,
            self._driver,
            self._publisher.serve_bundles,
            tell,
            rng,
            may=partial(self._governor.allows, Work.FETCH),
        )
        self._follower = Follower(
            app, self._replica, self._driver.changes(), self._fetcher, self._publisher, self._say
        )
        self._scheduler = Scheduler(
            app, tell, app.adapters.start, may=partial(self._governor.allows, Work.ROUND)
        )
        self._letters = Letters(app, self._carry_out)
        self._api = Api(app, self._say, changed=self._write_run_file)
        self._nights = Nights(
            app,
            self._governor,
            self._scheduler,
            self._driver,
            self._fetcher,
            self._publisher.publish,
            tell,
            asked=self._api.asked,
        )
        self._fetches: trio.Nursery | None = None  # of fetches by hand, once it runs
        self._run_file = b""

    @property
    def replica(self) -> Replica:
        """What this node holds of all origins, to be looked at."""
        return self._replica

    @property
    def served(self) -> frozenset[str]:
        """The bundles that it answers for."""
        return self._publisher.served

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
                await self._publisher.withhold()  # first: an old head is renewed at the start
            await nursery.start(self._driver.run)
            await self._look_for_interests()
            self._write_run_file()
            addresses = self._transport.addresses()
            self._say("listening", f"listening on {addresses[0]}", addresses=addresses)
            for key, why in sound.faults(self._app.config):
                self._say("setting", f"{key} in groove.toml is of no use: {why}", key=key)
            await self._publisher.serve_bundles()
            self._notifier.ready()
            self._tell_manager()
            pace = self._app.adapters.pace
            for task in (
                self._links.run,
                self._follower.run,
                self._fetcher.run,
                self._watch_sources,
                self._notifier.run,
                self._nights.run,
                self._api.run,
            ):
                nursery.start_soon(Fence(task).keep)
            for seconds, work in (
                (pace.poll_s, self._publisher.publish),
                (pace.poll_s, self._carry_out_orders),
                (pace.refresh_s, self._refresh),
                (pace.refresh_s, self._look_for_interests),
                (pace.retry_s, self._retry),
                (pace.rounds_s, self._nights.round_if_due),
            ):
                nursery.start_soon(Fence(work).every, seconds)

    async def _stop_on_signal(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                log.info("stopping")
                self._notifier.stopping()
                scope.cancel()
                self._app.evaluator.stop()  # a thread cannot be cancelled; its child can
                return

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

    # ---- the owner's orders ----------------------------------------------------------------------

    async def _carry_out_orders(self) -> None:
        await self._letters.look(self._fetches)

    async def _carry_out(self, letter: Letter) -> dict[str, Any]:
        match letter.order:
            case Dial(address):
                self._links.dial_now(address)
                return {"dialing": address}
            case Forget(peer):
                return {"forgotten": await self._links.forget(peer)}
            case Retract(leaf):
                await self._driver.retract(bytes.fromhex(leaf) if leaf else None)
                self._publisher.show_again()
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
            case Rekey():
                keys = self._app.reload_identity().keys
                await self._driver.rekey(keys)
                self._publisher.show_again()
                return {"epoch": keys.doc.epoch}
            case None:
                return {"error": "the order cannot be read"}

    # ---- who is there ----------------------------------------------------------------------------

    def _linked(self, event: Connected | Disconnected) -> None:
        self._reach.linked(event)
        self._links.linked(event)
        match event:
            case Connected(peer, address, _):
                self._say("connected", f"connected to {peer[-8:]} at {address}", peer=peer)
                self._fetcher.wake()
            case Disconnected(peer):
                self._say("disconnected", f"lost {peer[-8:]}", peer=peer)

    async def _look_for_interests(self) -> None:
        await self._interest.look(self._driver)

    async def _retry(self) -> None:
        """What was not had may be had now."""
        self._fetcher.wake()

    async def _refresh(self) -> None:
        """What changes slowly: who is connected, what is allowed, the address book."""
        self._write_run_file()
        self._tell_manager()
        await self._publisher.serve_bundles()
        self._links.save()

    def _tell_manager(self) -> None:
        peers = len(self._driver.peers())
        here = self._transport.addresses() or ["not listening"]  # while its host is started again
        self._notifier.status(f"{here[0]}, {counted(peers, 'peer')}")

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
            "links": {**self._links.overview(), "reach": self._reach.facts()},
            "night": self._nights.state(),
            "transport": self._transport.standing(),
            "read": self._read,
            "api": self._api.facts(),
        }
        blob = msgspec.json.encode(state)
        if blob != self._run_file:
            write_atomic(self._app.home / RUN_FILE, blob)
            self._run_file = blob
