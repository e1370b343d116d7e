"""Three whole gossip stacks (replica, exchange, driver, store, dialer) over real libp2p."""

from __future__ import annotations

import gc
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import gossip_kit
import pytest
import trio
from support_libp2p import LOOPBACK

from gossip.addresses import AddressBook, Source
from gossip.bundle_files import BundleFiles
from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.dialer import Dialer, DialLoop
from gossip.driver import Change, Changes, GossipDriver
from gossip.events import LeafRetracted
from gossip.exchange import Exchange
from gossip.exchange_events import ExchangeConfig
from gossip.keys import Keys, issue, private_key, public_bytes
from gossip.libp2p_transport import Libp2pTransport
from gossip.sqlite_store import SqliteStore
from gossip.transport_config import TransportConfig
from gossip.wire import HOUR_S

TEST_RUN = os.urandom(8).hex()  # so that nodes of two runs at once have different names
pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
def _collect_now() -> Iterator[None]:
    """Make a socket that a test leaves open fail that test, not whichever runs later."""
    yield
    gc.collect()


class Stack:
    def __init__(self, name: str, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        seed = hashlib.sha256(f"{TEST_RUN}/{name}".encode()).digest()
        self.keys = keys_now(name)
        self.store = SqliteStore(folder / "gossip.db")
        self.replica = Replica(self.keys, GossipConfig(), Random(name), self.store.load())
        self.transport = Libp2pTransport(seed, TransportConfig(listen=LOOPBACK))
        self.book = AddressBook()
        dialer = Dialer(self.transport.peer_id(), self.book, Random(name))
        self.dialling = DialLoop(dialer, self.transport.dial, clock=time.time)
        self.driver = GossipDriver(
            self.replica,
            Exchange(ExchangeConfig(), Random(name)),
            self.transport,
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

    def knows(self, *others: Stack) -> None:
        for other in others:
            self.book.add(other.transport.addresses()[0], Source.OWNER)
        self.dialling.stir()


def keys_now(name: str) -> Keys:
    hour = int(time.time()) // HOUR_S
    signing = private_key(gossip_kit.seed(name, "op"))
    root = private_key(gossip_kit.seed(name, "root"))
    return Keys(
        signing,
        issue(root, public_bytes(signing), epoch=1, not_before_h=hour - 1, not_after_h=hour + 2000),
    )


async def heard(changes: Changes, change: Change) -> None:
    with trio.fail_after(60):
        async for one in changes:
            if one == change:
                return


async def holds(stack: Stack, of: Stack, *leaves: int) -> None:
    """Wait until a stack holds just these leaves of another's origin."""
    with trio.fail_after(60):
        while True:
            cards = stack.replica.view(of.keys.origin).cards
            if [card.leaf for card in cards] == sorted(map(gossip_kit.leaf, leaves)):
                return
            await anext(stack.changes)


async def links(stack: Stack, number: int) -> None:
    with trio.fail_after(60):
        while len(stack.driver.peers()) < number:
            await trio.sleep(0.02)


async def test_a_leaf_is_published_fetched_from_two_and_retracted(tmp_path: Path) -> None:
    a, b, c = (Stack(name, tmp_path / name) for name in "abc")
    data = Random(5).randbytes(3_000_000)
    async with a.running(), b.running(), c.running():
        b.knows(a)
        c.knows(a, b)
        for stack in (a, b, c):
            await links(stack, 2)
        root = await a.driver.add_bundle(data)
        await a.driver.publish((gossip_kit.card(1), gossip_kit.card(2)), (), (), urgent=True)
        for stack in (b, c):
            await holds(stack, a, 1, 2)

        await b.driver.fetch(root, len(data))
        await b.driver.serve_bundle(root)
        result = await c.driver.fetch(root, len(data))
        assert result.path.read_bytes() == data
        assert set(result.sources) == {a.transport.peer_id(), b.transport.peer_id()}

        await a.driver.retract(gossip_kit.leaf(1))
        for stack in (b, c):
            await heard(stack.changes, LeafRetracted(a.keys.origin, gossip_kit.leaf(1)))
            await holds(stack, a, 2)
        assert all(not stack.driver.refused for stack in (a, b, c))


async def test_a_node_that_was_away_hears_of_it_when_it_is_back(tmp_path: Path) -> None:
    a, b = (Stack(name, tmp_path / name) for name in "ab")
    async with a.running():
        async with b.running():
            b.knows(a)
            await links(a, 1)
        await a.driver.publish((gossip_kit.card(1),), (), ())
        await a.driver.publish((gossip_kit.card(1), gossip_kit.card(2)), (), ())
        back = Stack("b", tmp_path / "b")
        assert back.transport.peer_id() == b.transport.peer_id()
        async with back.running():
            back.knows(a)
            await links(back, 1)
            # Published before anyone could say that no newer head is out, or after: it comes.
            await holds(back, a, 1, 2)
    again = Stack("b", tmp_path / "b")
    assert len(again.replica.view(a.keys.origin).cards) == 2  # it was on disk
    again.store.close()
