"""A long way between two nodes: every byte is held for a while by a relay of TCP connections."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
from support_libp2p import link, next_of, running, transport

from gossip.libp2p_transport import Libp2pTransport
from gossip.ports import Arrived, Channel, Connected

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
def _collect_now() -> Iterator[None]:
    """Make a socket that a test leaves open fail that test, not whichever runs later."""
    yield
    gc.collect()


async def slow_road(nursery: trio.Nursery, to: Libp2pTransport, delay_s: float) -> str:
    """Return an address at which the node is further away by so much, each way."""
    (door,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    _, _, host, _, port, *_ = to.addresses()[0].split("/")

    async def carry(source: trio.SocketStream, target: trio.SocketStream) -> None:
        put, take = trio.open_memory_channel[tuple[float, bytes]](1000)

        async def deliver() -> None:
            async for due, data in take:
                await trio.sleep_until(due)
                await target.send_all(data)

        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with trio.open_nursery() as inner, put:
                inner.start_soon(deliver)
                async for data in source:
                    await put.send((trio.current_time() + delay_s, bytes(data)))

    async def serve(near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream(host, int(port))
        async with near, far:
            with suppress(BaseExceptionGroup):
                async with trio.open_nursery() as both:
                    both.start_soon(carry, near, far)
                    both.start_soon(carry, far, near)

    nursery.start_soon(trio.serve_listeners, serve, [door])
    own_port = door.socket.getsockname()[1]
    return to.addresses()[0].replace(f"/tcp/{port}/", f"/tcp/{own_port}/")


async def test_two_nodes_a_third_of_a_second_apart_stay_linked_and_lose_nothing() -> None:
    a, b = transport(health_check_s=1.0), transport(health_check_s=1.0)
    async with running(a, b) as nursery:
        await b.dial(await slow_road(nursery, a, 0.15))
        await next_of(b, Connected)
        await next_of(a, Connected)
        frames = [bytes([number]) * 200_000 for number in range(10)]
        for frame in frames:
            assert await a.send(b.peer_id(), Channel.BUNDLE, frame)
        assert [(await next_of(b, Arrived)).frame for _ in frames] == frames
        assert await b.send(a.peer_id(), Channel.SYNC, b"thanks")
        assert (await next_of(a, Arrived)).frame == b"thanks"
        assert a.lives == b.lives == 1 and not a.counts and not b.counts


async def test_a_distant_peer_holds_up_no_near_one() -> None:
    a, near, distant = transport(), transport(), transport()
    async with running(a, near, distant) as nursery:
        await distant.dial(await slow_road(nursery, a, 0.2))
        await next_of(a, Connected)
        await link(near, a)
        await a.send(distant.peer_id(), Channel.SYNC, b"far")
        await a.send(near.peer_id(), Channel.SYNC, b"near")
        order: list[bytes] = []

        async def take(node: Libp2pTransport) -> None:
            order.append((await next_of(node, Arrived)).frame)

        async with trio.open_nursery() as takers:
            takers.start_soon(take, distant)
            takers.start_soon(take, near)
        assert order == [b"near", b"far"]
