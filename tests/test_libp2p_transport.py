"""The real transport over loopback: frames, broadcasts, restarts, and nothing left behind."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import trio
from support_fuzz import GO_AWAY, RawConnection, Target, TrioTCPStream, shake, target_of, tcp, yamux
from support_libp2p import assert_answers, echo, link, next_of, running, transport

from gossip.bundle_files import BundleFiles
from gossip.driver import GossipDriver
from gossip.events import Effect, Event
from gossip.exchange import Exchange
from gossip.exchange_events import ExchangeConfig
from gossip.libp2p_fence import ed25519_pair
from gossip.libp2p_transport import Libp2pTransport
from gossip.ports import FRAME_BYTES_MAX, Arrived, Channel, Connected, Disconnected, PeerId
from gossip.transport_config import DialError, ListenError
from gossip.wire import PEERS_FRAME_BYTES_MAX, SYNC_FRAME_BYTES_MAX

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
def _collect_now() -> Iterator[None]:
    """Make a socket that a test leaves open fail that test, not whichever runs later."""
    yield
    gc.collect()


async def test_frames_arrive_whole_and_in_order_on_every_channel() -> None:
    a, b = transport(), transport()
    sizes = {
        Channel.SYNC: (1, 100, 30_000, SYNC_FRAME_BYTES_MAX, 5),
        Channel.BUNDLE: (1, 65_503, 65_504, FRAME_BYTES_MAX, 70_000, 5, FRAME_BYTES_MAX),
        Channel.PEERS: (1, 5, PEERS_FRAME_BYTES_MAX, 100),
    }
    async with running(a, b):
        await link(a, b)
        for channel in Channel:
            frames = [os.urandom(size) for size in sizes[channel]]
            for frame in frames:
                assert await a.send(b.peer_id(), channel, frame)
            got = [await next_of(b, Arrived) for _ in frames]
            assert got == [Arrived(a.peer_id(), channel, frame) for frame in frames]
        assert await b.send(a.peer_id(), Channel.SYNC, b"back")
        assert await next_of(a, Arrived) == Arrived(b.peer_id(), Channel.SYNC, b"back")


async def test_who_is_at_the_other_end_is_known_over_ipv6_too() -> None:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    a, b = transport("/ip6/::1/tcp/0"), transport("/ip6/::1/tcp/0", relay_for_others=True)
    async with running(a, b):
        await a.dial(b.addresses()[0])
        assert (await next_of(a, Connected)).address == b.addresses()[0].split("/p2p/")[0]
        assert (await next_of(b, Connected)).address.startswith("/ip6/::1/tcp/")
        assert b._door._ip_of[a.peer_id()] == "::1"


async def test_a_broadcast_reaches_all_three_nodes_of_a_line_once() -> None:
    a, b, c = transport(), transport(), transport()
    async with running(a, b, c):
        await link(a, b)
        await link(b, c)
        for far in (b, c):
            await joined_mesh(a if far is b else b, far)
            await joined_mesh(far, b if far is c else a)
        for number in range(40):
            await a.broadcast(b"urgent %d" % number)
        for node, forwarder in ((b, a), (c, b)):
            got = [await next_of(node, Arrived) for _ in range(40)]
            assert {event.frame for event in got} == {b"urgent %d" % n for n in range(40)}
            assert {(event.peer, event.channel) for event in got} == {(forwarder.peer_id(), None)}


async def joined_mesh(node: Libp2pTransport, peer: Libp2pTransport) -> None:
    from gossip import libp2p_fence as fence

    assert node._life is not None
    peer_id = fence.peer_of(peer.addresses()[0])
    await node._life.pubsub.wait_for_mesh(peer_id, fence.URGENT_TOPIC)


async def test_broadcasts_come_before_bulk_and_do_not_keep_it_out() -> None:
    """A node that cannot keep up would else hear of every table and hold none."""
    a, b = transport(), transport()
    async with running(a, b):
        await link(a, b)
        await joined_mesh(a, b)
        for number in range(30):
            await a.broadcast(b"news %d" % number)
        assert await a.send(b.peer_id(), Channel.SYNC, b"table")
        with trio.fail_after(60):
            while len(b._urgent_inbox) < 30 or not b._inbox._queues:
                await trio.sleep(0.01)
        heard = [(await next_of(b, Arrived)).frame for _ in range(31)]
    assert heard[0] == b"news 0"
    assert heard.index(b"table") <= 8


async def test_the_end_of_a_peer_is_told_and_sends_to_it_are_refused() -> None:
    a, b = transport(), transport()
    async with running(a):
        async with running(b):
            await link(a, b)
        assert await next_of(a, Disconnected) == Disconnected(b.peer_id())
        assert not await a.send(b.peer_id(), Channel.SYNC, b"anyone?")


async def test_a_disconnected_peer_can_come_back() -> None:
    a, b = transport(), transport()
    async with running(a, b):
        await link(a, b)
        await a.disconnect(b.peer_id(), "test")
        await next_of(a, Disconnected)
        await next_of(b, Disconnected)
        await link(b, a)
        assert await a.send(b.peer_id(), Channel.SYNC, b"again")
        assert (await next_of(b, Arrived)).frame == b"again"


async def test_a_peer_that_does_not_read_fills_its_own_queue_and_no_other() -> None:
    a, slow, quick = transport(queue_bytes_max=1 << 20), transport(inbox_frames_max=1), transport()
    async with running(a, slow, quick):
        await link(a, slow)
        await link(a, quick)
        frame = bytes(FRAME_BYTES_MAX)
        with trio.fail_after(60):
            while await a.send(slow.peer_id(), Channel.BUNDLE, frame):
                await trio.sleep(0.01)  # let the writer run, or the queue alone would be tested
        assert a.counts["outbox full"] == 1
        with trio.fail_after(60):
            assert await a.send(quick.peer_id(), Channel.SYNC, b"quick")
            assert (await next_of(quick, Arrived)).frame == b"quick"
        assert await a.send(slow.peer_id(), Channel.SYNC, b"small")


async def test_dialling_says_what_went_wrong() -> None:
    a, b = transport(dial_s=2), transport()
    async with running(a, b):
        with pytest.raises(DialError, match="this node"):
            await a.dial(a.addresses()[0])
        with pytest.raises(DialError, match="no multiaddr"):
            await a.dial("localhost:80")
        with pytest.raises(DialError, match="/tcp/1/"):
            await a.dial(f"/ip4/127.0.0.1/tcp/1/p2p/{b.peer_id()}")
        # Another key answers at that address.
        wrong = b.addresses()[0].replace(str(b.peer_id()), str(transport().peer_id()))
        with pytest.raises(DialError):
            await a.dial(wrong)


async def test_a_port_in_use_is_said_in_one_line_with_what_to_do() -> None:
    a = transport()
    async with running(a):
        taken = a.addresses()[0].split("/p2p/")[0]
        with pytest.raises(ListenError, match=r"cannot listen on .*another process listens there"):
            await transport(taken).run()
    for wrong in ("127.0.0.1:4021", "/ip4/127.0.0.1/tcp/70000", "/ip4/203.0.113.1/tcp/4021"):
        with pytest.raises(ListenError, match="cannot listen on"):
            await transport(wrong).run()


async def test_the_same_key_has_the_same_name() -> None:
    key = bytes(range(32))
    assert transport(key=key).peer_id() == transport(key=key).peer_id()
    assert transport(key=key).peer_id() != transport().peer_id()


def leftovers() -> tuple[int, int]:
    gc.collect()
    # Trio's own come with a call and go after seconds of rest, whoever made it.
    threads = [each for each in threading.enumerate() if not each.name.startswith("Trio thread")]
    return len(list(Path("/proc/self/fd").iterdir())), len(threads)


async def test_a_node_that_has_ended_leaves_no_socket_and_no_thread() -> None:
    async with running(transport()):
        pass  # whatever the first host of a process opens for good
    before = leftovers()
    for _ in range(2):
        a, b, c = transport(), transport(), transport()
        async with running(a, b, c):
            await link(a, b)
            await link(c, b)
            await a.send(b.peer_id(), Channel.SYNC, b"x")
            await next_of(b, Arrived)
    assert leftovers() == before


async def test_a_host_that_dies_is_started_again_with_its_name_and_address() -> None:
    a, b = transport(), transport()
    async with running(a, b) as nursery:
        await link(b, a)
        address = a.addresses()
        assert a._life is not None

        async def boom() -> None:
            raise RuntimeError("a fault of libp2p's own")

        a._life.host.get_network().manager.run_task(boom)
        assert await next_of(a, Disconnected) == Disconnected(b.peer_id())
        await next_of(b, Disconnected)
        with trio.fail_after(60):
            while a.lives < 2:
                await trio.sleep(0.05)
        assert a.addresses() == address and a.counts["host died"] == 1
        await link(b, a)
        nursery.start_soon(echo, a)
        await b.send(a.peer_id(), Channel.SYNC, b"well?")
        assert (await next_of(b, Arrived)).frame == b"well?"


async def test_a_host_that_hears_nobody_is_started_again_and_says_so() -> None:
    a, b = transport(deaf_check_s=0.1), transport()
    async with running(a, b) as nursery:
        nursery.start_soon(echo, a)
        address = a.addresses()
        assert a._life is not None
        (listener,) = a._life.host.get_network().listeners.values()
        listener._nursery.cancel_scope.cancel()  # whoever accepts is gone; all else goes on
        with trio.fail_after(60):
            while a.lives < 2:
                await trio.sleep(0.05)
        assert a.addresses() == address
        assert a.standing() == {
            "lives": 2,
            "last_death": "_DeafError: it heard nobody who connected",
            "counts": {"host died": 1},
        }
        await b.dial(a.addresses()[0])
        await b.send(a.peer_id(), Channel.SYNC, b"well?")
        assert (await next_of(b, Arrived)).frame == b"well?"


async def test_a_node_that_knocks_at_its_own_door_is_no_guest_of_its_own() -> None:
    a = transport(deaf_check_s=0.02)
    async with running(a):
        await trio.sleep(0.5)
        assert (a.lives, a.counts.total()) == (1, 0)


async def test_deaths_leave_no_socket_and_no_thread() -> None:
    async with running(transport()):
        pass  # whatever the first host of a process opens for good
    before = leftovers()
    a, b = transport(), transport()
    async with running(a, b):
        for life in (2, 3):
            await link(b, a)
            assert a._life is not None

            async def boom() -> None:
                raise RuntimeError("a fault of libp2p's own")

            a._life.host.get_network().manager.run_task(boom)
            await next_of(a, Disconnected)
            await next_of(b, Disconnected)
            with trio.fail_after(60):
                while a.lives < life:
                    await trio.sleep(0.05)
            assert a.last_death == "RuntimeError: a fault of libp2p's own"
    assert leftovers() == before


async def test_a_probe_is_answered_by_a_peer_that_is_there_and_ends_one_that_is_not() -> None:
    a, b = transport(), transport()
    async with running(a, b):
        assert not await a.probe(b.peer_id(), 1.0)
        await link(a, b)
        assert await a.probe(b.peer_id(), 60.0)
        assert b._life is not None
        (connection,) = b._life.host.get_network().get_connections()

        async def frozen(data: bytes) -> None:
            await trio.sleep_forever()

        connection.muxed_conn._write_frame = frozen
        with trio.fail_after(60):
            while await a.probe(b.peer_id(), 0.2):
                pass  # what it had written before is an answer, too
        assert await next_of(a, Disconnected) == Disconnected(b.peer_id())
        del connection.muxed_conn._write_frame


@pytest.mark.slow
async def test_polite_connections_leave_no_slot_taken() -> None:
    victim = transport(accept_burst=1000)
    async with running(victim) as nursery:
        target = target_of(victim.addresses()[0])
        assert victim._life is not None
        network = victim._life.host.get_network()

        async def rested() -> None:
            await wait_until(lambda: not (victim._door.connections() or network.connections))

        await connect_and_close(target, 20)
        await rested()
        before = leftovers()
        async with trio.open_nursery() as guests:
            for _ in range(4):
                guests.start_soon(connect_and_close, target, 80)
        await rested()
        assert leftovers() == before
        nursery.start_soon(echo, victim)
        await assert_answers(victim)


async def connect_and_close(target: Target, cycles: int) -> None:
    for _ in range(cycles):
        async with tcp(target, "127.0.0.1") as stream:
            secure = await shake(RawConnection(TrioTCPStream(stream), True), target, ed25519_pair())
            await secure.write(yamux(GO_AWAY, 0, 0, 0))
            with trio.fail_after(60), suppress(Exception):
                while await secure.read():
                    pass


async def test_more_connections_in_a_life_than_slots_leave_it_open_for_others() -> None:
    victim, guest = transport(connections_max=5), transport()
    async with running(victim, guest) as nursery:
        for _ in range(8):
            await link(guest, victim)
            await guest.disconnect(victim.peer_id(), "test")
            await next_of(guest, Disconnected)
            await next_of(victim, Disconnected)
        nursery.start_soon(echo, victim)
        await assert_answers(victim)


# ---- bundles over the real transport -------------------------------------------------------------


class SilentCore:
    def handle(self, event: Event) -> list[Effect]:
        return []


class NoStore:
    def load(self) -> list[object]:
        return []

    def write(self, puts: object, deletes: object, *, durable: bool) -> None:
        raise AssertionError("nothing is to be stored")


def driver_of(node: Libp2pTransport, folder: Path) -> GossipDriver:
    return GossipDriver(
        SilentCore(),
        Exchange(ExchangeConfig(), Random(1)),
        node,
        NoStore(),  # type: ignore[arg-type]
        BundleFiles(folder),
        clock=trio.current_time,
    )


async def serve(
    node: Libp2pTransport, folder: Path, data: bytes, task_status: trio.TaskStatus[object]
) -> None:
    """Run a holder of one bundle in a scope of its own, so that it can be killed."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            driver = driver_of(node, folder)
            await nursery.start(driver.run)
            task_status.started((scope, await driver.add_bundle(data)))


async def test_a_bundle_comes_whole_from_two_holders_one_of_them_killed_midway(
    tmp_path: Path,
) -> None:
    data = Random(7).randbytes(20_000_000)
    a, b, c = transport(), transport(), transport()
    async with running(c) as nursery:
        killed, root = await nursery.start(serve, a, tmp_path / "a", data)
        await nursery.start(serve, b, tmp_path / "b", data)
        driver = driver_of(c, tmp_path / "c")
        await nursery.start(driver.run)
        await c.dial(a.addresses()[0])
        await c.dial(b.addresses()[0])
        await wait_until(lambda: len(driver.peers()) == 2)

        def progress(here: int, size: int) -> None:
            if here > size // 3:
                killed.cancel()

        with trio.fail_after(60):
            result = await driver.fetch(root, len(data), None, progress)
        assert result.path.read_bytes() == data
        assert set(result.sources) == {a.peer_id(), b.peer_id()}
        assert result.sources[b.peer_id()] > len(data) // 3
        assert sum(result.sources.values()) == len(data)


async def test_a_fetch_goes_on_after_a_restart_of_the_node(tmp_path: Path) -> None:
    data = Random(8).randbytes(8_000_000)
    a, key = transport(), os.urandom(32)

    async def fetch_once(stop_at: float) -> tuple[int, int]:
        c = transport(key=key)
        here = [0, 0]
        async with running(c) as nursery:
            driver = driver_of(c, tmp_path / "c")
            await nursery.start(driver.run)
            await c.dial(a.addresses()[0])

            def progress(come: int, size: int) -> None:
                here[0] = come
                if come >= stop_at * size:
                    nursery.cancel_scope.cancel()

            result = await driver.fetch(root, len(data), [PeerId(a.peer_id())], progress)
            assert result.path.read_bytes() == data
            here[1] = result.resumed_bytes
        return here[0], here[1]

    async with trio.open_nursery() as nursery:
        _, root = await nursery.start(serve, a, tmp_path / "a", data)
        with trio.fail_after(60):
            come, _ = await fetch_once(0.4)
            _, resumed = await fetch_once(2.0)
        assert 0 < come <= resumed + 20 * 262_144 and resumed >= 0.3 * len(data)
        nursery.cancel_scope.cancel()


async def wait_until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not holds():
            await trio.sleep(0.01)
