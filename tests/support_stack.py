"""Whole gossip stacks (replica, exchange, driver, store, dialer) over real libp2p on loopback."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import gossip_kit
import trio

from gossip.addresses import AddressBook, Source
from gossip.bundle_files import BundleFiles
from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.dialer import Dialer, DialerConfig, DialLoop
from gossip.driver import GossipDriver
from gossip.exchange import Exchange
from gossip.exchange_events import ExchangeConfig
from gossip.keys import Keys, issue, private_key, public_bytes
from gossip.libp2p_transport import Libp2pTransport
from gossip.ports import Transport
from gossip.sqlite_store import SqliteStore
from gossip.transport_config import TransportConfig
from gossip.wire import HOUR_S

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


class Stack:
    """One node without models. A second one of the same name and folder is the first, restarted.

    run: apart from other runs on the machine, whose nodes of the same names must be others.
    tap: stands between the transport and the driver.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        run: str,
        *,
        config: GossipConfig | None = None,
        transport: TransportConfig | None = None,
        links_wanted: int = 8,
        tap: Callable[[Libp2pTransport], Transport] = lambda transport: transport,
    ) -> None:
        folder.mkdir(exist_ok=True)
        seed = hashlib.sha256(f"{run}/{name}".encode()).digest()
        self.name = name
        self.keys = keys_now(f"{run}/{name}")
        self.store = SqliteStore(folder / "gossip.db")
        self.replica = Replica(self.keys, config or GossipConfig(), Random(name), self.store.load())
        self.transport = Libp2pTransport(seed, transport or TransportConfig(listen=LOOPBACK))
        self.book = AddressBook()
        wanted = DialerConfig(links_wanted=links_wanted)
        dialer = Dialer(self.transport.peer_id(), self.book, Random(name), wanted)
        self.dialling = DialLoop(dialer, self.transport.dial, clock=time.time)
        self.driver = GossipDriver(
            self.replica,
            Exchange(ExchangeConfig(), Random(name)),
            tap(self.transport),
            self.store,
            BundleFiles(folder / "bundles"),
            clock=time.time,
            on_link=self.dialling.on_link,
        )
        self.changes = self.driver.changes()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Stack]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.transport.run)
            await nursery.start(self.driver.run)
            nursery.start_soon(self.dialling.run)
            yield self
            nursery.cancel_scope.cancel()
        self.store.close()

    def knows(self, *others: Stack | str, source: Source = Source.OWNER) -> None:
        """Note where these are, and dial them as far as links are wanted."""
        for other in others:
            address = other if isinstance(other, str) else other.transport.addresses()[0]
            self.book.add(address, source)
        self.dialling.stir()

    @property
    def links(self) -> int:
        return len(self.driver.peers())


def keys_now(name: str) -> Keys:
    """Keys of an origin that are in force at this hour."""
    hour = int(time.time()) // HOUR_S
    signing = private_key(gossip_kit.seed(name, "op"))
    root = private_key(gossip_kit.seed(name, "root"))
    return Keys(
        signing,
        issue(root, public_bytes(signing), epoch=1, not_before_h=hour - 1, not_after_h=hour + 2000),
    )
