"""Nodes over real libp2p that find each other: book, dialer, introductions, driver."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import gossip_kit
import trio
from support_libp2p import LOOPBACK

from gossip.addresses import AddressBook, Source
from gossip.bundle_files import BundleFiles
from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.dialer import Dialer, DialLoop
from gossip.driver import GossipDriver
from gossip.exchange import Exchange
from gossip.exchange_events import ExchangeConfig
from gossip.introductions import Introductions, Learned
from gossip.keys import Keys, issue, private_key, public_bytes
from gossip.libp2p_transport import Libp2pTransport
from gossip.ports import PeerId
from gossip.sqlite_store import SqliteStore
from gossip.transport_config import TransportConfig
from gossip.wire import HOUR_S

WAIT_S = 60.0  # a guard against hanging, no bound on a good day


class Seeker:
    """One node. It can be run, ended, and run again, as a process is started again."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir(exist_ok=True)
        self.seed = os.urandom(32)
        self.book = AddressBook()
        self.listen = LOOPBACK
        self.learned: list[Learned] = []

    @property
    def peer(self) -> PeerId:
        return self.transport.peer_id()

    @property
    def linked(self) -> set[PeerId]:
        return {stats.peer for stats in self.driver.peers()}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Seeker]:
        """A start: of what was before, only the key, the port and the saved book are left."""
        self.book = AddressBook.from_json(self.book.to_json())
        rng = Random(os.urandom(8))
        self.transport = Libp2pTransport(self.seed, TransportConfig(listen=self.listen))
        dialer = Dialer(self.peer, self.book, rng)
        self.dialing = DialLoop(
            dialer, self.transport.dial, clock=time.time, probe=self.transport.probe
        )
        store = SqliteStore(self.folder / "gossip.db")
        key = private_key(self.seed)
        self.driver = GossipDriver(
            Replica(keys_now(self.name), GossipConfig(), rng, store.load()),
            Exchange(ExchangeConfig(), rng),
            self.transport,
            store,
            BundleFiles(self.folder / "bundles"),
            clock=time.time,
            on_link=self.dialing.on_link,
            introductions=Introductions(self.peer, key, rng),
            on_learned=self._hear,
        )
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.transport.run)
                self.address = self.transport.addresses()[0]
                self.listen = self.address.partition("/p2p/")[0]
                await nursery.start(self.driver.run)
                await self.driver.moved([self.address], [])
                nursery.start_soon(self.dialing.run)
                yield self
                nursery.cancel_scope.cancel()
        finally:
            store.close()

    async def live(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run in a nursery until `end`."""
        with trio.CancelScope() as self._scope:
            self._gone = trio.Event()
            try:
                async with self.running():
                    task_status.started()
                    await trio.sleep_forever()
            finally:
                self._gone.set()

    async def end(self) -> None:
        self._scope.cancel()
        await self._gone.wait()

    def knows(self, *others: Seeker) -> None:
        for other in others:
            self.book.add(other.address, Source.OWNER)
        self.dialing.stir()

    def _hear(self, news: Learned) -> None:
        self.learned.append(news)
        for address in news.addresses:
            self.book.introduce(address, news.by, time.time())
        self.dialing.stir()


def keys_now(name: str) -> Keys:
    hour = int(time.time()) // HOUR_S
    signing = private_key(gossip_kit.seed(name, "op"))
    root = private_key(gossip_kit.seed(name, "root"))
    return Keys(
        signing,
        issue(root, public_bytes(signing), epoch=1, not_before_h=hour - 1, not_after_h=hour + 2000),
    )


async def until(holds: Callable[[], bool]) -> float:
    """Wait until something holds; return the seconds that it took."""
    begun = trio.current_time()
    with trio.fail_after(WAIT_S):
        while not holds():
            await trio.sleep(0.02)
    return trio.current_time() - begun


def whole(nodes: Sequence[Seeker]) -> bool:
    """True if each of the nodes is linked with all of the others."""
    peers = {node.peer for node in nodes}
    return all(node.linked >= peers - {node.peer} for node in nodes)
