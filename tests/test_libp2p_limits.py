"""What one peer may cost a node: streams, memory, connections, faults. Over real sockets."""

from __future__ import annotations

import gc
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from support_libp2p import (
    assert_answers,
    attacker,
    connect,
    echo,
    link,
    muxer_of,
    next_of,
    peer_name,
    running,
    transport,
)

from gossip import libp2p_fence as fence
from gossip.libp2p_transport import Libp2pTransport
from gossip.ports import REFUSED_TOO_MUCH, Channel, Connected, Disconnected
from gossip.transport_config import DialError

pytestmark = pytest.mark.network

IDENTIFY = "/ipfs/id/1.0.0"
DATA, CREDIT, PING = 0, 1, 2
SYN, RST = 1, 8


@pytest.fixture(autouse=True)
def _collect_now() -> Iterator[None]:
    """Make a socket that a test leaves open fail that test, not whichever runs later."""
    yield
    gc.collect()


@asynccontextmanager
async def attacked(**limits: Any) -> AsyncIterator[tuple[Libp2pTransport, Any, Any]]:
    """A victim, an attacker connected to it, and the attacker's muxer. At the end the victim must
    answer a fresh peer."""
    victim = transport(**limits)
    async with running(victim) as nursery:
        nursery.start_soon(echo, victim)
        async with attacker() as host:
            peer = await connect(host, victim)
            yield victim, host, muxer_of(host, peer)
            await assert_answers(victim)


def frame(kind: int, flags: int, stream: int, length: int, data: bytes = b"") -> bytes:
    return struct.pack("!BBHII", 0, kind, flags, stream, length) + data


async def refused(victim: Libp2pTransport, reason: str) -> None:
    with trio.fail_after(60):
        while not victim.counts[reason]:
            await trio.sleep(0.01)


async def write_until_closed(muxer: Any, frames: Iterator[bytes]) -> None:
    with suppress(Exception), trio.fail_after(60):
        for one in frames:
            await muxer._write_frame(one)


async def finished_stream(host: Any, victim: Libp2pTransport) -> int:
    """Open a stream that the victim is done with: it reads no more of it. Returns its id."""
    stream = await host.new_stream(fence.id_of(victim.peer_id()), [IDENTIFY])
    assert await stream.read(1)
    return int(stream.muxed_stream.stream_id)


# ---- the muxer -----------------------------------------------------------------------------------


async def test_data_beyond_the_window_of_a_stream_that_nobody_reads_ends_the_connection() -> None:
    async with attacked() as (victim, host, muxer):
        stream = await finished_stream(host, victim)
        part = frame(DATA, 0, stream, 60_000, bytes(60_000))
        await write_until_closed(muxer, (part for _ in range(1000)))
        await refused(victim, "data beyond the window")
        assert victim.refused_of(peer_name(host)) == {"data beyond the window": 1}


async def test_many_streams_that_nobody_reads_share_one_bound() -> None:
    async with attacked() as (victim, host, muxer):

        async def fill() -> None:
            for _ in range(100):
                stream = await finished_stream(host, victim)
                for _ in range(4):
                    await muxer._write_frame(frame(DATA, 0, stream, 60_000, bytes(60_000)))

        with suppress(Exception), trio.fail_after(60):
            await fill()
        await refused(victim, "unread data beyond the connection's bound")


async def test_many_connections_share_one_bound_for_what_nobody_reads() -> None:
    async with attacked(unread_bytes_max=1_000_000) as (victim, host, _), attacker() as other:
        await connect(other, victim)
        for each in (host, other):
            stream = await finished_stream(each, victim)
            with suppress(Exception), trio.fail_after(60):
                for _ in range(8):
                    peer = fence.id_of(victim.peer_id())
                    part = frame(DATA, 0, stream, 60_000, bytes(60_000))
                    await muxer_of(each, peer)._write_frame(part)
        stream = await finished_stream(other, victim)
        part = frame(DATA, 0, stream, 60_000, bytes(60_000))
        await write_until_closed(muxer_of(other, fence.id_of(victim.peer_id())), iter([part] * 8))
        await refused(victim, "unread data beyond all connections' bound")


async def test_ten_thousand_streams_asked_for_are_cut_at_the_limit() -> None:
    async with attacked() as (victim, _, muxer):
        opened = (frame(CREDIT, SYN, 2 * i + 1, 0) for i in range(10_000, 20_000))
        await write_until_closed(muxer, opened)
        await refused(victim, "too many streams")


async def test_streams_opened_and_reset_at_once_leave_nothing() -> None:
    async with attacked() as (victim, host, muxer):
        for i in range(1000, 1300):
            await muxer._write_frame(frame(CREDIT, SYN | RST, 2 * i + 1, 0))
        assert victim._life is not None
        (connection,) = victim._life.host.get_network().get_connections(host.get_id())
        assert await muxer.answers(60)
        with trio.fail_after(60):
            while connection.muxed_conn.streams:
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (frame(7, 0, 1, 0), "muxer frame of no known kind"),
        (b"\x09" + frame(PING, SYN, 0, 0)[1:], "muxer frame of no known kind"),
        (frame(CREDIT, SYN, 2, 0), "muxer stream of our own numbers"),
        (frame(CREDIT, SYN, 0, 0), "muxer stream of our own numbers"),
        (frame(DATA, SYN, 99, 1 << 31), "data beyond the window"),
        (frame(DATA, 0, 12_345, 0xFFFFFFFF), "data beyond the window"),
    ],
)
async def test_a_frame_that_no_muxer_sends_ends_the_connection(bad: bytes, reason: str) -> None:
    async with attacked() as (victim, _, muxer):
        await muxer._write_frame(bad)
        await refused(victim, reason)
        await next_closed(muxer)


@pytest.mark.parametrize("cut", [6, 12, 1000], ids=["header", "between", "body"])
async def test_an_empty_message_of_noise_ends_the_connection_wherever_it_comes(cut: int) -> None:
    """It ends a read of libp2p's early: what follows would be taken for what it is not."""
    async with attacked() as (victim, host, muxer):
        stream = await finished_stream(host, victim)
        data = frame(DATA, 0, stream, 60_000, bytes(60_000))
        with suppress(Exception):
            for part in (data[:cut], b"", data[cut:]):
                await muxer.secured_conn.conn.write_msg(part)
        await refused(victim, "empty message of Noise")
        await next_closed(muxer)
        assert victim.refused_of(peer_name(host)) == {"empty message of Noise": 1}


async def test_no_header_passes_unseen_after_a_fault_within_a_body() -> None:
    """libp2p's muxer reads the next header then, as if the body had come to its end."""
    async with attacked() as (victim, host, muxer):
        stream = await finished_stream(host, victim)
        noise = muxer.secured_conn.conn
        with suppress(Exception):
            await noise.write_msg(frame(DATA, 0, stream, 120_000, bytes(1000)))
            await noise.read_writer.write_msg(bytes(40))  # sealed with no key
            for number in range(1001, 2001, 2):
                await noise.write_msg(frame(CREDIT, SYN, number, 0))
        await next_closed(muxer)


async def test_headers_and_bodies_in_pieces_of_any_size_are_read() -> None:
    async with attacked() as (victim, host, muxer):
        stream = await host.new_stream(fence.id_of(victim.peer_id()), [IDENTIFY])
        number = stream.muxed_stream.stream_id
        for byte in frame(DATA, 0, number, 20, bytes(20)) + frame(PING, SYN, 0, 0):
            await muxer.secured_conn.conn.write_msg(bytes([byte]))
        assert await muxer.answers(60)
        assert not victim.refused_of(peer_name(host)) and not muxer.is_closed


async def test_a_connection_that_cannot_be_written_to_is_given_up_at_once() -> None:
    """Its reader has work for half a minute with what came before the end."""
    victim = transport()
    async with running(victim), attacker() as host:
        muxer = muxer_of(host, await connect(host, victim))
        await next_of(victim, Connected)
        assert victim._life is not None
        (connection,) = victim._life.host.get_network().get_connections(host.get_id())
        await muxer._write_frame(frame(CREDIT, 0, 999, 1) * 12_000)  # as much as sockets hold
        with trio.fail_after(60):
            while connection.muxed_conn._tokens > 0:
                await trio.sleep(0.01)
        raw = muxer.secured_conn.conn.read_writer.read_write_closer.stream.stream
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await raw.aclose()  # with a reset
        with trio.fail_after(10):
            while await victim.send(peer_name(host), Channel.SYNC, b"still there?"):
                await trio.sleep(0.1)
            await next_of(victim, Disconnected)


async def next_closed(muxer: Any) -> None:
    with trio.fail_after(60):
        await muxer.event_closed.wait()


async def test_a_flood_of_small_frames_holds_up_its_sender_alone() -> None:
    guest = transport()
    async with attacked() as (victim, _, muxer), running(guest) as nursery:
        await guest.dial(victim.addresses()[0])
        await next_of(guest, Connected)

        async def flood() -> None:
            with suppress(Exception):
                while True:
                    await muxer._write_frame(frame(PING, SYN, 0, 0) * 1000)

        nursery.start_soon(flood)
        for number in range(20):
            await guest.send(victim.peer_id(), Channel.SYNC, b"%d" % number)
            with trio.fail_after(60):
                while (await guest.next_event()) is None:
                    pass


# ---- faults and bans -----------------------------------------------------------------------------


async def test_a_peer_with_too_many_faults_is_disconnected_and_banned_for_a_while() -> None:
    async with attacked(faults_max=4, ban_s=600.0) as (victim, host, _):
        peer = fence.id_of(victim.peer_id())
        with suppress(Exception), trio.fail_after(60):
            for _ in range(10):
                stream = await host.new_stream(peer, ["/groove/sync/1"])
                await stream.write(b"\xff" * 8)
                with suppress(Exception):
                    await stream.read(1)
        await refused(victim, "peer banned")
        assert victim.refused_of(peer_name(host))["frame too large"] >= 4
        with trio.fail_after(60):
            while host.get_network().get_connections(peer):
                await trio.sleep(0.01)
        with suppress(Exception):
            await connect(host, victim)
        await refused(victim, "connection of a banned peer")
        assert victim._life is not None
        with pytest.raises(DialError, match="banned"):
            await victim.dial(f"{host.get_addrs()[0]}")


async def test_a_peer_that_the_protocol_refused_too_often_does_not_come_back() -> None:
    victim, guest = transport(), transport()
    async with running(victim, guest):
        await link(guest, victim)
        await victim.disconnect(guest.peer_id(), REFUSED_TOO_MUCH)
        await next_of(victim, Disconnected)
        await next_of(guest, Disconnected)
        with suppress(DialError):
            await guest.dial(victim.addresses()[0])
        await refused(victim, "connection of a banned peer")
        with trio.fail_after(60):
            while victim._life and victim._life.host.is_peer_connected(
                fence.id_of(guest.peer_id())
            ):
                await trio.sleep(0.01)


# ---- connections ---------------------------------------------------------------------------------


async def test_an_address_that_connects_too_often_is_refused_unread() -> None:
    victim = transport(accept_burst=4, accept_per_s=0.01)
    async with running(victim):
        port = int(victim.addresses()[0].split("/")[4])
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(8)]
        await refused(victim, "connecting too often")
        for stream in streams:
            await stream.aclose()
    assert victim.counts["connecting too often"] == 4


async def test_silent_connections_make_room_for_one_that_speaks() -> None:
    victim = transport(handshakes_max=4, handshake_s=60.0)
    async with running(victim) as nursery:
        nursery.start_soon(echo, victim)
        port = int(victim.addresses()[0].split("/")[4])
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(20)]
        await assert_answers(victim)
        assert victim.counts["handshakes under way"] >= 16
        for stream in silent:
            await stream.aclose()


async def test_a_handshake_that_takes_too_long_is_ended() -> None:
    victim = transport(handshake_s=0.2)
    async with running(victim):
        port = int(victim.addresses()[0].split("/")[4])
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        with trio.fail_after(60), suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        await stream.aclose()
        await refused(victim, "handshake failed")


async def test_nothing_is_kept_of_peers_that_have_gone() -> None:
    victim = transport()
    async with running(victim):
        assert victim._life is not None
        network = victim._life.host.get_network()
        before = set(network.peerstore.peer_data_map)
        for _ in range(3):
            guest = transport()
            async with running(guest):
                await link(guest, victim)
            await next_of(victim, Disconnected)
        with trio.fail_after(60):
            while set(network.peerstore.peer_data_map) != before:
                await trio.sleep(0.01)
        assert not network.auto_connector.__dict__.get("_recent_disconnects")
        assert victim._door.connections() == 0


async def test_no_muxer_but_yamux_and_no_identify_push_is_spoken() -> None:
    async with attacked() as (victim, host, _):
        assert victim._life is not None
        muxers = victim._life.host.get_network().upgrader.muxer_multistream
        assert list(muxers.transports) == [fence.YAMUX_PROTOCOL]
        with pytest.raises(Exception, match="failed to open a stream"):
            await host.new_stream(fence.id_of(victim.peer_id()), ["/ipfs/id/push/1.0.0"])
