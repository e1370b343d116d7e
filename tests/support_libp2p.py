"""Real transports on loopback, and a raw libp2p host to attack them with."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from gossip import libp2p_fence as fence
from gossip.libp2p_transport import Libp2pTransport
from gossip.ports import Arrived, Channel, Connected, PeerId
from gossip.transport_config import TransportConfig

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def transport(listen: str = LOOPBACK, key: bytes | None = None, **limits: Any) -> Libp2pTransport:
    return Libp2pTransport(key or os.urandom(32), TransportConfig(listen=listen, **limits))


@asynccontextmanager
async def running(*transports: Libp2pTransport) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for each in transports:
            await nursery.start(each.run)
        yield nursery
        nursery.cancel_scope.cancel()


async def next_of(node: Libp2pTransport, kind: type) -> Any:
    """Return the next event of a kind, passing over the others."""
    with trio.fail_after(60):
        while True:
            event = await node.next_event()
            if isinstance(event, kind):
                return event


async def link(dialing: Libp2pTransport, listening: Libp2pTransport) -> None:
    assert await dialing.dial(listening.addresses()[0]) == listening.peer_id()
    await next_of(dialing, Connected)
    await next_of(listening, Connected)


async def echo(node: Libp2pTransport) -> None:
    """Send every bulk frame back to where it came from."""
    while True:
        event = await node.next_event()
        if isinstance(event, Arrived) and event.channel is Channel.SYNC:
            await node.send(event.peer, Channel.SYNC, event.frame)


async def assert_answers(victim: Libp2pTransport) -> None:
    """A peer that has never been there connects and gets its frame back."""
    fresh = transport()
    async with running(fresh):
        with trio.fail_after(60):
            await fresh.dial(victim.addresses()[0])
            assert await fresh.send(victim.peer_id(), Channel.SYNC, b"still there?")
            arrived = await next_of(fresh, Arrived)
        assert arrived == Arrived(victim.peer_id(), Channel.SYNC, b"still there?")
    assert victim.lives == 1


@asynccontextmanager
async def attacker() -> AsyncIterator[Any]:
    """A libp2p host without pubsub or manners."""
    host = fence.open_host(os.urandom(32), LOOPBACK, TransportConfig())
    async with host.run([fence.address_of(LOOPBACK)]):
        try:
            yield host
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(60):
                await fence.close(host)


async def connect(host: Any, victim: Libp2pTransport) -> Any:
    """Connect a raw host to a transport, and return libp2p's id of the transport."""
    peer = fence.peer_of(victim.addresses()[0])
    await host.get_network().dial_addr(fence.address_of(victim.addresses()[0]), peer)
    return peer


def muxer_of(host: Any, peer: Any) -> Any:
    """The muxer of a raw host's connection to a peer, to write frames with that no muxer would."""
    return host.get_network().get_connections(peer)[0].muxed_conn


def peer_name(host: Any) -> PeerId:
    return PeerId(str(host.get_id()))
