"""A peer on js-libp2p as a child process, and nodes of ours for it to meet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import gossip_kit
import pytest
import trio
from support_libp2p import LOOPBACK

from gossip.bundle_files import BundleFiles
from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.driver import Change, GossipDriver
from gossip.exchange import Exchange
from gossip.exchange_events import ExchangeConfig
from gossip.introductions import Introductions, Learned
from gossip.keys import Keys, issue, private_key, public_bytes
from gossip.libp2p_transport import Libp2pTransport
from gossip.ports import PeerId
from gossip.sqlite_store import SqliteStore
from gossip.transport_config import TransportConfig
from gossip.wire import HOUR_S

FOLDER = Path(__file__).parent / "js_peer"
PATIENCE_S = 60.0  # a guard against hanging; nothing here takes more than a few seconds
Json = dict[str, Any]


def node_program() -> str:
    """Return the path of Node.js, or skip the test with what is missing."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("Node.js is not installed")
    if not (FOLDER / "node_modules" / "libp2p").is_dir():
        pytest.skip("its packages are not installed: run `npm ci` in tests/js_peer")
    return program


class OrderFailedError(Exception):
    """What js was told to do went wrong there."""


class JsPeer:
    """The child, by what it prints and what it is told to do."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.events: list[Json] = []
        self.complaints = bytearray()  # what it wrote to stderr
        self._stirred = trio.Event()
        self._orders = 0

    async def read(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        with suppress(trio.ClosedResourceError):
            async for data in self.process.stdout:
                *lines, rest = (rest + data).split(b"\n")
                self.events += map(json.loads, lines)
                self._stirred.set()
                self._stirred = trio.Event()

    async def read_complaints(self) -> None:
        assert self.process.stderr is not None
        with suppress(trio.ClosedResourceError):
            async for data in self.process.stderr:
                self.complaints += data

    async def heard(self, ev: str, /, **fields: Any) -> Json:
        """Return the first event of a kind with these fields, and wait for it if need be."""
        [event] = await self.heard_all(1, ev, **fields)
        return event

    async def heard_all(self, number: int, ev: str, /, **fields: Any) -> list[Json]:
        """Return the first so many of them."""
        wanted = {"ev": ev, **fields}.items()
        with trio.move_on_after(PATIENCE_S):
            while True:
                stirred = self._stirred
                found = [event for event in self.events if wanted <= event.items()]
                if len(found) >= number:
                    return found[:number]
                await stirred.wait()
        raise AssertionError(
            f"not {number} of {dict(wanted)}; heard {self.events[-20:]} {self.complaints.decode()}"
        )

    async def order(self, what: str, /, **fields: Any) -> Json:
        """Have it do something, and return the outcome. Raises OrderFailedError."""
        assert self.process.stdin is not None
        self._orders += 1
        order = {"id": self._orders, "do": what, **fields}
        await self.process.stdin.send_all(json.dumps(order).encode() + b"\n")
        with trio.fail_after(PATIENCE_S):
            while True:
                stirred = self._stirred
                for answer in self.events:
                    if answer.get("id") == self._orders and answer["ev"] in ("done", "failed"):
                        if answer["ev"] == "failed":
                            raise OrderFailedError(answer["reason"])
                        return answer
                await stirred.wait()

    @property
    def id(self) -> PeerId:
        return PeerId(self.events[0]["peer"])

    @property
    def address(self) -> str:
        return str(self.events[0]["addresses"][0])

    def refusals(self) -> list[Json]:
        """What it blamed others for, and streams that did not end in order."""
        return [one for one in self.events if one["ev"] in ("refused", "stream-ended", "failed")]

    def kill(self) -> None:
        self.process.kill()


@asynccontextmanager
async def js_peer(*options: str) -> AsyncIterator[JsPeer]:
    process = await trio.lowlevel.open_process(
        [node_program(), str(FOLDER / "peer.mjs"), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    peer = JsPeer(process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.read)
        nursery.start_soon(peer.read_complaints)
        try:
            await peer.heard("ready")
            yield peer
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            # Both are needed first: a cancelled wait here would take the place of a test's failure.
            with trio.CancelScope(shield=True):
                await process.wait()
                for pipe in (process.stdin, process.stdout, process.stderr):
                    assert pipe is not None
                    await pipe.aclose()
            nursery.cancel_scope.cancel()


class Ours:
    """A whole gossip stack that dials only where it is told to."""

    def __init__(self, name: str, folder: Path, **limits: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.keys = keys_now(name)
        self.store = SqliteStore(folder / "gossip.db")
        self.replica = Replica(self.keys, GossipConfig(), Random(name), self.store.load())
        key = os.urandom(32)
        self.transport = Libp2pTransport(key, TransportConfig(listen=LOOPBACK, **limits))
        self.learned: list[Learned] = []
        self.driver = GossipDriver(
            self.replica,
            Exchange(ExchangeConfig(), Random(name)),
            self.transport,
            self.store,
            BundleFiles(folder / "bundles"),
            clock=time.time,
            introductions=Introductions(self.id, private_key(key), Random(name)),
            on_learned=self.learned.append,
        )
        self.changes = self.driver.changes()

    @property
    def id(self) -> PeerId:
        return self.transport.peer_id()

    @property
    def address(self) -> str:
        return self.transport.addresses()[0]

    @property
    def origin(self) -> str:
        return self.keys.origin.hex()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Ours]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.transport.run)
            await nursery.start(self.driver.run)
            await self.driver.moved(self.transport.addresses(), ["127.0.0.0/8"])
            yield self
            nursery.cancel_scope.cancel()
        self.store.close()

    async def until(self, change: Change) -> None:
        with trio.fail_after(PATIENCE_S):
            async for one in self.changes:
                if one == change:
                    return

    async def holds(self, origin: bytes, *leaves: bytes) -> None:
        """Wait until just these leaves of an origin are held here."""
        with trio.fail_after(PATIENCE_S):
            while [card.leaf for card in self.replica.view(origin).cards] != sorted(leaves):
                await anext(self.changes)

    async def meets(self, peer: PeerId) -> None:
        with trio.fail_after(PATIENCE_S):
            while peer not in [stats.peer for stats in self.driver.peers()]:
                await trio.sleep(0.02)

    async def has_peers(self, number: int) -> None:
        with trio.fail_after(PATIENCE_S):
            while len(self.driver.peers()) != number:
                await trio.sleep(0.02)


@asynccontextmanager
async def ours(folder: Path, *names: str, **limits: Any) -> AsyncIterator[list[Ours]]:
    """Nodes of these names, none connected."""
    nodes = [Ours(name, folder / name, **limits) for name in names]
    async with trio.open_nursery() as nursery:
        stop = trio.Event()

        async def run(node: Ours, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            async with node.running():
                task_status.started()
                await stop.wait()

        for node in nodes:
            await nursery.start(run, node)
        yield nodes
        stop.set()


async def link(js: JsPeer, *nodes: Ours) -> None:
    """Connect js to each, and wait until each takes the other's broadcasts."""
    for node in nodes:
        await js.order("dial", address=node.address)
        await node.meets(js.id)
    with trio.fail_after(PATIENCE_S):
        while {*(await js.order("mesh"))["peers"]} != {node.id for node in nodes}:
            await trio.sleep(0.02)
    for node in nodes:
        await js.order("ping", peer=node.id)  # so what was said to it before has arrived


def keys_now(name: str) -> Keys:
    hour = int(time.time()) // HOUR_S
    signing = private_key(gossip_kit.seed(name, "op"))
    root = private_key(gossip_kit.seed(name, "root"))
    return Keys(
        signing,
        issue(root, public_bytes(signing), epoch=1, not_before_h=hour - 1, not_after_h=hour + 2000),
    )
