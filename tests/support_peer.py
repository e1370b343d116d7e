"""One whole gossip stack as a process, for tests that need machines: orders in, events out.

    python tests/support_peer.py FOLDER CONFIG

CONFIG is the JSON of `TransportConfig`. Each line of stdin is an order, `{"do": ...}`; each line of
stdout an event, `{"event": ...}`. It ends with its stdin.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import gossip_kit
import msgspec
import trio

from gossip.addresses import AddressBook, Source
from gossip.bundle_files import BundleFiles
from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.dialer import Dialer, DialLoop
from gossip.downloads import FetchError
from gossip.driver import GossipDriver
from gossip.events import LeafRetracted, OriginChanged
from gossip.exchange import Exchange
from gossip.exchange_events import ExchangeConfig
from gossip.keys import Keys, issue, private_key, public_bytes
from gossip.libp2p_transport import Libp2pTransport
from gossip.ports import Connected, Disconnected
from gossip.sqlite_store import SqliteStore
from gossip.transport_config import DialError, TransportConfig
from gossip.wire import HOUR_S


def say(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def keys_of(name: str) -> Keys:
    hour = int(time.time()) // HOUR_S
    signing = private_key(gossip_kit.seed(name, "op"))
    root = private_key(gossip_kit.seed(name, "root"))
    document = issue(
        root, public_bytes(signing), epoch=1, not_before_h=hour - 1, not_after_h=hour + 2000
    )
    return Keys(signing, document)


class Stack:
    """What a node has below its forest, and the orders that tests give it."""

    def __init__(self, folder: Path, config: TransportConfig) -> None:
        self._keys = keys_of(str(folder))
        self._transport = Libp2pTransport(hashlib.sha256(str(folder).encode()).digest(), config)
        rng = Random(str(folder))
        self._replica = Replica(
            self._keys, GossipConfig(sync_interval_s=2.0), rng, SqliteStore(folder / "db").load()
        )
        self._book = AddressBook()
        dialer = Dialer(self._transport.peer_id(), self._book, rng)
        self._dialling = DialLoop(dialer, self._transport.dial, clock=time.time)
        self._driver = GossipDriver(
            self._replica,
            Exchange(ExchangeConfig(), rng),
            self._transport,
            SqliteStore(folder / "db"),
            BundleFiles(folder / "bundles"),
            clock=time.time,
            on_link=self._linked,
        )
        self._changes = self._driver.changes()
        self._root = b""

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._transport.run)
            await nursery.start(self._driver.run)
            say(
                "listening",
                peer=self._transport.peer_id(),
                origin=self._keys.origin.hex(),
                addresses=self._transport.addresses(),
            )
            for task in (self._dialling.run, self._tell_changes, self._tell_addresses):
                nursery.start_soon(task)
            async for line in trio.wrap_file(sys.stdin):
                nursery.start_soon(self._carry_out, json.loads(line))
            nursery.cancel_scope.cancel()

    def _linked(self, event: Connected | Disconnected) -> None:
        self._dialling.on_link(event)
        match event:
            case Connected(peer, address):
                say("connected", peer=peer, address=address, inbound=event.inbound)
            case Disconnected(peer):
                say("disconnected", peer=peer)

    async def _tell_changes(self) -> None:
        async for change in self._changes:
            match change:
                case OriginChanged(origin):
                    cards = self._replica.view(origin).cards
                    say("heard", origin=origin.hex(), leaves=len(cards), urgent=self._urgent())
                case LeafRetracted(origin, _):
                    say("retracted", origin=origin.hex(), urgent=self._urgent())

    def _urgent(self) -> int:
        """Bytes that came on the urgent plane."""
        return sum(stats.bytes_in["urgent"] for stats in self._driver.peers())

    async def _tell_addresses(self) -> None:
        told = self._transport.addresses()
        while True:
            if (addresses := self._transport.addresses()) != told:
                say("addresses", addresses=addresses)
                told = addresses
            await trio.sleep(0.05)

    async def _carry_out(self, order: dict[str, Any]) -> None:
        match order:
            case {"do": "dial", "address": address}:
                began = time.monotonic()
                try:
                    await self._transport.dial(address)
                except DialError as error:
                    say("dialled", ok=False, reason=error.reason, text=str(error))
                else:
                    say("dialled", ok=True, took_s=time.monotonic() - began)
            case {"do": "know", "address": address}:
                self._book.add(address, Source.OWNER)
                self._dialling.stir()
            case {"do": "publish", "leaves": leaves}:
                cards = tuple(map(gossip_kit.card, leaves))
                await self._driver.publish(cards, (), (), urgent=True)
                say("published")
            case {"do": "retract", "leaf": leaf}:
                await self._driver.retract(gossip_kit.leaf(leaf))
                say("retracting")
            case {"do": "add", "size": size}:
                root = await self._driver.add_bundle(Random(size).randbytes(size))
                say("added", root=root.hex())
            case {"do": "fetch", "root": root, "size": size}:
                await self._fetch(bytes.fromhex(root), size)
            case {"do": "view"}:
                say("view", view=self._view(), counts=dict(self._transport.counts))

    async def _fetch(self, root: bytes, size: int) -> None:
        began, tenth = time.monotonic(), 0

        def progress(here: int, whole: int) -> None:
            nonlocal tenth
            if here * 10 // whole > tenth:
                tenth = here * 10 // whole
                say("fetching", tenth=tenth)

        try:
            result = await self._driver.fetch(root, size, None, progress)
        except FetchError as error:
            say("fetch failed", text=str(error))
            return
        data = await trio.to_thread.run_sync(result.path.read_bytes)
        say(
            "fetched",
            took_s=time.monotonic() - began,
            whole=data == Random(size).randbytes(size),
            sources=result.sources,
        )

    def _view(self) -> dict[str, list[str]]:
        return {
            origin.hex(): [card.leaf.hex() for card in self._replica.view(origin).cards]
            for origin in sorted(self._replica.origins())
        }


def main() -> None:
    folder, config = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=TransportConfig)
    trio.run(partial(Stack(folder, config).run))


if __name__ == "__main__":
    main()
