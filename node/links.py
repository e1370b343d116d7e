"""Whom the running node is linked with, and how it finds others: the wiring of all that dials.

One address book, fed by the owner, by peers that introduce others, and by the local network if the
owner asks for that; one dialer that works from it; and a watch for sleeps and changes of network,
after which everybody is dialled at once. The node's own addresses are told from here, and taken
back when they change.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from gossip.addresses import BY_MDNS, AddressError, Source
from gossip.dialer import Dialer, DialLoop
from gossip.introductions import Introductions, Learned
from gossip.keys import private_key
from gossip.multiaddrs import expand, group_of
from gossip.ports import Connected, Disconnected, PeerId
from gossip.wakefulness import Reading, WakeLoop, Woke

from . import peerbook

if TYPE_CHECKING:
    from gossip.driver import GossipDriver
    from gossip.transport_config import TransportConfig

    from .adapters import MeshTransport
    from .app import App

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1")


class Links:
    """Of one running node. introductions: for its driver.

    dial: how an address is dialled; the transport's way if not given. on_woke: told when the
    machine has slept or its network has changed, after the dialer.
    """

    def __init__(
        self,
        app: App,
        transport: MeshTransport,
        config: TransportConfig,
        rng: Random,
        *,
        dial: Callable[[str], Awaitable[PeerId]] | None = None,
        on_woke: Callable[[Woke], None] = lambda woke: None,
    ) -> None:
        self._app = app
        self._transport = transport
        self._config = config
        self._on_woke = on_woke
        self._book = peerbook.load(app)
        self._dialer = Dialer(transport.peer_id(), self._book, rng)
        self._dialing = DialLoop(
            self._dialer, dial or transport.dial, clock=app.clock.now_s, probe=transport.probe
        )
        self.introductions: Introductions | None = None
        if app.adapters.roams:  # else it has no addresses to tell
            key = private_key(app.identity.transport) if config.introduced else None
            self.introductions = Introductions(transport.peer_id(), key, rng)
        self._driver: GossipDriver | None = None
        self._at: tuple[list[str], tuple[str, ...]] | None = None  # addresses and networks, as told
        self._neighbours: Any = None
        self._nursery: trio.Nursery | None = None
        self._saved = b""

    def belongs_to(self, driver: GossipDriver) -> None:
        """The driver that carries the introductions; it is made after this."""
        self._driver = driver

    async def run(self) -> None:
        """Dial, watch and look around until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._dialing.run)
            if not self._app.adapters.roams:
                return
            if self._config.mdns:
                from gossip.mdns import Neighbours

                self._neighbours = Neighbours(self._transport.peer_id(), self._seen_near)
                nursery.start_soon(self._neighbours.run)
            nursery.start_soon(WakeLoop(self._woke, self._looked).run)

    # What is heard

    def linked(self, event: Connected | Disconnected) -> None:
        self._dialing.on_link(event)

    def learned(self, news: Learned) -> None:
        """A peer says where it, or another, can be dialled."""
        fresh = [self._introduce(address, news.by) for address in news.addresses]
        if any(fresh):
            log.info("peer learned peer=%s by=%s", news.peer, news.by)
            self._dialing.stir()

    def _seen_near(self, address: str) -> None:
        if self._introduce(address, BY_MDNS):
            log.info("peer found on the local network address=%s", address)
            self._dialing.stir()

    def _introduce(self, address: str, by: str) -> bool:
        try:
            return self._book.introduce(address, by, self._app.clock.now_s())
        except AddressError as problem:
            log.debug("address not taken by=%s problem=%s", by, problem)
            return False

    # What the owner orders

    def dial_now(self, address: str) -> None:
        """Remember an address for ever, and dial it. Raises AddressError."""
        self._book.add(address, Source.OWNER)
        self.save()
        self._dialing.stir()

    async def forget(self, peer: str) -> bool:
        """Remember a peer no more, and end the link with it; False if it was not known."""
        known = self._book.remove(PeerId(peer))
        self.save()
        await self._transport.disconnect(PeerId(peer), "removed by the owner")
        return known

    def is_owners(self, peer: PeerId) -> bool:
        """True of a peer that the owner has named."""
        return any(entry.source is Source.OWNER for entry in self._book.entries(peer))

    def save(self) -> None:
        """Keep the book, if it has changed."""
        blob = self._book.to_json()
        if blob != self._saved:
            peerbook.save(self._app, self._book)
            self._saved = blob

    def overview(self) -> dict[str, Any]:
        """For the run file: what the links rest on."""
        outbound = self._dialer.outbound()
        return {
            "known": len(self._book),
            "reached": sum(self._book.is_proven(peer) for peer in self._book.peers()),
            "dialled": [peer for peer, _ in outbound],
            "networks": len({group_of(address) for _, address in outbound}),
            "told": self._at[0] if self._at and self._config.introduced else [],
            "mdns": self._config.mdns,
        }

    # The machine

    def _woke(self, woke: Woke) -> None:
        self._dialing.woke()
        self._on_woke(woke)

    def _looked(self, reading: Reading) -> None:
        """Tell the new addresses, if they are others than those told last."""
        hosts = (*LOOPBACK, *reading.hosts)
        addresses = [*expand(self._transport.addresses(), hosts), *self._announced()]
        if (addresses, reading.networks) == self._at:
            return
        self._at = addresses, reading.networks
        assert self._driver is not None and self._nursery is not None, "not running"
        self._nursery.start_soon(partial(self._driver.moved, addresses, reading.networks))
        if self._neighbours is not None:
            self._neighbours.move(addresses, reading.networks)

    def _announced(self) -> list[str]:
        """The owner's word for where this node can be reached; see `peerbook.announced`."""
        return peerbook.announced(self._config.announce, self._transport.peer_id())
